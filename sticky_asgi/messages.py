"""Scope and messages as the core sees them. Header text is latin-1, a character per byte; names are lower case, as ASGI
has it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast
from urllib.parse import quote

import anyio
from anyio.lowlevel import EventLoopToken, current_token
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sticky_asgi.stores.client import execute
from sticky_core.http.error_page import ErrorPage
from sticky_core.http.forwarding import SAFE
from sticky_core.server.server import Server
from sticky_core.transaction.transaction import Transaction as CoreTransaction

__all__ = [
    "KEY",
    "ASGIApp",
    "Headers",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "Soon",
    "StatusRetryTransaction",
    "Transaction",
    "cookie_key",
    "event_loop",
    "gone",
    "pay",
    "send_page",
    "soon_here",
    "waker",
]

#: where a scope carries its decision
KEY = "sticky"

Header = tuple[bytes, bytes]
Headers = list[Header]

#: the messages that carry the head of an answer
HEADS = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})


#: the value of the Cookie header; where there are several, theirs in a tuple
CookieKey = bytes | tuple[bytes, ...] | None


#: for each Cookie header that came, what goes on in its place
Kept = list[tuple[Header, Header | None]]


def event_loop() -> EventLoopToken | None:
    """What stands for the event loop that we are called in, whichever library's; None outside of any."""
    try:
        return current_token()
    except RuntimeError:
        return None


#: has something called on an event loop soon, from whatever thread; RuntimeError if it has ended
Soon = Callable[[Callable[[], object]], object]


def soon_here() -> Soon:
    """How to reach this event loop from elsewhere."""
    native: Any = current_token().native_token
    soon: Soon = native.call_soon_threadsafe if hasattr(native, "call_soon_threadsafe") else native.run_sync_soon
    return soon


def waker(woken: anyio.Event) -> Callable[[], bool]:
    """Sets `woken` from whatever thread; False if its event loop has ended."""
    soon = soon_here()

    def wake() -> bool:
        try:
            soon(woken.set)
        except RuntimeError:
            return False
        return True

    return wake


def cookie_key(scope: Scope) -> CookieKey:
    key: CookieKey = None
    for name, value in scope["headers"]:
        if name == b"cookie":
            key = value if key is None else (*_values(key), value)
    return key


def _values(key: CookieKey) -> tuple[bytes, ...]:
    return () if key is None else (key,) if isinstance(key, bytes) else key


class Transaction(CoreTransaction[Scope, Send]):
    """A scope on its way: the request, what of it the server is to see, and the `send` that the server's app answers
    into.
    """

    __slots__ = ()

    @property
    def method(self) -> str:
        method: str = self.raw_request.get("method", "GET")  # a WebSocket begins with a GET
        return method

    @property
    def secure(self) -> bool:
        return self.raw_request.get("scheme") in ("https", "wss")

    @property
    def scheme(self) -> str:
        scheme: str = self.raw_request.get("scheme", "http")
        return scheme

    def header(self, name: str) -> Sequence[str]:
        wanted = name.encode("latin-1")
        return [value.decode("latin-1") for name, value in self.raw_request["headers"] if name == wanted]

    @property
    def peer(self) -> str:
        client = self.raw_request.get("client")
        return client[0] if client else ""

    @property
    def path(self) -> str:
        raw: bytes | None = self.raw_request.get("raw_path")
        if not raw:
            return quote(self.raw_request["path"], safe=SAFE)
        return raw.decode("latin-1").partition("?")[0]

    @property
    def query(self) -> str:
        query: bytes = self.raw_request["query_string"]
        return query.decode("latin-1")

    @property
    def cookies(self) -> tuple[str, ...]:
        kept = cast("Kept | None", self.forwarded_cookies)
        if kept is not None:
            return tuple(["" if header is None else header[1].decode("latin-1") for _, header in kept])
        return tuple([value.decode("latin-1") for value in _values(cast("CookieKey", self.cookie_key))])

    def set_forwarded_cookies(self, texts: Sequence[str]) -> None:
        kept: Kept = []
        for number, came in enumerate(_values(cast("CookieKey", self.cookie_key))):
            text = texts[number]
            kept.append(((b"cookie", came), (b"cookie", text.encode("latin-1")) if text else None))
        self.forwarded_cookies = kept

    def forwarded(self) -> Scope:
        """A scope of its own for one attempt: an app writes into what it is given, and the next must not find it.

        `state` is shared, as with Starlette's Mount, so that middleware around us sees what the app leaves there; only
        who has not executed the request gives way to another.
        """
        came = self.raw_request
        headers = [*came["headers"]]
        if self.forwarded_cookies is not None:
            for header, kept in self.forwarded_cookies:
                try:
                    at = headers.index(header)
                except ValueError:  # pairs need not be tuples
                    headers = [(name, value) for name, value in headers]
                    at = headers.index(header)
                if kept is None:
                    del headers[at]
                else:
                    headers[at] = kept
        scope = dict(came)
        scope["headers"] = headers
        if "extensions" in scope:
            scope["extensions"] = dict(scope["extensions"] or ())
        return scope

    def send(self, message: Message) -> Awaitable[None]:
        """What the server's app answers into. OSError once the request is over.

        The server's own awaitable goes back to the app, so there is no coroutine of ours per message.
        """
        try:
            out = self.client_send
        except AttributeError:
            raise OSError("the request is over, and nobody is there to send to") from None
        if not self.status and (message["type"] == "http.response.start" or message["type"] in HEADS):
            self.status = message.get("status", 101) % 1000  # websocket.accept is a 101
            headers: Headers = message.get("headers") or []
            if headers.__class__ is not list:  # any iterable will do, even one that can be read only once
                headers = list(headers)
                message = {**message, "headers": headers}
            sets_cookies = False
            for name, _ in headers:
                if name == b"set-cookie":
                    sets_cookies = True
            if sets_cookies or not self.persisted.needs_no_mark:
                head = Head(headers, sets_cookies)
                self.stamp(head)
                if head.headers is not headers:
                    message = {**message, "headers": head.headers}
                if self.has_writes:
                    return self._pay(out, message)
        return out(message)

    async def _pay(self, out: Send, message: Message) -> None:
        """Stores know it before the client does."""
        await pay(self)
        await out(message)


