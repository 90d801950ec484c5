"""Redis and Valkey as a store: the commands for entries, and what is published about changes.

An entry is a key `prefix:table:digest` and its value, the text that the table keeps, with the expiry of the store.
Each operation is one command, so that processes that use a key at the same moment agree on which was first: reading
renews the expiry (GETEX), a key is reserved for the first (SET NX GET), everything else is a script of a few lines.
A command that changes an entry publishes the change, so no process has to query the store for an entry of which it
has a copy; while the channel is not known to be alive, no copy is fresh. Redis 7 or later, any Valkey. One server, or
the primary of several replicas; not Redis Cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import ClassVar, Literal, cast
from urllib.parse import parse_qs, urlsplit

from sticky_core.clock import Clock, Rng
from sticky_core.durations import Duration
from sticky_core.stores.namespace import TableNamespace
from sticky_core.stores.shared_store import SharedStore
from sticky_core.stores.store import Command, StoreCommand

_MISSING = "redis-py is not installed, and a store in Redis or Valkey needs it: pip install 'sticky-sessions[redis]'"
#: redis-py's schemes, and those that Valkey's clients use
_SCHEMES = {"redis": "redis", "rediss": "rediss", "unix": "unix", "valkey": "redis", "valkeys": "rediss"}

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


class Redis(SharedStore):
    """A Redis or Valkey server that keeps the entries of stick tables for several processes and hosts (what HAProxy
    does with `peers`).

    - `url`: text, as redis-py reads it: `redis://[[user]:password@]host[:port][/db]`, `rediss://` for TLS
      (`?ssl_ca_certs=`), `unix:///path?db=0`; also `valkey://` and `valkeys://`.
    - `timeout`: how long a request waits for the store, connecting included; seconds or a duration such as `"250ms"`,
      at most 60 s; default 0.25 s. Under WSGI the look-up of the store's name is not limited.
    - `on_store_failure`: how requests continue while the store does not reply; `"local"`: with what this process
      knows, and the balance algorithm for new clients; `"fail"`: with 503, so that no client is split between two
      servers; default `"local"`.
    - `prefix`: what the keys in the store begin with; text; default `"sticky"`.
    - `secret`: the key with which the keys of tables are hashed, at least 16 bytes; text, bytes, or a list of them,
      oldest to newest. Only the oldest is used: with another secret all clients are unknown, so a new one takes effect
      when the old one is removed from the list. Default None: the hash has no key, so a reader of the store can test
      guesses, such as addresses.
    - `clock`, `rng`: time and random numbers, for tests; default those of the system.

    Processes share a table if `url`, `prefix`, `secret` and the names of backend and table agree. A store is compared
    by identity, and counts its failures (`breaker`). Raises `ConfigError` with every problem found, also if redis-py
    is not installed.
    """

    clients: ClassVar[Mapping[str, str]] = {
        "asgi": "sticky_asgi.stores.redis:RedisClient",
        "wsgi": "sticky_wsgi.stores.redis:RedisClient",
    }
    invalidates = True

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
        if not colon or scheme not in _SCHEMES:
            problems.append("write redis://host:port, rediss:// or unix://, as redis-py does")
        if find_spec("redis") is None:
            problems.append(_MISSING)
        super().__init__(
            _without_user(url),
            timeout=timeout,
            on_store_failure=on_store_failure,
            prefix=prefix,
            secret=secret,
            clock=clock,
            rng=rng,
            problems=problems,
        )
        self.url = f"{_SCHEMES[scheme]}:{rest}"
        self.db = _db(url)

    def namespace(self, name: str, expire: float | None) -> RedisNamespace:
        return self._register(RedisNamespace(self, name, expire))

    @property
    def namespaces(self) -> Sequence[RedisNamespace]:
        return cast("Sequence[RedisNamespace]", super().namespaces)


class RedisNamespace(TableNamespace):
    """The entries of one table in Redis."""

    def __init__(self, store: Redis, name: str, expire: float | None) -> None:
        super().__init__(store, name, expire)
        self._keys = f"{store.prefix}:{name}:"
        self._marks = f"{self._keys}bound:"  # no digest contains a colon
        #: with the number of the database: keys belong to one database, channels to the whole Redis server
        self.channel = f"{store.prefix}:{store.db}:{name}"
        self._milliseconds = max(1, round(self.expire * 1000))

    def recall(self, digest: str) -> StoreCommand:
        return StoreCommand(self.store, ("GETEX", self._keys + digest, "PX", self._milliseconds))

    def reserve(self, digest: str, text: str) -> StoreCommand:
        return StoreCommand(self.store, ("SET", self._keys + digest, text, "NX", "GET", "PX", self._milliseconds))

    def move(self, digest: str, previous: str, text: str) -> StoreCommand:
        return self._eval(_MOVE, digest, previous, text, self._milliseconds, self.channel, digest)

    def put(self, digest: str, text: str) -> StoreCommand:
        return self._eval(_PUT, digest, text, self._milliseconds, self.channel, digest)

    def touch(self, digest: str, text: str) -> StoreCommand:
        return self._eval(_TOUCH, digest, text, self._milliseconds)

    def forget(self, digest: str, text: str) -> StoreCommand:
        return self._eval(_FORGET, digest, text, self.channel, digest)

    def _eval(self, script: str, digest: str, *words: str | int) -> StoreCommand:
        # EVAL rather than EVALSHA: a server that was restarted knows no scripts, and a second code path for that would
        # cost more than the two hundred bytes of a script
        return StoreCommand(self.store, ("EVAL", script, 1, self._keys + digest, *words))

    def set_mark(self, server: str, expire: float) -> Command:
        return ("SET", self._marks + server, 1, "PX", round(1000 * expire))

    def get_mark(self, server: str) -> Command:
        return ("GET", self._marks + server)

    def on_message(self, payload: bytes) -> None:
        """Apply a change that was published in the channel: a digest, and the new text unless the entry was deleted."""
        digest, space, text = payload.decode("utf-8", "surrogateescape").partition(" ")
        self.on_invalidation(digest, text if space else None)


def pack_commands(commands: Iterable[Command]) -> bytes:
    """Encode commands as Redis reads them (RESP, arrays of bulk strings)."""
    parts: list[bytes] = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for word in command:
            data = word if isinstance(word, bytes) else str(word).encode("utf-8", "surrogateescape")
            parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
    return b"".join(parts)


def _db(url: str) -> str:
    """Return the number of the database, as redis-py reads it."""
    parts = urlsplit(url)
    path = parts.path.strip("/") if parts.scheme != "unix" else ""
    return (parse_qs(parts.query).get("db") or [path if path.isdecimal() else "0"])[0]


def _without_user(url: str) -> str:
    """Return the URL without user and password, for messages and logs."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return f"{url.partition(':')[0]}://…"
    if parts.scheme == "unix":
        db = parse_qs(parts.query).get("db")
        return f"unix://{parts.path}" + (f"?db={db[0]}" if db else "")
    if parts.scheme not in _SCHEMES:
        return f"{parts.scheme}:…" if parts.scheme else "…"  # a password may be anywhere in it
    host = parts.hostname or "localhost"
    address = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{address}" + (f":{port}" if port is not None else "") + parts.path
