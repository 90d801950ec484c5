"""The client's address says which server (HAProxy `balance source`).

An IPv4 address is its own hash, an IPv6 address the exclusive or of its four words; the function in `hash_type` is not
asked, `avalanche` is. Requests without an address go in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from sticky_core import samples
from sticky_core.balance.avalanche import avalanche
from sticky_core.balance.hashing import Hashing, HashType
from sticky_core.balance.words import Line
from sticky_core.request import Request
from sticky_core.samples import Sample


@dataclass(frozen=True, slots=True)
class Source(Hashing):
    """`key`: where the address is found, if not where the client comes from; an address or its text.

    Further: `hash_type` and what belongs to it (`Hashing`).
    """

    key: Sample = samples.src

    @classmethod
    def read(cls, line: Line) -> Source:
        line.end()
        return cls()

    def digest(self, kind: HashType) -> Callable[[Request], int | None]:
        sample = self.key
        scattered = lru_cache(maxsize=8192)(avalanche)

        def digest(request: Request) -> int | None:
            key = sample(request)
            address = samples.address(key) if isinstance(key, str) else key
            if isinstance(address, IPv4Address):
                number = int(address)
            elif isinstance(address, IPv6Address):
                number = int(address)
                number ^= number >> 64
                number = (number ^ number >> 32) & 0xFFFFFFFF
            else:
                return None
            return scattered(number) if kind.avalanche else number

        return digest
