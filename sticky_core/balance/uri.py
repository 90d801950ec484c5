"""The path decides the server, so that each server caches its own part (HAProxy `balance uri`)."""

from __future__ import annotations

from collections.abc import Callable

from sticky_core.balance.hashing import Hashing, HashType
from sticky_core.balance.parser import BalanceSpec
from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import ConfigError
from sticky_core.http.messages import Request


@dataclass(frozen=True, slots=True)
class Uri(Hashing):
    """`whole`: whether the query is hashed as well, bool, False.
    `len`: how many characters are hashed, int, 0 for all.
    `depth`: how many directories are hashed, int, 0 for all.
    `path_only`: hash the path without the scheme and authority of an absolute form, bool. Here nothing else is ever
    hashed, so it changes nothing.

    The other options are those of `Hashing`.
    """

    whole: bool = False
    len: int = 0
    depth: int = 0
    path_only: bool = False

    def __post_init__(self) -> None:
        Hashing.__post_init__(self)
        if self.len < 0 or self.depth < 0:
            raise ConfigError(f"uri: len {self.len} and depth {self.depth} must not be below 0")

    @classmethod
    def parse(cls, spec: BalanceSpec) -> Uri:
        whole, length, depth, path_only = False, 0, 0, False
        while (word := spec.next_word()) is not None:
            match word:
                case "whole":
                    whole = True
                case "path-only":
                    path_only = True
                case "len":
                    length = spec.next_number(word)
                case "depth":
                    depth = spec.next_number(word)
                case _:
                    raise spec.error(f"{word!r} is not one of whole, len <number>, depth <number>, path-only")
        spec.expect_end()
        return cls(whole=whole, len=length, depth=depth, path_only=path_only)

    def build_digest(self, kind: HashType) -> Callable[[Request], int | None]:
        number = kind.hasher()

        def build_digest(request: Request) -> int:
            return number(self.key(request))

        return build_digest

    def key(self, request: Request) -> str:
        """Return the part of the URI of `request` that is hashed."""
        uri = request.path
        if self.whole and request.query:
            uri = f"{uri}?{request.query}"
        if self.len:
            uri = uri[: self.len]
        if self.depth:
            uri = "/".join(uri.split("/", self.depth + 1)[: self.depth + 1])
        return uri
