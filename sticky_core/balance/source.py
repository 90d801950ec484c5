"""The client's address says which server (HAProxy `balance source`).

An IPv4 address is its own hash, an IPv6 address the exclusive or of its four words; the function in `hash_type` is not
asked, `avalanche` is. Requests without an address go in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from sticky_core.balance.avalanche import avalanche
from sticky_core.balance.hashing import Hashing, HashType
from sticky_core.balance.parser import BalanceSpec
from sticky_core.http.messages import Request
from sticky_core.samples import request as samples
from sticky_core.samples.request import Sample
from sticky_core.samples.values import LONGEST_ADDRESS, Key, parse_address


@dataclass(frozen=True, slots=True)
class Source(Hashing):
    """`key`: where the address is found, if not where the client comes from; an address or its text.

    Further: `hash_type` and what belongs to it (`Hashing`).
    """

    key: Sample = samples.src

    @classmethod
    def parse(cls, line: BalanceSpec) -> Source:
        line.end()
        return cls()

    def digest(self, kind: HashType) -> Callable[[Request], int | None]:
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
        def remembered(text: str) -> int | None:
            return compute(parse_address(text))

        # the text says as much as the address, and what was made of it is known
        sample: Sample = _text if self.key is samples.src else self.key

        def digest(request: Request) -> int | None:
            key = sample(request)
            if isinstance(key, str):
                return remembered(key) if len(key) <= LONGEST_ADDRESS else None
            return compute(key)

        return digest


def _text(request: Request) -> str:
    return request.src
