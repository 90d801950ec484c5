"""The texts by which earlier configurations, or other balancers, knew a server (`Server(formerly=...)`): its names, its
ids in cookies, its addresses.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, cast

from sticky_core.http.cookies import is_value
from sticky_core.target import Location, has_scheme


class NamedServer(Protocol):
    """What names a server: a `ServerConfig`, which imports this module."""

    @property
    def name(self) -> str: ...
    @property
    def cookie_id(self) -> str: ...
    @property
    def target(self) -> object: ...
    @property
    def formerly(self) -> tuple[str, ...]: ...


# host and port, and perhaps the path of a URL; a host without a port may as well be a name
_ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]+(?:/\S*)?")


def location_of(text: str) -> Location | None:
    """Return the location that `text` names: `10.0.0.1:80`, `[::1]:80`, `http://10.0.0.1:80/`, `unix:/run/a.sock`; None
    if it is a name or an id.
    """
    try:
        return Location.parse(_as_url(text)) if _is_address(text) else None
    except ValueError:
        return None


def _is_address(text: str) -> bool:
    return has_scheme(text) or _ADDRESS.fullmatch(text) is not None


def _as_url(text: str) -> str:
    return text if has_scheme(text) else f"http://{text}"


def problems_of_types(formerly: object) -> Iterator[str]:
    """Yield a problem for each part of the option `formerly` that has the wrong type."""
    if isinstance(formerly, str):
        yield f"formerly={formerly!r} is no list: write formerly=[{formerly!r}]"
    elif not isinstance(formerly, list | tuple):
        yield f"formerly={formerly!r} is no list: write formerly=['s1', '10.0.0.1:80']"
    else:
        for text in cast("list[object]", formerly):
            if not isinstance(text, str):
                yield f"formerly: {text!r} is no text: write a name, an id, an address or a URL"


def problems_of_texts(formerly: tuple[str, ...]) -> Iterator[str]:
    """Yield a problem for each text of the option `formerly` that can't have named a server."""
    for number, text in enumerate(formerly):
        if text in formerly[:number]:
            yield f"formerly has {text!r} twice: write it once"
        elif not is_value(text) or not text:
            yield (
                f"formerly: {text!r} can't be what a client brings: "
                "printable ASCII without space, quotes, comma, semicolon, backslash"
            )
        elif _is_address(text):
            try:
                Location.parse(_as_url(text))
            except ValueError as error:
                yield f"formerly: {error if has_scheme(text) else f'{text!r} has no port from 1 to 65535'}"


def problems_of_servers(servers: Sequence[NamedServer]) -> Iterator[str]:
    """Yield a problem for each text of a `formerly` that is taken: by another server of the backend, which is called so
    now or was so too, or by the server itself.
    """
    present: dict[object, tuple[NamedServer, str]] = {}
    for server in servers:
        for kind, key in _present_keys(server):
            present.setdefault(key, (server, kind))
    claimed: dict[object, NamedServer] = {}
    for server in servers:
        own = {key for _, key in _present_keys(server)} if server.formerly else ()
        for text in server.formerly:
            where = f"server {server.name}: formerly: {text!r} is"
            if text == server.name == server.cookie_id:
                yield f"{where} its name now, so it has no effect: leave it out"
                continue
            keys = [key for key in (text, *_address_keys(text)) if key not in own]
            other, kind = next((present[key] for key in keys if key in present), (None, ""))
            if other is not None:
                yield (
                    f"{where} the {kind} of server {other.name} now, so what names it belongs there: leave it out, or "
                    f"give server {other.name} another {kind}"
                )
                continue
            sharer = next((claimed[key] for key in keys if key in claimed), server)  # its own texts may be alike
            if sharer is not server and not (server.cookie_id and server.cookie_id == sharer.cookie_id):
                yield (
                    f"{where} in formerly of server {sharer.name} as well: leave it out of one, or give both servers "
                    "the same cookie=, if either may serve these clients"
                )
            for key in keys:
                claimed.setdefault(key, server)


def _present_keys(server: NamedServer) -> Iterator[tuple[str, object]]:
    yield "name", server.name
    if server.cookie_id:
        yield "id in cookies", server.cookie_id
    if isinstance(server.target, str):
        yield "address", server.target
        for key in _address_keys(server.target):
            yield "address", key


def _address_keys(text: str) -> Sequence[object]:
    """Return values that are equal for texts with the same address, however it is written; none if `text` has none."""
    location = location_of(text)
    if location is None:
        return ()
    if location.socket is not None:
        return ((location.socket,),)
    try:
        host = str(ipaddress.ip_address(location.host))
    except ValueError:
        host = location.host.lower()
    return ((host, location.port),)


def find_renamed(removed: Iterable[NamedServer], added: Iterable[NamedServer]) -> dict[str, str]:
    """Return which of the servers `removed` are the same as one of `added`, by name: those that it was known as
    formerly. Each stands for one at most.
    """
    successors: dict[object, str] = {}
    for server in added:
        for text in server.formerly:
            for key in (text, *_address_keys(text)):
                successors.setdefault(key, server.name)
    renamed: dict[str, str] = {}
    for server in removed:
        found = (successors[key] for _, key in _present_keys(server) if key in successors)
        successor = next((name for name in found if name not in renamed.values()), None)
        if successor is not None:
            renamed[server.name] = successor
    return renamed
