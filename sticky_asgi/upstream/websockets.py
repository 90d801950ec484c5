"""WebSockets on their way to an upstream (RFC 6455): its word first, then the client's; after that message for message.

The handshake is made with the same engine as any request, frames by wsproto. Nothing is compressed on the way to the
upstream, and a message is passed on when it is whole, as ASGI has it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

from wsproto import ConnectionType
from wsproto.connection import Connection as Frames
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.events import Message as Piece
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from sticky_asgi.body import Body
from sticky_asgi.messages import KEY, Headers, Message, Scope, Send, gone
from sticky_asgi.upstream.connections import TICK, WINDOW, Connection, FlowControlProtocol
from sticky_core.errors import Failure, ServerFailure
from sticky_core.http.http1 import Header

if TYPE_CHECKING:
    from sticky_asgi.upstream.app import Upstream

#: of a message, in bytes: as much as uvicorn takes
LONGEST: Final = 16 * 1024 * 1024

#: how many sweeps the upstream may take to answer the client's farewell
FAREWELL: Final = 20
_NO_CODE: Final = 1005
_DROPPED: Final = 1006
_TOO_BIG: Final = 1009
_FAILED: Final = 1011

# Between the client and the server in front, or between us and the upstream.
_OWN: Final = frozenset(
    (b"sec-websocket-accept", b"sec-websocket-extensions", b"sec-websocket-key", b"sec-websocket-version")
)
_UUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def _is_said(code: int) -> bool:
    """Whether a close frame may carry `code`: some stand for what was not said, some for nothing (RFC 6455, 7.4)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


async def tunnel(upstream: Upstream, scope: Scope, body: Body, send: Send) -> None:
    """Ask the upstream for a WebSocket, answer the client as it does, and stand between them. ServerFailure if it fails
    before it has answered.
    """
    await body()  # websocket.connect
    key = base64.b64encode(os.urandom(16))
    headers: list[Header] = [header for header in scope["headers"] if header[0] not in _OWN]
    outgoing = upstream.head({**scope, "headers": headers}, "GET", _lines(key, scope, headers))
    connection = await upstream.connections().open(upstream.timeouts.connect, body)
    if connection is None:
        return gone(scope)
    answer = connection.answer
    connection.begin("GET", body, upgrade=True)
    tunnelled = False
    try:
        connection.write(outgoing.head)
        while not answer.status:
            if await connection.news() and connection.left():
                return gone(scope)
        if answer.status != 101:
            return await _deny(connection, scope, send)
        if answer.upgrade.lower() != b"websocket":
            raise ServerFailure(Failure.BAD_RESPONSE, detail="a change to another protocol than asked for")
        subprotocol = _checked(answer.headers, key, scope)
        tunnelled = True
    finally:
        if tunnelled:
            connection.hand_over()
        else:
            connection.end()
    ends = Tunnel(connection, answer.upgraded_data, upstream.timeouts.tunnel)
    passed_on = [header for header in answer.headers if not header[0].startswith(b"sec-websocket-")]
    await _stand_between(ends, body, scope, send, {"subprotocol": subprotocol, "headers": passed_on})


def _lines(key: bytes, scope: Scope, headers: list[Header]) -> tuple[bytes, ...]:
    lines: tuple[bytes, ...] = (
        b"connection: Upgrade",
        b"upgrade: websocket",
        b"sec-websocket-version: 13",
        b"sec-websocket-key: %b" % key,
    )
    if scope.get("subprotocols") and not any(name == b"sec-websocket-protocol" for name, _ in headers):
        lines += (b"sec-websocket-protocol: %b" % ", ".join(scope["subprotocols"]).encode("latin-1"),)
    return lines


def _checked(headers: Headers, key: bytes, scope: Scope) -> str | None:
    """The subprotocol that the upstream has chosen. ServerFailure if it has not understood what it agreed to."""
    said = dict(headers)
    if said.get(b"sec-websocket-accept") != base64.b64encode(hashlib.sha1(key + _UUID).digest()):
        raise ServerFailure(Failure.BAD_RESPONSE, detail="a 101 with another's Sec-WebSocket-Accept")
    if b"sec-websocket-extensions" in said:
        raise ServerFailure(Failure.BAD_RESPONSE, detail="a 101 with extensions that nobody asked for")
    chosen = said.get(b"sec-websocket-protocol")
    if chosen is None:
        return None
    subprotocol = chosen.decode("latin-1")
    if subprotocol not in (scope.get("subprotocols") or ()):
        raise ServerFailure(Failure.BAD_RESPONSE, detail="a 101 with a subprotocol that nobody asked for")
    return subprotocol


