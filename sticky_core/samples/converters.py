"""Converters make a sample of a sample: `lower(hdr("X-User"))`, `ipmask(src, 24)`. In HAProxy's words:
`src,ipmask(24)`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import sha256
from ipaddress import IPv6Address
from string import ascii_lowercase, ascii_uppercase

from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import ConfigError
from sticky_core.http.messages import Request
from sticky_core.samples.request import Sample
from sticky_core.samples.values import Address, key_bytes, key_text, parse_address

_TO_LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)


@dataclass(frozen=True, slots=True)
class lower:
    """The text of a sample with ASCII's capital letters in lower case."""

    sample: Sample

    def __call__(self, request: Request) -> str | None:
        key = self.sample(request)
        return None if key is None else key_text(key).translate(_TO_LOWER)


@dataclass(frozen=True, slots=True)
class prefix:
    """The first `length` characters of a sample's text (HAProxy `bytes(0,length)`)."""

    sample: Sample
    length: int

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigError(f"prefix: length {self.length} leaves nothing: 1 character at least")

    def __call__(self, request: Request) -> str | None:
        key = self.sample(request)
        return None if key is None else key_text(key)[: self.length]


@dataclass(frozen=True, slots=True)
class digest:
    """The SHA-256 of a sample, in hexadecimal, for keys that tables and logs must not show."""

    sample: Sample

    def __call__(self, request: Request) -> str | None:
        key = self.sample(request)
        return None if key is None else sha256(key_bytes(key)).hexdigest()


@dataclass(frozen=True, slots=True)
class field:
    """One part of a sample's text that `delimiters` divide; the first is number 1, the last -1 (HAProxy `field`).
    `field(path, 2, "/")` is the first segment of a path.
    """

    sample: Sample
    number: int
    delimiters: str

    def __post_init__(self) -> None:
        if self.number == 0:
            raise ConfigError("field: there is no part 0: the first is 1, the last -1")
        if not self.delimiters:
            raise ConfigError("field: nothing divides the text: name the delimiters")

    def __call__(self, request: Request) -> str | None:
        key = self.sample(request)
        if key is None:
            return None
        parts = re.split(f"[{re.escape(self.delimiters)}]", key_text(key))
        at = self.number - 1 if self.number > 0 else self.number
        return parts[at] if -len(parts) <= at < len(parts) else None


@dataclass(frozen=True, slots=True)
class ipmask:
    """The network of an address: the first `v4` bits of an IPv4 address, the first `v6` of an IPv6 address (HAProxy
    `ipmask`). An IPv4 address that is mapped into IPv6, as sockets for both report it, is an IPv4 address.
    """

    sample: Sample
    v4: int = 32
    v6: int = 128

    def __post_init__(self) -> None:
        if not (0 <= self.v4 <= 32 and 0 <= self.v6 <= 128):
            raise ConfigError(f"ipmask({self.v4},{self.v6}): a mask has 0..32 bits, and 0..128 for IPv6")

    def __call__(self, request: Request) -> Address | None:
        key = self.sample(request)
        address = key if isinstance(key, Address) else parse_address(key_text(key)) if key else None
        if address is None:
            return None
        if isinstance(address, IPv6Address):
            mapped = address.ipv4_mapped
            if mapped is None:
                return _mask(address, self.v6)
            address = mapped
        return _mask(address, self.v4)


@lru_cache(maxsize=8192)
def _mask(address: Address, bits: int) -> Address:
    rest = address.max_prefixlen - bits
    return type(address)(int(address) >> rest << rest)
