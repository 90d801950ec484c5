"""Connections to an upstream: opened, kept for the next request, and watched for timeouts and for clients that
disconnect.

Sockets are blocking, but their calls return ten times a second, to check whether the server takes too long or the
client has disconnected.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import sys
import threading
import time
import weakref
from collections.abc import Callable
from math import ceil

from sticky_core.errors import Failure, ServerFailure
from sticky_core.fork import register
from sticky_core.http.http1 import BadResponse, ResponseParser
from sticky_core.target import Location
from sticky_core.upstream.local_limits import connect_failure, error_of_attempts
from sticky_core.upstream.pool import Pool

#: seconds between two checks of the clock and of the client, which is how late a timeout may be
TICK = 0.1
_READ = 65536
_TIMEVAL = struct.pack("@ll", 0, int(TICK * 1_000_000))

#: what a call of a socket raises after TICK seconds in which nothing could be read or written
TICK_ERRORS = (TimeoutError, BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class ClientDisconnected(Exception):
    """The client has disconnected before the end of its request."""


class Connection:
    """A connection to an upstream, and the exchange (one request and its response) that is under way on it. Used by one
    thread at a time.
    """

    __slots__ = ("_connections", "_poll", "_socket", "broken", "client_gone", "closed", "response")

    def __init__(self, connections: Connections, connected: socket.socket) -> None:
        self._connections = connections
        self._socket = connected
        self._poll = select.poll()
        self._poll.register(connected.fileno(), select.POLLIN)
        self.response = ResponseParser()
        self.closed = False
        self.broken = False  #: whether the exchange was stopped early, so that no other can follow on this connection

    def begin(self, method: str, client_gone: Callable[[], bool]) -> None:
        """Begin an exchange. `client_gone` returns whether the client has disconnected."""
        self.response.begin_response(method)
        self.client_gone = client_gone

    def write(self, data: bytes) -> bool:
        """Send `data`. Return False if the server has responded or closed before all was sent: it needs no more."""
        view = memoryview(data)
        ticks = 0
        while True:
            try:
                sent = self._socket.send(view)
            except TICK_ERRORS:
                if self.has_responded():
                    return False
                ticks = self._next_tick(ticks)
                continue
            except OSError:
                self.read_early_response()
                return False
            if sent == len(view):
                return True
            view = view[sent:]
            ticks = 0

    def has_responded(self) -> bool:
        """Return whether the server has responded or closed while the request is still being sent."""
        while not self.response.status and not self.closed and self._is_readable():
            self.read()
        return bool(self.response.status) or self.closed

    def read_early_response(self) -> None:
        """Read the response of a server that takes in no more of the request."""
        while not self.response.status and not self.closed:
            self.read()

    def _is_readable(self) -> bool:
        pending = getattr(self._socket, "pending", None)
        return bool((pending is not None and pending()) or self._poll.poll(0))

    def read(self) -> None:
        """Wait for more of the response. ServerFailure if there will be none, ClientDisconnected if the client has
        disconnected.
        """
        ticks = 0
        while True:
            try:
                data = self._socket.recv(_READ)
                break
            except TICK_ERRORS:
                ticks = self._next_tick(ticks)
            except OSError:  # a reset: it does not end a body that lasts until the connection closes
                self.closed = True
                raise ServerFailure(Failure.TRUNCATED if self.response.status else Failure.CLOSED) from None
        response = self.response
        had_head = response.status
        try:
            if data:
                return response.feed(data)
            self.closed = True
            if response.feed_eof():
                return
        except BadResponse as error:
            if response.finished and had_head:
                return
            raise ServerFailure(Failure.TRUNCATED if had_head else Failure.BAD_RESPONSE, detail=str(error)) from None
        raise ServerFailure(Failure.TRUNCATED if had_head else Failure.CLOSED)

    def _next_tick(self, ticks: int) -> int:
        """Count another tick without data. ServerFailure after too many; ClientDisconnected if the client has
        disconnected.
        """
        self.raise_if_client_gone()
        if ticks >= self._connections.timeout_ticks:
            failure = Failure.TRUNCATED if self.response.status else Failure.TIMEOUT
            raise ServerFailure(failure, detail="silent for too long")
        return ticks + 1

    def raise_if_client_gone(self) -> None:
        """ClientDisconnected if the client has disconnected."""
        if self.client_gone():
            raise ClientDisconnected

    def is_silent(self) -> bool:
        """Return whether nothing has arrived since the last response, not even the end of the connection."""
        return not self._poll.poll(0)

    def end(self) -> None:
        """End the exchange: keep the connection if it can be used again, else close it."""
        self.client_gone = _never
        if self.response.finished and self.response.reusable and not self.closed and not self.broken:
            self._connections.release(self)
        else:
            self.close()

    def close(self) -> None:
        self.closed = True
        self._socket.close()

    def close_in_child(self) -> None:
        """Close this process's copy of a parent's socket, and send nothing: TLS would send a close alert."""
        self.closed = True
        if isinstance(self._socket, ssl.SSLSocket):
            self._socket = socket.socket(fileno=self._socket.detach())
        self._socket.close()


def connect_to(host: str, port: int, timeout: float) -> socket.socket:
    """Return a socket that is connected to the first address of `host` that accepts a connection; each may take
    `timeout` seconds. OSError if none does.
    """
    errors: list[OSError] = []
    try:
        return socket.create_connection((host, port), timeout, all_errors=True)
    except* OSError as group:
        errors += (error for error in group.exceptions if isinstance(error, OSError))
    raise error_of_attempts(errors)


def set_tick_timeout(connected: socket.socket) -> None:
    """Let blocking calls of a socket return after TICK seconds, without a system call for it: a timeout of Python's own
    calls poll() before each.
    """
    if type(connected) is socket.socket and socket.socket.__module__ == "socket" and sys.platform != "win32":
        connected.settimeout(None)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connected.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL)
    else:  # TLS calls recv() again by itself; the sockets of gevent and similar libraries do not block
        connected.settimeout(TICK)


def _never() -> bool:
    return False


class Connections:
    """The connections to one upstream in one process, for all its threads."""

    def __init__(
        self, location: Location, context: ssl.SSLContext | None, sni: str, pool: Pool[Connection], timeout: float
    ) -> None:
        """`timeout`: how long the server may be silent, in seconds."""
        self.timeout_ticks = max(1, ceil(timeout / TICK))
        self._location = location
        self._context = context
        self._sni = sni
        self._pool = pool
        self._lock = threading.Lock()
        register(self)
        weakref.finalize(self, _close_all, pool)

    def acquire(self, repeatable: bool) -> Connection | None:
        """Return an idle connection that was open and silent just now, or None. `repeatable`: whether the request may
        be sent again.
        """
        while True:
            with self._lock:
                connection = self._pool.acquire(time.monotonic(), repeatable)
            # Idle connections are not read: what has arrived on one since would be taken for the next response.
            if connection is None or connection.is_silent():
                return connection
            connection.close()

    def open(self, connect_timeout: float) -> Connection:
        """Open a connection within `connect_timeout` seconds. ServerFailure if the server can't be reached."""
        location = self._location
        connected: socket.socket | None = None
        try:
            if location.socket is not None:
                connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                connected.settimeout(connect_timeout)
                connected.connect(location.socket)
            else:
                connected = connect_to(location.host, location.port, connect_timeout)
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                connected = self._context.wrap_socket(connected, server_hostname=self._sni)
            set_tick_timeout(connected)
            return Connection(self, connected)
        except TimeoutError:
            failure = ServerFailure(Failure.CONNECT_TIMEOUT)
        except ssl.SSLError as error:
            failure = ServerFailure(Failure.TLS, detail=str(error))
        except OSError as error:
            failure = connect_failure(error, time.monotonic())
        if connected is not None:
            connected.close()
        raise failure

    def release(self, connection: Connection) -> None:
        """Keep a connection for the next request after its exchange has ended, if the pool has space for it."""
        now = time.monotonic()
        with self._lock:
            expired = self._pool.purge(now)
            kept = self._pool.release(connection, now)
        if not kept:
            connection.close()
        for each in expired:
            each.close()

    def close(self) -> None:
        """Close all idle connections."""
        with self._lock:
            idle = self._pool.clear()
        for connection in idle:
            connection.close()

    def retire(self) -> None:
        """Close all idle connections, and keep none from now on."""
        self._pool.retire()
        self.close()

    def after_fork(self) -> None:
        """Drop the parent process's connections in a forked child, and send nothing on them."""
        self._lock = threading.Lock()
        for connection in self._pool.clear():
            connection.close_in_child()


def _close_all(pool: Pool[Connection]) -> None:
    for connection in pool.clear():
        connection.close()
