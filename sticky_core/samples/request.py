"""A sample is what is looked at in a request: where it comes from, a header, a parameter of its URL. HAProxy's names.

A sample is a callable, `Request -> key | None`, so a function of your own is as good as one from here. None is no key:
the request does not have what was asked for. An empty text is a key like any other; who does not want it says so.

Converters make a sample of a sample: `lower(hdr("X-User"))`, `ipmask(src, 24)`. In HAProxy's words: `src,ipmask(24)`.

What a client sends is its own invention. A sample says where a request goes, never who the client is.
"""

from __future__ import annotations

import json
import re
from binascii import a2b_base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address, ip_address
from string import ascii_lowercase, ascii_uppercase
from typing import cast

from sticky_core.errors import ConfigError, raise_problems
from sticky_core.http import cookies
from sticky_core.http.messages import Request

__all__ = [
    "Address",
    "Key",
    "Sample",
    "bearer",
    "cook",
    "digest",
    "field",
    "form",
    "hdr",
    "ipmask",
    "json_field",
    "jwt",
    "key_bytes",
    "key_text",
    "lower",
    "method",
    "parse_address",
    "parse_sample",
    "path",
    "path_param",
    "prefix",
    "query_parameter",
    "scheme",
    "split_list",
    "src",
    "url_param",
]

Address = IPv4Address | IPv6Address
#: Text is latin-1, a character per byte, as requests carry it.
Key = str | bytes | int | Address

Sample = Callable[[Request], Key | None]

_MOST_PEEKED = 1 << 24  # bytes of a body


def src(request: Request) -> Address | None:
    """The client's address."""
    return parse_address(request.src)


def path(request: Request) -> str:
    """The path, without the query."""
    return request.path


def method(request: Request) -> str:
    return request.method


def scheme(request: Request) -> str:
    """`http`, `https`, `ws` or `wss`."""
    return request.scheme


@dataclass(frozen=True, slots=True)
class cook:
    """The value of the first cookie called `name`, as the server will see it; names compare exactly."""

    name: str

    def __post_init__(self) -> None:
        if not cookies.is_name(self.name):
            raise ConfigError(f"cook({self.name}): this can't be the name of a cookie")

    def __call__(self, request: Request) -> str | None:
        for text in request.cookies:
            values, _ = cookies.take(text, self.name)
            if values:
                return cookies.unquote(values[0])
        return None


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
        return pick_value(request.header(self.name), self.number)


def pick_value(values: Sequence[str], number: int) -> str | None:
    """Of the parts that commas divide `values` into the `number`th, from the end if below 0."""
    if len(values) != 1 or "," in values[0]:
        values = split_list(values)
    at = number - 1 if number > 0 else number
    return values[at] if -len(values) <= at < len(values) else None


@dataclass(frozen=True, slots=True)
class url_param:
    """The value of a parameter in the query, as it was sent."""

    name: str

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("url_param: a parameter has a name")

    def __call__(self, request: Request) -> str | None:
        return query_parameter(request.query, self.name)


def query_parameter(query: str, name: str) -> str | None:
    """The value of the first parameter called `name` in a query, as it was sent."""
    wanted = f"{name}="
    if wanted in query:
        for parameter in re.split("[&;?]", query):  # HAProxy takes a further question mark for one of these
            if parameter.startswith(wanted):
                return parameter[len(wanted) :]
    return None


@dataclass(frozen=True, slots=True)
class path_param:
    """The value of a parameter of the path, as in `/cart;jsessionid=abc`, as it was sent (RFC 3986, 3.3). Names compare
    without regard to case, as servlet containers do.
    """

    name: str

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("path_param: a parameter has a name")

    def __call__(self, request: Request) -> str | None:
        return path_parameter(request.path, self.name)


def path_parameter(path: str, name: str) -> str | None:
    """The value of the first parameter called `name` in a path."""
    if ";" not in path:
        return None
    wanted = f"{name.lower()}="
    for segment in path.split("/"):
        for parameter in segment.split(";")[1:]:
            if parameter.lower().startswith(wanted):
                return parameter[len(wanted) :]
    return None


@dataclass(frozen=True, slots=True)
class form:
    """The value of a field of a form in the body, as it was sent (application/x-www-form-urlencoded), if it ends within
    the first `limit` bytes. The body is read for it before a server is chosen.
    """

    name: str
    limit: int = 16384

    def __post_init__(self) -> None:
        raise_problems(_wrong("form", self.name, self.limit))

    def __call__(self, request: Request) -> str | None:
        if _content_type(request) != "application/x-www-form-urlencoded":
            return None
        body = request.peek(self.limit + 1).decode("latin-1")
        if len(body) > self.limit:  # the last field may go on
            body = body[: body.rfind("&") + 1]
        wanted = f"{self.name}="
        found = (field[len(wanted) :] for field in body.split("&") if field.startswith(wanted))
        return next(found, None)


