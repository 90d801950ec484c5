"""What is said on the channel of news between a store and one process, and what follows from it: which near copies may
be believed.

A connection that says nothing may be one that is lost, so it is asked once a second whether it is there (PING). What
it answers proves that all news from before the question have been heard, and near copies are believed for three seconds
from then on.
"""

from __future__ import annotations

from typing import cast
from weakref import WeakSet

from sticky_core.errors import StoreFailure
from sticky_core.stores.redis import Redis, TableNamespace
from sticky_core.stores.store import FEED_TIMEOUT, HEARTBEAT_INTERVAL, Command


class InvalidationFeed:
    """One connection's. A face sends what is `due`, and hands over what it hears (as RESP2 has it, lists)."""

    def __init__(self, store: Redis, now: float) -> None:
        self._store = store
        self._asked: float | None = None  # when, and not answered yet
        self._beat = now
        self._begun: WeakSet[TableNamespace] = WeakSet()  # whose channels were subscribed to

    def next_command(self, now: float) -> Command | None:
        """What to say now. StoreFailure if the last was not answered in time: the connection is lost."""
        unheard = [space for space in self._store.namespaces if space not in self._begun]
        if unheard:
            self._begun.update(unheard)
            return ("SUBSCRIBE", *dict.fromkeys(space.channel for space in unheard))
        if now < self._beat:
            return None
        if self._asked is not None and now - self._asked >= FEED_TIMEOUT:
            raise StoreFailure(self._store.name, f"the channel of news has been silent for {FEED_TIMEOUT:g} s")
        self._beat = now + HEARTBEAT_INTERVAL
        if self._asked is not None:
            return None
        self._asked = now
        return ("PING",)

    def delay(self, now: float) -> float:
        """Seconds until something may be due."""
        return max(0.0, self._beat - now)

    def on_reply(self, answer: object) -> None:
        """Something has come."""
        if not isinstance(answer, list):
            return  # before the first channel, PING is answered as on any connection
        kind, *rest = cast("list[bytes | int]", answer)
        match kind, rest:
            case b"message", [bytes() as channel, bytes() as payload]:
                for space in self._of(channel):
                    space.on_message(payload)
            case b"subscribe", [bytes() as channel, _]:
                for space in self._of(channel):
                    if not space.epoch and space in self._begun:
                        space.on_subscribed()
            case b"pong", _:
                if self._asked is not None:
                    self._store.feed_confirmed(self._asked)
                    self._asked = None
            case _:
                pass

    def _of(self, channel: bytes) -> list[TableNamespace]:
        name = channel.decode()
        return [space for space in self._store.namespaces if space.channel == name]
