"""A sample of the request says which server (HAProxy `balance hash <sample>`). Requests without it go in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sticky_core.balance.hashing import Hashing, HashType
from sticky_core.balance.parser import BalanceSpec
from sticky_core.errors import ConfigError
from sticky_core.http.messages import Request
from sticky_core.samples.parser import parse_sample
from sticky_core.samples.request import Sample


@dataclass(frozen=True, slots=True)
class Hash(Hashing):
    """`key`: a sample, or any function of the request that returns a text, bytes, a number or an address; None is no
    key. It is called while the backend is locked, so it looks at the request and at nothing that waits.

    Further: `hash_type` and what belongs to it (`Hashing`).
    """

    key: Sample

    def __post_init__(self) -> None:
        Hashing.__post_init__(self)
        if not callable(self.key):
            raise ConfigError(
                f"hash: {self.key!r} is no sample: hand src, path, hdr(...), url_param(...), or a function"
            )

    @classmethod
    def parse(cls, line: BalanceSpec) -> Hash:
        sample = line.next()
        if sample is None:
            raise line.refused("hash needs a sample: hash src, hash hdr(X-User)")
        line.end()
        return cls(parse_sample(sample))

    def digest(self, kind: HashType) -> Callable[[Request], int | None]:
        number = kind.hasher()
        sample = self.key

        def digest(request: Request) -> int | None:
            key = sample(request)
            return None if key is None else number(key)

        return digest
