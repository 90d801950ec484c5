"""Redis on an event loop: one connection that many requests share, and one that receives invalidations.

What requests send in the same turn of the event loop is sent together in the next; the replies come in order, and each
is passed to its request. redis-py connects and parses; timeouts and failures are handled here.
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
from sticky_core.stores.redis import Redis, pack_commands
from sticky_core.stores.store import HEARTBEAT_INTERVAL, Command

ERRORS = RedisError, OSError

#: How many seconds after its deadline a reply is still read: it may have arrived in time, but the event loop was busy.
_GRACE = 0.001


class Connection(Protocol):
    """The methods of redis-py's connections that are used here, with their types."""

    async def connect(self) -> None: ...
    async def disconnect(self, nowait: bool) -> None: ...
    async def send_packed_command(self, command: bytes, check_health: bool) -> None: ...
    async def read_response(self, disable_decoding: bool, within: float, *, disconnect_on_error: bool) -> object: ...


class _Batch:
    """The commands of one call of `execute`, until all replies have come."""

    __slots__ = ("commands", "deadline", "future", "replies", "was_resent")

    def __init__(self, commands: Sequence[Command], future: asyncio.Future[list[object]], deadline: float) -> None:
        self.commands = commands
        self.future = future
        self.deadline = deadline
        self.replies: list[object] = []
        self.was_resent = False

    def complete(self) -> None:
        if not self.future.done():  # else its request has ended
            self.future.set_result(self.replies)

    def fail(self, failure: StoreFailure) -> None:
        self.replies = [failure] * len(self.commands)
        self.complete()


