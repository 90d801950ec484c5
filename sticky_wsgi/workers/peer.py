"""Forward requests to a peer: the app that forwards, and its connections to the peer."""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

from sticky_core.errors import Failure, ServerFailure
from sticky_core.server.server import Server
from sticky_core.upstream.local_limits import connect_failure
from sticky_core.workers.backend import (
    CLAIM_TIMEOUT,
    CONNECT_TIMEOUT,
    HELLO_TIMEOUT,
    MAX_IDLE,
    QUERY_TIMEOUT,
    Workers,
)
from sticky_core.workers.frames import PIECE, BadFrame, Frame, Kind
from sticky_core.workers.lost_names import LostNames
from sticky_core.workers.repair import REPAIR_LOOKS, REPAIR_PAUSE
from sticky_core.workers.transaction import RemoteAppError
from sticky_wsgi.body import Body
from sticky_wsgi.clients import disconnect_check
from sticky_wsgi.messages import Environ, StartResponse
from sticky_wsgi.upstream.connections import ClientDisconnected, set_tick_timeout
from sticky_wsgi.workers.gunicorn import Heartbeat
from sticky_wsgi.workers.link import FramedConnection, is_own_user, warn_bad_frame
from sticky_wsgi.workers.protocol import EAGER_BODY, has_small_body, lost_names, pack_environ, sends_body
from sticky_wsgi.workers.transaction import ForwardingTransaction

#: how many new connections to a peer are tried if it closes each before it has read the request
MAX_CONNECTS: Final = 3


class RequestNotRead(Exception):
    """The connection was closed before the peer could have read the request."""


class ForwardedRequest:
    """A request that is forwarded to a peer. `heartbeat`: what its thread sends while it waits for the peer."""

    def __init__(self, environ: Environ, transaction: ForwardingTransaction, heartbeat: Heartbeat) -> None:
        self._send_heartbeat = heartbeat.begin_wait()
        self.transaction = transaction
        self.server = self.transaction.tried[-1]
        self._client_gone = disconnect_check(environ)
        source: object = environ.get("wsgi.input")
        self._body = source if isinstance(source, Body) else Body(environ, 0)
        #: the body, if it goes with the request; None: it is sent as the app reads it
        self.body: bytes | None = self._read_small_body(environ)
        result = self.transaction.persisted
        self.claim, self.reason, self.key = result.claim.name, result.reason.name, self.transaction.key
        self.environ = pack_environ(environ)

    def _read_small_body(self, environ: Environ) -> bytes | None:
        if not sends_body(environ):
            return b""
        # the server that is tried next reads the body from here, if this peer has not read the request
        self.transaction.raw_request["wsgi.input"] = self._body
        if not has_small_body(environ):
            return None
        pieces: list[bytes] = []
        while piece := self.read(EAGER_BODY):
            pieces.append(piece)
        return b"".join(pieces)

    def read(self, size: int) -> bytes:
        """Return more of the body. ClientDisconnected if the client disconnects before its end."""
        try:
            piece = self._body.read(size)
        except OSError:
            raise ClientDisconnected from None
        if not piece and self._body.client_left_first:  # the input has ended before the body
            raise ClientDisconnected
        return piece

    def rewind(self) -> None:
        """Let the next server read the body from its beginning."""
        self._body.rewind()

    def on_tick(self) -> None:
        """Send a heartbeat. Raise ClientDisconnected if the client has disconnected, ServerFailure if the wait has to
        be given up.
        """
        self._send_heartbeat()
        if self._client_gone():
            raise ClientDisconnected

    def failure(self, detail: str = "") -> ServerFailure:
        """Return the failure of a peer that may have executed the request."""
        return ServerFailure(
            Failure.TRUNCATED if self.transaction.decision.status else Failure.CLOSED, self.server.name, detail
        )


