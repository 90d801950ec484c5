"""Scopes and messages as the core sees them. Header text is latin-1, a character per byte; header names are lower case,
as in ASGI.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import anyio
from anyio.lowlevel import EventLoopToken, current_token
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sticky_asgi.stores.client import execute
from sticky_core.decision import LOST, NO_CODE, SERVICE_RESTART, ClosedBy, Decision
from sticky_core.http.cookies import CookieKey
from sticky_core.http.error_page import ErrorPage
from sticky_core.http.request_target import request_path
from sticky_core.transaction.status_retry import KEPT_BODY_LIMIT, StatusRetry
from sticky_core.transaction.store_writes import complete_writes, pending_writes
from sticky_core.transaction.transaction import Transaction as CoreTransaction

__all__ = [
    "KEY",
    "TRANSACTION",
    "ASGIApp",
    "Headers",
    "Message",
    "Receive",
    "Schedule",
    "Scope",
    "Send",
    "StatusRetryTransaction",
    "Transaction",
    "cookie_key",
    "count_client_disconnect",
    "disconnect_code",
    "end_without_response",
    "event_loop",
    "find_transaction",
    "flush_remaining_writes",
    "flush_writes",
    "record_disconnect",
    "scheduler",
    "send_page",
    "waker",
    "with_joined_cookies",
    "with_transaction",
]

#: the key of the decision in a scope
KEY = "sticky"
#: The key of the transaction in a scope that is passed to an `Upstream`. Other apps never get it.
TRANSACTION = "sticky.transaction"

Header = tuple[bytes, bytes]
Headers = list[Header]

#: the messages that carry the head of a response
HEADS = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})


#: for each Cookie header of the request, the header that the server gets instead; None: it gets none
ForwardedCookies = list[tuple[Header, Header | None]]


def event_loop() -> EventLoopToken | None:
    """Return a token of the event loop that runs this, of any library; None outside of an event loop."""
    try:
        return current_token()
    except RuntimeError:
        return None


#: schedules a callback on an event loop from any thread; RuntimeError if the loop has ended
Schedule = Callable[[Callable[[], object]], object]


def scheduler() -> Schedule:
    """Return the function that schedules callbacks on the running event loop, from any thread."""
    native: Any = current_token().native_token
    schedule: Schedule = (
        native.call_soon_threadsafe if hasattr(native, "call_soon_threadsafe") else native.run_sync_soon
    )
    return schedule


def waker(woken: anyio.Event) -> Callable[[], bool]:
    """Return a callback that sets `woken` from any thread. It returns False if the event loop has ended."""
    schedule = scheduler()

    def wake() -> bool:
        try:
            schedule(woken.set)
        except RuntimeError:
            return False
        return True

    return wake


def cookie_key(scope: Scope) -> CookieKey:
    """Return the key of the Cookie headers of a request that has some: the value of the only one, or all values."""
    values = tuple([value for name, value in scope["headers"] if name == b"cookie"])
    return values[0] if len(values) == 1 else values


def _values(key: CookieKey) -> tuple[bytes, ...]:
    return cast("tuple[bytes, ...]", () if key is None else key if isinstance(key, tuple) else (key,))


def with_joined_cookies(scope: Scope) -> Scope:
    """Return the scope with one Cookie header in the place of the fields into which clients may split it in HTTP/2 and
    later (RFC 9113, 8.2.3); the same scope if it has none to join.
    """
    if scope.get("http_version", "1.1") < "2":
        return scope
    values = [value for name, value in scope["headers"] if name == b"cookie"]
    if len(values) < 2:
        return scope
    joined: Headers = []
    for name, value in scope["headers"]:
        if name != b"cookie":
            joined.append((name, value))
        elif values:
            joined.append((name, b"; ".join(values)))
            values.clear()
    return {**scope, "headers": joined}


def _with_cookies(headers: Headers, forwarded: ForwardedCookies) -> Headers:
    """Return the headers with these in the place of the Cookie headers, one for one; None: the header is removed."""
    cookies = iter(forwarded)
    edited: Headers = []
    for name, value in headers:
        if name != b"cookie":
            edited.append((name, value))
        elif (cookie := next(cookies)[1]) is not None:
            edited.append(cookie)
    return edited


class Transaction(CoreTransaction[Scope, Send]):
    """A scope in flight: the request, the scope for the server, and the `send` for the server's app."""

    __slots__ = ()

    @property
    def method(self) -> str:
        method: str = self.raw_request.get("method", "GET")  # the handshake of a WebSocket is a GET
        return method

    @property
    def connection_scheme(self) -> str:
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
        scope = self.raw_request
        return request_path(scope.get("raw_path") or None, scope.get("root_path") or "", scope["path"])

    @property
    def query(self) -> str:
        query: bytes = self.raw_request.get("query_string", b"")
        return query.decode("latin-1")

    @property
    def cookies(self) -> tuple[str, ...]:
        forwarded = cast("ForwardedCookies | None", self.forwarded_cookies)
        if forwarded is not None:
            return tuple(["" if header is None else header[1].decode("latin-1") for _, header in forwarded])
        return tuple([value.decode("latin-1") for value in _values(self.cookie_key)])

    def set_forwarded_cookies(self, texts: Sequence[str]) -> None:
        forwarded: ForwardedCookies = []
        for value, text in zip(_values(self.cookie_key), texts, strict=True):
            forwarded.append(((b"cookie", value), (b"cookie", text.encode("latin-1")) if text else None))
        self.forwarded_cookies = forwarded

    def forwarded(self) -> Scope:
        """Return a scope for one attempt: an app may write into its scope, and the next attempt must not see that.

        `state` is shared, as with Starlette's Mount, so that middleware around this one sees what the app leaves there.
        """
        raw_request = self.raw_request
        headers = [*raw_request["headers"]]
        cookies = self.forwarded_cookies
        if cookies is not None:
            try:
                ((header, forwarded),) = cookies
                at = headers.index(header)
            except ValueError:  # there are several Cookie headers, or the pairs of the scope are no tuples
                headers = _with_cookies(headers, cookies)
            else:
                if forwarded is None:
                    del headers[at]
                else:
                    headers[at] = forwarded
        scope = {**raw_request}  # faster than dict()
        scope["headers"] = headers
        if "extensions" in scope:
            scope["extensions"] = dict(scope["extensions"] or ())
        return scope

    def send(self, message: Message) -> Awaitable[None]:
        """Send a message of the server's app to the client. OSError once the request has ended.

        Returns the awaitable of the client's `send`, so no coroutine is added for each message.
        """
        try:
            client_send = self.client_send
        except AttributeError:
            raise OSError("the request has ended: its client gets no more messages") from None
        decision = self.decision
        if not decision.status and (message["type"] == "http.response.start" or message["type"] in HEADS):
            decision.status = message.get("status", 101) % 1000  # websocket.accept is a 101
            headers: Headers = message.get("headers") or []
            if headers.__class__ is not list:  # any iterable is allowed, even one that can be read only once
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
                    return self._send_after_writes(client_send, message)
        return client_send(message)

    def cancel_at_the_end(self, attempt: anyio.CancelScope) -> None:
        """Cancel `attempt` when the time for all attempts is over, unless its response has begun by then
        (`LimitedTransaction`).
        """

    async def _send_after_writes(self, client_send: Send, message: Message) -> None:
        await flush_writes(self)
        await client_send(message)


