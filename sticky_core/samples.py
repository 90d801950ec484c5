"""A sample is what is looked at in a request: where it comes from, a header, a parameter of its URL. HAProxy's names.

A sample is a callable, `Request -> key | None`, so a function of your own is as good as one from here. None is no key:
the request does not have what was asked for. An empty text is a key like any other; who does not want it says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from sticky_core.errors import ConfigError
from sticky_core.request import Request

__all__ = ["Address", "Key", "Sample", "address", "hdr", "in_bytes", "listed", "named", "path", "src", "url_param"]

Address = IPv4Address | IPv6Address
#: Text is latin-1, a character per byte, as requests carry it.
Key = str | bytes | int | Address

Sample = Callable[[Request], Key | None]


def src(request: Request) -> Address | None:
    """The client's address."""
    return address(request.src)


def path(request: Request) -> str:
    """The path, without the query."""
    return request.path


@dataclass(frozen=True, slots=True)
class hdr:
    """A value of the headers called `name`, which commas divide: the last, or the `number`th (from the end if below
    0).
    """

    name: str
    number: int = -1

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("hdr: a header has a name")
        if self.number == 0:
            raise ConfigError(f"hdr({self.name}): there is no value 0: the first is 1, the last -1")
        object.__setattr__(self, "name", self.name.lower())

    def __call__(self, request: Request) -> str | None:
        values = request.header(self.name)
        if len(values) != 1 or "," in values[0]:
            values = listed(values)
        at = self.number - 1 if self.number > 0 else self.number
        return values[at] if -len(values) <= at < len(values) else None


@dataclass(frozen=True, slots=True)
class url_param:
    """The value of a parameter in the query, as it was sent."""

    name: str

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("url_param: a parameter has a name")

    def __call__(self, request: Request) -> str | None:
        wanted = f"{self.name}="
        for parameter in re.split("[&;?]", request.query):  # HAProxy takes a further question mark for one of these
            if parameter.startswith(wanted):
                return parameter[len(wanted) :]
        return None


def listed(values: Sequence[str]) -> list[str]:
    """The parts that commas outside of quotes divide `values` into, without space around them (RFC 9110, 5.6.1)."""
    parts: list[str] = []
    for value in values:
        if '"' in value:
            parts += (part.strip(" \t") for part in _divided(value))
        else:
            parts += (part.strip(" \t") for part in value.split(","))
    return parts


def _divided(value: str) -> list[str]:
    parts: list[str] = []
    begin, quoted, at = 0, False, 0
    while at < len(value):
        if quoted and value[at] == "\\":
            at += 1
        elif value[at] == '"':
            quoted = not quoted
        elif value[at] == "," and not quoted:
            parts.append(value[begin:at])
            begin = at + 1
        at += 1
    return [*parts, value[begin:]]


LONGEST_ADDRESS = 64  # 45 characters, and a zone


def address(text: str) -> Address | None:
    """The address that `text` names; None if it names none, such as the path of a UNIX socket."""
    return _parsed(text) if len(text) <= LONGEST_ADDRESS else None


@lru_cache(maxsize=8192)  # to parse one takes longer than to choose a server by it
def _parsed(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def in_bytes(key: Key) -> bytes:
    """`key` as HAProxy hashes it: addresses and numbers in network order."""
    if isinstance(key, str):
        try:
            return key.encode("latin-1")
        except UnicodeEncodeError:  # no request carries this text, so it is a function's own
            return key.encode()
    if isinstance(key, bytes):
        return key
    if isinstance(key, int):
        return (key & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "big")
    return key.packed


_WORD = re.compile(r"([a-z_.]+)(?:\(([^()]*)\))?")


def named(text: str) -> Sample:
    """The sample that HAProxy's words name: `src`, `path`, `hdr(X-User)`, `hdr(X-Forwarded-For,1)`,
    `url_param(userid)`.
    """
    match = _WORD.fullmatch(text)
    if match is not None:
        word, argument = match[1].removeprefix("req."), match[2]
        if argument is None and word in _PLAIN:
            return _PLAIN[word]
        if argument and word == "hdr":
            name, _, number = (part.strip() for part in argument.partition(","))
            if not number:
                return hdr(name)
            if re.fullmatch("-?[0-9]+", number):
                return hdr(name, int(number))
        if argument and word in ("url_param", "urlp"):
            return url_param(argument.strip())
    raise ConfigError(f"sample {text!r} is not known: write src, path, hdr(<name>) or url_param(<name>)")


_PLAIN: dict[str, Sample] = {"src": src, "path": path}
