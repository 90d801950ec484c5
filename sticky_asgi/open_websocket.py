"""An open WebSocket of a client: the decision records which side ends it. It is closed when its server has drained: on
a server that is taken away it would stay open for as long as the client does.

It stands between the server in front and the dispatch loop, so replicas and upstreams need no part in it: the client
gets a close frame with code 1012, and the app, or the upstream, a `websocket.disconnect` with the same code.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import anyio
from anyio.lowlevel import checkpoint, current_token

from sticky_asgi.clients import has_closed_unreported, is_refused_by_server
from sticky_asgi.messages import (
    KEY,
    ASGIApp,
    Message,
    Receive,
    Schedule,
    Scope,
    Send,
    disconnect_code,
    record_disconnect,
    scheduler,
)
from sticky_core.backend.backend import Backend
from sticky_core.decision import LOST, NORMAL, ClosedBy, Decision
from sticky_core.errors import Failure, ServerFailure
from sticky_core.server.drain import CLOSE_CODE, CLOSE_REASON
from sticky_core.server.server import Server

if TYPE_CHECKING:
    from sticky_asgi.apps import Replicas

_DISCONNECT: Message = {"type": "websocket.disconnect", "code": CLOSE_CODE, "reason": CLOSE_REASON}

#: how often the event loop may run until a cancelled `receive` has ended; one or two are usual
_MAX_CHECKPOINTS = 10

#: tasks that wait for deadlines: event loops hold their tasks weakly
_tasks: set[asyncio.Task[None]] = set()


class OpenWebSocket:
    """The `receive` and the `send` of a WebSocket. Nothing but them and `for_websocket` refers to it, so it ends with
    its request. `can_drain`: whether it is closed when its server has drained.
    """

    def __init__(self, backend: Backend, scope: Scope, receive: Receive, send: Send, *, can_drain: bool) -> None:
        self._backend = backend
        self._scope = scope
        self._can_drain = can_drain
        self._is_accepted = False
        self._client_is_gone = False  # `send` has raised
        self._server_code: int | None = None  # once the server closes it
        self._client_receive = receive
        self._client_send = send
        self._server: Server | None = None  # the one that has accepted it
        self._passed_deadline: float | None = None  # it was accepted after this one, as no other server was left
        self._schedule: Schedule | None = None
        self._event_loop: Any = None
        self._receiving: anyio.CancelScope | None = None
        self._sending = 0
        self._sent: anyio.Event | None = None  # set when no message is being sent any more
        self._has_ended = False  # one side has closed it
        self._closing: anyio.Event | None = None  # once it is closed here; set when the close frame was sent
        self._drain_changed: anyio.Event | None = None  # while a task waits for the deadline

    async def receive(self) -> Message:
        """Return the next message of the client; a disconnect once the WebSocket was closed here."""
        if not self._can_drain:
            return self._received(await self._client_receive())
        if self._closing is None:
            with anyio.CancelScope() as self._receiving:
                try:
                    message = await self._client_receive()
                finally:
                    self._receiving = None
                return self._received(message)
        # The app ends when it gets the disconnect, and servers send no close frame after that.
        assert self._closing is not None
        await self._closing.wait()
        return _DISCONNECT

    def _received(self, message: Message) -> Message:
        """Return a message of the client, and record it if it is a disconnect."""
        if message["type"] == "websocket.disconnect":
            self._has_ended = True
            if self._server_code is not None:
                self._record(ClosedBy.SERVER, self._server_code)  # the client replies to the close of the server
            elif self._is_accepted:
                if disconnect_code(message) == LOST and has_closed_unreported(self._client_send):
                    self._record(ClosedBy.CLIENT, None)
                record_disconnect(self._decision, message)
        return message

    async def send(self, message: Message) -> None:
        """Send a message to the client. OSError once the WebSocket was closed here."""
        kind = message["type"]
        if self._closing is not None:
            if kind == "websocket.close":
                return
            raise OSError("the WebSocket was closed, because its server has drained")
        if kind == "websocket.close":
            self._has_ended = True
            self._server_code = message.get("code") or NORMAL
        elif kind == "websocket.accept":
            self._is_accepted = True  # before: its client may have closed when `send` returns
        self._sending += 1
        try:
            await self._client_send(message)
        except OSError:
            self._client_is_gone, self._server_code = True, None
            if kind == "websocket.accept":
                self._is_accepted = False
            raise
        finally:
            self._sending -= 1
            if self._sent is not None and not self._sending:
                self._sent.set()
        if kind == "websocket.accept":
            if is_refused_by_server(self._client_send):
                self._is_accepted = False
                raise OSError("the client has disconnected before its WebSocket was accepted")
            if self._can_drain:
                self._open()
        elif kind == "websocket.close" and self._server_code is not None:
            self._record(ClosedBy.SERVER, self._server_code)

    def _record(self, closed_by: ClosedBy, code: int | None) -> None:
        if self._is_accepted:
            self._decision.record_close(closed_by, code)

    @property
    def _decision(self) -> Decision:
        decision: Decision = self._scope[KEY]
        return decision

    def app_ended(self, error: BaseException | None) -> None:
        """Record that the app has returned or raised, unless something has ended the WebSocket before."""
        if self._client_is_gone:  # the app has not received the disconnect, which has the code
            self._record(ClosedBy.CLIENT, None)
        elif isinstance(error, ServerFailure):
            if error.failure is Failure.SHUT:
                self._record(ClosedBy.MIDDLEWARE, None)
            else:
                self._record(ClosedBy.LOST_SERVER, LOST)
        elif error is None or isinstance(error, Exception):
            self._record(ClosedBy.SERVER, None)
        else:  # such as a cancellation by the web server
            self._record(ClosedBy.MIDDLEWARE, None)

    def _open(self) -> None:
        """Follow the drain of the server that has accepted the WebSocket."""
        attempts = self._decision.attempts
        self._server = server = self._backend.servers_by_name.get(attempts[-1]) if attempts else None
        if server is None:
            return
        left = self.seconds_left
        if left is not None and left <= 0:
            self._passed_deadline = server.draining.deadline
        self._event_loop, self._schedule = current_token().native_token, scheduler()
        server.draining.add_connection(self)
        self._follow_drain()

    def on_drain_changed(self) -> None:
        if self._schedule is not None:
            with suppress(RuntimeError):  # its event loop has ended, and with it the WebSocket
                self._schedule(self._follow_drain)

    def _follow_drain(self) -> None:
        """Start the task that waits for the deadline, or let it read the deadline again."""
        if self._drain_changed is not None:
            self._drain_changed.set()
        elif self.seconds_left is not None:
            _start_task(self._event_loop, _close_at_deadline, weakref.ref(self))

    @property
    def seconds_left(self) -> float | None:
        """In how many seconds it is to be closed; 0 or less: that is overdue. None: it may stay open, or has ended."""
        server = self._server
        if self._has_ended or server is None:
            return None
        passed = self._passed_deadline
        if passed is not None and server.draining.deadline == passed and not server.removed:
            return None
        return server.seconds_to_deadline(self._backend.clock.monotonic())

    def watch_drain(self, is_watched: bool) -> anyio.Event | None:
        """Return the event that is set when the drain changes; None if it is not `is_watched` any more."""
        self._drain_changed = anyio.Event() if is_watched else None
        return self._drain_changed

    @property
    def share_of_spread(self) -> float:
        """How many seconds after the deadline it is closed: some time within the spread."""
        return self._server.draining.spread * self._backend.rng.random() if self._server is not None else 0.0

    async def close(self) -> None:
        """Close it: the client gets a close frame, and then the app a disconnect."""
        self._closing = anyio.Event()
        self._has_ended = True
        self._record(ClosedBy.MIDDLEWARE, CLOSE_CODE)
        if self._receiving is not None:
            self._receiving.cancel()
        for _ in range(_MAX_CHECKPOINTS):
            if self._receiving is None:
                break
            await checkpoint()  # some servers (granian) send no close frame while a `receive` is pending
        if self._sending:
            self._sent = anyio.Event()
            await self._sent.wait()
        with suppress(Exception):  # the client has disconnected at this moment
            await self._client_send({"type": "websocket.close", "code": CLOSE_CODE, "reason": CLOSE_REASON})
        self._closing.set()


def for_websocket(replicas: Replicas, websocket: OpenWebSocket) -> Replicas:
    """Return `replicas` as the dispatch loop uses them for one WebSocket: the end of an app is recorded, before the
    request is logged.
    """
    return cast("Replicas", _WebSocketReplicas(replicas, websocket))


class _WebSocketReplicas:
    """The replicas of a backend, and its apps by server, for one WebSocket. Requests that are none for a WebSocket are
    dispatched by the replicas themselves, and pay nothing for this.
    """

    def __init__(self, replicas: Replicas, websocket: OpenWebSocket) -> None:
        self._replicas = replicas
        self._websocket = websocket

    def __getattr__(self, name: str) -> Any:
        return getattr(self._replicas, name)

    @property
    def apps(self) -> _WebSocketReplicas:
        return self

    def __getitem__(self, server: Server) -> ASGIApp | None:
        app = self._replicas.apps[server]
        if app is None:
            return None

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            except BaseException as error:
                self._websocket.app_ended(error)
                raise
            self._websocket.app_ended(None)

        return serve


async def _close_at_deadline(reference: weakref.ref[OpenWebSocket]) -> None:
    """Close a WebSocket at its deadline, unless it ends before."""
    is_due = False  # whether its share of the spread has been waited for
    while (websocket := reference()) is not None:
        left = websocket.seconds_left
        if left is not None and left <= 0 and is_due:
            return await websocket.close()
        changed = websocket.watch_drain(left is not None)
        if left is None or changed is None:
            return
        is_due = left <= 0
        pause = websocket.share_of_spread if is_due else left
        del websocket  # it may end meanwhile
        with anyio.move_on_after(pause) as wait:
            await changed.wait()
        is_due = is_due and wait.cancelled_caught


def _start_task(event_loop: Any, function: Callable[[Any], Coroutine[Any, Any, None]], argument: object) -> None:
    """Run `function` as a task of this event loop."""
    if hasattr(event_loop, "create_task"):
        task = event_loop.create_task(function(argument))
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)
    else:
        import trio

        trio.lowlevel.spawn_system_task(function, argument)
