"""A parameter in the query says which server: a user, a session (HAProxy `balance url_param`).

Its value counts as it was sent, an empty one too. Requests without the parameter go in turn. HAProxy also looks into
the forms of POST requests; here balance has no body to look into.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sticky_core.balance.hashing import Hashing, HashType
from sticky_core.balance.words import Line
from sticky_core.errors import ConfigError
from sticky_core.request import Request


@dataclass(frozen=True, slots=True)
class UrlParam(Hashing):
    """`name`: of the parameter, in its own case.

    Further: `hash_type` and what belongs to it (`Hashing`).
    """

    name: str

    def __post_init__(self) -> None:
        Hashing.__post_init__(self)
        if not self.name:
            raise ConfigError("url_param: a parameter has a name")

    @classmethod
    def read(cls, line: Line) -> UrlParam:
        name = line.next()
        if name is None:
            raise line.refused("url_param needs the name of a parameter")
        if (word := line.next()) == "check_post":
            raise line.refused("check_post would read the body, and balance does not: leave it out")
        if word is not None:
            raise line.refused(f"{word!r} is not understood")
        line.end()
        return cls(name)

    def digest(self, kind: HashType) -> Callable[[Request], int | None]:
        number = kind.hasher()
        # HAProxy parts parameters at & alone here, unlike its sample of this name
        wanted, among = f"{self.name}=", f"&{self.name}="

        def digest(request: Request) -> int | None:
            query = request.query
            if query.startswith(wanted):
                begin = len(wanted)
            else:
                begin = query.find(among) + len(among)
                if begin < len(among):
                    return None
            return number(query[begin:].partition("&")[0])

        return digest
