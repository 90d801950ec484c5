"""Redis and Valkey as a store: what is asked of it in commands, what its answers mean, and what news of other processes
do to a near copy.

An entry is a key `prefix:table:digest` whose value says what the table remembers, with the expiry of the store.
Each step is one command, so that processes that take it at the same time agree on who was first: reading refreshes the
expiry (GETEX), a key is reserved for who comes first (SET NX GET), everything else is a script of a few lines. Whatever
changes an entry publishes that, so nobody has to ask about what is in his near copy; while that channel is not known
to be alive, a near copy is not believed. Redis 7 or later, any Valkey. One server, or the first of replicas: not
Redis Cluster.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Sequence
from hashlib import blake2b
from importlib.util import find_spec
from itertools import count
from math import inf
from typing import Literal, Protocol
from urllib.parse import parse_qs, urlsplit
from weakref import ref

from sticky_core.cache import TwoGenerationCache
from sticky_core.clock import Clock, Rng, SystemClock
from sticky_core.durations import Duration, seconds
from sticky_core.errors import ConfigError, StoreFailure, raise_problems
from sticky_core.fork import register
from sticky_core.stores.breaker import Breaker
from sticky_core.stores.presence import BackgroundCommand, Presence
from sticky_core.stores.store import FEED_TIMEOUT, HEARTBEAT_INTERVAL, StoreCommand

_log = logging.getLogger("sticky_sessions")

Key = str | bytes | int

#: the shortest secret that is taken, in bytes
MIN_SECRET_BYTES = 16

_MISSING = "redis-py is not installed, and a store in Redis or Valkey needs it: pip install 'sticky-sessions[redis]'"
#: redis-py's words for how to get there, and those that Valkey's clients use
_SCHEMES = {"redis": "redis", "rediss": "rediss", "unix": "unix", "valkey": "redis", "valkeys": "rediss"}

# Numbers of eras, unique in the process: what was kept in one store's era is no other's by chance.
_eras = count(1)

#: how many keys of which there was news are remembered, at least
_REMEMBERED = 1024

_MOVE = """
local now = redis.call('GET', KEYS[1])
if now and now ~= ARGV[1] then return now end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('PUBLISH', ARGV[4], ARGV[5] .. ' ' .. ARGV[2])
return ARGV[2]
"""
_PUT = """
local was = redis.call('GET', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if was and was ~= ARGV[1] then redis.call('PUBLISH', ARGV[3], ARGV[4] .. ' ' .. ARGV[1]) end
return ARGV[1]
"""
_TOUCH = """
local now = redis.call('GETEX', KEYS[1], 'PX', ARGV[2])
if now then return now end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""
_FORGET = """
local now = redis.call('GET', KEYS[1])
if now and now ~= ARGV[1] then return now end
redis.call('DEL', KEYS[1])
redis.call('PUBLISH', ARGV[2], ARGV[3])
return nil
"""


class LocalCache(Protocol):
    """A near copy. Called from whatever thread listens to the news."""

    def on_invalidation(self, digest: str, text: str | None, era: int) -> None:
        """This is what the store says now of `digest`, if the near copy has it at all; None: nothing."""
        ...


class Redis:
    """A Redis or Valkey server that keeps the entries of stick tables for several processes and hosts.

    `url`: as redis-py reads it: `redis://[[user]:password@]host[:port][/db]`, `rediss://` for TLS (`?ssl_ca_certs=`),
    `unix:///path?db=0`; `valkey://` and `valkeys://` are taken as well. `timeout`: how long it may take to answer, in
    seconds; under WSGI, to connect as well. `on_store_failure`: what becomes of requests while it does not answer:
    `"local"` goes on with what this process knows, and balances; `"fail"` answers 503 rather than risk that a client is
    split. `prefix`: what its keys begin with. `secret`: what keys are hashed with; without it they are hashed as well,
    but who can read the store can try out guesses, such as addresses. Of several, oldest to newest, the oldest is used:
    another makes all clients strangers, so it begins to count when the old one is taken away.

    Processes share a table if `url`, `prefix`, `secret` and the names of backend and table agree. It is alive: compared
    by identity, counting its failures (`breaker`). `clock`, `rng`: time and chance, for tests.
    Raises `ConfigError` for what can't work, and if redis-py is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: Duration = 0.25,
        on_store_failure: Literal["local", "fail"] = "local",
        prefix: str = "sticky",
        secret: str | bytes | list[str | bytes] | None = None,
        clock: Clock | None = None,
        rng: Rng | None = None,
    ) -> None:
        problems: list[str] = []
        scheme, colon, rest = url.partition(":")
        self.url = f"{_SCHEMES.get(scheme, scheme)}:{rest}"
        #: the URL as it may be told: no user, no password
        self.name = _shown(url)
        if not colon or scheme not in _SCHEMES:
            problems.append(f"store {self.name}: write redis://host:port, rediss:// or unix://, as redis-py does")
        try:
            self.timeout = seconds(timeout)
        except ValueError as error:
            problems.append(f"store {self.name}: timeout: {error}")
        else:
            if not 0 < self.timeout <= 60:
                problems.append(f"store {self.name}: timeout {timeout!r}: between 0 and 60 seconds")
        if on_store_failure not in ("local", "fail"):
            problems.append(f"store {self.name}: on_store_failure is {on_store_failure!r}: write 'local' or 'fail'")
        if not prefix or not prefix.isascii() or not prefix.isprintable():
            problems.append(f"store {self.name}: prefix {prefix!r}: printable ASCII, at least a letter")
        key = b""
        if secret is not None:
            first = secret if isinstance(secret, (str, bytes)) else next(iter(secret), "")
            key = first.encode() if isinstance(first, str) else first
            if len(key) < MIN_SECRET_BYTES:
                problems.append(f"store {self.name}: secret: at least {MIN_SECRET_BYTES} bytes, or none at all")
        if find_spec("redis") is None:
            problems.append(f"store {self.name}: {_MISSING}")
        raise_problems(problems)
        self.on_store_failure: Literal["local", "fail"] = on_store_failure
        self.prefix = prefix
        self.clock: Clock = clock if clock is not None else SystemClock()
        self.rng: Rng = rng if rng is not None else random
        self._key = blake2b(key, digest_size=32).digest() if key else b""
        otherwise = {
            "local": "going on with what this process knows",
            "fail": "requests that need it are answered 503",
        }
        self.breaker = Breaker(self.name, otherwise[on_store_failure], 2 * self.timeout, self.rng)
        self.db = _db(url)
        self._spaces: tuple[ref[TableNamespace], ...] = ()
        self._lock = threading.Lock()
        self._listener: object = None
        self._hears = True  # or nobody has been told yet that it does not
        self._beat = -inf  # when there may be errands
        #: by `clock`: until when the channel of news is taken to be alive
        self.fresh_until = -inf
        register(self)

    def namespace(self, name: str, expire: float | None) -> TableNamespace:
        """The entries of the table `name`, each kept for `expire` seconds after it was last used.

        Raises `ConfigError` without `expire`: nothing else would bound it in the store.
        """
        if expire is None or expire < 0.001:
            raise ConfigError(f"table {name}: in a store it needs an expire, or entries would stay there for ever")
        space = TableNamespace(self, name, expire, self._key)
        with self._lock:
            self._spaces = (*(each for each in self._spaces if each() is not None), ref(space))
        return space

    @property
    def namespaces(self) -> Sequence[TableNamespace]:
        """Those that are in use. There may be several of one table."""
        return [space for each in self._spaces if (space := each()) is not None]

    # Who listens to the news

    def acquire_listener(self, listener: object) -> bool:
        """Let `listener` listen. False: somebody does."""
        if self._listener is not None:
            return False
        with self._lock:
            if self._listener is None:
                self._listener = listener
            return self._listener is listener

    def release_listener(self, listener: object) -> None:
        """It listens no more."""
        with self._lock:
            if self._listener is not listener:
                return
            self._listener = None
        self.disconnected()

    @property
    def listener(self) -> object:
        """Who listens to the news; None: nobody."""
        return self._listener

    def disconnected(self) -> None:
        """The channel of news is lost: nothing that is kept may be believed."""
        self.fresh_until = -inf
        for space in self.namespaces:
            space.epoch = 0

    def feed_failed(self, why: str) -> None:
        """The channel was lost, or could not be opened."""
        if self._hears:
            self._hears = False
            _log.warning("store %s: no news of other processes (%s); each request asks the store", self.name, why)

    def feed_confirmed(self, asked: float) -> None:
        """All news from before `asked` have been heard."""
        self._hears = True
        self.fresh_until = asked + FEED_TIMEOUT

    @property
    def is_listening(self) -> bool:
        """Whether the channel of news is known to be alive."""
        return self.clock.monotonic() < self.fresh_until

    def background_commands(self, now: float) -> list[BackgroundCommand]:
        """What whoever listens is to do beside that, about once a second."""
        if now < self._beat:
            return []
        self._beat = now + HEARTBEAT_INTERVAL
        return [errand for space in self.namespaces for errand in space.presence.background_commands(now)]

    def failure(self) -> StoreFailure:
        """The answer that is not asked for."""
        return StoreFailure(self.name, self.breaker.last_error)

    def after_fork(self) -> None:
        """We are a forked child: whoever listens in the parent does not tell us."""
        self._lock = threading.Lock()
        self._listener = None
        self.disconnected()
        self.breaker.after_fork()

    def __repr__(self) -> str:
        near = "listening" if self.is_listening else "deaf"
        return f"<Redis {self.name} {self.breaker.state.value}, {near}>"


class TableNamespace:
    """The entries of one table in a store, of which this process has a near copy (`near`)."""

    def __init__(self, store: Redis, name: str, expire: float, key: bytes) -> None:
        self.store = store
        self.name = name
        self.expire = expire
        self.local_cache: LocalCache | None = None
        #: which stretch of the life of its channel of news this is; 0: it is not alive
        self.epoch = 0
        #: how many news were heard, or may have been missed
        self.sequence = 0
        self._keys = f"{store.prefix}:{name}:"
        #: which servers have clients; no digest looks as these keys do
        self.presence = Presence(f"{self._keys}bound:", expire, store.clock, store.breaker)
        #: channels are of the whole server, keys of one of its databases
        self.channel = f"{store.prefix}:{store.db}:{name}"
        self._milliseconds = max(1, round(expire * 1000))
        # one key per table: nobody can tell that two tables know the same client
        # the key is hashed in once, and each digest begins with a copy of that
        self._seed = blake2b(digest_size=16, key=blake2b(name.encode(), digest_size=32, key=key).digest()).copy
        self._now = store.clock.monotonic
        # what was heard of late, and as the how manieth; older news are not remembered one by one
        self._heard: TwoGenerationCache[str, tuple[int, str | None]] = TwoGenerationCache(_REMEMBERED)

    def digest(self, key: Key) -> str:
        """What stands for `key` here: 32 hexadecimal digits that tell nothing about it."""
        if isinstance(key, str):
            try:
                data = key.encode()
            except UnicodeEncodeError:
                data = key.encode("utf-8", "surrogatepass")
        else:
            data = key if isinstance(key, bytes) else b"%d" % key
        seed = self._seed()
        seed.update(data)
        return seed.hexdigest()

    def recall(self, digest: str) -> StoreCommand:
        """What is remembered; its expiry begins anew. Answers the text, or None."""
        return StoreCommand(self.store, ("GETEX", self._keys + digest, "PX", self._milliseconds))

    def reserve(self, digest: str, text: str) -> StoreCommand:
        """Remember `text` if nothing is. Answers None if that was so, else what is remembered."""
        return StoreCommand(self.store, ("SET", self._keys + digest, text, "NX", "GET", "PX", self._milliseconds))

    def move(self, digest: str, was: str, text: str) -> StoreCommand:
        """Remember `text` if `was` is remembered, or nothing, and publish it. Answers what is remembered now."""
        return self._ask(_MOVE, digest, was, text, self._milliseconds, self.channel, digest)

    def put(self, digest: str, text: str) -> StoreCommand:
        """Remember `text`, and publish it if something else was remembered. Answers `text`."""
        return self._ask(_PUT, digest, text, self._milliseconds, self.channel, digest)

    def touch(self, digest: str, text: str) -> StoreCommand:
        """Let the expiry begin anew; if nothing is remembered any more, remember `text`. Answers what is remembered
        now.
        """
        return self._ask(_TOUCH, digest, text, self._milliseconds)

    def forget(self, digest: str, text: str) -> StoreCommand:
        """Remember nothing, if it was `text`, and publish that. Answers None, or what is remembered instead."""
        return self._ask(_FORGET, digest, text, self.channel, digest)

    def _ask(self, script: str, digest: str, *words: str | int) -> StoreCommand:
        # EVAL rather than EVALSHA: a server that was started anew knows no scripts, and a second way for that would
        # cost more than to send two hundred bytes
        return StoreCommand(self.store, ("EVAL", script, 1, self._keys + digest, *words))

    @staticmethod
    def read_reply(answer: object) -> str | None:
        """The text in an answer; None: nothing is remembered, or after `reserve`, nothing else was. A `StoreFailure` is
        raised.
        """
        match answer:
            case None:
                return None
            case bytes():
                return answer.decode()
            case StoreFailure():
                raise answer
            case _:
                raise TypeError(f"no answer of ours: {answer!r}")

    def on_subscribed(self) -> None:
        """Its channel is open: what is asked for from now on may be believed."""
        self.sequence += _REMEMBERED  # nobody knows how many were not heard
        self.epoch = next(_eras)

    def on_message(self, payload: bytes) -> None:
        """Something was published in the channel."""
        digest, space, said = payload.decode("utf-8", "replace").partition(" ")
        text = said if space else None
        # remembered before it is counted: whoever sees the count sees what was heard
        self._heard.put(digest, (self.sequence + 1, text))
        self.sequence += 1
        if self.local_cache is not None:
            self.local_cache.on_invalidation(digest, text, self.epoch)

    def epoch_of(self, digest: str, text: str | None, since: int) -> int:
        """The era in which an answer may be kept as fresh that was asked for when there had been `since` news; 0: none.

        The answer and the news come by two ways, and the later to come may be the earlier to have been sent: what
        contradicts news that have come meanwhile is not believed.
        """
        if self.sequence - since >= _REMEMBERED:
            return 0
        heard = self._heard.get(digest)
        if heard is not None and heard[0] > since and heard[1] != text:
            return 0
        return self.epoch

    def is_fresh(self, era: int) -> bool:
        """Whether what was kept in `era` may be believed without asking."""
        return era == self.epoch != 0 and self._now() < self.store.fresh_until

    def __repr__(self) -> str:
        return f"<Space {self.name} in {self.store.name}>"


def _db(url: str) -> str:
    """The number of the database, as redis-py reads it."""
    parts = urlsplit(url)
    path = parts.path.strip("/") if parts.scheme != "unix" else ""
    return (parse_qs(parts.query).get("db") or [path if path.isdecimal() else "0"])[0]


def _shown(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return f"{url.partition(':')[0]}://…"
    if parts.scheme == "unix":
        db = parse_qs(parts.query).get("db")
        return f"unix://{parts.path}" + (f"?db={db[0]}" if db else "")
    if parts.scheme not in _SCHEMES:
        return f"{parts.scheme}:…" if parts.scheme else "…"  # who knows where the password is
    host = parts.hostname or "localhost"
    where = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{where}" + (f":{port}" if port is not None else "") + parts.path
