"""A parameter in the query says which server: a user, a session (HAProxy `balance url_param`).

Its value counts as it was sent, an empty one too. Requests without the parameter go in turn. With `check_post` the form
in the body of a POST is looked into as well, if the query does not have it; HAProxy does so as far as the body happens
to be there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sticky_core.balance.hashing import Hashing, HashType
from sticky_core.balance.parser import BalanceSpec
from sticky_core.errors import ConfigError
from sticky_core.http.messages import Request
from sticky_core.samples.request import form


@dataclass(frozen=True, slots=True)
class UrlParam(Hashing):
    """`name`: of the parameter, in its own case. `check_post`: whether the first 16 KB of a form that is posted count,
    which are then read before a server is chosen.

    Further: `hash_type` and what belongs to it (`Hashing`).
    """

    name: str
    check_post: bool = False

    def __post_init__(self) -> None:
        Hashing.__post_init__(self)
        if not self.name:
            raise ConfigError("url_param: a parameter has a name")

    @classmethod
    def parse(cls, line: BalanceSpec) -> UrlParam:
        name = line.next()
        if name is None:
            raise line.refused("url_param needs the name of a parameter")
        word = line.next()
        if word not in (None, "check_post"):
            raise line.refused(f"{word!r} is not understood")
        line.end()
        return cls(name, word is not None)

    def digest(self, kind: HashType) -> Callable[[Request], int | None]:
        number = kind.hasher()
        # HAProxy parts parameters at & alone here, unlike its sample of this name
        wanted, among = f"{self.name}=", f"&{self.name}="
        posted = form(self.name) if self.check_post else None

        def digest(request: Request) -> int | None:
            query = request.query
            if query.startswith(wanted):
                begin = len(wanted)
            else:
                begin = query.find(among) + len(among)
                if begin < len(among):
                    value = posted(request) if posted is not None and request.method == "POST" else None
                    return number(value) if value is not None else None
            return number(query[begin:].partition("&")[0])

        return digest
