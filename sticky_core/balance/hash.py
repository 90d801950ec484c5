"""A sample of the request decides the server (HAProxy `balance hash <sample>`). Requests without it go to each server
in turn.
"""

from __future__ import annotations

from collections.abc import Callable

from sticky_core.balance.hashing import Hashing, HashType
from sticky_core.balance.parser import BalanceSpec
from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import ConfigError
from sticky_core.http.messages import Request
from sticky_core.samples.parser import parse_sample
from sticky_core.samples.request import Sample


@dataclass(frozen=True, slots=True)
class Hash(Hashing):
    """`key`: a sample, or any function of the request that returns str, bytes, int or an IP address; None means no key.
    It is called with the backend's lock held, so it must not wait for anything.

    The other options are those of `Hashing`.
    """

    key: Sample

    def __post_init__(self) -> None:
        Hashing.__post_init__(self)
        if not callable(self.key):
            raise ConfigError(
                f"hash: {self.key!r} is not a sample: pass src, path, hdr(...), url_param(...), or a function"
            )

    @classmethod
    def parse(cls, spec: BalanceSpec) -> Hash:
        sample = spec.next_word()
        if sample is None:
            raise spec.error("hash needs a sample: hash src, hash hdr(X-User)")
        spec.expect_end()
        return cls(parse_sample(sample))

    def build_digest(self, kind: HashType) -> Callable[[Request], int | None]:
        number = kind.hasher()
        sample = self.key

        def build_digest(request: Request) -> int | None:
            key = sample(request)
            return None if key is None else number(key)

        return build_digest
