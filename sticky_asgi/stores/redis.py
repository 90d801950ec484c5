"""Redis on an event loop: one connection that many requests share, and one that hears the news.

What requests ask for in the same turn of the event loop goes out together in the next; the answers come in order, and
each is handed to who has asked. redis-py connects and parses; when, and what becomes of failures, is ours.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from functools import partial
from math import inf
from typing import Any, Protocol, cast

from redis.asyncio import connection as _connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from sticky_core.errors import ConfigError, StoreFailure
from sticky_core.stores.breaker import Backoff
from sticky_core.stores.invalidation import InvalidationFeed
from sticky_core.stores.redis import Redis
from sticky_core.stores.store import HEARTBEAT_INTERVAL, Command, pack_commands

ERRORS = RedisError, OSError

#: how many seconds late an answer may be read that came while the event loop was busy
_GRACE = 0.001


class Connection(Protocol):
    """What we use of redis-py's, whose types say less."""

    async def connect(self) -> None: ...
    async def disconnect(self, nowait: bool) -> None: ...
    async def send_packed_command(self, command: bytes, check_health: bool) -> None: ...
    async def read_response(self, disable_decoding: bool, within: float, *, disconnect_on_error: bool) -> object: ...


class _Flight:
    """The commands of one request, until they are answered."""

    __slots__ = ("again", "answers", "commands", "due", "future")

    def __init__(self, commands: Sequence[Command], future: asyncio.Future[list[object]], due: float) -> None:
        self.commands = commands
        self.future = future
        self.due = due
        self.answers: list[object] = []
        self.again = False  #: whether it has been sent twice

    def land(self) -> None:
        if not self.future.done():  # else its request is over
            self.future.set_result(self.answers)

    def crash(self, failure: StoreFailure) -> None:
        self.answers = [failure] * len(self.commands)
        self.land()