async def _deny(connection: Connection, scope: Scope, send: Send) -> None:
    """The upstream has answered with something else than a WebSocket: the client is told what, if the server can."""
    answer = connection.answer
    if answer.status < 300:
        raise ServerFailure(Failure.BAD_RESPONSE, detail=f"status {answer.status} where 101 was asked for")
    if "websocket.http.response" not in (scope.get("extensions") or ()):
        return await send({"type": "websocket.close", "code": 1000})
    body = b""
    while (
        not answer.finished and len(body) < WINDOW
    ):  # in one piece, if it is of a usual size: not all servers take more
        if await connection.news() and connection.left():
            return gone(scope)
        body += connection.take()
    await send({"type": "websocket.http.response.start", "status": answer.status, "headers": answer.headers})
    while not answer.finished:
        await send({"type": "websocket.http.response.body", "body": body, "more_body": True})
        if await connection.news() and connection.left():
            return gone(scope)
        body = connection.take()
    await send({"type": "websocket.http.response.body", "body": body + connection.take()})


class Tunnel(FlowControlProtocol):
    """A connection that has become a WebSocket."""

    def __init__(self, connection: Connection, rest: bytes, timeout: float) -> None:
        super().__init__()
        self._transport = connection.transport
        self._loop = connection.loop
        self._sweep = connection.sweep
        self._frames = Frames(ConnectionType.CLIENT)
        self._pieces: list[Any] = []
        self._size = 0  # of the pieces
        self._waiting = 0  # of the messages that nobody has taken yet, in bytes
        self._paused = False
        self._news: asyncio.Future[None] | None = None
        self.messages: deque[str | bytes] = deque()
        #: how the upstream has closed: code and reason; None while it has not
        self.closed: tuple[int, str] | None = None
        #: the code that the client has left with; None while it is there
        self.left_with: int | None = None
        self._patience = max(1, round(timeout / TICK))
        self._hurries = False
        self._since = self._sweep.number
        self._transport.set_protocol(self)
        self._sweep.add(self)
        if rest:
            self.data_received(rest)
        if connection.closed:
            self.connection_lost(None)

    def data_received(self, data: bytes) -> None:
        if not self._hurries:
            self._since = self._sweep.number
        try:
            self._frames.receive_data(data)
            for event in self._frames.events():
                self._on(event)
        except RemoteProtocolError:
            self._drop(_FAILED, "")
        if self._waiting > WINDOW and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def _on(self, event: Event) -> None:
        match event:
            case TextMessage() | BytesMessage():
                self._on_piece(cast("Piece[Any]", event))
            case Ping():
                self._transport.write(self._frames.send(event.response()))
            case CloseConnection(code=code, reason=reason):
                if self._frames.state is ConnectionState.OPEN:  # nobody has closed it: wsproto does not understand it
                    return self._drop(_FAILED, "")
                self.closed = int(code), reason or ""
                if self._frames.state is ConnectionState.REMOTE_CLOSING:
                    self._transport.write(self._frames.send(event.response()))
            case _:
                pass

    def _on_piece(self, piece: Piece[Any]) -> None:
        self._pieces.append(piece.data)
        self._size += len(piece.data)
        if self._size > LONGEST:
            return self._drop(_TOO_BIG, "message too big")
        if piece.message_finished:
            message: str | bytes = "".join(self._pieces) if isinstance(piece, TextMessage) else b"".join(self._pieces)
            self._waiting += self._size
            self.messages.append(message)
            self._pieces = []
            self._size = 0

    def _drop(self, code: int, reason: str) -> None:
        if self.closed is None:
            self.closed = code, reason
        self._transport.abort()

    def eof_received(self) -> None:
        self.connection_lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.closed is None:
            self.closed = _DROPPED, ""
        self.resume_writing()  # there is nothing to wait for any more
        self._wake()

    def on_sweep(self, number: int) -> None:
        if number - self._since > self._patience:
            self._drop(1001, "silent for too long")
            self._wake()

    def _wake(self) -> None:
        news = self._news
        if news is not None and not news.done():
            news.set_result(None)

    async def news(self) -> None:
        """Wait for messages from the upstream, or for its end."""
        while not self.messages and self.closed is None:
            self._news = self._loop.create_future()
            await self._news

    def take(self) -> str | bytes:
        """The next message from the upstream."""
        message = self.messages.popleft()
        self._waiting -= len(message)
        if self._paused and self._waiting <= WINDOW // 2:
            self._paused = False
            self._transport.resume_reading()
        return message

    async def tell(self, event: Event) -> None:
        """Pass something on to the upstream, no faster than it takes it in."""
        if self.closed is not None:
            return
        self._since = self._sweep.number
        self._write(event)
        if self._writable is not None:
            await self._writable

    def _write(self, event: Event) -> None:
        with suppress(LocalProtocolError):  # it has been closed in this moment
            self._transport.write(self._frames.send(event))

    def hurry(self) -> None:
        """It will be over soon, whatever the upstream goes on to say."""
        self._hurries = True
        self._patience = FAREWELL
        self._since = self._sweep.number

    def client_left(self, code: int, reason: str) -> None:
        """The client has said farewell, which is passed on, or has just gone."""
        self.left_with = code
        if code != _DROPPED and self.closed is None:
            # wsproto knows "no code" by its identity alone
            told = code if _is_said(code) else CloseReason.NO_STATUS_RCVD
            self._write(CloseConnection(code=told, reason=(reason or None) if _is_said(code) else None))
            self.hurry()
        elif self.closed is None:
            self.closed = code, reason
        self._wake()

    def end(self) -> None:
        """What is written is still sent."""
        self._sweep.remove(self)
        self._transport.close()

    def cut(self) -> None:
        """The client is gone without a word, and so are we."""
        self._sweep.remove(self)
        self._transport.abort()


