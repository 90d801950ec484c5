"""Connections to an upstream on one event loop: opened, kept for the next request, and watched for timeouts and for
clients that disconnect.

One protocol object per connection and no task per request. `TimeoutSweep` stands in for a timer per request: it ends
what takes too long, and begins to watch the client of a request that gets no response at once.
"""

from __future__ import annotations

import asyncio
import os
import select
import ssl
from collections.abc import Awaitable
from typing import cast

from sticky_asgi.body import Body
from sticky_asgi.messages import Message
from sticky_asgi.upstream.flow_control import FlowControlProtocol
from sticky_asgi.upstream.sweep import TICK, TimeoutSweep
from sticky_core.errors import Failure, ServerFailure
from sticky_core.http.http1 import BadResponse, ResponseParser
from sticky_core.http.timeouts import TimeoutSeconds
from sticky_core.target import Location
from sticky_core.upstream.local_limits import connect_failure
from sticky_core.upstream.pool import Pool

#: How many bytes of a body are buffered for a slow client before reading from the upstream is paused.
WINDOW = 262144


class Connection(FlowControlProtocol):
    """A connection to an upstream, and the exchange (one request and its response) that is under way on it."""

    __slots__ = (
        "_active_at",
        "_awaits_client",
        "_began_at",
        "_buffered",
        "_connections",
        "_continue",
        "_poll",
        "_reading_paused",
        "_task",
        "_unsent",
        "_waiter",
        "body",
        "client_gone",
        "client_is_slow",
        "closed",
        "failure",
        "loop",
        "response",
        "sweep",
        "task_cancelled",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, connections: Connections) -> None:
        super().__init__()
        self._connections = connections
        self.loop = connections.loop
        self.sweep = connections.sweep
        self.response = ResponseParser()
        self.closed = False
        self._reading_paused = False
        self._buffered = 0
        self._waiter: asyncio.Future[bool] | None = None
        self._poll: select.poll | None = None
        self._continue: asyncio.Event | None = None
        #: how the server has failed, or what the client's `receive` has raised
        self.failure: Exception | None = None
        self.client_gone = False  #: whether the client has disconnected
        self.client_is_slow = False  #: whether it has let a part of the response wait for long
        self.task_cancelled = (
            False  #: whether the sweep has cancelled the request's task because the client has disconnected
        )
        self._task: asyncio.Task[object] | None = None
        #: the body of the request in flight, by which its client is watched
        self.body: Body | None = None
        self._active_at = 0  # number of the sweep in which an end last did something, or a wait for it began
        self._awaits_client = False  # whether the wait is for more of the client's body, not for the server
        self._unsent = 0  # bytes in the transport's write buffer at the latest sweep during a `drain`
        self._began_at = 0  # number of the sweep in which the exchange began

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.sweep.add(self)

    def data_received(self, data: bytes) -> None:
        response = self.response
        try:
            response.feed(data)
        except BadResponse as error:
            if not response.finished:  # else these bytes belong to no request
                self._fail(Failure.TRUNCATED if response.status else Failure.BAD_RESPONSE, str(error))
            self.transport.abort()
            if response.finished:
                self._connections.remove(self)
            return
        self._active_at = self.sweep.number
        if response.status:
            self._buffered += len(data)
            if self._buffered > WINDOW and not response.finished:
                self._reading_paused = True
                self.transport.pause_reading()
            self._wake()
        elif self._continue is not None and not response.awaits_continue:
            self._continue.set()

    def eof_received(self) -> None:
        self._on_end()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if exc is None:
            self._on_end()
        elif not self.response.finished and not self.client_gone:
            self._read_rest()
            if not self.response.finished:
                self._fail(self._early_end)  # a reset: it does not end a body that lasts until the connection closes
            self._wake()
        else:
            self._wake()
        self.resume_writing()  # wakes the writer: the other end reads no more
        self._connections.remove(self)

    def _read_rest(self) -> None:
        """Read what the server has sent before it reset the connection, such as a 413 to an upload that it does not
        read. Event loops read no more once a write has failed, but close the socket only after `connection_lost`. What
        a TLS connection has received can't be decrypted here.
        """
        if self.body is None or self.transport.get_extra_info("sslcontext") is not None:
            return
        descriptor: int = self.transport.get_extra_info("socket").fileno()
        try:
            while not self.response.finished and (data := os.read(descriptor, WINDOW)):
                self.response.feed(data)
        except BadResponse as error:
            self._fail(Failure.TRUNCATED if self.response.status else Failure.BAD_RESPONSE, str(error))
        except OSError:
            pass  # all has been read

    # What an exchange calls

    def begin(self, method: str, body: Body, upgrade: bool = False) -> None:
        """Begin an exchange; `body` is the request's, and watches its client. `failure` is None: a connection that has
        failed is not kept.
        """
        self.response.begin_response(method, upgrade)
        self._buffered = 0
        self.client_is_slow = False
        self.body = body
        self._began_at = self._active_at = self.sweep.number
        self._task = asyncio.current_task(self.loop)

    def write(self, data: bytes) -> None:
        if not self.closed:
            self.transport.write(data)

    async def drain(self) -> None:
        """Wait while the transport's write buffer is above its limit."""
        writable = self.writable
        if writable is not None and not self.closed:
            self._active_at = self.sweep.number
            await writable
            self._active_at = self.sweep.number

    async def receive(self) -> Message:
        """Return the next message of the client. Meanwhile the client's timeout counts, and the server's does not."""
        assert self.body is not None
        self._awaits_client = True
        self._active_at = self.sweep.number
        try:
            return await self.body.receive_shielded()
        finally:
            self._awaits_client = False
            self._active_at = self.sweep.number

    def wait(self) -> Awaitable[bool]:
        """Return what to await until more of the response has arrived. Its result is True if the exchange has ended
        early instead, and no more will arrive: `raise_or_client_gone` shows how.
        """
        waiter = self._waiter = self.loop.create_future()
        if self.closed and self.failure is None and not self.client_gone:
            self.failure = ServerFailure(self._early_end)
        if self.failure is not None or self.client_gone:
            self._wake()
        elif self._reading_paused:
            self._reading_paused = False
            self._buffered = 0
            self.transport.resume_reading()
        self._active_at = self.sweep.number
        return waiter

    def raise_or_client_gone(self) -> bool:
        """Return whether the client has disconnected. ServerFailure if the server has failed; an exception of the
        client's `receive` is raised as it is.
        """
        if self.failure is not None:
            raise self.failure
        return self.client_gone

    def take(self) -> bytes:
        """Return what has arrived of the body since the last call."""
        self._buffered = 0
        return self.response.take_body()

    async def wait_for_continue(self, seconds: float) -> None:
        """Wait for a 100 or the response, `seconds` at most."""
        self.response.awaits_continue = True
        self._continue = asyncio.Event()
        try:
            async with asyncio.timeout(seconds):
                await self._continue.wait()
        except TimeoutError:
            pass
        finally:
            self._continue = None
            self.response.awaits_continue = False

    def reject_body(self, detail: str) -> None:
        """Fail the exchange: the client's body is not what its head announces, and the upstream must not take the part
        that was sent for a whole request.
        """
        self._fail(Failure.NOT_FORWARDABLE, detail)
        self.transport.abort()

    def on_receive_error(self, error: Exception) -> None:
        """The client's `receive` has raised: the upstream must not take the part that was sent for a whole request."""
        if self.failure is None:
            self.failure = error
        self._wake()
        self.transport.abort()

    def _wake(self) -> None:
        if self._continue is not None:
            self._continue.set()
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(self.failure is not None or self.client_gone)

    def _fail(self, failure: Failure, detail: str = "") -> None:
        if self.failure is None:
            self.failure = ServerFailure(failure, detail=detail)
        self._wake()

    @property
    def _early_end(self) -> Failure:
        """The failure of a server that closes the connection now."""
        if not self.response.status:
            return Failure.CLOSED
        return Failure.CLIENT_SLOW if self.client_is_slow else Failure.TRUNCATED

    def _on_end(self) -> None:
        response = self.response
        if response.finished or self.client_gone:
            return self._wake()
        try:
            if response.feed_eof():
                return self._wake()
        except BadResponse as error:
            return self._fail(Failure.BAD_RESPONSE, str(error))
        self._fail(self._early_end)

    def on_sweep(self, number: int) -> None:
        body = self.body
        if body is None:
            if self.closed:
                self.sweep.remove(self)
        elif self.client_gone:
            if self._waiter is None and number > self._active_at + 1 and self._task is not None:
                # The task still waits in `send`. Some servers (hypercorn's HTTP/2) never return from `send` after their
                # client has disconnected.
                self.task_cancelled = True
                self._task.cancel()
        else:
            if number > self._began_at + 1 and not body.watched:
                body.watch(self.on_client_gone)
            self._check_timeout(number)

    def _check_timeout(self, number: int) -> None:
        """Fail the exchange if the end that is waited for has done nothing for too long."""
        connections = self._connections
        if self.writable is not None and (unsent := self.transport.get_write_buffer_size()) != self._unsent:
            self._unsent = unsent
            self._active_at = number  # the server reads, if slowly
        if (self._waiter is None and self.writable is None) or self._continue is not None:
            return
        silent = number - self._active_at
        if self._awaits_client:
            if silent <= connections.client_timeout_ticks:
                return
            self._fail(Failure.CLIENT_TIMEOUT)
        elif silent > connections.timeout_ticks:
            self._fail(Failure.TRUNCATED if self.response.status else Failure.TIMEOUT, "silent for too long")
        else:
            return
        self.transport.abort()

    def on_client_gone(self) -> None:
        """The client has disconnected: close the connection, by which the server learns of it."""
        self.client_gone = True
        self._active_at = self.sweep.number
        self.transport.abort()
        self._wake()

    def detach(self) -> None:
        """Leave the transport to another protocol: the connection has become a WebSocket."""
        self.sweep.remove(self)
        self._unwatch_client()

    def _unwatch_client(self) -> None:
        self._task = self._waiter = None
        if self.body is not None:
            self.body.unwatch()
            self.body = None

    def is_silent(self) -> bool:
        """Return whether nothing has arrived since the last response, not even the end of the connection. The kernel
        knows before the event loop does.
        """
        if self.closed:
            return False
        poll = self._poll
        if poll is None:
            poll = self._poll = select.poll()
            poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN | select.POLLRDHUP)
        return not poll.poll(0)

    def end(self) -> None:
        """End the exchange: keep the connection if it can be used again, else close it."""
        self._unwatch_client()
        response = self.response
        if (
            response.finished
            and response.reusable
            and not self.closed
            and self.failure is None
            and not self.client_gone
        ):
            if self._reading_paused:
                self._reading_paused = False
                self.transport.resume_reading()
            self._connections.release(self)
        else:
            self.transport.abort()


