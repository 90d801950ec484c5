"""Connections to an upstream on one event loop: opened, kept for the next request, watched for time and for clients
that leave.

One protocol object per connection and no task per request. One sweep per event loop, every tenth of a second while
there is any, stands in for a timer per request: it ends what takes too long, and begins to look out for the client of a
request that was not answered at once.
"""

from __future__ import annotations

import asyncio
import select
import ssl
import threading
import weakref
from collections.abc import AsyncGenerator, Awaitable
from typing import Protocol, cast

from sticky_asgi.body import Body
from sticky_core.errors import Failure, ServerFailure
from sticky_core.http.http1 import BadResponse, ResponseParser
from sticky_core.target import Location
from sticky_core.upstream.pool import Pool

#: seconds between two sweeps, which is how late a timeout may be
TICK = 0.1
#: How much of a body may wait for a slow client, in bytes, before the upstream is made to wait as well.
WINDOW = 262144


class FlowControlProtocol(asyncio.Protocol):
    """A protocol whose peer takes in only so much at once."""

    __slots__ = ("_writable",)

    def __init__(self) -> None:
        self._writable: asyncio.Future[None] | None = None

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        writable = self._writable
        self._writable = None
        if writable is not None and not writable.done():
            writable.set_result(None)


class Connection(FlowControlProtocol):
    """A connection, and the exchange that is under way on it."""

    __slots__ = (
        "_begun",
        "_buffered",
        "_continued",
        "_keeper",
        "_news",
        "_paused",
        "_poll",
        "_since",
        "_task",
        "answer",
        "body",
        "closed",
        "cut",
        "gone",
        "loop",
        "sweep",
        "transport",
        "why",
    )

    transport: asyncio.Transport

    def __init__(self, keeper: Connections) -> None:
        super().__init__()
        self._keeper = keeper
        self.loop = keeper.loop
        self.sweep = keeper.sweep
        self.answer = ResponseParser()
        self.closed = False
        self._paused = False
        self._buffered = 0
        self._news: asyncio.Future[bool] | None = None
        self._poll: select.poll | None = None
        self._continued: asyncio.Event | None = None
        self.why: ServerFailure | None = None  #: how the server has failed
        self.gone = False  #: whether the client has
        self.cut = False  #: whether we have cancelled the task that waits for a client who has left
        self._task: asyncio.Task[object] | None = None
        #: whose client is to be watched
        self.body: Body | None = None
        self._since = 0  # the sweep in which we began to wait for the server
        self._begun = 0  # and the one in which its exchange began

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.sweep.add(self)

    def data_received(self, data: bytes) -> None:
        answer = self.answer
        try:
            answer.feed(data)
        except BadResponse as error:
            if not answer.finished:  # else it is one too many, and nobody's
                self._fail(Failure.TRUNCATED if answer.status else Failure.BAD_RESPONSE, str(error))
            self.transport.abort()
            if answer.finished:
                self._keeper.closed(self)
            return
        self._since = self.sweep.number
        if answer.status:
            self._buffered += len(data)
            if self._buffered > WINDOW and not answer.finished:
                self._paused = True
                self.transport.pause_reading()
            self._wake()
        elif self._continued is not None and not answer.awaits_continue:
            self._continued.set()

    def eof_received(self) -> None:
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if exc is None:
            self._end()
        elif not self.answer.finished and not self.gone:
            self._fail(self._cut_short)  # a reset is not the end of anything
        else:
            self._wake()
        self.resume_writing()  # there is nothing to wait for any more
        self._keeper.closed(self)

    # What an exchange does

    def begin(self, method: str, body: Body, upgrade: bool = False) -> None:
        """A request is about to be sent, and its client's `body` is to be watched. Nothing has gone wrong so far: else
        the connection would not have been kept.
        """
        self.answer.begin_response(method, upgrade)
        self._buffered = 0
        self.body = body
        self._begun = self._since = self.sweep.number
        self._task = asyncio.current_task(self.loop)

    def write(self, data: bytes) -> None:
        if not self.closed:
            self.transport.write(data)

    async def drain(self) -> None:
        """Wait until the server has taken in what it was sent, as far as it must."""
        writable = self._writable
        if writable is not None and not self.closed:
            await writable
            self._since = self.sweep.number

    def news(self) -> Awaitable[bool]:
        """What to wait for until there is more of the answer. What comes of it is whether something went wrong, and
        there will be no more: `left` tells what.
        """
        news = self._news = self.loop.create_future()
        if self.closed and self.why is None and not self.gone:
            self.why = ServerFailure(self._cut_short)
        if self.why is not None or self.gone:
            self._wake()
        elif self._paused:
            self._paused = False
            self._buffered = 0
            self.transport.resume_reading()
        self._since = self.sweep.number
        return news

    def left(self) -> bool:
        """Whether the client has left. ServerFailure if the server has failed."""
        if self.why is not None:
            raise self.why
        return self.gone

    def take(self) -> bytes:
        """What has come of the body."""
        self._buffered = 0
        return self.answer.take_body()

    async def continues(self, patience: float) -> None:
        """Wait for a 100, an answer, or so many seconds."""
        self.answer.awaits_continue = True
        self._continued = asyncio.Event()
        try:
            async with asyncio.timeout(patience):
                await self._continued.wait()
        except TimeoutError:
            pass
        finally:
            self._continued = None
            self.answer.awaits_continue = False

    def spoil(self, detail: str) -> None:
        """What the client sends is not what it has announced: nobody may take it for a request."""
        self._fail(Failure.NOT_FORWARDABLE, detail)
        self.transport.abort()

    def _wake(self) -> None:
        if self._continued is not None:
            self._continued.set()
        news = self._news
        if news is not None:
            self._news = None
            if not news.done():
                news.set_result(self.why is not None or self.gone)

    def _fail(self, failure: Failure, detail: str = "") -> None:
        if self.why is None:
            self.why = ServerFailure(failure, detail=detail)
        self._wake()

    @property
    def _cut_short(self) -> Failure:
        return Failure.TRUNCATED if self.answer.status else Failure.CLOSED

    def _end(self) -> None:
        answer = self.answer
        if answer.finished or self.gone:
            return self._wake()
        try:
            if answer.feed_eof():
                return self._wake()
        except BadResponse as error:
            return self._fail(Failure.BAD_RESPONSE, str(error))
        self._fail(self._cut_short)

    def on_sweep(self, number: int) -> None:
        body = self.body
        if body is None:
            if self.closed:
                self.sweep.remove(self)
        elif self.gone:
            if self._news is None and number > self._since + 1 and self._task is not None:
                # a server that never takes what its client, who has left, does not (hypercorn's HTTP/2): enough of that
                self.cut = True
                self._task.cancel()
        else:
            if number > self._begun + 1 and not body.watched:
                body.watch(self.client_left)
            if number - self._since > self._keeper.patience and (self._news is not None or self._writable is not None):
                self._fail(Failure.TRUNCATED if self.answer.status else Failure.TIMEOUT, "silent for too long")
                self.transport.abort()

    def client_left(self) -> None:
        """Nobody waits for the answer any more: the server hears of it."""
        self.gone = True
        self._since = self.sweep.number
        self.transport.abort()
        self._wake()

    def hand_over(self) -> None:
        """The connection is no affair of ours any more."""
        self.sweep.remove(self)
        self._let_go()

    def _let_go(self) -> None:
        """Nobody's client is to be watched."""
        self._task = self._news = None
        if self.body is not None:
            self.body.unwatch()
            self.body = None

    def quiet(self) -> bool:
        """Whether nothing has come from the server since its last answer, no farewell either; asked of the kernel."""
        if self.closed:
            return False
        poll = self._poll
        if poll is None:
            poll = self._poll = select.poll()
            poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN | select.POLLRDHUP)
        return not poll.poll(0)

    def end(self) -> None:
        """The exchange is over: the connection is kept if it may be, and closed if not."""
        self._let_go()
        answer = self.answer
        if answer.finished and answer.reusable and not self.closed and self.why is None and not self.gone:
            if self._paused:
                self._paused = False
                self.transport.resume_reading()
            self._keeper.keep(self)
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
        timeout: float,
    ) -> None:
        """`timeout`: seconds without a word from the server."""
        self.loop = loop
        self.thread = 0  #: in which its event loop was last seen; who looks for them says so
        self.patience = max(1, round(timeout / TICK))  # the same, in sweeps
        self.sweep = TimeoutSweep.for_loop(loop)
        self._location = location
        self._context = context
        self._sni = sni
        self._pool = pool
        self.sweep.pools.add(self)

    def take(self, repeatable: bool) -> Connection | None:
        """An idle one. If the request can't be repeated: one that is known to have been open just now."""
        while True:
            connection = self._pool.acquire(self.loop.time(), repeatable)
            if connection is None or repeatable or connection.quiet():
                return connection
            connection.transport.abort()

    async def open(self, patience: float, body: Body) -> Connection | None:
        """One, within `patience` seconds; None if the client leaves first. ServerFailure if there can be none."""
        opening = asyncio.ensure_future(self._open())
        body.watch(opening.cancel)
        try:
            async with asyncio.timeout(patience):
                return await opening
        except TimeoutError:
            raise ServerFailure(Failure.CONNECT_TIMEOUT) from None
        except ssl.SSLError as error:
            raise ServerFailure(Failure.TLS, detail=str(error)) from error
        except OSError as error:
            raise ServerFailure(Failure.REFUSED, detail=error.strerror or str(error)) from error
        except asyncio.CancelledError:
            if body.gone and not _is_cancelled():
                return None
            raise
        finally:
            body.unwatch()
            opening.cancel()

    async def _open(self) -> Connection:
        where = self._location
        context = self._context
        sni = self._sni if context is not None else None
        if where.socket is not None:
            _, connection = await self.loop.create_unix_connection(
                lambda: Connection(self), where.socket, ssl=context, server_hostname=sni
            )
        else:
            _, connection = await self.loop.create_connection(
                lambda: Connection(self), where.host, where.port, ssl=context, server_hostname=sni
            )
        return connection

    def keep(self, connection: Connection) -> None:
        """Its exchange is over, and it may carry another."""
        if not self._pool.release(connection, self.loop.time()):
            connection.transport.abort()

    def closed(self, connection: Connection) -> None:
        self._pool.remove(connection)

    def purge(self) -> None:
        """Close what has idled for too long."""
        for connection in self._pool.purge(self.loop.time()):
            connection.transport.abort()

    def close(self) -> None:
        """Close what is idle."""
        for connection in self._pool.clear():
            connection.transport.abort()

    def end(self) -> None:
        """The same, and keep none from here on."""
        self._pool.retire()
        self.close()