class StatusRetryTransaction(StatusRetry[Scope, Send], Transaction):
    """A transaction that may hold responses back, because another server is tried instead."""

    __slots__ = ()

    @property
    def send(self) -> Send:  # pyright: ignore[reportIncompatibleMethodOverride] - callers only call it
        """A `send` for each attempt: what an app sends after its response was held back must not reach the client."""
        return HeldResponse(self).send


class ResponseDiscarded(OSError):
    """The response is discarded, because another server is tried instead."""

    def __init__(self, held: HeldResponse) -> None:
        super().__init__("another server is tried instead")
        self.held = held


class HeldResponse:
    """The `send` of one attempt. Once its response is held back, nothing of it reaches the client."""

    __slots__ = ("_is_held", "_is_upstream", "_left", "_messages", "transaction")

    def __init__(self, transaction: StatusRetryTransaction) -> None:
        self.transaction = transaction
        self._is_upstream = isinstance(
            transaction.tried[-1].config.target, str
        )  # its response may be discarded at once
        self._is_held = False
        self._left = KEPT_BODY_LIMIT
        self._messages: list[Message] = []  # of the response that is held back, while they can be kept

    async def send(self, message: Message) -> None:
        transaction = self.transaction
        if not self._is_held:
            if (
                transaction.decision.status
                or message["type"] not in ("http.response.start", "websocket.http.response.start")
                or not transaction.hold_response(message["status"])
            ):
                return await super(StatusRetryTransaction, transaction).send(message)
            self._is_held = True
            if not message.get("trailers", False):
                self._messages.append({**message, "headers": list(message.get("headers") or ())})
            if self._is_upstream:
                raise ResponseDiscarded(self)
            return
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            self._messages.clear()
            raise OSError("the response is not wanted any more: another server is tried instead")
        if self._messages:
            self._keep(message)

    def _keep(self, message: Message) -> None:
        """Keep a message of the response, which may be passed on if no other server responds."""
        if message["type"] not in ("http.response.body", "websocket.http.response.body"):
            self._messages.clear()  # an extension, of which only the server knows whether more follows
            return
        self._messages.append(message)
        if not message.get("more_body", False):
            self.transaction.keep_response([*self._messages])
            self._messages.clear()

    def keep_body(self, body: bytes) -> None:
        """Keep the response of an upstream, of which this is the whole body."""
        if self._messages and len(body) <= KEPT_BODY_LIMIT:
            kind = self._messages[0]["type"].removesuffix("start") + "body"
            self._keep({"type": kind, "body": body})