class RedisClient:
    """The connection to one store on one event loop, and who listens to its news there."""

    def __init__(self, store: Redis, loop: asyncio.AbstractEventLoop) -> None:
        self._store = store
        self._breaker = store.breaker
        self._now = store.clock.monotonic
        self._loop = loop
        self._make = _maker(store)
        self._connection: Connection | None = None
        self._waiting: deque[_Flight] = deque()  # to be sent
        self._sent: deque[_Flight] = deque()  # to be answered
        self._flushing: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def listen(self) -> None:
        """Listen to the news, unless somebody does in this process."""
        if self._store.listener is None and self._store.acquire_listener(self):
            self._listening = self._task(self._listen())

    def execute(self, commands: Sequence[Command]) -> asyncio.Future[list[object]]:
        """Their answers, when they have come."""
        store = self._store
        future: asyncio.Future[list[object]] = self._loop.create_future()
        self.listen()
        if not self._breaker.allows(self._now()):
            future.set_result([store.failure()] * len(commands))
            return future
        flight = _Flight(commands, future, self._loop.time() + store.timeout)
        self._waiting.append(flight)
        if self._flushing is None:
            self._flushing = self._task(self._flush())
        if self._timer is None:
            self._timer = self._loop.call_at(flight.due, self._look)
        return future

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # in a context of its own: what a request knows is not to live as long as a connection
        return self._loop.create_task(work, context=Context())

    async def _flush(self) -> None:
        """Send what waits, all at once."""
        try:
            while self._waiting:
                connection = self._connection or await self._connected()
                flights, self._waiting = self._waiting, deque()
                self._sent += flights
                question = pack_commands(command for flight in flights for command in flight.commands)
                try:
                    await connection.send_packed_command(question, False)
                except ERRORS as error:
                    if connection is self._connection:
                        self._lost(_said(error))
        except ERRORS as error:
            self._crash(_said(error))
        finally:
            if self._flushing is asyncio.current_task():
                self._flushing = None

    async def _connected(self) -> Connection:
        connection = self._make()
        try:
            await connection.connect()
        except BaseException:
            await connection.disconnect(True)
            raise
        self._connection = connection
        self._reading = self._task(self._read(connection))
        return connection

    async def _read(self, connection: Connection) -> None:
        """Hand each answer to who has asked, until there are no more."""
        try:
            while True:
                answer = await self._answer(connection)
                if not self._sent:
                    raise RedisError(f"an answer that nobody has asked for: {answer!r}")
                flight = self._sent[0]
                flight.answers.append(answer)
                if isinstance(answer, StoreFailure):
                    self._breaker.record_failure(self._now(), answer.detail)
                if len(flight.answers) == len(flight.commands):
                    self._sent.popleft()
                    flight.land()
                    if not isinstance(answer, StoreFailure):
                        self._breaker.record_success(self._now())
        except ERRORS as error:
            if self._connection is connection:
                self._lost(_said(error))
        finally:
            if self._connection is connection:
                self._connection = None
            await connection.disconnect(True)

    async def _answer(self, connection: Connection) -> object:
        try:
            return await connection.read_response(True, inf, disconnect_on_error=False)
        except ResponseError as error:
            return StoreFailure(self._store.name, str(error))

    def _lost(self, why: str) -> None:
        """The store has closed it: who waits is sent once more, on another. All our commands may be repeated."""
        self._connection = None
        flights, self._sent = self._sent, deque()
        for flight in reversed(flights):
            if flight.again:
                self._fail(flight, why)
            else:
                flight.again = True
                flight.answers = []
                self._waiting.appendleft(flight)
        if self._waiting and self._flushing is None:
            self._flushing = self._task(self._flush())

    def _look(self, late: bool = False) -> None:
        """Whether who waits longest has waited for too long."""
        oldest = next(iter(self._sent), next(iter(self._waiting), None))
        self._timer = None
        if oldest is None:
            return
        if oldest.due > self._loop.time():
            self._timer = self._loop.call_at(oldest.due, self._look)
        elif not late:
            self._timer = self._loop.call_later(_GRACE, self._look, True)
        else:
            self._crash(f"no answer in {self._store.timeout:g} s")

    def _crash(self, why: str) -> None:
        """The connection is of no use: nobody who waits is answered."""
        self._connection = None
        flights = [*self._sent, *self._waiting]
        self._sent.clear()
        self._waiting.clear()
        flushing, self._flushing = self._flushing, None
        reading, self._reading = self._reading, None
        for task in (flushing, reading):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        for flight in flights:
            self._fail(flight, why)

    def _fail(self, flight: _Flight, why: str) -> None:
        self._breaker.record_failure(self._now(), why)
        flight.crash(StoreFailure(self._store.name, why))

    async def close(self) -> None:
        """Close what is open. Who waits is not answered."""
        tasks = [task for task in (self._flushing, self._reading, self._listening) if task is not None]
        for flight in (*self._sent, *self._waiting):
            flight.crash(StoreFailure(self._store.name, "closed"))
        self._sent.clear()
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _listen(self) -> None:
        """Hear the news, as long as there is this event loop."""
        store = self._store
        pauses = Backoff(store.rng)
        try:
            while True:
                if self._breaker.allows(self._now()):
                    try:
                        await self._hear(pauses)
                    except (*ERRORS, StoreFailure) as error:
                        store.feed_failed(_said(error))
                    await asyncio.sleep(pauses.next_pause())
                else:
                    await asyncio.sleep(min(self._breaker.delay(self._now()), HEARTBEAT_INTERVAL))
        finally:
            store.release_listener(self)

    async def _run_errands(self) -> None:
        """What is to be done beside requests."""
        errands = self._store.background_commands(self._now())
        if errands:
            answers = await self.execute([errand.command for errand in errands])
            for errand, answer in zip(errands, answers, strict=True):
                errand.on_reply(answer)

    async def _hear(self, pauses: Backoff) -> None:
        """Hear the news, as long as there is this connection."""
        store = self._store
        connection = self._make()
        try:
            try:
                async with asyncio.timeout(store.timeout):
                    await connection.connect()
            except ERRORS as error:
                self._breaker.record_failure(self._now(), _said(error))
                return
            heard = False
            news = InvalidationFeed(store, self._now())
            while True:
                while (command := news.next_command(self._now())) is not None:
                    await connection.send_packed_command(pack_commands([command]), False)
                await self._run_errands()  # also before it is known whether there is anything to hear
                answer = await connection.read_response(True, news.delay(self._now()), disconnect_on_error=False)
                if answer is not None:
                    news.on_reply(answer)
                    if not heard:
                        heard = True
                        pauses.reset()
                        self._breaker.record_success(self._now())
        finally:
            store.disconnected()
            await connection.disconnect(True)


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _maker(store: Redis) -> Callable[[], Connection]:
    """What makes connections as the URL asks. ConfigError if it asks for what there is not."""
    # what the URL says of these would change what we send and what comes back; time is ours to watch
    ours: dict[str, Any] = {
        "protocol": 2,
        "socket_timeout": None,
        "socket_connect_timeout": None,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
    }
    try:
        options = {**_parse_url(store.url), **ours}
        options.pop("max_connections", None)
        make: Callable[[], Connection] = partial(options.pop("connection_class", _connection.Connection), **options)
        make()
    except (TypeError, ValueError, RedisError) as error:
        raise ConfigError(f"store {store.name}: {error}") from error
    return make


_parse_url = cast("Callable[[str], dict[str, Any]]", _connection.parse_url)  # pyright: ignore[reportUnknownMemberType]