def _is_cancelled() -> bool:
    """Whether it is us who are cancelled, rather than something we wait for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class SweepTarget(Protocol):
    """What the sweep looks at."""

    def on_sweep(self, number: int) -> None:
        """It is the `number`th sweep."""
        ...


class TimeoutSweep:
    """What goes around on one event loop, ten times a second while there is anything to look at."""

    _of: dict[asyncio.AbstractEventLoop, TimeoutSweep] = {}  # noqa: RUF012
    _lock = threading.Lock()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.number = 0
        self.pools: weakref.WeakSet[Connections] = weakref.WeakSet()
        self._loop = loop
        self._watched: set[SweepTarget] = set()
        self._next: asyncio.TimerHandle | None = None
        self._ends = self._until_the_loop_ends()

    @classmethod
    def for_loop(cls, loop: asyncio.AbstractEventLoop) -> TimeoutSweep:
        with cls._lock:
            for old in [each for each in cls._of if each.is_closed()]:
                del cls._of[old]
            sweep = cls._of.get(loop)
            if sweep is None:
                sweep = cls._of[loop] = cls(loop)
                # a loop that ends closes the asynchronous generators that have begun on it: the only way to hear of it
                begun = sweep._ends.__anext__()
                try:
                    begun.send(None)
                except StopIteration:
                    pass
            return sweep

    async def _until_the_loop_ends(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            for pool in list(self.pools):
                pool.close()
            if self._next is not None:
                self._next.cancel()
            await asyncio.sleep(0)  # what was aborted is told so in the loop's next round

    def add(self, each: SweepTarget) -> None:
        self._watched.add(each)
        if self._next is None:
            self._begin()

    def remove(self, each: SweepTarget) -> None:
        self._watched.discard(each)

    def _begin(self) -> None:
        self._next = self._loop.call_later(TICK, self._sweep)

    def _sweep(self) -> None:
        self.number += 1
        for each in list(self._watched):
            each.on_sweep(self.number)
        for pool in list(self.pools):
            pool.purge()
        self._next = None
        if self._watched:
            self._begin()
