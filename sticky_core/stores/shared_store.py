"""The base of stores that keep the entries of stick tables for several processes and hosts.

A new kind of store needs these:

- a `SharedStore`, the config that users write, which says where the clients are (`clients`) and whether processes are
  notified of changes (`invalidates`);
- a `TableNamespace`, with methods that make the commands;
- a client for each face. Where `invalidates` is false it has two methods, `execute(commands)` and `close()`, may raise
  any exception, and the face adds the rest: circuit breaker, timeout, commands in the background. Otherwise it does
  all of that itself, as `sticky_asgi.stores.redis` does, and has a method `listen()` as well.
"""

from __future__ import annotations

import logging
import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from importlib import import_module
from math import inf
from typing import Any, ClassVar, Literal, TypeVar
from weakref import ref

from sticky_core.clock import Clock, Rng, SystemClock
from sticky_core.durations import Duration, problems_of_duration, seconds
from sticky_core.errors import ConfigError, StoreFailure, raise_problems
from sticky_core.fork import register
from sticky_core.stores.breaker import Breaker
from sticky_core.stores.namespace import TableNamespace
from sticky_core.stores.store import FEED_TIMEOUT, HEARTBEAT_INTERVAL, BackgroundCommand

_log = logging.getLogger("sticky_sessions")

_Namespace = TypeVar("_Namespace", bound=TableNamespace)

MIN_SECRET_BYTES = 16

#: how many characters of a reply that is no text are logged
_MAX_SHOWN = 100

_CONSEQUENCES = {
    "local": "going on with what this process knows",
    "fail": "requests that need it get 503",
}