@dataclass(frozen=True, slots=True)
class json_field:
    """A field of a JSON object in the body: a text or a number, by its name, or `"user.id"` for one further inside.
    None if the body is longer than `limit` bytes. It is read before a server is chosen.
    """

    name: str
    limit: int = 16384

    def __post_init__(self) -> None:
        raise_problems(_wrong("json_field", self.name, self.limit))

    def __call__(self, request: Request) -> str | None:
        kind = _content_type(request)
        if kind != "application/json" and not kind.endswith("+json"):
            return None
        body = request.peek(self.limit + 1)
        return _picked(body, self.name) if len(body) <= self.limit else None


def _wrong(sample: str, name: str, limit: int) -> Iterator[str]:
    if not name:
        yield f"{sample}: a field has a name"
    if not 0 < limit <= _MOST_PEEKED:
        yield f"{sample}: a limit of {limit} bytes is not within 1..{_MOST_PEEKED}: it is kept in memory"


def bearer(request: Request) -> str | None:
    """The token of the Authorization header (RFC 6750; HAProxy `http_auth_bearer`)."""
    for value in request.header("authorization"):
        scheme, _, token = value.partition(" ")
        if scheme.lower() == "bearer":
            return token.strip()
    return None


@dataclass(frozen=True, slots=True)
class jwt:
    """A claim of a JSON Web Token: a text or a number. The token is not verified, so this says where a request goes and
    nothing else: whoever serves it must check.
    """

    claim: str
    token: Sample = bearer

    def __post_init__(self) -> None:
        if not self.claim:
            raise ConfigError("jwt: a claim has a name")

    def __call__(self, request: Request) -> str | None:
        token = self.token(request)
        if not isinstance(token, str) or token.count(".") != 2:
            return None
        payload = token.split(".")[1].replace("-", "+").replace("_", "/")
        try:
            return _picked(a2b_base64(payload + "=" * (-len(payload) % 4)), self.claim)
        except ValueError:
            return None


