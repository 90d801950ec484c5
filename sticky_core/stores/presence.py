"""Presence marks: which servers have clients in any of the processes that share a table.

Each process sets a presence mark in the store for each server that has served a client here, and reads the mark of a
server that drains here. A mark expires when none of the server's clients has sent a request, to any process, for as
long as clients are remembered. Local copies touch entries once in an eighth of that time, and marks are set no more
often, so marks last a quarter longer. No request waits for these commands: the store's listener sends them, about once
a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import inf
from typing import Protocol

from sticky_core.clock import Clock
from sticky_core.errors import StoreFailure
from sticky_core.stores.breaker import Breaker
from sticky_core.stores.store import HEARTBEAT_INTERVAL, BackgroundCommand, Command

#: the time for which clients are remembered is divided into this many parts
_PARTS = 8
#: for how many seconds after a call of `has_clients` each heartbeat reads the mark again
_WANTED_FOR = 3.0


class MarkCommands(Protocol):
    """The commands for the marks of one table; see `TableNamespace`."""

    def set_mark(self, server: str, expire: float) -> Command: ...
    def get_mark(self, server: str) -> Command: ...


class Presence:
    """The presence marks of the servers of one table, by the texts that the table keeps for them.

    Requests call `record`, and the state of a server that drains calls `has_clients`, from any thread: each step is one
    operation of a set or a dictionary, so no lock is needed. One listener at a time sends the `background_commands`.
    """

    def __init__(self, commands: MarkCommands, expire: float, clock: Clock, breaker: Breaker) -> None:
        self._commands = commands
        self._now = clock.monotonic
        self._breaker = breaker
        self._expire = expire
        self._to_mark: set[str] = set()  # servers that have served a client since their mark was set
        #: when the mark of each server was set, if that was less than one part of the time ago
        self.marked_at: dict[str, float] = {}
        self._wanted_at: dict[str, float] = {}  # the last call of `has_clients`
        self._marks: dict[str, tuple[float, bool]] = {}  # when the mark was read, and whether there was one

    def extend_expiry(self, seconds: float) -> None:
        """Let marks last for `seconds` if that is longer than now: another persistence, such as a cookie, remembers
        clients for so long. Ignored if it is infinite.
        """
        if seconds < inf:
            self._expire = max(self._expire, seconds)

    def record(self, server: str) -> None:
        """Record that a client was bound to `server`, or has sent another request to it."""
        self._to_mark.add(server)

    def has_clients(self, server: str) -> bool:
        """Return whether any process has served a client of `server` within the time for which clients are remembered,
        as the store last replied. True before the first reply; False while the store fails.
        """
        now = self._now()
        self._wanted_at[server] = now
        read_at, is_marked = self._marks.get(server, (-inf, True))
        # a reply counts for longer than it is refreshed, for callers that call seldom
        return is_marked if now - read_at < max(_WANTED_FOR, self._part) else self._breaker.is_closed

    @property
    def _part(self) -> float:
        return self._expire / _PARTS

    def background_commands(self, now: float) -> Iterator[BackgroundCommand]:
        """Yield the commands that set and read marks now."""
        for server in self._to_mark.copy():
            if now - self.marked_at.get(server, -inf) >= self._part:
                self._to_mark.discard(server)  # before the mark is set: a client served from now on needs a new one
                mark = self._commands.set_mark(server, self._expire + 2 * self._part + HEARTBEAT_INTERVAL)
                yield BackgroundCommand(mark, partial(self._on_mark_set, server, now))
        for server, wanted_at in self._wanted_at.copy().items():
            if now - wanted_at < _WANTED_FOR:
                yield BackgroundCommand(self._commands.get_mark(server), partial(self._on_mark_read, server, now))
            elif now - wanted_at >= self._part:
                self._wanted_at.pop(server, None)
                self._marks.pop(server, None)

    def _on_mark_set(self, server: str, now: float, reply: object) -> None:
        if isinstance(reply, StoreFailure):
            self._to_mark.add(server)
        else:
            # drop old entries: servers may be added and removed under new names without end
            self.marked_at = {each: when for each, when in self.marked_at.items() if now - when < self._part}
            self.marked_at[server] = now

    def _on_mark_read(self, server: str, now: float, reply: object) -> None:
        if not isinstance(reply, StoreFailure):
            self._marks[server] = now, reply is not None