class PeerApp:
    """The worker in another worker slot, as an app: it forwards each request there. `names`: those that forwarded
    requests lose. `heartbeat`: what a thread sends while it waits.
    """

    def __init__(self, workers: Workers, number: int, names: LostNames, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat
        self._workers = workers
        self._number = number
        self._lost_names = names
        self._idle: list[PeerConnection] = []

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        transaction = ForwardingTransaction.of(start_response)
        self._lost_names.report(lost_names(environ))
        if environ.get("HTTP_UPGRADE", "").lower() == "websocket":
            self._lost_names.report_socket()
        try:
            request = ForwardedRequest(environ, transaction, self._heartbeat)
            try:
                for connection in self._connections(request):
                    try:
                        return connection.forward(request, start_response)
                    except RequestNotRead:
                        continue
                raise ServerFailure(Failure.REFUSED, request.server.name, "the worker closes each connection at once")
            except ServerFailure:
                request.rewind()
                raise
        except ClientDisconnected:
            transaction.client_disconnected()
            start_response("499 Client Closed Request", [])
            return []

    def _connections(self, request: ForwardedRequest) -> Iterator[PeerConnection]:
        """Yield idle connections as long as there are any, then new ones. ServerFailure if none can be opened."""
        while (connection := self._take_idle(request.server.instance)) is not None:
            yield connection
        for _ in range(MAX_CONNECTS):
            with suppress(RequestNotRead):
                yield self._connect(request.server, request.transaction, request.on_tick)

    def query_key(self, *frame: object) -> str | None:
        """Send a query or a claim of a key, and return the owner that the peer replies; None if it knows none, or can't
        be reached in time.
        """
        deadline = time.monotonic() + (CLAIM_TIMEOUT if frame[0] == Kind.KEY_CLAIM else QUERY_TIMEOUT)

        send_heartbeat = self._heartbeat.begin_wait()

        def check_deadline() -> None:
            send_heartbeat()
            if time.monotonic() > deadline:
                raise TimeoutError

        server = self._workers.servers[self._number - 1]
        try:
            connection = self._take_idle(server.instance) or self._connect(server, None, check_deadline)
            return connection.query_key(check_deadline, *frame)
        except (ServerFailure, RequestNotRead, TimeoutError):
            return None

    def _take_idle(self, instance: str) -> PeerConnection | None:
        """Return an idle connection to the worker `instance`; close those to an earlier one, or that the peer has
        closed.
        """
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread has taken the last one
                break
            if connection.instance == instance and not connection.has_input():
                return connection
            connection.close()
        return None

    def _connect(
        self, server: Server, transaction: ForwardingTransaction | None, on_tick: Callable[[], None]
    ) -> PeerConnection:
        """Open a connection, and wait until the peer has accepted it. ServerFailure if it doesn't, RequestNotRead if it
        closes the connection at once. It raises what `on_tick` raises.
        """
        instance = server.instance
        for _ in range(REPAIR_LOOKS):
            try:
                connection = self._try_connect(server, instance)
            except ConnectionRefusedError:
                break
            except FileNotFoundError:
                if self._workers.has_ended(server, instance):
                    break
            else:
                connection.wait_for_hello(server, on_tick)
                return connection
            on_tick()
            time.sleep(REPAIR_PAUSE)  # another program has removed the socket: the worker makes it again
        if transaction is not None:
            transaction.peer_ended(instance)
        else:
            self._workers.forget_peer(server, instance)
        raise ServerFailure(Failure.REFUSED, server.name, "the worker has ended")

    def _try_connect(self, server: Server, instance: str) -> PeerConnection:
        """Open a connection. ServerFailure if that fails, FileNotFoundError if there is no socket,
        ConnectionRefusedError if the worker does not listen there any more.
        """
        name = server.name
        try:
            connected = socket.socket(socket.AF_UNIX)
        except OSError as error:
            raise connect_failure(error, time.monotonic(), name) from error
        try:
            connected.settimeout(CONNECT_TIMEOUT)
            connected.connect(self._workers.slots.socket_path(self._number, instance))
            if not is_own_user(connected):
                raise PermissionError("another user's process listens there")
            set_tick_timeout(connected)
            return PeerConnection(connected, self, instance)
        except (TimeoutError, BlockingIOError):
            failure = ServerFailure(Failure.CONNECT_TIMEOUT, name)
        except (ConnectionRefusedError, FileNotFoundError):
            connected.close()
            raise
        except OSError as error:
            failure = connect_failure(error, time.monotonic(), name)
        connected.close()
        raise failure

    def release(self, connection: PeerConnection) -> None:
        """Keep a connection for the next request."""
        if len(self._idle) < MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()


class PeerConnection(FramedConnection):
    """A connection to the worker `instance`, at the end that forwards: one request after another."""

    def __init__(self, connected: socket.socket, peer: PeerApp, instance: str) -> None:
        super().__init__(connected)
        self._peer = peer
        self.instance = instance
        self._has_replied = False  # whether the peer has sent a frame since the request
        self.finished = False  #: whether the end of the response, or the reply to a query, has been received

    def wait_for_hello(self, server: Server, on_tick: Callable[[], None]) -> None:
        """Wait until the peer has accepted the connection. ServerFailure if it sends something else or takes longer
        than HELLO_TIMEOUT, RequestNotRead if it closes the connection. It raises what `on_tick` raises.
        """
        accepted = False
        deadline = time.monotonic() + HELLO_TIMEOUT

        def check() -> None:
            on_tick()
            if time.monotonic() > deadline:
                detail = f"the worker has not said hello for {HELLO_TIMEOUT:g} s"
                raise ServerFailure(Failure.CONNECT_TIMEOUT, server.name, detail)

        try:
            accepted = self.receive_frame(check) == (Kind.HELLO, self.instance)
            if not accepted:
                raise ServerFailure(Failure.REFUSED, server.name, "the hello of another worker than expected")
        except BadFrame as error:
            warn_bad_frame(error)
            raise ServerFailure(Failure.REFUSED, server.name, str(error)) from None
        except TimeoutError:
            raise
        except (EOFError, OSError):
            raise RequestNotRead from None
        finally:
            if not accepted:
                self.close()

    def query_key(self, on_tick: Callable[[], None], *frame: object) -> str | None:
        """Send a query or a claim of a key, and return the owner; None if the peer knows none. It
        raises what `on_tick` raises, and RequestNotRead if the peer closes the connection.
        """
        self.finished = False
        try:
            self.send_frame(*frame, on_tick=on_tick)
            match self.receive_frame(on_tick):
                case (Kind.KEY_OWNER, str() | None as owner):
                    self.finished = True
                    return owner
                case other:
                    raise BadFrame(f"a frame of kind {other[0]}")
        except BadFrame as error:
            warn_bad_frame(error)
            return None
        except TimeoutError:
            raise
        except (EOFError, OSError):
            raise RequestNotRead from None
        finally:
            self.release()

    def forward(self, request: ForwardedRequest, start_response: StartResponse) -> Iterable[bytes]:
        """Forward a request, and return the response. ServerFailure if the peer fails, RemoteAppError if the app there
        does, RequestNotRead if the peer has not read the request, ClientDisconnected if the client disconnects.
        """
        self._has_replied = self.finished = False
        streams = False
        try:
            try:
                self.send_frame(
                    Kind.REQUEST,
                    request.claim,
                    request.reason,
                    request.key,
                    request.environ,
                    request.body,
                    on_tick=request.on_tick,
                )
            except OSError:
                raise RequestNotRead from None
            match self.next_messages(request):
                case ((str(status), (*headers,)), *items):
                    start_response(status, [(name, value) for name, value in headers])
                case _:
                    raise request.failure("a response without a head")
            if self.finished:
                return items
            streams = True
            return ForwardedResponse(self, request, items)
        finally:
            if not streams:
                self.release()

    def next_messages(self, request: ForwardedRequest) -> Sequence[Any]:
        """Return the next messages of the response. Until they are received, send the pieces of the body that the app
        reads.
        """
        while True:
            frame = self._receive_response(request)
            match frame:
                case (Kind.MESSAGES, *messages):
                    return messages
                case (Kind.END, None, *messages):
                    self.finished = True
                    return messages
                case (Kind.END, str(problem)):
                    self.finished = True
                    raise RemoteAppError(problem)
                case (Kind.WANT_BODY, int(size)):
                    try:
                        self.send_frame(Kind.MESSAGES, request.read(min(size, PIECE)), on_tick=request.on_tick)
                    except OSError:
                        raise request.failure() from None
                case _:
                    raise request.failure(f"a frame of kind {frame[0]}")

    def _receive_response(self, request: ForwardedRequest) -> Frame:
        try:
            frame = self.receive_frame(request.on_tick)
        except EOFError:
            raise request.failure() from None
        except OSError:
            # A process that closes a socket with unread data resets the connection. The app runs only once all of the
            # request has been read, so after a reset without a reply it has not run.
            raise (request.failure() if self._has_replied else RequestNotRead()) from None
        except BadFrame as error:
            warn_bad_frame(error)
            raise request.failure(str(error)) from None
        self._has_replied = True
        return frame

    def release(self) -> None:
        """Keep the connection if the last response is complete, else close it."""
        if self.finished:
            self._peer.release(self)
        else:
            self.close()


class ForwardedResponse:
    """The body of a response, as it is received. To close it early closes the connection."""

    def __init__(self, connection: PeerConnection, request: ForwardedRequest, items: Iterable[bytes]) -> None:
        self._connection = connection
        self._request = request
        self._items = deque(items)
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        while not self._items:
            if self._connection.finished:
                raise StopIteration
            try:
                self._items.extend(self._connection.next_messages(self._request))
            except ClientDisconnected:
                self._request.transaction.client_disconnected()
                raise StopIteration from None
        return self._items.popleft()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._connection.release()
