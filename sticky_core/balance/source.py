"""The client's address decides the server (HAProxy `balance source`).

An IPv4 address is its own hash, an IPv6 address is the exclusive or of its four words; of `hash_type` the function is
not used, `avalanche` is. Requests without an address go to each server in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from sticky_core.balance.avalanche import avalanche
from sticky_core.balance.hashing import Hashing, HashType
from sticky_core.balance.parser import BalanceSpec
from sticky_core.deferred.dataclass import dataclass
from sticky_core.http.messages import Request
from sticky_core.samples import request as samples
from sticky_core.samples.request import Sample
from sticky_core.samples.values import LONGEST_ADDRESS, Key, parse_address


@dataclass(frozen=True, slots=True)
class Source(Hashing):
    """`key`: a sample of the address, as an IP address or as text; by default the address of the client (`src`).

    The other options are those of `Hashing`.
    """

    key: Sample = samples.src

    @classmethod
    def parse(cls, spec: BalanceSpec) -> Source:
        spec.expect_end()
        return cls()

    def build_digest(self, kind: HashType) -> Callable[[Request], int | None]:
        def compute(address: Key | None) -> int | None:
            if isinstance(address, IPv4Address):
                number = int(address)
            elif isinstance(address, IPv6Address):
                number = int(address)
                number ^= number >> 64
                number = (number ^ number >> 32) & 0xFFFFFFFF
            else:
                return None
            return avalanche(number) if kind.avalanche else number

        @lru_cache(maxsize=8192)
        def cached(text: str) -> int | None:
            return compute(parse_address(text))

        # the text of `src` is used as the key of the cache, so that it need not be parsed again
        sample: Sample = _text if self.key is samples.src else self.key

        def build_digest(request: Request) -> int | None:
            key = sample(request)
            if isinstance(key, str):
                return cached(key) if len(key) <= LONGEST_ADDRESS else None
            return compute(key)

        return build_digest


def _text(request: Request) -> str:
    return request.src
