"""A parameter of the query decides the server: a user, a session (HAProxy `balance url_param`).

Its value is hashed as it was sent, an empty one too. Requests without the parameter go to each server in turn. With
`check_post` the form in the body of a POST is searched as well if the query does not have the parameter; HAProxy
searches only the part of the body that has already arrived.
"""

from __future__ import annotations

from collections.abc import Callable

from sticky_core.balance.hashing import Hashing, HashType
from sticky_core.balance.parser import BalanceSpec
from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import ConfigError
from sticky_core.http.messages import Request
from sticky_core.samples.request import form


@dataclass(frozen=True, slots=True)
class UrlParam(Hashing):
    """`name`: the name of the parameter, str, case-sensitive. `check_post`: whether the first 16 KB of a posted form
    are searched too, bool, False; they are read before a server is chosen.

    The other options are those of `Hashing`.
    """

    name: str
    check_post: bool = False

    def __post_init__(self) -> None:
        Hashing.__post_init__(self)
        if not self.name:
            raise ConfigError("url_param: the name of the parameter is empty")

    @classmethod
    def parse(cls, spec: BalanceSpec) -> UrlParam:
        name = spec.next_word()
        if name is None:
            raise spec.error("url_param needs the name of a parameter")
        word = spec.next_word()
        if word not in (None, "check_post"):
            raise spec.error(f"{word!r} is unexpected")
        spec.expect_end()
        return cls(name, word is not None)

    def build_digest(self, kind: HashType) -> Callable[[Request], int | None]:
        number = kind.hasher()
        # HAProxy separates parameters only at & here, unlike in its sample of this name
        first, later = f"{self.name}=", f"&{self.name}="
        posted = form(self.name) if self.check_post else None

        def build_digest(request: Request) -> int | None:
            query = request.query
            if query.startswith(first):
                begin = len(first)
            else:
                begin = query.find(later) + len(later)
                if begin < len(later):
                    value = posted(request) if posted is not None and request.method == "POST" else None
                    return number(value) if value is not None else None
            return number(query[begin:].partition("&")[0])

        return build_digest
