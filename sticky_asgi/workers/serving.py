"""Serve what peers send: requests that they forward, and queries and claims of keys."""

from __future__ import annotations

import asyncio
import traceback
from collections import deque
from collections.abc import Container
from typing import Any, Final, Protocol, cast

from sticky_asgi.clients import is_disconnect
from sticky_asgi.messages import HEADS, KEY, ASGIApp, Head, Headers, Message, Scope, record_disconnect
from sticky_asgi.workers.keys import KeyLookup
from sticky_asgi.workers.learning import learning_send
from sticky_asgi.workers.link import FramedConnection
from sticky_asgi.workers.order import ResponseOrder, WebSocketOrder
from sticky_asgi.workers.protocol import DISCONNECTS, BodyMode, unpack_scope
from sticky_core.decision import NORMAL, SERVICE_RESTART, ClosedBy
from sticky_core.workers.backend import Workers
from sticky_core.workers.frames import Frame, Kind
from sticky_core.workers.transaction import PeerRequest

_HTTP_DISCONNECT: Final[Message] = {"type": "http.disconnect"}
_WEBSOCKET_DISCONNECT: Final[Message] = {"type": "websocket.disconnect", "code": 1006, "reason": ""}


class ServingWorker(Protocol):
    """The worker for which `PeerServer` serves: `LocalWorker`."""

    app: ASGIApp
    state: dict[str, Any] | None
    constants: dict[str, Any]
    workers: Workers
    key_lookup: KeyLookup | None

    def connection_opened(self, connection: PeerServer) -> None: ...
    def connection_closed(self, connection: PeerServer) -> None: ...


class PeerServer(FramedConnection):
    """A connection of a peer to this worker, at the end that serves."""

    def __init__(self, worker: ServingWorker) -> None:
        super().__init__()
        self._worker = worker
        self._request: ServedRequest | None = None  # the one in flight
        self._claim_task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not self.closed:
            self._worker.connection_opened(self)
            self.send_frame(Kind.HELLO, self._worker.workers.slot.instance)

    def on_frame(self, frame: Frame) -> None:
        match frame[0]:
            case Kind.REQUEST:
                if self._request is not None:
                    raise ValueError("a request before the end of the last one")
                peer_request = PeerRequest(self._worker.workers, *frame[1:4])
                scope = unpack_scope(frame, self._worker.constants, self._worker.state)
                self._request = ServedRequest(self, self._worker, peer_request, scope, BodyMode(frame[4]))
                self._request.task = self.loop.create_task(self._request.run())
            case Kind.MESSAGES:
                if self._request is not None:  # else the request has just ended
                    self.messages_received()
                    for message in frame[1:]:
                        self._request.on_message(message)
            case Kind.KEY_QUERY:
                keys = self._worker.workers.keys
                self._send_owner(keys.live_owner(str(frame[1])) if keys is not None else None)
            case Kind.KEY_CLAIM:
                if self._claim_task is not None and not self._claim_task.done():
                    raise ValueError("a claim before the reply to the last one")
                self._claim_task = self.loop.create_task(self._reply_to_claim(str(frame[1]), str(frame[2]), frame[3:]))
            case _:
                raise ValueError(f"a frame of kind {frame[0]}")

    async def _reply_to_claim(self, key: str, claimant: str, silent: Container[object]) -> None:
        lookup = self._worker.key_lookup
        self._send_owner(await lookup.decide(key, claimant, silent) if lookup is not None else claimant)

    def _send_owner(self, owner: str | None) -> None:
        """Reply to a query or a claim. A peer that does not read the replies loses its connection: they would fill the
        memory.
        """
        if self.writable is not None:
            self.transport.abort()
        else:
            self.send_frame(Kind.KEY_OWNER, owner)

    def request_finished(self, problem: str | None) -> None:
        """Send the end of the response. `problem`: the traceback of an exception of the app."""
        self._request = None
        if not self.closed:
            self.all_consumed()
            unsent, self._unsent, self._unsent_size = self._unsent, [], 0
            self.transport.write(self.frames.pack_with((Kind.END, problem), unsent))

    def announce_shutdown(self) -> None:
        """Send the peer a notice that this worker is about to end."""
        self.send_frame(Kind.SHUTDOWN)
        if self._request is not None:
            self._request.close_websocket()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._worker.connection_closed(self)
        if self._request is not None:
            self._request.peer_disconnected()

    def eof_received(self) -> None:
        super().eof_received()
        if self._request is not None:
            self._request.peer_disconnected()


