"""The channel on which a Redis server sends invalidations to one process: which commands are sent on it, and which
local copies are fresh after what is received.

A connection on which nothing is received may be lost, so a heartbeat (PING) is sent once a second. The reply proves
that all invalidations from before the heartbeat have been received; local copies are fresh for three seconds from the
heartbeat on.
"""

from __future__ import annotations

from typing import cast
from weakref import WeakSet

from sticky_core.errors import StoreFailure
from sticky_core.stores.redis import Redis, RedisNamespace
from sticky_core.stores.store import FEED_TIMEOUT, HEARTBEAT_INTERVAL, Command


class InvalidationFeed:
    """The channel over one connection, without I/O. A client sends each `next_command`, and passes what it receives to
    `on_reply` (as RESP2 has it, lists).
    """

    def __init__(self, store: Redis, now: float) -> None:
        self._store = store
        self._ping_sent_at: float | None = None  # until the reply has come
        self._next_heartbeat = now
        self._subscribed: WeakSet[RedisNamespace] = WeakSet()

    def next_command(self, now: float) -> Command | None:
        """Return the command to send now, or None. Raise StoreFailure if the last heartbeat had no reply in time: the
        connection is lost.
        """
        new = [namespace for namespace in self._store.namespaces if namespace not in self._subscribed]
        if new:
            self._subscribed.update(new)
            return ("SUBSCRIBE", *dict.fromkeys(namespace.channel for namespace in new))
        if now < self._next_heartbeat:
            return None
        if self._ping_sent_at is not None and now - self._ping_sent_at >= FEED_TIMEOUT:
            raise StoreFailure(self._store.name, f"the channel of invalidations has been silent for {FEED_TIMEOUT:g} s")
        self._next_heartbeat = now + HEARTBEAT_INTERVAL
        if self._ping_sent_at is not None:
            return None
        self._ping_sent_at = now
        return ("PING",)

    def delay(self, now: float) -> float:
        """Return the seconds until there may be a next command."""
        return max(0.0, self._next_heartbeat - now)

    def on_reply(self, reply: object) -> None:
        """Apply a reply or an invalidation that was received."""
        if not isinstance(reply, list):
            return  # before the first subscription, the reply to PING is as on any connection
        match cast("list[object]", reply):
            case [b"message", bytes() as channel, bytes() as payload]:
                for namespace in self._namespaces_of(channel):
                    namespace.on_message(payload)
            case [b"subscribe", bytes() as channel, _]:
                for namespace in self._namespaces_of(channel):
                    if not namespace.epoch and namespace in self._subscribed:
                        namespace.on_subscribed()
            case [b"pong", *_]:
                if self._ping_sent_at is not None:
                    self._store.on_feed_confirmed(self._ping_sent_at)
                    self._ping_sent_at = None
            case _:
                pass

    def _namespaces_of(self, channel: bytes) -> list[RedisNamespace]:
        name = channel.decode("utf-8", "replace")
        return [namespace for namespace in self._store.namespaces if namespace.channel == name]
