"""What servers were called in the configuration of another balancer: their URLs, addresses, names and ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sticky_core.samples.values import Address, address_text, parse_address
from sticky_core.server.formerly import location_of
from sticky_core.server.server import Server


def texts_of(server: Server) -> list[str]:
    """Return the URL of a server, or the name of an app, and the texts of its `formerly`."""
    target = server.config.target
    current = [target] if isinstance(target, str) else [] if server.config.is_url else [server.name]
    return [*current, *server.config.formerly]


def ids_of(server: Server) -> list[str]:
    """Return the name of a server, its `cookie=`, and the texts of its `formerly`, for balancers with ids."""
    return [server.name, *([server.config.cookie] if server.config.cookie else []), *server.config.formerly]


class OldAddress(NamedTuple):
    """A text such as `10.0.0.1:80`, `http://[::1]/base` or `unix:/run/a.sock`, in its parts.

    - `typed`: host and port as they are typed; for any other text, the text.
    - `host`: a name, or an IP address in its shortest form, without brackets; empty if there is none.
    - `port`: that of the scheme if none is typed.
    - `socket`: the path of a UNIX socket; empty if it is none.
    """

    typed: str
    host: str = ""
    port: int = 0
    socket: str = ""

    @property
    def printed(self) -> str:
        """`host:port` as programs print it; the path of a UNIX socket; the text if it is neither."""
        if not self.host:
            return self.socket or self.typed
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def forms(self) -> list[str]:
        """`printed`, and the same as it is typed, with and without the port."""
        typed = self.typed
        with_port = [f"{typed}:{self.port}"] if self.host and ":" not in typed.rpartition("]")[2] else []
        return [*dict.fromkeys((self.printed, typed, *with_port))]

    @property
    def ip(self) -> Address | None:
        """The IP address; None if `host` is a name."""
        return parse_address(self.host)


def parse_old_address(text: str) -> OldAddress:
    """Parse what an old configuration calls a server. Any text is accepted."""
    location = location_of(text)
    if location is None:
        return OldAddress(text)
    if location.socket is not None:
        return OldAddress(text, socket=location.socket)
    typed = text.rpartition("://")[2].partition("/")[0]
    address = parse_address(location.host)
    return OldAddress(typed, location.host if address is None else address_text(address), location.port)


def problems_without_addresses(servers: Sequence[Server], new: Sequence[Server]) -> Iterator[str]:
    """Yield why values that contain the IP address and port of a server can't name any of `servers`, or not by one of
    the texts of those that are `new`.
    """
    yield from problems_without_ports(new)
    if not any(server.is_unresolved or any(map(_is_address, texts_of(server))) for server in servers):
        yield (
            "values contain IP addresses, and no server has one: write in formerly= of each server what it had, "
            "such as formerly=['10.0.0.1:80']"
        )


def problems_without_ports(servers: Sequence[Server]) -> Iterator[str]:
    """Yield a problem for each text of a `formerly` that is an IP address without a port, unless another text of the
    server has the same address with one.
    """
    for server in servers:
        complete = {parse_old_address(text).host for text in server.config.formerly}
        for text in server.config.formerly:
            address = parse_address(text.removeprefix("[").removesuffix("]"))
            if address is not None and address_text(address) not in complete:
                written = f"[{address}]" if ":" in str(address) else str(address)
                problem = f"formerly: {text!r} has no port, which is in the values as well"
                yield f"server {server.name}: {problem}: write '{written}:80'"


def _is_address(text: str) -> bool:
    address = parse_old_address(text)
    return bool(address.socket) or address.ip is not None
