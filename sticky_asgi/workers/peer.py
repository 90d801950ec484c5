"""Forward requests to a peer: the app that forwards, and its connections to the peer."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable, Iterable

from sticky_asgi.body import Body
from sticky_asgi.clients import is_refused_by_server
from sticky_asgi.messages import HEADS, Message, Receive, Scope, Send
from sticky_asgi.upstream.sweep import TICK, TimeoutSweep
from sticky_asgi.workers.link import FramedConnection
from sticky_asgi.workers.protocol import DISCONNECTS, Additions, BodyMode, body_mode, pack_scope
from sticky_asgi.workers.transaction import ForwardingTransaction
from sticky_core.decision import SERVICE_RESTART, ClosedBy
from sticky_core.errors import Failure, ServerFailure
from sticky_core.server.server import Server
from sticky_core.upstream.local_limits import connect_failure
from sticky_core.workers.backend import CLAIM_TIMEOUT, HELLO_TIMEOUT, MAX_IDLE, QUERY_TIMEOUT, Workers
from sticky_core.workers.frames import Frame, Kind
from sticky_core.workers.repair import REPAIR_LOOKS, REPAIR_PAUSE
from sticky_core.workers.transaction import RemoteAppError

_log = logging.getLogger("sticky_sessions")


class RequestNotRead(Exception):
    """The connection was closed before the peer could have read the request."""


class PeerApp:
    """The worker in another worker slot, as an app: it forwards each request there. `find_additions`: returns what
    middleware has put into a scope.
    """

    def __init__(self, workers: Workers, number: int, find_additions: Callable[[Scope], Additions | None]) -> None:
        self._workers = workers
        self._number = number
        self._find_additions = find_additions
        self._idle: list[PeerConnection] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        transaction = ForwardingTransaction.of(send)
        additions = self._find_additions(scope)
        server = transaction.tried[-1]
        instance = server.instance
        while (connection := self._take_idle(instance)) is not None:
            try:
                return await connection.forward(scope, additions, receive, send, transaction)
            except RequestNotRead:  # the peer had closed it while it was idle
                continue
        connection = await self._connect(server, instance, transaction)
        body: Body | None = None

        def watch_client() -> None:
            nonlocal body
            body = _reader(scope, receive, transaction)
            body.watch(connection.client_left, reads_on=True)

        replayed = False
        try:
            await self._wait_for_hello(connection, server, transaction, watch_client)
            if body is not None:
                body.unwatch()
                if body.client_gone:
                    return transaction.client_disconnected()
            await connection.forward(scope, additions, receive if body is None else body, send, transaction)
        except RequestNotRead:
            raise ServerFailure(Failure.CLOSED, server.name) from None
        except ServerFailure:
            replayed = not transaction.decision.status  # the next attempt reads from the same reader
            raise
        finally:
            if body is not None:
                body.unwatch()
                if body is not receive and not replayed:
                    body.close()

    async def query_key(self, *frame: object) -> str | None:
        """Send a query or a claim of a key, and return the owner that the peer replies; None if it knows none, or can't
        be reached in time.
        """
        server = self._workers.servers[self._number - 1]
        instance = server.instance
        try:
            async with asyncio.timeout(CLAIM_TIMEOUT if frame[0] == Kind.KEY_CLAIM else QUERY_TIMEOUT):
                connection = self._take_idle(instance)
                if connection is None:
                    connection = await self._connect(server, instance, None)
                    await self._wait_for_hello(connection, server, None, None)
                return await connection.query_key(*frame)
        except (TimeoutError, ServerFailure):
            return None

    def _take_idle(self, instance: str) -> PeerConnection | None:
        """Return an idle connection to the worker `instance`; close those to an earlier one."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed and connection.instance == instance:
                return connection
            connection.transport.abort()
        return None

    async def _connect(
        self, server: Server, instance: str, transaction: ForwardingTransaction | None
    ) -> PeerConnection:
        """Open a connection, which the peer has not accepted yet. ServerFailure if that fails."""
        for _ in range(REPAIR_LOOKS):
            try:
                return await self._try_connect(server, instance)
            except ConnectionRefusedError:
                break
            except FileNotFoundError:
                if self._workers.has_ended(server, instance):
                    break
            await asyncio.sleep(REPAIR_PAUSE)  # another program has removed the socket: the worker makes it again
        self._peer_ended(server, instance, transaction)
        raise ServerFailure(Failure.REFUSED, server.name, "the worker has ended")

    async def _try_connect(self, server: Server, instance: str) -> PeerConnection:
        """Open a connection. ServerFailure if that fails, FileNotFoundError if there is no socket,
        ConnectionRefusedError if the worker does not listen there any more.
        """
        loop = asyncio.get_running_loop()
        try:
            connected = socket.socket(socket.AF_UNIX)
        except OSError as error:
            raise connect_failure(error, loop.time(), server.name) from error
        connected.setblocking(False)
        try:
            # asyncio would take a connection for established that the kernel has refused because too many wait
            connected.connect(self._workers.slots.socket_path(self._number, instance))
            _, connection = await loop.create_unix_connection(lambda: PeerConnection(self, instance), sock=connected)
            return connection
        except BlockingIOError:
            failure = ServerFailure(Failure.CONNECT_TIMEOUT, server.name, "too many connections wait for the worker")
        except (ConnectionRefusedError, FileNotFoundError):
            connected.close()
            raise
        except OSError as error:
            failure = connect_failure(error, loop.time(), server.name)
        connected.close()
        raise failure

    async def _wait_for_hello(
        self,
        connection: PeerConnection,
        server: Server,
        transaction: ForwardingTransaction | None,
        on_slow: Callable[[], None] | None,
    ) -> None:
        """Wait until the peer has accepted `connection`, or the client has disconnected. ServerFailure if the peer
        closes it, or takes longer than HELLO_TIMEOUT. `on_slow`: called if it takes longer than a tick.
        """
        try:
            async with asyncio.timeout(HELLO_TIMEOUT):
                await connection.wait_for_hello(on_slow)
        except TimeoutError:
            raise ServerFailure(
                Failure.CONNECT_TIMEOUT, server.name, f"the worker has not said hello for {HELLO_TIMEOUT:g} s"
            ) from None
        if connection.closed and not connection.client_gone:
            if not connection.is_foreign:
                self._peer_ended(server, connection.instance, transaction)
            raise ServerFailure(Failure.REFUSED, server.name, "the worker has closed the connection at once")

    def _peer_ended(self, server: Server, instance: str, transaction: ForwardingTransaction | None) -> None:
        """Note that the worker `instance` does not listen any more."""
        if transaction is not None:
            transaction.peer_ended(instance)
        else:
            self._workers.forget_peer(server, instance)

    def release(self, connection: PeerConnection) -> None:
        """Keep a connection for the next request."""
        if len(self._idle) < MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.transport.close()

    def peer_stopping(self, connection: PeerConnection) -> None:
        """Note that the peer is about to end: close `connection` if it is idle."""
        self._workers.refresh_peers()
        if connection in self._idle:
            self._idle.remove(connection)
            connection.transport.close()

    def connection_lost(self, connection: PeerConnection) -> None:
        """Remove a connection that was closed."""
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Close the idle connections."""
        for connection in self._idle:
            connection.transport.close()
        self._idle.clear()


def _reader(scope: Scope, receive: Receive, transaction: ForwardingTransaction) -> Body:
    """Return a reader of the client's messages that stores them for another attempt."""
    limit = transaction.snapshot.config.retry_body_limit
    body = receive if isinstance(receive, Body) else Body(receive, limit, transaction.decision)
    transaction.body = body
    if body_mode(scope) is BodyMode.ON_DEMAND:
        body.awaits_continue = True
    return body


