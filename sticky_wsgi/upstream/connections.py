"""Connections to an upstream: opened, kept for the next request, watched for time and for clients that leave.

A blocking socket that wakes up ten times a second, to see whether the server takes too long or the client has left.
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
from sticky_core.upstream.pool import Pool

#: seconds between two looks around, which is how late a timeout may be
TICK = 0.1
_READ = 65536
_TIMEVAL = struct.pack("@ll", 0, int(TICK * 1_000_000))


#: what a socket says that has woken up in vain
TICK_ERRORS = (TimeoutError, BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class ClientDisconnected(Exception):
    """Nobody waits for the answer any more."""


class Connection:
    """A connection, and the exchange that is under way on it. One thread's at a time."""

    __slots__ = ("_keeper", "_poll", "_socket", "answer", "closed", "has_left", "spoiled")

    def __init__(self, keeper: Connections, connected: socket.socket) -> None:
        self._keeper = keeper
        self._socket = connected
        self._poll = select.poll()
        self._poll.register(connected.fileno(), select.POLLIN)
        self.answer = ResponseParser()
        self.closed = False
        self.spoiled = False

    def begin(self, method: str, has_left: Callable[[], bool]) -> None:
        """A request is about to be sent."""
        self.answer.begin_response(method)
        self.has_left = has_left

    def write(self, data: bytes) -> bool:
        """Send `data`. False: the server has answered or gone before it had all, and need not be told more."""
        view = memoryview(data)
        waited = 0
        while True:
            try:
                sent = self._socket.send(view)
            except TICK_ERRORS:
                if self.heard():
                    return False
                waited = self._wait_longer(waited)
                continue
            except OSError:
                self.drain()
                return False
            if sent == len(view):
                return True
            view = view[sent:]
            waited = 0

    def heard(self) -> bool:
        """Whether there is an answer already, while the request is still being sent."""
        while not self.answer.status and not self.closed and self._readable():
            self.read()
        return bool(self.answer.status) or self.closed

    def drain(self) -> None:
        """The server takes nothing more in: read what it may have said before."""
        while not self.answer.status and not self.closed:
            self.read()

    def _readable(self) -> bool:
        pending = getattr(self._socket, "pending", None)
        return bool((pending is not None and pending()) or self._poll.poll(0))

    def read(self) -> None:
        """Wait for more of the answer. ServerFailure if there will be none, ClientLeft if nobody waits for it."""
        waited = 0
        while True:
            try:
                data = self._socket.recv(_READ)
                break
            except TICK_ERRORS:
                waited = self._wait_longer(waited)
            except OSError:  # not the end of anything, and least of all of a body that ends with the connection
                self.closed = True
                raise ServerFailure(Failure.TRUNCATED if self.answer.status else Failure.CLOSED) from None
        answer = self.answer
        had = answer.status
        try:
            if data:
                return answer.feed(data)
            self.closed = True
            if answer.feed_eof():
                return
        except BadResponse as error:
            if answer.finished and had:
                return
            raise ServerFailure(Failure.TRUNCATED if had else Failure.BAD_RESPONSE, detail=str(error)) from None
        raise ServerFailure(Failure.TRUNCATED if had else Failure.CLOSED)

    def _wait_longer(self, waited: int) -> int:
        if self.has_left():
            raise ClientDisconnected
        if waited >= self._keeper.patience:
            failure = Failure.TRUNCATED if self.answer.status else Failure.TIMEOUT
            raise ServerFailure(failure, detail="silent for too long")
        return waited + 1

    def quiet(self) -> bool:
        """Whether nothing has come from the server since its last answer, no farewell either; asked of the kernel."""
        return not self._poll.poll(0)

    def end(self) -> None:
        """The exchange is over: the connection is kept if it may be, and closed if not."""
        self.has_left = _nobody
        if self.answer.finished and self.answer.reusable and not self.closed and not self.spoiled:
            self._keeper.keep(self)
        else:
            self.close()

    def close(self) -> None:
        self.closed = True
        self._socket.close()

    def forget(self) -> None:
        """It is the parent process's: let go of it without a word on the line."""
        self.closed = True
        if isinstance(self._socket, ssl.SSLSocket):
            self._socket = socket.socket(fileno=self._socket.detach())
        self._socket.close()


def set_tick_timeout(connected: socket.socket) -> None:
    """Have it wake up now and then, at the price of no system call: a timeout in Python's sockets polls before each."""
    if type(connected) is socket.socket and socket.socket.__module__ == "socket" and sys.platform != "win32":
        connected.settimeout(None)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connected.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL)
    else:  # TLS reads on by itself; gevent's and the like have their own way to wait
        connected.settimeout(TICK)


def _nobody() -> bool:
    return False


class Connections:
    """The connections to one upstream in one process, for all its threads."""

    def __init__(
        self, location: Location, context: ssl.SSLContext | None, sni: str, pool: Pool[Connection], timeout: float
    ) -> None:
        """`timeout`: seconds without a word from the server."""
        self.patience = max(1, ceil(timeout / TICK))  # the same, in ticks
        self._location = location
        self._context = context
        self._sni = sni
        self._pool = pool
        self._lock = threading.Lock()
        register(self)
        weakref.finalize(self, _close, pool)

    def take(self, repeatable: bool) -> Connection | None:
        """An idle one that was open, and silent, just now. `repeatable`: whether the request may be sent again."""
        while True:
            with self._lock:
                connection = self._pool.acquire(time.monotonic(), repeatable)
            # Nobody listens to idle connections: what came on one since would pass for the next answer.
            if connection is None or connection.quiet():
                return connection
            connection.close()

    def open(self, timeout: float) -> Connection:
        """A new one. ServerFailure if there can be none."""
        where = self._location
        connected: socket.socket | None = None
        try:
            if where.socket is not None:
                connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                connected.settimeout(timeout)
                connected.connect(where.socket)
            else:
                connected = socket.create_connection((where.host, where.port), timeout)
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
            failure = ServerFailure(Failure.REFUSED, detail=error.strerror or str(error))
        if connected is not None:
            connected.close()
        raise failure

    def keep(self, connection: Connection) -> None:
        """Its exchange is over, and it may carry another."""
        now = time.monotonic()
        with self._lock:
            old = self._pool.purge(now)
            kept = self._pool.release(connection, now)
        if not kept:
            connection.close()
        for each in old:
            each.close()

    def close(self) -> None:
        """Close what is idle."""
        with self._lock:
            idle = self._pool.clear()
        for connection in idle:
            connection.close()

    def end(self) -> None:
        """The same, and keep none from here on."""
        self._pool.retire()
        self.close()

    def after_fork(self) -> None:
        """We are a forked child: the parent's connections are not ours, not even to say farewell on."""
        self._lock = threading.Lock()
        for connection in self._pool.clear():
            connection.forget()


def _close(pool: Pool[Connection]) -> None:
    for connection in pool.clear():
        connection.close()
