"""Environs and start_response as the core sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Any, Protocol

from sticky_core.cache import TwoGenerationCache
from sticky_core.http.error_page import ErrorPage
from sticky_core.http.http1 import Header
from sticky_core.http.request_target import request_path
from sticky_core.transaction.status_retry import KEPT_BODY_LIMIT, StatusRetry
from sticky_core.transaction.store_writes import complete_writes, pending_writes
from sticky_core.transaction.transaction import Transaction as CoreTransaction
from sticky_wsgi.stores.client import execute

#: the key of the decision in an environ
KEY = "sticky.decision"
#: The key of the transaction in an environ that is passed to an `Upstream`. Other apps never get it.
TRANSACTION = "sticky.transaction"

Environ = dict[str, Any]
Headers = list[tuple[str, str]]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]
Write = Callable[[bytes], object]


class StartResponse(Protocol):
    """The server's `start_response` (PEP 3333)."""

    def __call__(self, status: str, headers: Headers, exc_info: ExcInfo | None = None, /) -> Write: ...


WSGIApp = Callable[[Environ, StartResponse], Iterable[bytes]]


#: The headers that a CGI environment has without a prefix (RFC 3875, 4.1), by their keys. Some servers set them to an
#: empty text where the client sent none.
_BARE = {"CONTENT_TYPE": b"content-type", "CONTENT_LENGTH": b"content-length"}


#: The keys of an environ that are headers, and the names of these headers, by all keys of the environ: clients repeat
#: themselves, and to look at each key costs more than to build a request head. Environs with longer keys in all are not
#: remembered.
_HEADER_KEYS: TwoGenerationCache[tuple[str, ...], Sequence[tuple[str, bytes]]] = TwoGenerationCache(256)
_MAX_REMEMBERED_KEYS = 2048


def headers_of(environ: Environ) -> list[Header]:
    """Return the headers of a request as they came, as far as PEP 3333 keeps them, with names in lower case."""
    keys = tuple(environ)
    header_keys = _HEADER_KEYS.young.get(keys) or _header_keys(keys)
    try:
        return [
            (name, value.encode("latin-1"))
            for key, name in header_keys
            if (value := environ[key]) != "" or key not in _BARE
        ]
    except AttributeError:  # a test client has put numbers there, or None
        return [
            (name, str(value).encode("latin-1"))
            for key, name in header_keys
            if (value := environ[key]) is not None and (value != "" or key not in _BARE)
        ]


def content_length(environ: Environ) -> str:
    """Return the Content-Length of a request; empty if it has none. Test clients and frameworks write an int as well as
    a text.
    """
    length: str | int | None = environ.get("CONTENT_LENGTH")
    return "" if length is None else str(length)


def _header_keys(keys: tuple[str, ...]) -> Sequence[tuple[str, bytes]]:
    known = _HEADER_KEYS.get(keys)
    if known is None:
        known = [(key, name) for key in keys if (name := _name(key)) is not None]
        if sum(map(len, keys)) <= _MAX_REMEMBERED_KEYS:
            _HEADER_KEYS.put(keys, known)
    return known


def _name(key: str) -> bytes | None:
    """Return the name of the header that the key stands for; None for other keys, and for Expect, which servers handle
    themselves.
    """
    if key.startswith("HTTP_") and key != "HTTP_EXPECT":
        return key[5:].replace("_", "-").lower().encode("latin-1")
    return _BARE.get(key)


class Transaction(CoreTransaction[Environ, StartResponse]):
    """An environ in flight: the request, the environ for the server, and the `start_response` for its app."""

    __slots__ = ()

    @property
    def method(self) -> str:
        method: str = self.raw_request.get("REQUEST_METHOD", "GET")
        return method

    @property
    def connection_scheme(self) -> str:
        scheme: str = self.raw_request.get("wsgi.url_scheme", "http")
        return scheme

    def header(self, name: str) -> Sequence[str]:
        key = name.upper().replace("-", "_")
        is_bare = key in _BARE
        value = self.raw_request.get(key if is_bare else f"HTTP_{key}")
        return () if value is None or (is_bare and value == "") else (str(value),)

    @property
    def peer(self) -> str:
        peer: str = self.raw_request.get("REMOTE_ADDR") or ""
        return peer

    @property
    def path(self) -> str:
        environ = self.raw_request
        raw: str | None = environ.get("RAW_URI") or environ.get("REQUEST_URI")
        root: str = environ.get("SCRIPT_NAME") or ""
        path: str = environ.get("PATH_INFO") or ""
        return request_path(raw.encode("latin-1") if raw else None, root, root + path, "latin-1")

    @property
    def query(self) -> str:
        query: str = self.raw_request.get("QUERY_STRING", "")
        return query

    @property
    def cookies(self) -> tuple[str, ...]:
        # servers join several Cookie headers, so there is one
        return tuple(self.forwarded_cookies or (self.cookie_key,)) if isinstance(self.cookie_key, str) else ()

    def set_forwarded_cookies(self, texts: Sequence[str]) -> None:
        self.forwarded_cookies = texts

    def forwarded(self) -> Environ:
        """Return an environ for one attempt: an app may write into it, and the next attempt must not see that."""
        environ = self.raw_request.copy()
        if self.forwarded_cookies is not None:
            if text := self.forwarded_cookies[0]:
                environ["HTTP_COOKIE"] = text
            else:
                del environ["HTTP_COOKIE"]
        return environ

    def start_response(self, status: str, headers: Headers, exc_info: ExcInfo | None = None, /) -> Write:
        """Start the response of the server's app. The app may call it late, and again with `exc_info`; it gets the
        `write` of the client's `start_response`.
        """
        sets_cookies = False
        for name, _ in headers:
            if len(name) == 10 and name.lower() == "set-cookie":
                sets_cookies = True
        self.decision.status = _CODES[status]
        if sets_cookies or not self.persisted.needs_no_mark:
            head = Head(headers, sets_cookies)
            self.stamp(head)
            headers = head.headers
            if self.has_writes:
                flush_writes(self)
        if exc_info is None:
            return self.client_send(status, headers)
        return self.client_send(status, headers, exc_info)