class PeerConnection(FramedConnection):
    """A connection to the worker `instance`, at the end that forwards: one request after another."""

    def __init__(self, peer: PeerApp, instance: str) -> None:
        super().__init__()
        self._peer = peer
        self.instance = instance
        self._inbox: deque[Frame] = deque()
        self._woken: asyncio.Future[None] | None = None
        self._sweep: TimeoutSweep
        self._first_sweep = 0  # the number of the sweep in which the request was sent
        self._transaction: ForwardingTransaction
        self._is_websocket = False
        self._body_mode: BodyMode
        self._hello_received = False
        self._peer_stopping = False
        self._reset = False  # whether the other end was closed before it had read everything
        self._client_reader: asyncio.Task[None] | None = None
        self._client_was_read = False  # for the current request
        self._receive: Receive | None = None
        self.client_gone = False  #: whether the client of the current request has disconnected

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._sweep = TimeoutSweep.for_loop(self.loop)

    def on_frame(self, frame: Frame) -> None:
        match frame[0]:
            case Kind.END | Kind.MESSAGES:
                self._inbox.append(frame)
                self.messages_received()
            case Kind.HELLO:
                if frame[1] != self.instance:
                    raise ValueError("the hello of another worker than expected")
                self._hello_received = True
            case Kind.SHUTDOWN:
                self._peer_stopping = True
                self._peer.peer_stopping(self)
            case Kind.WANT_BODY:
                self._start_client_reader()
            case Kind.KEY_OWNER:
                self._inbox.append(frame)
            case _:
                raise ValueError(f"a frame of kind {frame[0]}")
        self._wake()

    def eof_received(self) -> None:
        super().eof_received()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._reset = isinstance(exc, (BrokenPipeError, ConnectionResetError))
        self._peer.connection_lost(self)
        self._wake()

    def _wake(self) -> None:
        woken = self._woken
        if woken is not None and not woken.done():
            woken.set_result(None)

    async def _wait_for_frame(self) -> None:
        """Wait for the next frame, or for the end of the connection."""
        woken = self._woken = self.loop.create_future()
        try:
            await woken
        finally:
            self._woken = None

    # What the peer's app calls

    async def wait_for_hello(self, on_slow: Callable[[], None] | None) -> None:
        """Wait until the peer has accepted the connection, or closed it, or the client has disconnected. Without a
        hello the connection is closed. `on_slow`: called if this takes longer than a tick.
        """
        timer = self.loop.call_later(TICK, on_slow) if on_slow is not None else None
        try:
            while not self._hello_received and not self.closed and not self.client_gone:
                await self._wait_for_frame()
        finally:
            if timer is not None:
                timer.cancel()
            if not self._hello_received or self.client_gone:
                self.closed = True
                self.transport.abort()

    def client_left(self) -> None:
        """Note that the client has disconnected while its request waits for the hello."""
        self.client_gone = True
        self._wake()

    async def forward(
        self,
        scope: Scope,
        additions: Additions | None,
        receive: Receive,
        send: Send,
        transaction: ForwardingTransaction,
    ) -> None:
        """Forward a request, and send the response back. ServerFailure if the peer fails, RemoteAppError if the app
        there does, RequestNotRead if the peer has not read the request.
        """
        result = transaction.persisted
        mode = self._body_mode = body_mode(scope)
        self.client_gone = self._client_was_read = False
        self._receive = receive
        self._transaction = transaction
        self._is_websocket = scope["type"] == "websocket"
        self.send_frame(
            Kind.REQUEST,
            result.claim.name,
            result.reason.name,
            transaction.key,
            mode.value,
            *pack_scope(scope, additions),
        )
        if mode is BodyMode.AT_ONCE:
            self._start_client_reader()
        sweep = self._sweep
        self._first_sweep = sweep.number
        sweep.add(self)
        finished = False
        try:
            inbox = self._inbox
            while True:
                while inbox:
                    frame = inbox.popleft()
                    finished = frame[0] == Kind.END
                    await self._send_to_client(frame[2 if finished else 1 :], send)
                    if finished:
                        if frame[1] is not None:
                            raise RemoteAppError(frame[1])
                        return
                self.all_consumed()
                if self.closed:
                    break
                await self._wait_for_frame()
        finally:
            self._receive = None
            self.all_consumed()
            sweep.remove(self)
            if self._client_reader is not None:
                self._client_reader.cancel()
                self._client_reader = None
            if not finished:
                self.transport.abort()
            elif self._peer_stopping or self.closed:
                self.transport.close()
            else:
                self._peer.release(self)
        if self._reset and not self._client_was_read and not transaction.decision.status:
            raise RequestNotRead
        raise ServerFailure(
            Failure.TRUNCATED if transaction.decision.status else Failure.CLOSED, transaction.tried[-1].name
        )

    async def query_key(self, *frame: object) -> str | None:
        """Send a query or a claim of a key, and return the owner; None if the peer knows none."""
        self.send_frame(*frame)
        finished = False
        try:
            while not self._inbox and not self.closed:
                await self._wait_for_frame()
            finished = bool(self._inbox)
            owner = self._inbox.popleft()[1] if finished else None
        finally:
            if finished and not self._peer_stopping and not self.closed:
                self._peer.release(self)
            else:
                self.transport.abort()  # to close it would wait until the peer has read the query
        return owner if isinstance(owner, str) else None

    async def _send_to_client(self, messages: Iterable[Message], send: Send) -> None:
        for message in messages:
            if self.client_gone:
                return
            if message["type"] in HEADS:
                message["headers"] = list(message.get("headers") or ())
            elif self._peer_stopping and message.get("code") == SERVICE_RESTART:  # its worker ends
                self._transaction.decision.record_close(ClosedBy.MIDDLEWARE, SERVICE_RESTART)
            try:
                await send(message)
                if message["type"] == "websocket.accept" and is_refused_by_server(send):
                    raise OSError
            except OSError:  # the client has disconnected
                if self._is_websocket:
                    self._client_disconnected({"type": "websocket.disconnect", "code": 1006})
                else:
                    self._client_disconnected({"type": "http.disconnect"})

    def _client_disconnected(self, message: Message) -> None:
        self.client_gone = True
        self.send_message(message)
        self._transaction.client_disconnected()

    def on_sweep(self, number: int) -> None:
        """If the response takes longer than a sweep, read the client's messages, to notice that it disconnects."""
        if number > self._first_sweep + 1:
            self._start_client_reader()

    def _start_client_reader(self) -> None:
        """Read the client's messages from here on, and send them to the peer."""
        if self._client_reader is None and self._receive is not None:
            self._client_was_read = True
            self._client_reader = self.loop.create_task(self._read_client(self._receive))

    async def _read_client(self, receive: Receive) -> None:
        try:
            while not self.closed:
                message = await receive()
                if message["type"] in DISCONNECTS:
                    if not self.client_gone:
                        self._client_disconnected(message)
                    return
                if self._body_mode is not BodyMode.EMPTY:  # else the peer has made the empty body itself
                    self.send_message(message)
                    self.flush()
                    await self.drain()
        except Exception as error:
            _log.warning("StickyWorkers: the body of a request to another worker can't be read to its end: %s", error)
            self.transport.abort()
