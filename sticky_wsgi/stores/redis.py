"""Redis from threads: a connection for each thread that sends commands, kept for the next, and a thread that receives
invalidations.

redis-py connects and parses; timeouts and failures are handled here. redis-py's own timeout is that of one `recv`, so a
store that sends a byte now and then would never time out: a deadline limits the whole operation.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from math import inf
from typing import Any, Protocol, cast

from redis import connection as _connection
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from sticky_core.errors import ConfigError, StoreFailure
from sticky_core.stores.breaker import Backoff
from sticky_core.stores.invalidation import InvalidationFeed
from sticky_core.stores.redis import Redis, pack_commands
from sticky_core.stores.store import HEARTBEAT_INTERVAL, Command

ERRORS = RedisError, OSError

#: the shortest timeout of a connection attempt, in seconds: with 0 a socket does not wait at all
_SHORTEST_TIMEOUT = 0.001


class Connection(Protocol):
    """The methods of redis-py's connections that are used here, with their types."""

    def connect(self) -> None: ...
    def disconnect(self) -> None: ...
    def send_packed_command(self, command: Sequence[bytes], check_health: bool) -> None: ...
    def read_response(self, disable_decoding: bool, *, disconnect_on_error: bool) -> object: ...

    #: until when, by `time.monotonic`, all that follows has to be done
    deadline: float


class RedisClient:
    """The connections to one store in this process, and the thread that receives its invalidations here."""

    def __init__(self, store: Redis) -> None:
        self._store = store
        self._breaker = store.breaker
        self._now = store.clock.monotonic
        self._make_connection = _connection_factory(store)
        self._idle: list[Connection] = []  # the last to be used is used first; threads take and add at the end
        self._closed = threading.Event()
        self._listening: threading.Thread | None = None
        self._feed_connection: Connection | None = None

    def listen(self) -> None:
        """Begin to receive invalidations, unless another client in this process does."""
        if self._store.listener is None and self._store.acquire_listener(self):
            name = f"invalidations of {self._store.name}"
            self._listening = threading.Thread(target=self._listen, name=name, daemon=True)
            self._listening.start()

    def execute(self, commands: Sequence[Command]) -> list[object]:
        """Send commands and return the replies, in order, or as many failures."""
        store = self._store
        self.listen()
        if not self._breaker.allows(self._now()):
            return [store.failure()] * len(commands)
        packed = pack_commands(commands)
        deadline = time.monotonic() + store.timeout
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = None
        try:
            if connection is not None:
                try:
                    return self._exchange(connection, packed, len(commands), deadline)
                except RedisTimeoutError:
                    raise
                except ERRORS:
                    pass  # the store has closed it since it was last used: send once more, on another
            return self._exchange(self._make_connection(), packed, len(commands), deadline)
        except Exception as error:
            self._close_idle()  # the others may be no better
            is_late = isinstance(error, RedisTimeoutError)
            why = f"no reply in {store.timeout:g} s" if is_late else _error_text(error)
            self._breaker.record_failure(self._now(), why)
            return [StoreFailure(store.name, why)] * len(commands)

    def _exchange(self, connection: Connection, packed: bytes, count: int, deadline: float) -> list[object]:
        """Send commands over `connection` and return so many replies."""
        connection.deadline = deadline
        try:
            connection.connect()
            connection.send_packed_command([packed], False)
            replies = [self._read_reply(connection) for _ in range(count)]
        except BaseException:
            connection.disconnect()
            raise
        if self._closed.is_set():
            connection.disconnect()
        else:
            self._idle.append(connection)
        refused = next((reply for reply in replies if isinstance(reply, StoreFailure)), None)
        if refused is None:
            self._breaker.record_success(self._now())
        else:
            self._breaker.record_failure(self._now(), refused.detail)
        return replies

    def _read_reply(self, connection: Connection) -> object:
        try:
            return connection.read_response(True, disconnect_on_error=True)
        except ResponseError as error:
            return StoreFailure(self._store.name, str(error))

    def close(self) -> None:
        """Close the connections and end the thread."""
        self._closed.set()
        connection, listening = self._feed_connection, self._listening
        if connection is not None:
            connection.disconnect()
        if listening is not None and listening is not threading.current_thread():
            listening.join()
        self._close_idle()

    def _close_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.disconnect()

    def _listen(self) -> None:
        """Receive invalidations until the client is closed."""
        store = self._store
        backoff = Backoff(store.rng)
        try:
            while not self._closed.is_set():
                if self._breaker.allows(self._now()):
                    try:
                        self._receive_invalidations(backoff)
                    except Exception as error:
                        store.on_feed_failed(_error_text(error))
                    self._closed.wait(backoff.next_pause())
                else:
                    self._closed.wait(min(self._breaker.delay(self._now()), HEARTBEAT_INTERVAL))
        finally:
            store.release_listener(self)

    def _receive_invalidations(self, backoff: Backoff) -> None:
        """Receive invalidations over one connection, until it ends."""
        store = self._store
        connection = self._make_connection()
        try:
            connection.deadline = time.monotonic() + store.timeout
            try:
                connection.connect()
            except Exception as error:
                self._breaker.record_failure(self._now(), _error_text(error))
                return
            self._feed_connection = connection
            has_received = False
            feed = InvalidationFeed(store, self._now())
            while not self._closed.is_set():
                connection.deadline = time.monotonic() + store.timeout
                while (command := feed.next_command(self._now())) is not None:
                    connection.send_packed_command([pack_commands([command])], False)
                self._run_background_commands()  # also if the subscription is refused
                connection.deadline = time.monotonic() + feed.delay(self._now())
                try:
                    reply = connection.read_response(True, disconnect_on_error=False)
                except RedisTimeoutError:
                    continue
                feed.on_reply(reply)
                if not has_received:
                    has_received = True
                    backoff.reset()
                    self._breaker.record_success(self._now())
        except Exception:
            if not self._closed.is_set():  # else `close` has closed the connection
                raise
        finally:
            self._feed_connection = None
            store.on_disconnected()
            connection.disconnect()

    def _run_background_commands(self) -> None:
        commands = self._store.background_commands(self._now())
        if commands:
            replies = self.execute([each.command for each in commands])
            for command, reply in zip(commands, replies, strict=True):
                command.on_reply(reply)


