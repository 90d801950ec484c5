"""Environ and start_response as the core sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Any, Protocol, cast
from urllib.parse import quote

from sticky_core.cache import TwoGenerationCache
from sticky_core.http.error_page import ErrorPage
from sticky_core.http.forwarding import SAFE
from sticky_core.http.http1 import Header
from sticky_core.server.server import Server
from sticky_core.transaction.transaction import Transaction as CoreTransaction
from sticky_wsgi.stores.client import execute

#: where an environ carries its decision
KEY = "sticky.decision"

Environ = dict[str, Any]
Headers = list[tuple[str, str]]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]
Write = Callable[[bytes], object]


class StartResponse(Protocol):
    """The server's `start_response` (PEP 3333)."""

    def __call__(self, status: str, headers: Headers, exc_info: ExcInfo | None = None, /) -> Write: ...


WSGIApp = Callable[[Environ, StartResponse], Iterable[bytes]]


#: The headers that a CGI environment has without a prefix (RFC 3875, 4.1), by their keys. Some servers have them empty
#: where they did not come.
_BARE = {"CONTENT_TYPE": b"content-type", "CONTENT_LENGTH": b"content-length"}


#: Which keys of an environ are headers, and of what name: clients repeat themselves, and to look at each key costs more
#: than to make the head of them. Keys that are longer than this in all are not remembered.
_SHAPES: TwoGenerationCache[tuple[str, ...], Sequence[tuple[str, bytes]]] = TwoGenerationCache(256)
_LONGEST_SHAPE = 2048


def headers_of(environ: Environ) -> list[Header]:
    """The headers of a request as they came, as far as PEP 3333 lets it be known, with their names in lower case."""
    keys = tuple(environ)
    shape = _SHAPES.young.get(keys) or _shape(keys)
    return [(name, value.encode("latin-1")) for key, name in shape if (value := environ[key]) or key not in _BARE]


def _shape(keys: tuple[str, ...]) -> Sequence[tuple[str, bytes]]:
    shape = _SHAPES.get(keys)
    if shape is None:
        shape = [(key, name) for key in keys if (name := _name(key)) is not None]
        if sum(map(len, keys)) <= _LONGEST_SHAPE:
            _SHAPES.put(keys, shape)
    return shape


def _name(key: str) -> bytes | None:
    """The name of a header as it is, where PEP 3333 writes it so; None for what is no header, and for Expect, which
    servers have answered themselves.
    """
    if key.startswith("HTTP_") and key != "HTTP_EXPECT":
        return key[5:].replace("_", "-").lower().encode("latin-1")
    return _BARE.get(key)


class Transaction(CoreTransaction[Environ, StartResponse]):
    """An environ on its way: the request, what of it the server is to see, and the `start_response` that its app
    answers into.
    """

    __slots__ = ()

    @property
    def method(self) -> str:
        method: str = self.raw_request["REQUEST_METHOD"]
        return method

    @property
    def secure(self) -> bool:
        return self.raw_request.get("wsgi.url_scheme") == "https"

    @property
    def scheme(self) -> str:
        scheme: str = self.raw_request.get("wsgi.url_scheme", "http")
        return scheme

    def header(self, name: str) -> Sequence[str]:
        key = name.upper().replace("-", "_")
        if key in _BARE:
            value = self.raw_request.get(key)
            return (value,) if value else ()
        value = self.raw_request.get(f"HTTP_{key}")
        return () if value is None else (value,)

    @property
    def peer(self) -> str:
        peer: str = self.raw_request.get("REMOTE_ADDR") or ""
        return peer

    @property
    def path(self) -> str:
        environ = self.raw_request
        raw: str | None = environ.get("RAW_URI") or environ.get("REQUEST_URI")
        if raw is None:
            path: str = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
            return quote(path.encode("latin-1"), safe=SAFE)
        return raw.partition("?")[0]

    @property
    def query(self) -> str:
        query: str = self.raw_request.get("QUERY_STRING", "")
        return query

    @property
    def cookies(self) -> tuple[str, ...]:
        # servers have joined those that came, so there is one
        return () if self.cookie_key is None else tuple(self.forwarded_cookies or (cast("str", self.cookie_key),))

    def set_forwarded_cookies(self, texts: Sequence[str]) -> None:
        self.forwarded_cookies = texts

    def forwarded(self) -> Environ:
        """An environ of its own for one attempt: an app writes into what it is given, and the next must not find it."""
        environ = self.raw_request.copy()
        if self.body is not None:
            environ["wsgi.input"] = self.body
        if self.forwarded_cookies is not None:
            if text := self.forwarded_cookies[0]:
                environ["HTTP_COOKIE"] = text
            else:
                del environ["HTTP_COOKIE"]
        return environ

    def start_response(self, status: str, headers: Headers, exc_info: ExcInfo | None = None, /) -> Write:
        """What the app answers into: late, again with `exc_info`, and with the server's own `write` to return."""
        sets_cookies = False
        for name, _ in headers:
            if len(name) == 10 and name.lower() == "set-cookie":
                sets_cookies = True
        self.status = _CODES[status]
        if sets_cookies or not self.persisted.needs_no_mark:
            head = Head(headers, sets_cookies)
            self.stamp(head)
            headers = head.headers
            if self.has_writes:
                pay(self)
        if exc_info is None:
            return self.client_send(status, headers)
        return self.client_send(status, headers, exc_info)


