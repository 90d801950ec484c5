"""What servers were called in the configuration of another balancer: their URLs, addresses, names and ids."""

from __future__ import annotations

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
