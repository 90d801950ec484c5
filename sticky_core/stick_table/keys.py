"""Keys of stick tables: how a sample becomes one, as HAProxy converts it, and how keys are written.

Facts of HAProxy's conversions are in its configuration manual, 11.1 and 7.3.1; an empty text is a key there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

from sticky_core.samples.converters import ipmask
from sticky_core.samples.request import src
from sticky_core.samples.values import Address, Key, key_bytes, key_text, parse_address

KeyType = Literal["ip", "ipv6", "integer", "string", "binary"]
TableKey = int | str | bytes

_DIGITS = re.compile("[ \t]*([+-]?)([0-9]*)")
_BITS: Mapping[KeyType, int] = {"ip": 32, "ipv6": 128, "integer": 32}

#: what precedes the keys of each type in a file
_LETTERS: Mapping[KeyType, str] = {"ip": "4", "ipv6": "6", "integer": "i", "string": "s", "binary": "b"}
TYPES_BY_LETTER: Mapping[str, KeyType] = {letter: type for type, letter in _LETTERS.items()}


def converter(type: KeyType, length: int) -> Callable[[Key], TableKey | None]:
    """Return the function that makes a key of a sample; None: the sample is no key of that type."""
    match type:
        case "string":
            return _string_converter(length)
        case "binary":
            return _binary_converter(length)
        case "integer":
            return _integer_key
        case "ip":
            return lambda sample: _address_key(_ip(sample))
        case "ipv6":
            return lambda sample: _address_key(_ipv6(sample))


def type_for(sample: object) -> KeyType:
    """Return the type of keys that suits a sample."""
    return "ipv6" if sample is src or isinstance(sample, ipmask) else "string"


def _string_converter(length: int) -> Callable[[Key], str]:
    def convert(sample: Key) -> str:
        return (sample if isinstance(sample, str) else key_text(sample))[:length]

    return convert


def _binary_converter(length: int) -> Callable[[Key], bytes]:
    def convert(sample: Key) -> bytes:
        return key_bytes(sample)[:length].ljust(length, b"\0")

    return convert


def _integer_key(sample: Key) -> int:
    """Return the number that the sample begins with, in 32 bits; 0 if it begins with none."""
    if isinstance(sample, Address):
        return int(sample) & 0xFFFF_FFFF
    if isinstance(sample, int):
        return sample & 0xFFFF_FFFF
    match = _DIGITS.match(key_text(sample))
    assert match is not None
    number = int(match[2][-32:] or 0)  # 10^32 is a multiple of 2^32
    return (-number if match[1] == "-" else number) & 0xFFFF_FFFF


def _address_key(number: int | None) -> str | None:
    """Return an address as hexadecimal text, not as a number: in a dictionary with only text as keys, garbage
    collection visits no key.
    """
    return None if number is None else f"{number:x}"


def _ip(sample: Key) -> int | None:
    address = _address(sample)
    if address is None or isinstance(address, IPv4Address):
        return None if address is None else int(address)
    mapped = address.ipv4_mapped
    if mapped is not None:
        return int(mapped)
    return int(address) if 1 < int(address) <= 0xFFFF_FFFF else None  # compatible (RFC 4291, 2.5.5.1)


def _ipv6(sample: Key) -> int | None:
    address = _address(sample)
    if address is None:
        return None
    return int(address) | 0xFFFF_0000_0000 if isinstance(address, IPv4Address) else int(address)


def _address(sample: Key) -> Address | None:
    if isinstance(sample, Address):
        return sample
    if isinstance(sample, int):
        return IPv4Address(sample & 0xFFFF_FFFF)
    text = key_text(sample)
    if "." in text and text.count(":") == 1:
        text = text.partition(":")[0]  # with a port
    return parse_address(text)


def readable(type: KeyType, key: TableKey) -> str:
    """Return a key as an operator writes it."""
    if type == "ip":
        return str(IPv4Address(int(str(key), 16)))
    if type == "ipv6":
        return str(IPv6Address(int(str(key), 16)))
    return key.hex() if isinstance(key, bytes) else str(key)


def encode(type: KeyType, key: TableKey) -> str:
    """Return a key as it is written in a file: a letter for its type, and hexadecimal digits."""
    if isinstance(key, int):
        digits = f"{key:x}"
    elif isinstance(key, bytes):
        digits = key.hex()
    else:
        digits = key.encode("utf-8", "surrogatepass").hex() if type == "string" else key
    return _LETTERS[type] + digits


def decode(type: KeyType, digits: str) -> TableKey:
    """Return the key that hexadecimal digits stand for. ValueError if it is none of its type."""
    if type == "binary":
        return bytes.fromhex(digits)
    if type == "string":
        return bytes.fromhex(digits).decode("utf-8", "surrogatepass")
    number = int(digits, 16)
    if number >= 1 << _BITS[type]:
        raise ValueError(f"{number} is no key of type {type}")
    return number if type == "integer" else f"{number:x}"
