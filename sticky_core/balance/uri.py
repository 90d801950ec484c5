"""The path says which server, so that each keeps its part of a cache (HAProxy `balance uri`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sticky_core.balance.hashing import Hashing, HashType
from sticky_core.balance.parser import BalanceSpec
from sticky_core.errors import ConfigError
from sticky_core.http.messages import Request


@dataclass(frozen=True, slots=True)
class Uri(Hashing):
    """`whole`: the query counts as well.
    `len`: only the first so many characters count; 0 is all.
    `depth`: only so many directories count: the path ends before the slash behind them; 0 is all.
    `path_only`: the path alone, not the scheme and authority that a proxy's client may have put before it. Servers hand
    us the path, so it is always so here.

    Further: `hash_type` and what belongs to it (`Hashing`).
    """

    whole: bool = False
    len: int = 0
    depth: int = 0
    path_only: bool = False

    def __post_init__(self) -> None:
        Hashing.__post_init__(self)
        if self.len < 0 or self.depth < 0:
            raise ConfigError(f"uri: len {self.len} and depth {self.depth} are not below 0")

    @classmethod
    def parse(cls, line: BalanceSpec) -> Uri:
        whole, length, depth, path_only = False, 0, 0, False
        while (word := line.next()) is not None:
            match word:
                case "whole":
                    whole = True
                case "path-only":
                    path_only = True
                case "len":
                    length = line.number(word)
                case "depth":
                    depth = line.number(word)
                case _:
                    raise line.refused(f"{word!r} is none of whole, len <number>, depth <number>, path-only")
        line.end()
        return cls(whole=whole, len=length, depth=depth, path_only=path_only)

    def digest(self, kind: HashType) -> Callable[[Request], int | None]:
        number = kind.hasher()

        def digest(request: Request) -> int:
            return number(self.key(request))

        return digest

    def key(self, request: Request) -> str:
        """What counts of the URI of `request`."""
        uri = request.path
        if self.whole and request.query:
            uri = f"{uri}?{request.query}"
        if self.len:
            uri = uri[: self.len]
        if self.depth:
            uri = "/".join(uri.split("/", self.depth + 1)[: self.depth + 1])
        return uri