class ServedRequest:
    """A request that a peer has forwarded, and the `receive` and `send` of the app that serves it."""

    def __init__(
        self, connection: PeerServer, worker: ServingWorker, peer_request: PeerRequest, scope: Scope, mode: BodyMode
    ) -> None:
        self._connection = connection
        self._worker = worker
        self._peer_request = peer_request
        self._decision = peer_request.decision
        self._scope = scope
        self._is_websocket = scope["type"] == "websocket"
        self._inbox: deque[Message] = deque()
        if mode is BodyMode.EMPTY:
            self._inbox.append({"type": "http.request", "body": b"", "more_body": False})
        self._keys = worker.workers.keys
        self._must_request_body = mode is BodyMode.ON_DEMAND
        self._disconnect: Message = _WEBSOCKET_DISCONNECT if self._is_websocket else _HTTP_DISCONNECT
        self._client_gone = self._client_left_first = False
        self._order = WebSocketOrder() if self._is_websocket else ResponseOrder()
        # whether the app has ended: a task of it may go on, while the connection carries the next request
        self._is_over = False
        self._disconnect_error: OSError | None = None  # that `send` has raised
        self._woken: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None]

    async def run(self) -> None:
        """Have the app serve the request, and send the end of the response."""
        scope, peer_request = self._scope, self._peer_request
        scope[KEY] = peer_request.decision
        problem: str | None = None
        peer_request.start()
        try:
            keys = self._keys
            send = self.send if keys is None else learning_send(keys, peer_request, self.send)
            await self._worker.app(scope, self.receive, send)
        except GeneratorExit:
            self._connection.transport.abort()
            raise
        except BaseException as error:  # as servers catch it: SystemExit would end this worker
            if self.task.cancelling():  # the event loop ends: there will be no response
                self._connection.transport.abort()
                raise
            peer_request.app_raised(self._client_left_first or is_disconnect(error, self.send))
            if error is not self._disconnect_error:  # servers do not log what they have raised themselves
                problem = "".join(traceback.format_exception(error))
        finally:
            self._is_over = True
            if self._is_websocket:
                self._decision.record_close(ClosedBy.SERVER, None)  # unless it was closed before
            peer_request.finish()
            self._connection.request_finished(problem)

    def on_message(self, message: Message) -> None:
        """Take a message of the client."""
        if message["type"] in DISCONNECTS:
            self._on_disconnect()
            self._disconnect = message
            if self._is_websocket:
                record_disconnect(self._decision, message)
        else:
            self._inbox.append(message)
        self._wake()

    def peer_disconnected(self) -> None:
        """The connection to the peer is closed, and with it the one to the client."""
        self._on_disconnect()
        if self._is_websocket:
            record_disconnect(self._decision, _WEBSOCKET_DISCONNECT)
        self._wake()

    def _on_disconnect(self) -> None:
        self._client_gone = True
        self._client_left_first = self._decision.status < 500

    def close_websocket(self) -> None:
        """Close a WebSocket, because this worker is about to end: it would outlast the drain timeout."""
        if self._is_websocket and not self._client_gone:
            code = {"code": SERVICE_RESTART, "reason": "the service restarts"}
            self._connection.send_message({"type": "websocket.close", **code})
            self._decision.record_close(ClosedBy.MIDDLEWARE, SERVICE_RESTART)
            self.on_message({"type": "websocket.disconnect", **code})

    def _wake(self) -> None:
        woken = self._woken
        if woken is not None and not woken.done():
            woken.set_result(None)

    async def receive(self) -> Message:
        if self._is_over:
            return self._disconnect
        inbox = self._inbox
        if self._must_request_body:
            self._must_request_body = False
            self._connection.send_frame(Kind.WANT_BODY)
        while not inbox:
            if self._client_gone or self._order.is_complete:
                return self._disconnect
            if self._woken is None:
                self._woken = self._connection.loop.create_future()
            woken = self._woken
            try:
                await asyncio.shield(woken)
            finally:
                if self._woken is woken and woken.done():
                    self._woken = None
        message = inbox.popleft()
        if not inbox:
            self._connection.all_consumed()
        return message

    async def send(self, message: Message) -> None:
        connection = self._connection
        if self._is_over:
            raise OSError("the request has ended: its client gets no more messages")
        kind = message["type"]
        if self._client_gone:
            if kind != "websocket.close" and _send_raises(self._scope):
                self._disconnect_error = OSError("the client has disconnected")
                raise self._disconnect_error
            return
        self._order.check(message)
        if kind in HEADS:
            if not self._decision.status:
                self._decision.status = message.get("status", 101) % 1000
            headers = message.get("headers")
            if headers is not None and not isinstance(headers, list):
                message = {**message, "headers": list(headers)}
            keys = self._keys
            if keys is not None and kind != "http.response.early_hint":
                found: Headers = message.get("headers") or []
                keys.learn_from_response(Head(found, True), self._worker.workers.own_server)
        elif kind == "websocket.close":
            self._decision.record_close(ClosedBy.SERVER, message.get("code") or NORMAL)
        connection.send_message(message)
        if connection.writable is not None:
            await connection.drain()
        if self._order.is_complete and self._woken is not None:
            self._wake()


def _send_raises(scope: Scope) -> bool:
    """Return whether an app with this scope expects an OSError from `send` after a disconnect (since ASGI 2.4)."""
    asgi = cast("dict[str, object]", scope.get("asgi") or {})
    return [int(part) for part in str(asgi.get("spec_version", "2.0")).split(".") if part.isdecimal()] >= [2, 4]