class Head:
    """The headers of a response, to be stamped. A change makes a copy, and leaves the app's own list as it is."""

    __slots__ = ("_is_copy", "headers", "sets_cookies")

    def __init__(self, headers: Headers, sets_cookies: bool) -> None:
        self.headers = headers
        self._is_copy = False
        self.sets_cookies = sets_cookies

    def _values(self, wanted: bytes) -> list[str]:
        return [value.decode("latin-1") for name, value in self.headers if name == wanted]

    @property
    def set_cookies(self) -> Sequence[str]:
        return self._values(b"set-cookie")

    def header(self, name: str) -> Sequence[str]:
        wanted = name.encode("latin-1")
        # apps send upper case too, although ASGI has lower case only
        return [value.decode("latin-1") for name, value in self.headers if name.lower() == wanted]

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
        self._is_copy = True

    def add(self, name: str, value: str) -> None:
        if not self._is_copy:
            self.headers = [*self.headers]
            self._is_copy = True
        self.headers.append((name.encode("latin-1"), value.encode("latin-1")))


def _transaction_of(send: Any) -> Transaction | None:
    """Return the transaction that has this `send`; None if it is not a transaction's."""
    transaction = getattr(send, "__self__", None)
    if isinstance(transaction, HeldResponse):
        transaction = transaction.transaction
    return transaction if isinstance(transaction, Transaction) else None


def with_transaction(scope: Scope, send: Any) -> Scope:
    """Return the scope with the transaction that has this `send`; the same scope if `send` is not a transaction's.

    For an `Upstream` that the user has built, which puts a `send` of its own before the transaction's.
    """
    transaction = _transaction_of(send)
    return {**scope, TRANSACTION: transaction} if transaction is not None else scope


def find_transaction(scope: Scope, send: Any) -> Transaction | None:
    """Return the transaction of a request that an upstream forwards: by its `send`, or from the scope of
    `with_transaction`; None if no dispatcher serves the request.
    """
    transaction: Transaction | None = scope.get(TRANSACTION)
    return transaction if transaction is not None else _transaction_of(send)


def count_client_disconnect(scope: Scope, send: Any) -> None:
    """Count that the client has disconnected before the end of the response, if a dispatcher serves the request."""
    transaction = find_transaction(scope, send)
    if transaction is not None:
        transaction.client_disconnected()


def disconnect_code(message: Message) -> int:
    """Return the code in a `websocket.disconnect`: `NO_CODE` if the client has closed without one, `LOST` if it has not
    closed.
    """
    code: int = message.get("code") or NO_CODE
    # So uvicorn reports a client that is lost; of one that closes without a code it adds an empty reason. Granian
    # reports both like this.
    return LOST if code == NO_CODE and message.get("reason") is None else code


def record_disconnect(decision: Decision, message: Message) -> None:
    """Record which side has ended a WebSocket: the app receives this `websocket.disconnect`, usually of the client."""
    outer = decision.outer
    code: int | None = disconnect_code(message)
    if outer is not None and outer.closed_by is not None:  # the middleware around this one knows it
        closed_by, code = outer.closed_by, outer.close_code
    elif code == SERVICE_RESTART and message.get("reason") is None:  # so uvicorn reports its own end
        closed_by = ClosedBy.MIDDLEWARE
    else:
        closed_by = ClosedBy.LOST_CLIENT if code == LOST else ClosedBy.CLIENT
    decision.record_close(closed_by, code)


async def flush_writes(transaction: Transaction) -> None:
    """Send the queued writes to the stores."""
    complete_writes(transaction, await execute(pending_writes(transaction)))


async def end_without_response(transaction: Transaction) -> None:
    """Give up what is reserved for a server that sends no head, in stores as well, even if this task is cancelled."""
    transaction.end_without_response()
    await flush_remaining_writes(transaction)


async def flush_remaining_writes(transaction: Transaction) -> None:
    """Send the writes that are queued when a request ends without a response, even if this task is cancelled."""
    if transaction.has_writes:
        with anyio.CancelScope(shield=True):
            await flush_writes(transaction)


async def send_page(page: ErrorPage, scope: Scope, send: Send) -> None:
    """Send a response of the middleware itself to the client."""
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