class StatusRetryTransaction(Transaction):
    """A transaction whose answers may be held back, because another server will be asked instead."""

    __slots__ = ()

    @property
    def send(self) -> Send:  # pyright: ignore[reportIncompatibleMethodOverride] - who asks for it calls it
        """Each attempt answers into something of its own: who was given up must not be heard again."""
        return HeldResponse(self).send

    def release(self, server: Server, over: bool) -> None:
        if over:
            self.ended()
        super().release(server, over)


#: How many bytes of an answer that is held back are taken in before its app is told that nobody listens.
MOST_HELD = 65536


class GivenUp(OSError):
    """Nobody listens to this answer, because another server is asked instead."""


class HeldResponse:
    """What one attempt answers into. Once its answer is held back, nothing of it goes on."""

    __slots__ = ("_is_upstream", "_left", "_lost", "_transaction")

    def __init__(self, transaction: StatusRetryTransaction) -> None:
        self._transaction = transaction
        self._is_upstream = isinstance(transaction.tried[-1].config.target, str)  # which need not go on to its end
        self._lost = False
        self._left = MOST_HELD

    async def send(self, message: Message) -> None:
        transaction = self._transaction
        if not self._lost:
            if (
                transaction.status
                or message["type"] not in ("http.response.start", "websocket.http.response.start")
                or not transaction.hold_response(message["status"])
            ):
                return await Transaction.send(transaction, message)
            self._lost = True
        self._left -= len(message.get("body", b""))
        if self._is_upstream:
            raise GivenUp
        if self._left < 0:
            raise OSError("nobody listens to this answer any more")


class Head:
    """The headers of an answer, to be stamped. Changed by copy: the app's own are left as they are."""

    __slots__ = ("headers", "sets_cookies")

    def __init__(self, headers: Headers, sets_cookies: bool) -> None:
        self.headers = headers
        self.sets_cookies = sets_cookies

    def _values(self, wanted: bytes) -> list[str]:
        return [value.decode("latin-1") for name, value in self.headers if name == wanted]

    @property
    def set_cookies(self) -> Sequence[str]:
        return self._values(b"set-cookie")

    def header(self, name: str) -> Sequence[str]:
        return self._values(name.encode("latin-1"))

    @property
    def cache_control(self) -> str:
        return ",".join(self._values(b"cache-control"))

    def edit_cookies(self, new: Callable[[str], str | None]) -> None:
        headers: Headers = []
        for name, value in self.headers:
            if name == b"set-cookie":
                text = new(value.decode("latin-1"))
                if text is None:
                    continue
                value = text.encode("latin-1")
            headers.append((name, value))
        self.headers = headers

    def add(self, name: str, value: str) -> None:
        self.headers = [*self.headers, (name.encode("latin-1"), value.encode("latin-1"))]


def gone(scope: Scope) -> None:
    """The client has left before the end of its request."""
    transaction: CoreTransaction[Scope, Send] | None = scope.get(KEY)
    if transaction is not None:
        transaction.client_disconnected()


async def pay(transaction: Transaction) -> None:
    """Tell stores what they are owed."""
    transaction.writes_done(await execute(transaction.pending_writes))


async def send_page(page: ErrorPage, scope: Scope, send: Send) -> None:
    """An answer of our own."""
    kind = "http"
    if scope["type"] == "websocket":
        kind = "websocket.http"
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            # "try again later"; servers answer 403 to a close before the accept
            return await send({"type": "websocket.close", "code": 1013})
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in page.headers]
    body = b"" if scope.get("method") == "HEAD" else page.body
    await send({"type": f"{kind}.response.start", "status": page.status, "headers": headers})
    await send({"type": f"{kind}.response.body", "body": body})
