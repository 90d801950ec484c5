"""Redis from threads: a connection for each that asks, kept for the next, and a thread that hears the news.

redis-py connects and parses; when, and what becomes of failures, is ours.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, cast

from redis import connection as _connection
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as TimedOut
from redis.retry import Retry

from sticky_core.errors import ConfigError, StoreFailure
from sticky_core.stores.breaker import Backoff
from sticky_core.stores.invalidation import InvalidationFeed
from sticky_core.stores.redis import Redis
from sticky_core.stores.store import HEARTBEAT_INTERVAL, Command, pack_commands

ERRORS = RedisError, OSError


class Connection(Protocol):
    """What we use of redis-py's, whose types say less."""

    def connect(self) -> None: ...
    def disconnect(self) -> None: ...
    def send_packed_command(self, command: Sequence[bytes], check_health: bool) -> None: ...
    def read_response(self, disable_decoding: bool, *, timeout: float, disconnect_on_error: bool) -> object: ...


class RedisClient:
    """The connections to one store in this process, and who listens to its news here."""

    def __init__(self, store: Redis) -> None:
        self._store = store
        self._breaker = store.breaker
        self._now = store.clock.monotonic
        self._make = _maker(store)
        self._idle: list[Connection] = []  # the last to come is the first to go; threads take and put at its end
        self._ended = threading.Event()
        self._listening: threading.Thread | None = None
        self._hearing: Connection | None = None

    def listen(self) -> None:
        """Listen to the news, unless somebody does in this process."""
        if self._store.listener is None and self._store.acquire_listener(self):
            name = f"news of {self._store.name}"
            self._listening = threading.Thread(target=self._listen, name=name, daemon=True)
            self._listening.start()

    def execute(self, commands: Sequence[Command]) -> list[object]:
        """Their answers."""
        store = self._store
        self.listen()
        if not self._breaker.allows(self._now()):
            return [store.failure()] * len(commands)
        question = pack_commands(commands)
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = None
        try:
            if connection is not None:
                try:
                    return self._exchange(connection, question, len(commands))
                except TimedOut:
                    raise
                except ERRORS:
                    pass  # the store has closed it since it was last used: once more on another
            return self._exchange(self._make(), question, len(commands))
        except ERRORS as error:
            self._close_idle()  # the others may be no better
            self._breaker.record_failure(self._now(), _said(error))
            return [StoreFailure(store.name, _said(error))] * len(commands)

    def _exchange(self, connection: Connection, question: bytes, count: int) -> list[object]:
        try:
            connection.connect()
            end = time.monotonic() + self._store.timeout
            connection.send_packed_command([question], False)
            answers = [self._answer(connection, end) for _ in range(count)]
        except BaseException:
            connection.disconnect()
            raise
        if self._ended.is_set():
            connection.disconnect()
        else:
            self._idle.append(connection)
        refused = next((answer for answer in answers if isinstance(answer, StoreFailure)), None)
        if refused is None:
            self._breaker.record_success(self._now())
        else:
            self._breaker.record_failure(self._now(), refused.detail)
        return answers

    def _answer(self, connection: Connection, end: float) -> object:
        try:
            left = max(0.0, end - time.monotonic())
            return connection.read_response(True, timeout=left, disconnect_on_error=True)
        except ResponseError as error:
            return StoreFailure(self._store.name, str(error))

    def close(self) -> None:
        """Close what is open."""
        self._ended.set()
        hearing, listening = self._hearing, self._listening
        if hearing is not None:
            hearing.disconnect()
        if listening is not None and listening is not threading.current_thread():
            listening.join()
        self._close_idle()

    def _close_idle(self) -> None:
        """Close what idles."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.disconnect()

    def _listen(self) -> None:
        """Hear the news, until the end."""
        store = self._store
        pauses = Backoff(store.rng)
        try:
            while not self._ended.is_set():
                if self._breaker.allows(self._now()):
                    try:
                        self._hear(pauses)
                    except (*ERRORS, StoreFailure) as error:
                        store.feed_failed(_said(error))
                    self._ended.wait(pauses.next_pause())
                else:
                    self._ended.wait(min(self._breaker.delay(self._now()), HEARTBEAT_INTERVAL))
        finally:
            store.release_listener(self)

    def _run_errands(self) -> None:
        """What is to be done beside requests."""
        errands = self._store.background_commands(self._now())
        if errands:
            answers = self.execute([errand.command for errand in errands])
            for errand, answer in zip(errands, answers, strict=True):
                errand.on_reply(answer)

    def _hear(self, pauses: Backoff) -> None:
        """Hear the news, as long as there is this connection."""
        store = self._store
        connection = self._make()
        try:
            try:
                connection.connect()
            except ERRORS as error:
                self._breaker.record_failure(self._now(), _said(error))
                return
            self._hearing = connection
            heard = False
            news = InvalidationFeed(store, self._now())
            while not self._ended.is_set():
                while (command := news.next_command(self._now())) is not None:
                    connection.send_packed_command([pack_commands([command])], False)
                self._run_errands()  # also before it is known whether there is anything to hear
                try:
                    answer = connection.read_response(True, timeout=news.delay(self._now()), disconnect_on_error=False)
                except TimedOut:
                    continue
                news.on_reply(answer)
                if not heard:
                    heard = True
                    pauses.reset()
                    self._breaker.record_success(self._now())
        except Exception:
            if not self._ended.is_set():  # else it was closed under our hands
                raise
        finally:
            self._hearing = None
            store.disconnected()
            connection.disconnect()


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _maker(store: Redis) -> Callable[[], Connection]:
    """What makes connections as the URL asks. ConfigError if it asks for what there is not."""
    # what the URL says of these would change what we send and what comes back; time is ours to watch
    ours: dict[str, Any] = {
        "protocol": 2,
        "socket_timeout": store.timeout,
        "socket_connect_timeout": store.timeout,
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
