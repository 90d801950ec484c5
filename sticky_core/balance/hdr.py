"""A header decides the server (HAProxy `balance hdr(<name>)`).

Its first value counts, up to a comma. Requests without the header, or with an empty one, go to each server in turn.
"""

from __future__ import annotations

from collections.abc import Callable

from sticky_core.balance.hashing import Hashing, HashType
from sticky_core.balance.parser import BalanceSpec
from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import ConfigError
from sticky_core.http.messages import Request
from sticky_core.samples.values import split_list


@dataclass(frozen=True, slots=True)
class Hdr(Hashing):
    """`name`: the name of the header, in upper or lower case.
    `use_domain_only`: use only the label before the top-level domain of a host name: `example` of `www.example.com`.

    The other options are those of `Hashing`.
    """

    name: str
    use_domain_only: bool = False

    def __post_init__(self) -> None:
        Hashing.__post_init__(self)
        if not self.name:
            raise ConfigError("hdr: the name of the header is empty")
        object.__setattr__(self, "name", self.name.lower())

    @classmethod
    def parse(cls, spec: BalanceSpec) -> Hdr:
        if not spec.argument:
            raise spec.error("hdr needs the name of a header in parentheses: hdr(X-User)")
        match spec.next_word():
            case None:
                use_domain_only = False
            case "use_domain_only":
                use_domain_only = True
            case word:
                raise spec.error(f"{word!r} is not use_domain_only")
        spec.expect_end(argument=True)
        return cls(spec.argument, use_domain_only)

    def build_digest(self, kind: HashType) -> Callable[[Request], int | None]:
        number = kind.hasher()
        name, use_domain_only = self.name, self.use_domain_only

        def build_digest(request: Request) -> int | None:
            headers = request.header(name)
            if not headers:
                return None
            value = headers[0]
            if "," in value:
                value = split_list([value])[0]
            if not value:
                return None
            return number(domain(value) if use_domain_only else value)

        return build_digest


def domain(host: str) -> str:
    """Return the label before the top-level domain; all of `host` if it has no dot."""
    end = host.rfind(".", 1)
    return host if end < 0 else host[host.rfind(".", 0, end - 1) + 1 : end]
