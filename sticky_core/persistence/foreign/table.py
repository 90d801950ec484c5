"""A cookie with values that are listed, each with its server: for balancers that publish no formula, such as the App
Service of Azure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import ConfigError
from sticky_core.options.spelling import named_options, nearest
from sticky_core.persistence.foreign.cookie import ForeignCookie
from sticky_core.persistence.foreign.values import ForeignValues
from sticky_core.server.server import Server

#: how many names of servers an error lists
_LISTED = 20


@named_options
def table(
    name: str,
    servers: Mapping[str, str],
    *,
    ignore_case: bool = False,
    path: str | None = None,
    domain: str | None = None,
) -> ForeignCookie:
    """Return a cookie of which the values are listed, for `Cookie(accepts=[...])`:
    `accepts.table("ARRAffinity", {"4a5b...": "s1", "6c7d...": "s2"})`.

    - `name`: the name of the cookie.
    - `servers`: the name of the server for each value. Several values may name one server.
    - `ignore_case`: whether case does not count in values. Default: False.
    - `path`: the attribute Path, with which the cookie is deleted. Default: None, it is not known, and the cookie is
      left.
    - `domain`: the attribute Domain with which it was set. Default: none.

    Raises `ConfigError` with every problem found; a name that no server of the backend has is reported when the backend
    is made, and when it is changed.
    """
    return ForeignCookie("table", name, TableValues(_pairs(name, servers), ignore_case), path=path, domain=domain)


def _pairs(name: str, servers: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(servers, Mapping):
        raise ConfigError(f"accepts.table {name}: {servers!r} is no mapping: write {{'value': 'name of the server'}}")
    return tuple(cast("Mapping[str, str]", servers).items())


@dataclass(frozen=True, slots=True)
class TableValues(ForeignValues):
    """Values that are listed, each with the name of its server; a key is a value."""

    pairs: tuple[tuple[str, str], ...]
    ignore_case: bool

    def problems(self) -> Iterator[str]:
        if not self.pairs:
            yield "the mapping is empty: write {'value': 'name of the server'}"
        for value, server in cast("Sequence[tuple[object, object]]", self.pairs):
            if not isinstance(value, str) or not isinstance(server, str) or not value or not server:
                yield f"{{{value!r}: {server!r}}} does not name a server by a text: write {{'value': 'name'}}"
        texts = [value for value, _ in self.pairs if isinstance(cast(object, value), str)]
        if len({self._key(value) for value in texts}) < len(texts):
            yield "with ignore_case some of the values are the same: leave one of them out, or ignore_case"

    def problems_with(self, servers: Sequence[Server], new: Sequence[Server]) -> Iterator[str]:
        known = {server.name: None for server in servers}
        listed = ", ".join([*known][:_LISTED]) + (", ..." if len(known) > _LISTED else "")
        for unknown in dict.fromkeys(server for _, server in self.pairs if server not in known):
            near = nearest(unknown, known)
            yield f"there is no server {unknown!r}" + (f": write {near!r}" if near is not None else f", but {listed}")

    def _key(self, value: str) -> str:
        return value.lower() if self.ignore_case else value

    def keys_of(self, server: Server) -> Iterator[str]:
        return (self._key(value) for value, name in self.pairs if name == server.name)

    def keys_in(self, value: str) -> Sequence[str]:
        return (self._key(value),)
