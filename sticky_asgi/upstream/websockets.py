"""WebSockets forwarded to an upstream (RFC 6455): the upstream's response to the handshake, then the client's `accept`,
then messages in both directions.

The handshake is sent like any request; frames are read and written by wsproto. Frames to the upstream are not
compressed, and a message is forwarded when it is complete, since ASGI knows no parts of messages.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections import deque
from contextlib import suppress
from typing import Any, Final, Protocol, cast

from wsproto import ConnectionType
from wsproto.connection import Connection as Frames
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.events import Message as MessagePart
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from sticky_asgi.body import Body
from sticky_asgi.messages import (
    Headers,
    Message,
    Scope,
    Send,
    count_client_disconnect,
    disconnect_code,
    find_transaction,
)
from sticky_asgi.upstream.connections import WINDOW, Connection, Connections
from sticky_asgi.upstream.flow_control import FlowControlProtocol
from sticky_asgi.upstream.sweep import TICK
from sticky_core.decision import LOST, NO_CODE, ClosedBy
from sticky_core.errors import Failure, ServerFailure
from sticky_core.http.forwarding import OutgoingRequest
from sticky_core.http.http1 import Header
from sticky_core.http.timeouts import TimeoutSeconds

#: the longest message that is forwarded, in bytes; uvicorn's limit
MAX_MESSAGE: Final = 16 * 1024 * 1024

#: how many sweeps the upstream may take to reply to the client's close frame
CLOSE_TICKS: Final = 20
_TOO_BIG: Final = 1009
_FAILED: Final = 1011

# These concern one of the two connections, and each handshake has its own.
_OWN_HEADERS: Final = frozenset(
    (b"sec-websocket-accept", b"sec-websocket-extensions", b"sec-websocket-key", b"sec-websocket-version")
)
_UUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def _is_sendable(code: int) -> bool:
    """Return whether a close frame may carry `code`: some stand for a frame without a code, or for no frame at all (RFC
    6455, 7.4).
    """
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


class MakeHead(Protocol):
    """Makes the head of the request to the upstream (`Upstream.head`)."""

    def __call__(self, scope: Scope, method: str, upgrade: tuple[bytes, ...], /) -> OutgoingRequest: ...


async def tunnel(
    scope: Scope, body: Body, send: Send, *, make_head: MakeHead, connections: Connections, timeouts: TimeoutSeconds
) -> None:
    """Open a WebSocket to the upstream, respond to the client as the upstream does, and forward messages between them.
    ServerFailure if the upstream fails before it has responded.
    """
    await body()  # websocket.connect
    key = base64.b64encode(os.urandom(16))
    headers: list[Header] = [header for header in scope["headers"] if header[0] not in _OWN_HEADERS]
    outgoing = make_head({**scope, "headers": headers}, "GET", _upgrade_lines(key, scope, headers))
    connection = await connections.open(timeouts.connect, body)
    if connection is None:
        return count_client_disconnect(scope, send)
    response = connection.response
    connection.begin("GET", body, upgrade=True)
    is_open = False
    try:
        connection.write(outgoing.head)
        while not response.status:
            if await connection.wait() and connection.raise_or_client_gone():
                return count_client_disconnect(scope, send)
        if response.status != 101:
            return await _deny(connection, scope, send)
        if response.upgrade.lower() != b"websocket":
            raise ServerFailure(Failure.BAD_RESPONSE, detail="a 101 for another protocol than websocket")
        subprotocol = _checked_subprotocol(response.headers, key, scope)
        is_open = True
    finally:
        if is_open:
            connection.detach()
        else:
            connection.end()
    upstream = UpstreamWebSocket(connection, response.upgraded_data, timeouts.tunnel)
    passed_on = [header for header in response.headers if not header[0].startswith(b"sec-websocket-")]
    await _forward_messages(upstream, body, scope, send, {"subprotocol": subprotocol, "headers": passed_on})


def _upgrade_lines(key: bytes, scope: Scope, headers: list[Header]) -> tuple[bytes, ...]:
    """Return the header lines of the handshake."""
    lines: tuple[bytes, ...] = (
        b"connection: Upgrade",
        b"upgrade: websocket",
        b"sec-websocket-version: 13",
        b"sec-websocket-key: %b" % key,
    )
    if scope.get("subprotocols") and not any(name == b"sec-websocket-protocol" for name, _ in headers):
        lines += (b"sec-websocket-protocol: %b" % ", ".join(scope["subprotocols"]).encode("latin-1"),)
    return lines


def _checked_subprotocol(headers: Headers, key: bytes, scope: Scope) -> str | None:
    """Return the subprotocol that the upstream has chosen. ServerFailure if its 101 does not fit the handshake."""
    by_name = dict(headers)
    if by_name.get(b"sec-websocket-accept") != base64.b64encode(hashlib.sha1(key + _UUID).digest()):
        raise ServerFailure(Failure.BAD_RESPONSE, detail="a 101 with a Sec-WebSocket-Accept for another key")
    if b"sec-websocket-extensions" in by_name:
        raise ServerFailure(Failure.BAD_RESPONSE, detail="a 101 with extensions that were not offered")
    chosen = by_name.get(b"sec-websocket-protocol")
    if chosen is None:
        return None
    subprotocol = chosen.decode("latin-1")
    if subprotocol not in (scope.get("subprotocols") or ()):
        raise ServerFailure(Failure.BAD_RESPONSE, detail="a 101 with a subprotocol that was not offered")
    return subprotocol


async def _deny(connection: Connection, scope: Scope, send: Send) -> None:
    """Pass on a response that refuses the WebSocket, if the server in front can send one."""
    response = connection.response
    if response.status < 300:
        raise ServerFailure(Failure.NO_WEBSOCKET, detail=f"status {response.status} where 101 was expected")
    if "websocket.http.response" not in (scope.get("extensions") or ()):
        return await send({"type": "websocket.close", "code": 1000})
    beginning = bytearray()
    # A body of usual size is sent in one message: not all servers accept several.
    while not response.finished and len(beginning) < WINDOW:
        if await connection.wait() and connection.raise_or_client_gone():
            return count_client_disconnect(scope, send)
        beginning += connection.take()
    body = bytes(beginning)
    await send({"type": "websocket.http.response.start", "status": response.status, "headers": response.headers})
    while not response.finished:
        await send({"type": "websocket.http.response.body", "body": body, "more_body": True})
        if await connection.wait() and connection.raise_or_client_gone():
            return count_client_disconnect(scope, send)
        body = connection.take()
    await send({"type": "websocket.http.response.body", "body": body + connection.take()})


class UpstreamWebSocket(FlowControlProtocol):
    """An open WebSocket to an upstream: takes a connection over after its handshake."""

    def __init__(self, connection: Connection, rest: bytes, timeout: float) -> None:
        """`rest`: what arrived after the 101. `timeout`: how long there may be no message, in seconds."""
        super().__init__()
        self._transport = connection.transport
        self._loop = connection.loop
        self._sweep = connection.sweep
        self._frames = Frames(ConnectionType.CLIENT)
        self._parts: list[Any] = []  # of a message that is not complete yet
        self._parts_size = 0
        self._unread_size = 0  # of `messages`, in bytes
        self._reading_paused = False
        self._waiter: asyncio.Future[None] | None = None
        self.messages: deque[str | bytes] = deque()
        #: how the upstream has closed: code and reason; None while it has not
        self.closed: tuple[int, str] | None = None
        #: which side has closed it, if `closed` is set
        self.closed_by = ClosedBy.SERVER
        #: the code with which the client has closed; None while it has not
        self.client_code: int | None = None
        self._timeout_ticks = max(1, round(timeout / TICK))
        self._is_closing = False
        self._active_at = self._sweep.number
        self._transport.set_protocol(self)
        self._sweep.add(self)
        if rest:
            self.data_received(rest)
        if connection.closed:
            self.connection_lost(None)

    def data_received(self, data: bytes) -> None:
        if self.closed is not None:
            return  # nothing that follows a close frame counts (RFC 6455, 5.5.1)
        if not self._is_closing:
            self._active_at = self._sweep.number
        try:
            self._frames.receive_data(data)
            for event in self._frames.events():
                self._on_event(event)
                if self.closed is not None:
                    break
        except RemoteProtocolError:
            self._drop(_FAILED, "")
        if self._unread_size > WINDOW and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()
        self._wake()

    def _on_event(self, event: Event) -> None:
        match event:
            case TextMessage() | BytesMessage():
                self._on_part(cast("MessagePart[Any]", event))
            case Ping():
                self._write(event.response())
            case CloseConnection(code=code, reason=reason):
                # wsproto also makes this event of frames that it can't read; then the state is still OPEN
                if self._frames.state is ConnectionState.OPEN:
                    return self._drop(_FAILED, "")
                self.closed = int(code), reason or ""
                if self._frames.state is ConnectionState.REMOTE_CLOSING:
                    self._write(event.response())
            case _:
                pass

    def _on_part(self, part: MessagePart[Any]) -> None:
        self._parts.append(part.data)
        self._parts_size += len(part.data)
        if self._parts_size > MAX_MESSAGE:
            return self._drop(_TOO_BIG, "message too big")
        if part.message_finished:
            message: str | bytes = "".join(self._parts) if isinstance(part, TextMessage) else b"".join(self._parts)
            self._unread_size += self._parts_size
            self.messages.append(message)
            self._parts = []
            self._parts_size = 0

    def _drop(self, code: int, reason: str) -> None:
        """Close the connection without a close frame."""
        if self.closed is None:
            self.closed = code, reason
            self.closed_by = ClosedBy.MIDDLEWARE
        self._transport.abort()

    def eof_received(self) -> None:
        self.connection_lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.closed is None:
            self.closed = LOST, ""
            self.closed_by = ClosedBy.LOST_SERVER
        self.resume_writing()  # wakes the writer: the other end reads no more
        self._wake()

    def on_sweep(self, number: int) -> None:
        if number - self._active_at > self._timeout_ticks:
            self._drop(1001, "silent for too long")
            self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def wait(self) -> None:
        """Wait until there are messages from the upstream, or until it has closed."""
        while not self.messages and self.closed is None:
            self._waiter = self._loop.create_future()
            await self._waiter

    def take(self) -> str | bytes:
        """Return the next message from the upstream."""
        message = self.messages.popleft()
        self._unread_size -= len(message)
        if self._reading_paused and self._unread_size <= WINDOW // 2:
            self._reading_paused = False
            self._transport.resume_reading()
        return message

    async def send(self, event: Event) -> None:
        """Send a frame to the upstream, no faster than the upstream reads."""
        if self.closed is not None:
            return
        self._active_at = self._sweep.number
        self._write(event)
        if self.writable is not None:
            await self.writable

    def _write(self, event: Event) -> None:
        with suppress(LocalProtocolError):  # the upstream has closed at this moment
            self._transport.write(self._frames.send(event))

    def limit_closing(self) -> None:
        """Give the upstream `CLOSE_TICKS` sweeps to close, whatever it still sends."""
        self._is_closing = True
        self._timeout_ticks = CLOSE_TICKS
        self._active_at = self._sweep.number

    def on_client_closed(self, code: int, reason: str) -> None:
        """The client has closed, which is passed on, or has disconnected without a close frame."""
        self.client_code = code
        if code != LOST and self.closed is None:
            # wsproto recognises "no code" by the identity of this object alone
            sent = code if _is_sendable(code) else CloseReason.NO_STATUS_RCVD
            self._write(CloseConnection(code=sent, reason=(reason or None) if _is_sendable(code) else None))
            self.limit_closing()
        elif self.closed is None:
            self.closed = code, reason
        self._wake()

    def close(self) -> None:
        """Close the connection after all that was written is sent."""
        self._sweep.remove(self)
        self._transport.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._sweep.remove(self)
        self._transport.abort()


async def _forward_messages(
    upstream: UpstreamWebSocket, body: Body, scope: Scope, send: Send, accept: dict[str, Any]
) -> None:
    """Accept the client's WebSocket, and forward messages in both directions until one side has closed."""
    from_client: asyncio.Task[None] | None = None
    abort = True
    client_gone = False
    try:
        await send({"type": "websocket.accept", **accept})
        from_client = asyncio.ensure_future(_forward_from_client(upstream, body))
        while True:
            await upstream.wait()
            while upstream.messages:
                message = upstream.take()
                if body.client_gone or client_gone:
                    continue
                try:
                    await send(
                        {"type": "websocket.send", "text": message}
                        if isinstance(message, str)
                        else {"type": "websocket.send", "bytes": message}
                    )
                except OSError:  # the client has disconnected; its `websocket.disconnect` is still to be read
                    client_gone = True
                    upstream.limit_closing()
            if upstream.closed is not None and not upstream.messages:
                break
        code, reason = upstream.closed
        abort = code == LOST
        # No call of `receive` may be pending when the close is sent: some servers (granian) do not send it then.
        from_client.cancel()
        body.close()
        await asyncio.sleep(0)
        if not body.client_gone:
            transaction = find_transaction(scope, send)
            if transaction is not None:
                transaction.decision.record_close(upstream.closed_by, code)
                if code == LOST:
                    transaction.record_failure(Failure.TRUNCATED)
            sent = code if _is_sendable(code) else 1000 if code == NO_CODE else _FAILED
            await send({"type": "websocket.close", "code": sent, "reason": reason})
        elif upstream.client_code is None or upstream.client_code == LOST:
            count_client_disconnect(scope, send)
    except OSError:  # the client has disconnected
        count_client_disconnect(scope, send)
    finally:
        if from_client is not None:
            from_client.cancel()
        if abort:
            upstream.abort()
        else:
            upstream.close()


async def _forward_from_client(upstream: UpstreamWebSocket, body: Body) -> None:
    """Forward the client's messages until it closes."""
    code: int = LOST
    reason: str | None = None
    try:
        while True:
            message: Message = await body()
            if message["type"] == "websocket.disconnect":
                code, reason = disconnect_code(message), message.get("reason")
                return
            text: str | None = message.get("text")
            data = message.get("bytes") or b""
            await upstream.send(TextMessage(data=text) if text is not None else BytesMessage(data=data))
    finally:
        upstream.on_client_closed(code, reason or "")
