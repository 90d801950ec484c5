"""A header says which server (HAProxy `balance hdr(<name>)`).

Its first value counts, as far as a comma. Requests without it, or with an empty one, go in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sticky_core.balance.hashing import Hashing, HashType
from sticky_core.balance.parser import BalanceSpec
from sticky_core.errors import ConfigError
from sticky_core.http.messages import Request
from sticky_core.samples.values import split_list


@dataclass(frozen=True, slots=True)
class Hdr(Hashing):
    """`name`: of the header, in any case.
    `use_domain_only`: of a host name, only the label before the top-level domain counts: `example` of
    `www.example.com`.

    Further: `hash_type` and what belongs to it (`Hashing`).
    """

    name: str
    use_domain_only: bool = False

    def __post_init__(self) -> None:
        Hashing.__post_init__(self)
        if not self.name:
            raise ConfigError("hdr: a header has a name")
        object.__setattr__(self, "name", self.name.lower())

    @classmethod
    def parse(cls, line: BalanceSpec) -> Hdr:
        if not line.argument:
            raise line.refused("hdr needs the name of a header in parentheses: hdr(X-User)")
        match line.next():
            case None:
                use_domain_only = False
            case "use_domain_only":
                use_domain_only = True
            case word:
                raise line.refused(f"{word!r} is not use_domain_only")
        line.end(argument=True)
        return cls(line.argument, use_domain_only)

    def digest(self, kind: HashType) -> Callable[[Request], int | None]:
        number = kind.hasher()
        name, use_domain_only = self.name, self.use_domain_only

        def digest(request: Request) -> int | None:
            headers = request.header(name)
            if not headers:
                return None
            value = headers[0]
            if "," in value:
                value = split_list([value])[0]
            if not value:
                return None
            return number(domain(value) if use_domain_only else value)

        return digest


def domain(host: str) -> str:
    """The label before the top-level domain; all of it where there is no dot to tell."""
    end = host.rfind(".", 1)
    return host if end < 0 else host[host.rfind(".", 0, end - 1) + 1 : end]