def _error_text(error: Exception) -> str:
    if isinstance(error, (*ERRORS, StoreFailure)):
        return str(error) or type(error).__name__
    return f"a reply that can't be read: {error!r}"  # redis-py lets pass what int() and the like raise


class _DeadlineSocket:
    """A socket that fails when the deadline of its connection has passed. It ignores redis-py's timeouts."""

    def __init__(self, sock: socket.socket, connection: Connection) -> None:
        self._socket = sock
        self._connection = connection
        self._late_for: float | None = None  # the deadline after which something was received

    def recv(self, size: int) -> bytes:
        with self._limited():
            return self._socket.recv(size)

    def recv_into(self, buffer: bytearray) -> int:
        with self._limited():
            return self._socket.recv_into(buffer)

    def sendall(self, data: bytes) -> None:
        self._socket.settimeout(_seconds_left(self._connection))
        self._socket.sendall(data)

    @contextmanager
    def _limited(self) -> Generator[None]:
        """Limit the block, which receives. After the deadline it gets what has arrived by then, once: the thread may be
        late, rather than the store.
        """
        deadline = self._connection.deadline
        left = deadline - time.monotonic()
        if left <= 0:
            if self._late_for == deadline:
                raise TimeoutError("no reply in time")
            self._late_for = deadline
        self._socket.settimeout(max(left, 0.0))
        try:
            yield
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise TimeoutError("no reply in time") from None

    def settimeout(self, seconds: float | None) -> None:
        """Ignore it: the deadline counts."""

    def shutdown(self, how: int) -> None:
        self._socket.shutdown(how)

    def close(self) -> None:
        self._socket.close()


class _RedisPyConnection(Protocol):
    """What is overridden in redis-py's connections."""

    def _connect(self) -> socket.socket: ...


def _with_deadline(connection_class: type[_RedisPyConnection]) -> Callable[..., Connection]:
    """Return a class of redis-py's connections with a deadline for all that they do, but for the look-up of a name."""

    def connect(connection: Any) -> _DeadlineSocket:
        return _DeadlineSocket(connection_class._connect(connection), connection)  # pyright: ignore[reportPrivateUsage]

    # redis-py reads these before it connects to each of a host's addresses, and after that for a TLS handshake
    timeout = property(_seconds_left, lambda connection, seconds: None)
    members = {"deadline": inf, "_connect": connect, "socket_timeout": timeout, "socket_connect_timeout": timeout}
    return cast("Callable[..., Connection]", type(connection_class.__name__, (connection_class,), members))


def _seconds_left(connection: Connection) -> float:
    return max(_SHORTEST_TIMEOUT, connection.deadline - time.monotonic())


def _connection_factory(store: Redis) -> Callable[[], Connection]:
    """Return a function that makes connections to the store's URL. ConfigError if redis-py does not accept it."""
    # The URL can't change these options: they decide what is sent and received. Its timeouts have no effect either.
    fixed: dict[str, Any] = {
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
    }
    try:
        options = {**_parse_url(store.url), **fixed}
        options.pop("max_connections", None)
        connection_class = _with_deadline(options.pop("connection_class", _connection.Connection))
        make: Callable[[], Connection] = partial(connection_class, **options)
        make()
    except (TypeError, ValueError, RedisError) as error:
        raise ConfigError(f"store {store.name}: {error}") from error
    return make


_parse_url = cast("Callable[[str], dict[str, Any]]", _connection.parse_url)  # pyright: ignore[reportUnknownMemberType]