def _picked(document: bytes, name: str) -> str | None:
    """A text or number in a JSON document, by the names that lead to it."""
    try:
        found: object = json.loads(document)
    except (ValueError, RecursionError):
        return None
    for part in name.split("."):
        if not isinstance(found, dict):
            return None
        found = cast("dict[str, object]", found).get(part)
    if isinstance(found, str):
        return found.encode().decode("latin-1") if found.isprintable() else None
    return str(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def _content_type(request: Request) -> str:
    return next(iter(request.header("content-type")), "").partition(";")[0].strip().lower()


# Converters

_SMALL = str.maketrans(ascii_uppercase, ascii_lowercase)


@dataclass(frozen=True, slots=True)
class lower:
    """A sample's text with capital letters made small, ASCII's only."""

    sample: Sample

    def __call__(self, request: Request) -> str | None:
        key = self.sample(request)
        return None if key is None else key_text(key).translate(_SMALL)


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
    """The SHA-256 of a sample, in hexadecimal: for what is not to be seen in tables and logs."""

    sample: Sample

    def __call__(self, request: Request) -> str | None:
        key = self.sample(request)
        return None if key is None else sha256(key_bytes(key)).hexdigest()


@dataclass(frozen=True, slots=True)
class field:
    """The `number`th part of a sample's text that `delimiters` divide, the first being 1, the last -1 (HAProxy
    `field`); `field(path, 2, "/")` is the first segment of a path.
    """

    sample: Sample
    number: int
    delimiters: str

    def __post_init__(self) -> None:
        if self.number == 0:
            raise ConfigError("field: there is no part 0: the first is 1, the last -1")
        if not self.delimiters:
            raise ConfigError("field: nothing divides it: name the delimiters")

    def __call__(self, request: Request) -> str | None:
        key = self.sample(request)
        if key is None:
            return None
        parts = re.split(f"[{re.escape(self.delimiters)}]", key_text(key))
        at = self.number - 1 if self.number > 0 else self.number
        return parts[at] if -len(parts) <= at < len(parts) else None


@dataclass(frozen=True, slots=True)
class ipmask:
    """The network that an address is in: the first `v4` bits of an IPv4 address, the first `v6` of an IPv6 one (HAProxy
    `ipmask`). An IPv4 address that is mapped into IPv6, as sockets for both have it, is an IPv4 address.
    """

    sample: Sample
    v4: int = 32
    v6: int = 128

    def __post_init__(self) -> None:
        if not (0 <= self.v4 <= 32 and 0 <= self.v6 <= 128):
            raise ConfigError(f"ipmask({self.v4},{self.v6}): a mask has 0..32 bits, and 0..128 for IPv6")

    def __call__(self, request: Request) -> Address | None:
        found = self.sample(request)
        where = found if isinstance(found, Address) else parse_address(key_text(found)) if found else None
        if where is None:
            return None
        if isinstance(where, IPv6Address):
            mapped = where.ipv4_mapped
            if mapped is None:
                return _masked(where, self.v6)
            where = mapped
        return _masked(where, self.v4)


@lru_cache(maxsize=8192)
def _masked(where: Address, bits: int) -> Address:
    rest = where.max_prefixlen - bits
    return type(where)(int(where) >> rest << rest)


def split_list(values: Sequence[str]) -> list[str]:
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


def parse_address(text: str) -> Address | None:
    """The address that `text` names; None if it names none, such as the path of a UNIX socket."""
    return _parsed(text) if len(text) <= LONGEST_ADDRESS else None


@lru_cache(maxsize=8192)  # to parse one takes longer than to choose a server by it
def _parsed(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def key_bytes(key: Key) -> bytes:
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


def key_text(key: Key) -> str:
    """`key` as people write it."""
    return key if isinstance(key, str) else key.decode("latin-1") if isinstance(key, bytes) else str(key)


_WORD = re.compile(r"([a-z_.0-9]+)(?:\(([^()]*)\))?")
_CHAIN = re.compile(r"[a-z_.0-9]+(?:\([^()]*\))?(?:,[a-z_.0-9]+(?:\([^()]*\))?)*")


def parse_sample(text: str) -> Sample:
    """The sample that HAProxy's words name: `src`, `path`, `method`, `hdr(X-User)`, `hdr(X-Forwarded-For,1)`,
    `cook(sid)`, `url_param(userid)`, `url_param(jsessionid,;)`, with converters behind it: `lower`, `ipmask(24,64)`,
    `field(2,/)`, `bytes(0,8)`, `sha2`.
    """
    if _CHAIN.fullmatch(text) is None:
        raise ConfigError(_UNKNOWN.format(text))
    first, *further = _WORD.finditer(text)
    sample = _fetch(first[1].removeprefix("req."), _arguments(first[2]))
    for word in further:
        sample = sample and _converted(sample, word[1], _arguments(word[2]))
    if sample is None:
        raise ConfigError(_UNKNOWN.format(text))
    return sample


_UNKNOWN = (
    "sample {!r} is not known: write src, path, method, hdr(<name>), cook(<name>) or url_param(<name>), and behind it, "
    "after a comma, lower, ipmask(<bits>), field(<number>,<delimiters>), bytes(0,<length>) or sha2"
)


def _arguments(text: str | None) -> list[str]:
    return [] if text is None else [part.strip() for part in text.split(",")]


def _fetch(word: str, arguments: list[str]) -> Sample | None:
    match word, arguments:
        case "src" | "path" | "method" | "http_auth_bearer", []:
            return _PLAIN[word]
        case "hdr" | "fhdr", [name] if name:
            return hdr(name)
        case "hdr" | "fhdr", [name, number] if name and INTEGER.fullmatch(number):
            return hdr(name, int(number))
        case "cook" | "cookie", [name] if name:
            return cook(name)
        case "url_param" | "urlp", [name] if name:
            return url_param(name)
        case "url_param" | "urlp", [name, ";"] if name:
            return path_param(name)
        case _:
            return None


def _converted(sample: Sample, word: str, arguments: list[str]) -> Sample | None:
    if word == "field" and len(arguments) == 2 and INTEGER.fullmatch(arguments[0]):
        return field(sample, int(arguments[0]), arguments[1])
    if not all(map(INTEGER.fullmatch, arguments)):
        return None
    match word, [int(argument) for argument in arguments]:
        case "lower", []:
            return lower(sample)
        case "sha2", [] | [256]:
            return digest(sample)
        case "bytes", [0, length]:
            return prefix(sample, length)
        case "ipmask", [v4]:
            return ipmask(sample, v4)
        case "ipmask", [v4, v6]:
            return ipmask(sample, v4, v6)
        case _:
            return None


INTEGER = re.compile("-?[0-9]{1,9}")
_PLAIN: dict[str, Sample] = {"src": src, "path": path, "method": method, "http_auth_bearer": bearer}