async def _stand_between(ends: Tunnel, body: Body, scope: Scope, send: Send, accepted: dict[str, Any]) -> None:
    listening: asyncio.Task[None] | None = None
    cut = True
    deaf = False
    try:
        await send({"type": "websocket.accept", **accepted})
        listening = asyncio.ensure_future(_pass_on(ends, body))
        while True:
            await ends.news()
            while ends.messages:
                message = ends.take()
                if body.gone or deaf:
                    continue
                try:
                    await send(
                        {"type": "websocket.send", "text": message}
                        if isinstance(message, str)
                        else {"type": "websocket.send", "bytes": message}
                    )
                except OSError:  # the client takes nothing any more; how it has left is still to be heard
                    deaf = True
                    ends.hurry()
            if ends.closed is not None and not ends.messages:
                break
        code, reason = ends.closed
        cut = code == _DROPPED
        # Nobody listens any more when the farewell is said: some servers (granian) do not say it while somebody does.
        listening.cancel()
        body.close()
        await asyncio.sleep(0)
        if not body.gone:
            if code == _DROPPED:
                transaction: Any = scope.get(KEY)
                if transaction is not None:
                    transaction.failed(Failure.TRUNCATED)
            told = code if _is_said(code) else 1000 if code == _NO_CODE else _FAILED
            await send({"type": "websocket.close", "code": told, "reason": reason})
        elif ends.left_with is None or ends.left_with == _DROPPED:
            gone(scope)
    except OSError:  # the client takes nothing any more
        gone(scope)
    finally:
        if listening is not None:
            listening.cancel()
        if cut:
            ends.cut()
        else:
            ends.end()


async def _pass_on(ends: Tunnel, body: Body) -> None:
    """What the client says, until it leaves."""
    code, reason = _DROPPED, ""
    try:
        while True:
            message: Message = await body()
            if message["type"] == "websocket.disconnect":
                code, reason = message.get("code") or _NO_CODE, message.get("reason") or ""
                return
            text: str | None = message.get("text")
            data = message.get("bytes") or b""
            await ends.tell(TextMessage(data=text) if text is not None else BytesMessage(data=data))
    finally:
        ends.client_left(code, reason)
