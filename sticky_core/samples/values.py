"""What samples return, and the parsing that they share: keys, addresses, lists, parameters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

Address = IPv4Address | IPv6Address
#: What a sample returns if it finds something. Text is latin-1, a character per byte, as requests carry it.
Key = str | bytes | int | Address

LONGEST_ADDRESS = 64  # 45 characters, and a zone


def key_bytes(key: Key) -> bytes:
    """Return a key as HAProxy hashes it: addresses and numbers in network byte order."""
    if isinstance(key, str):
        try:
            return key.encode("latin-1")
        except UnicodeEncodeError:  # no request carries this text, so a function of the user has made it
            return key.encode()
    if isinstance(key, bytes):
        return key
    if isinstance(key, int):
        return (key & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "big")
    return key.packed


def key_text(key: Key) -> str:
    """Return a key as text."""
    return key if isinstance(key, str) else key.decode("latin-1") if isinstance(key, bytes) else str(key)


def parse_address(text: str) -> Address | None:
    """Return the IP address that `text` names, or None if it names none, such as the path of a UNIX socket."""
    return _parse_address(text) if len(text) <= LONGEST_ADDRESS else None


@lru_cache(maxsize=8192)  # to parse an address takes longer than to choose a server by it
def _parse_address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def address_text(address: Address) -> str:
    """Return an IP address in its shortest form, as C, Go and nginx write it."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return f"::ffff:{address.ipv4_mapped}"  # Python writes that only from 3.13 on
    return str(address)


def split_list(values: Sequence[str]) -> list[str]:
    """Return the parts of header values that commas divide, without white space around them. Commas inside double
    quotes do not divide (RFC 9110, 5.6.1).
    """
    parts: list[str] = []
    for value in values:
        if '"' in value:
            parts += (part.strip(" \t") for part in _split_quoted(value))
        else:
            parts += (part.strip(" \t") for part in value.split(","))
    return parts


def _split_quoted(value: str) -> list[str]:
    parts: list[str] = []
    begin, is_quoted, at = 0, False, 0
    while at < len(value):
        if is_quoted and value[at] == "\\":
            at += 1
        elif value[at] == '"':
            is_quoted = not is_quoted
        elif value[at] == "," and not is_quoted:
            parts.append(value[begin:at])
            begin = at + 1
        at += 1
    return [*parts, value[begin:]]


def pick_value(values: Sequence[str], number: int) -> str | None:
    """Return the part with this number of header values that commas divide: the first is 1, the last -1."""
    if len(values) != 1 or "," in values[0]:
        values = split_list(values)
    at = number - 1 if number > 0 else number
    return values[at] if -len(values) <= at < len(values) else None


def query_parameter(query: str, name: str) -> str | None:
    """Return the value of the first parameter of a query with this name, as it was sent."""
    wanted = f"{name}="
    if wanted in query:
        for parameter in re.split("[&;?]", query):  # HAProxy takes a second question mark for a delimiter
            if parameter.startswith(wanted):
                return parameter[len(wanted) :]
    return None


def path_parameter(path: str, name: str) -> str | None:
    """Return the value of the first parameter of a path with this name, as it was sent. Case does not count."""
    if ";" not in path:
        return None
    wanted = f"{name.lower()}="
    for segment in path.split("/"):
        for parameter in segment.split(";")[1:]:
            if parameter.lower().startswith(wanted):
                return parameter[len(wanted) :]
    return None
