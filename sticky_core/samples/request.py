"""A sample is a part of a request that decides where the request goes: its source address, a header, a parameter of
its URL. The names are HAProxy's.

A sample is a callable, `Request -> key | None`, so a function of the user's is as good as one from here. None means
that the request has no key. An empty text is a key like any other.

Clients can send what they like. A sample decides where a request goes; it does not prove what the client is.
"""

from __future__ import annotations

import json
from binascii import a2b_base64
from collections.abc import Callable, Iterator
from typing import cast

from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import ConfigError, raise_problems
from sticky_core.http import cookies
from sticky_core.http.messages import Request
from sticky_core.samples.json_reader import as_key, read_field
from sticky_core.samples.values import Address, Key, parse_address, path_parameter, pick_value, query_parameter

__all__ = [
    "Sample",
    "bearer",
    "cook",
    "form",
    "hdr",
    "json_field",
    "jwt",
    "method",
    "path",
    "path_param",
    "scheme",
    "src",
    "url_param",
]

Sample = Callable[[Request], Key | None]

_LONGEST_PEEK = 1 << 24  # bytes of a body


def src(request: Request) -> Address | None:
    """The client's address."""
    return parse_address(request.src)


def path(request: Request) -> str | None:
    """The path, without the query and the part that the app is mounted under; None for `OPTIONS *`, which has none."""
    return request.path if request.path != "*" else None


def method(request: Request) -> str:
    """The method."""
    return request.method


def scheme(request: Request) -> str:
    """`http`, `https`, `ws` or `wss`, as X-Forwarded-Proto reports it where the peer is a trusted proxy."""
    return request.scheme


@dataclass(frozen=True, slots=True)
class cook:
    """The value of the first cookie called `name`, as the server will get it. Names compare exactly."""

    name: str

    def __post_init__(self) -> None:
        if not cookies.is_name(self.name):
            raise ConfigError(f"cook({self.name}): this can't be the name of a cookie")

    def __call__(self, request: Request) -> str | None:
        texts = request.cookies
        for text in texts:
            values, _ = cookies.take(text, self.name)
            if values:
                return cookies.unquote(values[0])
        if request.cookie_key is not None and cookies.are_cut(texts):
            request.note_missing_key(f"cook({self.name}): more cookies than are read")
        return None


@dataclass(frozen=True, slots=True)
class hdr:
    """One value of the headers called `name`; commas separate values. `number` is 1 for the first, -1 (default) for
    the last.
    """

    name: str
    number: int = -1

    def __post_init__(self) -> None:
        if not isinstance(cast(object, self.name), str):
            raise ConfigError(f"hdr: {self.name!r} is no name of a header: write hdr('X-Session')")
        if not self.name:
            raise ConfigError("hdr: a header has a name")
        if self.number == 0:
            raise ConfigError(f"hdr({self.name}): there is no value 0: the first is 1, the last -1")
        object.__setattr__(self, "name", self.name.lower())

    def __call__(self, request: Request) -> str | None:
        return pick_value(request.header(self.name), self.number)


@dataclass(frozen=True, slots=True)
class url_param:
    """The value of a parameter of the query, as it was sent."""

    name: str

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("url_param: a parameter has a name")

    def __call__(self, request: Request) -> str | None:
        return query_parameter(request.query, self.name)


@dataclass(frozen=True, slots=True)
class path_param:
    """The value of a parameter of the path, as in `/cart;jsessionid=abc`, as it was sent (RFC 3986, 3.3). As in servlet
    containers, the case of its name does not count.
    """

    name: str

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("path_param: a parameter has a name")

    def __call__(self, request: Request) -> str | None:
        return path_parameter(request.path, self.name)


@dataclass(frozen=True, slots=True)
class form:
    """The value of a field of a form in the body, as it was sent (application/x-www-form-urlencoded); None if it does
    not end within the first `limit` bytes. These are read before a server is chosen; the body may be longer.
    """

    name: str
    limit: int = 16384

    def __post_init__(self) -> None:
        raise_problems(_problems_of_field("form", self.name, self.limit))

    def __call__(self, request: Request) -> str | None:
        if _content_type(request) != "application/x-www-form-urlencoded":
            return None
        body = request.peek(self.limit + 1).decode("latin-1")
        is_cut = len(body) > self.limit
        if is_cut:  # the last field may go on
            body = body[: body.rfind("&") + 1]
        wanted = f"{self.name}="
        for field in body.split("&"):
            if field.startswith(wanted):
                return field[len(wanted) :]
        if is_cut:
            request.note_missing_key(_too_long("form", self.name, self.limit))
        return None


@dataclass(frozen=True, slots=True)
class json_field:
    """A text or number of a JSON object in the body, by its name, or `"user.id"` for one of an inner object; None if it
    does not end within the first `limit` bytes. These are read before a server is chosen; the body may be longer, and
    what follows the field is not looked at. Of several fields with one name the first counts.
    """

    name: str
    limit: int = 16384

    def __post_init__(self) -> None:
        raise_problems(_problems_of_field("json_field", self.name, self.limit))

    def __call__(self, request: Request) -> str | None:
        kind = _content_type(request)
        if kind != "application/json" and not kind.endswith("+json"):
            return None
        body = request.peek(self.limit + 1)
        try:
            return as_key(read_field(body[: self.limit], self.name.split(".")))
        except (ValueError, RecursionError):
            if len(body) > self.limit:
                request.note_missing_key(_too_long("json_field", self.name, self.limit))
            return None


def _problems_of_field(sample: str, name: str, limit: int) -> Iterator[str]:
    if not name:
        yield f"{sample}: a field has a name"
    if not 0 < limit <= _LONGEST_PEEK:
        yield f"{sample}: a limit of {limit} bytes is not within 1..{_LONGEST_PEEK}: the body is kept in memory"


def _too_long(sample: str, name: str, limit: int) -> str:
    return f"{sample}({name!a}): not within the first {limit} bytes of the body"


def bearer(request: Request) -> str | None:
    """The token of the Authorization header (RFC 6750; HAProxy `http_auth_bearer`)."""
    for value in request.header("authorization"):
        scheme, _, token = value.partition(" ")
        if scheme.lower() == "bearer":
            return token.strip()
    return None


@dataclass(frozen=True, slots=True)
class jwt:
    """A text or number that is a claim of a JSON Web Token. The token is not verified: the server that gets the request
    must do that.
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
            return _pick(a2b_base64(payload + "=" * (-len(payload) % 4)), self.claim)
        except ValueError:
            return None


def _pick(document: bytes, name: str) -> str | None:
    """Return the text or number in a JSON document at `name`, a path divided by dots; None if there is none."""
    try:
        found: object = json.loads(document)
    except (ValueError, RecursionError):
        return None
    for part in name.split("."):
        if not isinstance(found, dict):
            return None
        found = cast("dict[str, object]", found).get(part)
    return as_key(found)


def _content_type(request: Request) -> str:
    return next(iter(request.header("content-type")), "").partition(";")[0].strip().lower()