class StatusRetryTransaction(StatusRetry[Environ, StartResponse], Transaction):
    """A transaction that may hold responses back, because another server is tried instead."""

    __slots__ = ()

    @property
    def start_response(self) -> StartResponse:  # pyright: ignore[reportIncompatibleMethodOverride] - only called
        """A `start_response` for each attempt: a response that was held back must not reach the client later."""
        return HeldResponse(self).start_response

    def set_held_head(self, status: str, headers: Headers, written: list[bytes]) -> None:
        """Take the head of the response that is held back, and the list of what `write` takes of its body."""
        self._held_head = status, [*headers], written

    def keep_head(self) -> None:
        """Keep the head of the response that is held back; the dispatcher keeps its body."""
        _, _, written = self._held_head
        if sum(map(len, written)) <= KEPT_BODY_LIMIT:
            self.keep_response(self._held_head)
        else:
            self.keep_response(None)


class HeldResponse:
    """The `start_response` of one attempt. Once its response is held back, nothing of it reaches the client."""

    __slots__ = ("_is_held", "_left", "_written", "transaction")

    def __init__(self, transaction: StatusRetryTransaction) -> None:
        self.transaction = transaction
        self._is_held = False
        self._left = KEPT_BODY_LIMIT
        self._written: list[bytes] = []  # by `write`, of the response that is held back

    def start_response(self, status: str, headers: Headers, exc_info: ExcInfo | None = None, /) -> Write:
        transaction = self.transaction
        if not self._is_held:
            if transaction.decision.status or not transaction.hold_response(_CODES[status]):
                return super(StatusRetryTransaction, transaction).start_response(status, headers, exc_info)
            self._is_held = True
            transaction.set_held_head(status, headers, self._written)
        return self._write

    def _write(self, data: bytes) -> None:
        """The `write` of a response that is held back. What is beyond the limit makes it too long to be kept."""
        if self._left >= 0:
            self._left -= len(data)
            self._written.append(data)


class _Codes(dict[str, int]):
    """The status code of a status line, 0 if it has none. The usual lines are prepared, as parsing one costs more."""

    def __missing__(self, line: str) -> int:
        code = line[:3]
        return int(code) if code.isascii() and code.isdigit() else 0


_CODES = _Codes(
    (f"{status.value} {phrase}", status.value)
    for status in HTTPStatus
    for phrase in (status.phrase, status.phrase.upper())
)


class Head:
    """The headers of a response, to be stamped. A change makes a copy, and leaves the app's own list as it is."""

    __slots__ = ("_is_copy", "headers", "sets_cookies")

    def __init__(self, headers: Headers, sets_cookies: bool) -> None:
        self.headers = headers
        self._is_copy = False
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
        self._is_copy = True

    def add(self, name: str, value: str) -> None:
        if not self._is_copy:
            self.headers = [*self.headers]
            self._is_copy = True
        self.headers.append((name.title(), value))


def _transaction_of(start_response: Any) -> Transaction | None:
    """Return the transaction that has this `start_response`; None if it is not a transaction's."""
    transaction = getattr(start_response, "__self__", None)
    if isinstance(transaction, HeldResponse):
        transaction = transaction.transaction
    return transaction if isinstance(transaction, Transaction) else None


def with_transaction(environ: Environ, start_response: Any) -> Environ:
    """Return the environ with the transaction that has this `start_response`; the same environ if `start_response` is
    not a transaction's.

    For an `Upstream` that the user has built, which puts a `start_response` of its own before the transaction's.
    """
    transaction = _transaction_of(start_response)
    return {**environ, TRANSACTION: transaction} if transaction is not None else environ


def find_transaction(environ: Environ, start_response: Any) -> Transaction | None:
    """Return the transaction of a request that an upstream forwards: by its `start_response`, or from the environ of
    `with_transaction`; None if no dispatcher serves the request.
    """
    transaction: Transaction | None = environ.get(TRANSACTION)
    return transaction if transaction is not None else _transaction_of(start_response)


def count_client_disconnect(environ: Environ, start_response: Any) -> None:
    """Count that the client has disconnected before the end of the response, if a dispatcher serves the request."""
    transaction = find_transaction(environ, start_response)
    if transaction is not None:
        transaction.client_disconnected()


def flush_writes(transaction: Transaction) -> None:
    """Send the queued writes to the stores."""
    complete_writes(transaction, execute(pending_writes(transaction)))


def end_without_response(transaction: Transaction) -> None:
    """Give up what is reserved for a server that sends no head, in stores as well."""
    transaction.end_without_response()
    if transaction.has_writes:
        flush_writes(transaction)


def end_for_disconnected_client(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """End a request after its client has disconnected before the head, which PEP 3333 requires all the same."""
    count_client_disconnect(environ, start_response)
    transaction = find_transaction(environ, start_response)
    if transaction is not None and transaction.has_writes:
        flush_writes(transaction)
    start_response("499 Client Closed Request", [])
    return []


def start_page(page: ErrorPage, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Start a response of the middleware itself, and return its body."""
    start_response(f"{page.status} {page.reason}", page.headers)
    return [] if environ.get("REQUEST_METHOD") == "HEAD" else [page.body]