class RedisClient:
    """The connection to one store on one event loop, and the one that receives its invalidations there."""

    def __init__(self, store: Redis) -> None:
        self._store = store
        self._breaker = store.breaker
        self._now = store.clock.monotonic
        self._loop = asyncio.get_running_loop()
        self._make_connection = _connection_factory(store)
        self._connection: Connection | None = None
        self._to_send: deque[_Batch] = deque()
        self._sent: deque[_Batch] = deque()
        self._flushing: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def listen(self) -> None:
        """Begin to receive invalidations, unless another client in this process does."""
        if self._store.listener is None and self._store.acquire_listener(self):
            self._listening = self._create_task(self._listen())

    def execute(self, commands: Sequence[Command]) -> asyncio.Future[list[object]]:
        """Send commands and return the replies, in order, or as many failures."""
        store = self._store
        future: asyncio.Future[list[object]] = self._loop.create_future()
        self.listen()
        if not self._breaker.allows(self._now()):
            future.set_result([store.failure()] * len(commands))
            return future
        batch = _Batch(commands, future, self._loop.time() + store.timeout)
        self._to_send.append(batch)
        if self._flushing is None:
            self._flushing = self._create_task(self._flush())
        if self._timer is None:
            self._timer = self._loop.call_at(batch.deadline, self._check_deadline)
        return future

    def _create_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # in a context of its own: a request's context variables must not live as long as a connection
        return self._loop.create_task(work, context=Context())

    async def _flush(self) -> None:
        """Send all batches that wait, at once."""
        try:
            while self._to_send:
                connection = self._connection or await self._connect()
                batches, self._to_send = self._to_send, deque()
                self._sent += batches
                packed = pack_commands(command for batch in batches for command in batch.commands)
                try:
                    await connection.send_packed_command(packed, False)
                except ERRORS as error:
                    if connection is self._connection:
                        self._on_disconnect(_error_text(error))
        except Exception as error:
            self._fail_all(_error_text(error))
        finally:
            if self._flushing is asyncio.current_task():
                self._flushing = None

    async def _connect(self) -> Connection:
        connection = self._make_connection()
        try:
            await connection.connect()
        except BaseException:
            await connection.disconnect(True)
            raise
        self._connection = connection
        self._reading = self._create_task(self._read(connection))
        return connection

    async def _read(self, connection: Connection) -> None:
        """Read replies until the connection ends, and pass each to the oldest batch that lacks one."""
        try:
            while True:
                reply = await self._read_reply(connection)
                if not self._sent:
                    raise RedisError(f"a reply without a command: {reply!r}")
                batch = self._sent[0]
                batch.replies.append(reply)
                if isinstance(reply, StoreFailure):
                    self._breaker.record_failure(self._now(), reply.detail)
                if len(batch.replies) == len(batch.commands):
                    self._sent.popleft()
                    batch.complete()
                    if not isinstance(reply, StoreFailure):
                        self._breaker.record_success(self._now())
        except Exception as error:
            if self._connection is connection:
                self._on_disconnect(_error_text(error))
        finally:
            if self._connection is connection:
                self._connection = None
            await connection.disconnect(True)

    async def _read_reply(self, connection: Connection) -> object:
        try:
            return await connection.read_response(True, inf, disconnect_on_error=False)
        except ResponseError as error:
            return StoreFailure(self._store.name, str(error))

    def _on_disconnect(self, why: str) -> None:
        """The store has closed the connection: send the batches that wait once more, on another. All commands may be
        repeated.
        """
        self._connection = None
        batches, self._sent = self._sent, deque()
        for batch in reversed(batches):
            if batch.was_resent:
                self._fail(batch, why)
            else:
                batch.was_resent = True
                batch.replies = []
                self._to_send.appendleft(batch)
        if self._to_send and self._flushing is None:
            self._flushing = self._create_task(self._flush())

    def _check_deadline(self, is_late: bool = False) -> None:
        """Fail all batches if the oldest has waited for too long."""
        oldest = next(iter(self._sent), next(iter(self._to_send), None))
        self._timer = None
        if oldest is None:
            return
        if oldest.deadline > self._loop.time():
            self._timer = self._loop.call_at(oldest.deadline, self._check_deadline)
        elif not is_late:
            self._timer = self._loop.call_later(_GRACE, self._check_deadline, True)
        else:
            self._fail_all(f"no reply in {self._store.timeout:g} s")

    def _fail_all(self, why: str) -> None:
        """Fail all batches, because the connection does not work. The next batch opens another."""
        self._connection = None
        batches = [*self._sent, *self._to_send]
        self._sent.clear()
        self._to_send.clear()
        flushing, self._flushing = self._flushing, None
        reading, self._reading = self._reading, None
        for task in (flushing, reading):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        for batch in batches:
            self._fail(batch, why)

    def _fail(self, batch: _Batch, why: str) -> None:
        self._breaker.record_failure(self._now(), why)
        batch.fail(StoreFailure(self._store.name, why))

    async def close(self) -> None:
        """Fail the batches that wait, close the connections and end the tasks."""
        tasks = [task for task in (self._flushing, self._reading, self._listening) if task is not None]
        for batch in (*self._sent, *self._to_send):
            batch.fail(StoreFailure(self._store.name, "closed"))
        self._sent.clear()
        self._to_send.clear()
        if self._timer is not None:
            self._timer.cancel()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _listen(self) -> None:
        """Receive invalidations until the event loop ends."""
        store = self._store
        backoff = Backoff(store.rng)
        try:
            while True:
                if self._breaker.allows(self._now()):
                    try:
                        await self._receive_invalidations(backoff)
                    except Exception as error:
                        store.on_feed_failed(_error_text(error))
                    await asyncio.sleep(backoff.next_pause())
                else:
                    await asyncio.sleep(min(self._breaker.delay(self._now()), HEARTBEAT_INTERVAL))
        finally:
            store.release_listener(self)

    async def _receive_invalidations(self, backoff: Backoff) -> None:
        """Receive invalidations over one connection, until it ends."""
        store = self._store
        connection = self._make_connection()
        try:
            try:
                async with asyncio.timeout(store.timeout):
                    await connection.connect()
            except Exception as error:
                self._breaker.record_failure(self._now(), _error_text(error))
                return
            has_received = False
            feed = InvalidationFeed(store, self._now())
            while True:
                while (command := feed.next_command(self._now())) is not None:
                    await connection.send_packed_command(pack_commands([command]), False)
                await self._run_background_commands()  # also if the subscription is refused
                reply = await connection.read_response(True, feed.delay(self._now()), disconnect_on_error=False)
                if reply is not None:
                    feed.on_reply(reply)
                    if not has_received:
                        has_received = True
                        backoff.reset()
                        self._breaker.record_success(self._now())
        finally:
            store.on_disconnected()
            await connection.disconnect(True)

    async def _run_background_commands(self) -> None:
        commands = self._store.background_commands(self._now())
        if commands:
            replies = await self.execute([each.command for each in commands])
            for command, reply in zip(commands, replies, strict=True):
                command.on_reply(reply)


def _error_text(error: Exception) -> str:
    if isinstance(error, (*ERRORS, StoreFailure)):
        return str(error) or type(error).__name__
    return f"a reply that can't be read: {error!r}"  # redis-py lets pass what int() and the like raise


def _connection_factory(store: Redis) -> Callable[[], Connection]:
    """Return a function that makes connections to the store's URL. ConfigError if redis-py does not accept it."""
    # The URL can't change these options: they decide what is sent and received, and when it times out.
    fixed: dict[str, Any] = {
        "protocol": 2,
        "socket_timeout": None,
        "socket_connect_timeout": None,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
    }
    try:
        options = {**_parse_url(store.url), **fixed}
        options.pop("max_connections", None)
        make: Callable[[], Connection] = partial(options.pop("connection_class", _connection.Connection), **options)
        make()
    except (TypeError, ValueError, RedisError) as error:
        raise ConfigError(f"store {store.name}: {error}") from error
    return make


_parse_url = cast("Callable[[str], dict[str, Any]]", _connection.parse_url)  # pyright: ignore[reportUnknownMemberType]