class Connections:
    """The connections to one upstream on one event loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        location: Location,
        context: ssl.SSLContext | None,
        sni: str | None,
        pool: Pool[Connection],
        timeouts: TimeoutSeconds,
    ) -> None:
        self.loop = loop
        self.thread = 0  #: the thread in which the event loop was last seen; `Upstream.connections` writes it
        self.timeout_ticks = max(1, round(timeouts.server / TICK))
        self.client_timeout_ticks = max(1, round(timeouts.client / TICK))
        self.sweep = TimeoutSweep.for_loop(loop)
        self._location = location
        self._context = context
        self._sni = sni
        self._pool = pool
        self.sweep.pools.add(self)

    def acquire(self, repeatable: bool) -> Connection | None:
        """Return an idle connection, or None. `repeatable`: whether the request may be sent again. If not, the
        connection has been checked just now: it is open, and nothing has arrived on it.
        """
        while True:
            connection = self._pool.acquire(self.loop.time(), repeatable)
            if connection is None or repeatable or connection.is_silent():
                return connection
            connection.transport.abort()

    async def open(self, connect_timeout: float, body: Body) -> Connection | None:
        """Open a connection within `connect_timeout` seconds; None if the client of `body` disconnects first.
        ServerFailure if the server can't be reached.
        """
        opening = asyncio.ensure_future(self._open())
        body.watch(opening.cancel)
        try:
            async with asyncio.timeout(connect_timeout):
                return await opening
        except TimeoutError:
            raise ServerFailure(Failure.CONNECT_TIMEOUT) from None
        except ssl.SSLError as error:
            raise ServerFailure(Failure.TLS, detail=str(error)) from error
        except OSError as error:
            raise connect_failure(error, self.loop.time()) from error
        except asyncio.CancelledError:
            if body.client_gone and not _is_cancelled():
                return None
            raise
        finally:
            body.unwatch()
            opening.cancel()

    async def _open(self) -> Connection:
        location = self._location
        context = self._context
        sni = self._sni if context is not None else None
        if location.socket is not None:
            _, connection = await self.loop.create_unix_connection(
                lambda: Connection(self), location.socket, ssl=context, server_hostname=sni
            )
        else:
            _, connection = await self.loop.create_connection(
                lambda: Connection(self), location.host, location.port, ssl=context, server_hostname=sni
            )
        return connection

    def release(self, connection: Connection) -> None:
        """Keep a connection for the next request after its exchange has ended, if the pool has space for it."""
        if not self._pool.release(connection, self.loop.time()):
            connection.transport.abort()

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        self._pool.remove(connection)

    def purge(self) -> None:
        """Close the connections that have been idle for too long."""
        for connection in self._pool.purge(self.loop.time()):
            connection.transport.abort()

    def close(self) -> None:
        """Close all idle connections."""
        for connection in self._pool.clear():
            connection.transport.abort()

    def retire(self) -> None:
        """Close all idle connections, and keep none from now on."""
        self._pool.retire()
        self.close()


def _is_cancelled() -> bool:
    """Return whether the current task is cancelled, rather than a task that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