class StatusRetryTransaction(Transaction):
    """A transaction whose answers may be held back, because another server will be asked instead."""

    __slots__ = ()

    @property
    def start_response(self) -> StartResponse:  # pyright: ignore[reportIncompatibleMethodOverride] - who asks calls
        """Each attempt answers into something of its own: who was given up must not be heard again."""
        return HeldResponse(self).start_response

    def release(self, server: Server, over: bool) -> None:
        if over:
            self.ended()
        super().release(server, over)


class HeldResponse:
    """What one attempt answers into. Once its answer is held back, nothing of it goes on."""

    __slots__ = ("_lost", "_transaction")

    def __init__(self, transaction: StatusRetryTransaction) -> None:
        self._transaction = transaction
        self._lost = False

    def start_response(self, status: str, headers: Headers, exc_info: ExcInfo | None = None, /) -> Write:
        transaction = self._transaction
        if not self._lost:
            if transaction.status or not transaction.hold_response(_CODES[status]):
                return Transaction.start_response(transaction, status, headers, exc_info)
            self._lost = True
        return _swallow


def _swallow(_: bytes) -> None:
    """`write` for an answer that nobody will see."""


class _Codes(dict[str, int]):
    """The status code in a status line, 0 where there is none. The usual lines are kept: to parse one costs more."""

    def __missing__(self, line: str) -> int:
        code = line[:3]
        return int(code) if code.isascii() and code.isdigit() else 0


_CODES = _Codes(
    (f"{status.value} {phrase}", status.value)
    for status in HTTPStatus
    for phrase in (status.phrase, status.phrase.upper())
)


class Head:
    """The headers of an answer, to be stamped. Changed by copy: the app's own are left as they are."""

    __slots__ = ("headers", "sets_cookies")

    def __init__(self, headers: Headers, sets_cookies: bool) -> None:
        self.headers = headers
        self.sets_cookies = sets_cookies

    def _values(self, wanted: str) -> list[str]:
        return [value for name, value in self.headers if name.lower() == wanted]

    @property
    def set_cookies(self) -> Sequence[str]:
        return self._values("set-cookie")

    def header(self, name: str) -> Sequence[str]:
        return self._values(name)

    @property
    def cache_control(self) -> str:
        return ",".join(self._values("cache-control"))

    def edit_cookies(self, new: Callable[[str], str | None]) -> None:
        headers: Headers = []
        for name, value in self.headers:
            text = new(value) if name.lower() == "set-cookie" else value
            if text is not None:
                headers.append((name, text))
        self.headers = headers

    def add(self, name: str, value: str) -> None:
        self.headers = [*self.headers, (name.title(), value)]


def pay(transaction: Transaction) -> None:
    """Tell stores what they are owed."""
    transaction.writes_done(execute(transaction.pending_writes))


def start_page(page: ErrorPage, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """An answer of our own."""
    start_response(f"{page.status} {page.reason}", page.headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [page.body]