class SharedStore(ABC):
    """A store that keeps the entries of stick tables for several processes and hosts.

    It is compared by identity, and counts its failures (`breaker`). Its state changes under its lock. Raises
    `ConfigError` with every problem found, those in `problems` included.

    - `name`: the name of the store in messages and logs; it contains no password.
    - `timeout`, `on_store_failure`, `prefix`, `secret`, `clock`, `rng`: see `Redis`.
    - `problems`: what a subclass has found wrong with options of its own.
    """

    #: The client of each face, as `module:class`, imported when the store is used for the first time: what it needs
    #: may be an extra.
    clients: ClassVar[Mapping[str, str]] = {}
    #: Whether the store notifies processes of changes, so that a local copy of an entry can be used without a query.
    invalidates: ClassVar[bool] = False

    def __init__(
        self,
        name: str,
        *,
        timeout: Duration = 0.25,
        on_store_failure: Literal["local", "fail"] = "local",
        prefix: str = "sticky",
        secret: str | bytes | list[str | bytes] | None = None,
        clock: Clock | None = None,
        rng: Rng | None = None,
        problems: Iterable[str] = (),
    ) -> None:
        self.name = name
        found = list(problems)
        found += problems_of_duration("timeout", timeout, at_most=60)
        if on_store_failure not in ("local", "fail"):
            found.append(f"on_store_failure is {on_store_failure!r}: write 'local' or 'fail'")
        if not prefix or not prefix.isascii() or not prefix.isprintable():
            found.append(f"prefix {prefix!r}: write at least one character of printable ASCII")
        key = b""
        if secret is not None:
            first = secret if isinstance(secret, (str, bytes)) else next(iter(secret), "")
            key = first.encode() if isinstance(first, str) else first
            if len(key) < MIN_SECRET_BYTES:
                found.append(f"secret: at least {MIN_SECRET_BYTES} bytes, or none at all")
        raise_problems(f"store {name}: {problem}" for problem in found)
        self.timeout = seconds(timeout)
        self.on_store_failure: Literal["local", "fail"] = on_store_failure
        self.prefix = prefix
        self.clock: Clock = clock if clock is not None else SystemClock()
        self.rng: Rng = rng if rng is not None else random
        #: the key from which each table derives the key of its digests; empty without a secret
        self.digest_key = blake2b(key, digest_size=32).digest() if key else b""
        self.breaker = Breaker(name, _CONSEQUENCES[on_store_failure], 2 * self.timeout, self.rng)
        self._namespaces: tuple[ref[TableNamespace], ...] = ()
        self._lock = threading.Lock()
        self._listener: object = None
        self._has_logged_feed_failure = False
        self._next_heartbeat = -inf  # when commands are due in the background next
        #: until when, by `clock`, the channel of invalidations is taken to be alive
        self.fresh_until = -inf
        register(self)

    @abstractmethod
    def namespace(self, name: str, expire: float | None) -> TableNamespace:
        """Return the entries of the table `name`, each kept for `expire` seconds after its last use.

        Raises `ConfigError` without `expire`: nothing else would bound the table in the store.
        """

    def _register(self, namespace: _Namespace) -> _Namespace:
        with self._lock:
            self._namespaces = (*(each for each in self._namespaces if each() is not None), ref(namespace))
        return namespace

    @property
    def namespaces(self) -> Sequence[TableNamespace]:
        """The namespaces in use. There may be several of one table."""
        return [namespace for each in self._namespaces if (namespace := each()) is not None]

    def load_client(self, face: Literal["asgi", "wsgi"]) -> Any:
        """Import the client class of a face. ConfigError if the store has none."""
        if face not in self.clients:
            raise ConfigError(f"store {self.name}: {type(self).__name__} has no client for {face.upper()}")
        module, _, name = self.clients[face].partition(":")
        return getattr(import_module(module), name)

    # The listener: one client in the process, which receives invalidations and runs commands in the background

    def acquire_listener(self, listener: object) -> bool:
        """Make `listener` the listener of this process. Return False if there is another."""
        if self._listener is not None:
            return False
        with self._lock:
            if self._listener is None:
                self._listener = listener
            return self._listener is listener

    def release_listener(self, listener: object) -> None:
        """Let another client become the listener, if `listener` is it."""
        with self._lock:
            if self._listener is not listener:
                return
            self._listener = None
        self.on_disconnected()

    @property
    def listener(self) -> object:
        """The listener of this process, or None."""
        return self._listener

    def on_disconnected(self) -> None:
        """End the epochs of all tables: the channel of invalidations is lost, so no local copy is fresh any more."""
        self.fresh_until = -inf
        for namespace in self.namespaces:
            namespace.epoch = 0

    def on_feed_failed(self, why: str) -> None:
        """Log, once until it works again, that the channel of invalidations was lost or could not be opened."""
        if not self._has_logged_feed_failure:
            self._has_logged_feed_failure = True
            _log.warning("store %s: no invalidations (%s); each request queries the store", self.name, why)

    def on_feed_confirmed(self, sent_at: float) -> None:
        """Record the reply to the heartbeat sent at `sent_at`: all earlier invalidations have been received."""
        self._has_logged_feed_failure = False
        self.fresh_until = sent_at + FEED_TIMEOUT

    @property
    def is_listening(self) -> bool:
        """Whether the channel of invalidations is known to be alive."""
        return self.clock.monotonic() < self.fresh_until

    def background_commands(self, now: float) -> list[BackgroundCommand]:
        """Return the commands that the listener has to send now: none if this was called within the last second."""
        if now < self._next_heartbeat:
            return []
        self._next_heartbeat = now + HEARTBEAT_INTERVAL
        return [command for each in self.namespaces for command in each.presence.background_commands(now)]

    # Replies

    def read_reply(self, reply: object) -> str | StoreFailure | None:
        """Return the text in the reply to a command for an entry; None: no text is kept, or none was before `reserve`.
        Any other reply opens the breaker, and is returned as a `StoreFailure`.

        Bytes that are no UTF-8 become a text that names no server (PEP 383), so that the entry can be replaced.
        """
        match reply:
            case None | str() | StoreFailure():
                return reply
            case bytes():
                return reply.decode("utf-8", "surrogateescape")
            case _:
                failure = StoreFailure(self.name, f"a reply is a text or nothing, not {repr(reply)[:_MAX_SHOWN]}")
                self.breaker.record_failure(self.clock.monotonic(), failure.detail)
                return failure

    def count_replies(self, replies: Sequence[object], number: int) -> None:
        """Raise StoreFailure unless a client of another author has returned one reply for each of `number` commands."""
        if not isinstance(replies, list | tuple) or len(replies) != number:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise StoreFailure(self.name, f"commands: {number}, replies: {repr(replies)[:_MAX_SHOWN]}")

    def failure(self) -> StoreFailure:
        """Return the failure that takes the place of a reply while the breaker is open."""
        return StoreFailure(self.name, self.breaker.last_error)

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._listener = None
        self.on_disconnected()
        self.breaker.after_fork()

    def __repr__(self) -> str:
        feed = f", {'listening' if self.is_listening else 'disconnected'}" if self.invalidates else ""
        return f"<{type(self).__name__} {self.name} {self.breaker.state.value}{feed}>"
