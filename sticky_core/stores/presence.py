"""Which servers have clients, in whatever process: what each process tells a store of its own, and what it asks when a
server drains here.

For each server of a table that has served a client there is a mark in the store. It expires when none of its clients
has come, to any process, for as long as they are known. Near copies touch entries once in an eighth of that time, and
marks are made no more often, so they last a quarter longer. No request waits for any of this: whoever listens to the
news does it beside them, about once a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import inf
from typing import NamedTuple

from sticky_core.clock import Clock
from sticky_core.errors import StoreFailure
from sticky_core.stores.breaker import Breaker
from sticky_core.stores.store import FEED_TIMEOUT, HEARTBEAT_INTERVAL, Command

#: into how many parts the time is divided for which clients are known
_PARTS = 8


class BackgroundCommand(NamedTuple):
    """A command that no request waits for."""

    command: Command
    on_reply: Callable[[object], None]  #: to be called with its answer


class Presence:
    """The servers of one table, by what it says of them. `keys`: what the keys of their marks begin with.

    Requests say who `served`, states ask `somewhere`, from any thread; each step is one of a set's or a dict's. One
    listener at a time does the `errands`.
    """

    def __init__(self, keys: str, expire: float, clock: Clock, breaker: Breaker) -> None:
        self._keys = keys
        self._now = clock.monotonic
        self._breaker = breaker
        self._lasts = expire
        self._served: set[str] = set()  # since the store was told
        #: when the store was told of each, if that was within one part of the time
        self.marked_at: dict[str, float] = {}
        self._wanted: dict[str, float] = {}  # when somebody has wanted to know last
        self._answers: dict[str, tuple[float, bool]] = {}  # when the store was asked, and whether there was a mark

    def extend_expiry(self, seconds: float) -> None:
        """Clients may be known for so long, by something else than the table. Not, if that is for ever."""
        if seconds < inf:
            self._lasts = max(self._lasts, seconds)

    def record(self, server: str) -> None:
        """A client was bound to `server`, or came back to it."""
        self._served.add(server)

    def has_clients(self, server: str) -> bool:
        """Whether a process has served a client of `server` for as long as clients are known, as far as the store
        says. True until it has answered; False if it does not.
        """
        now = self._now()
        self._wanted[server] = now
        asked, there = self._answers.get(server, (-inf, True))
        # who looks seldom finds an answer, too
        return there if now - asked < max(FEED_TIMEOUT, self._part) else self._breaker.is_closed

    @property
    def _part(self) -> float:
        return self._lasts / _PARTS

    def background_commands(self, now: float) -> Iterator[BackgroundCommand]:
        """What is to be told and asked now."""
        for server in self._served.copy():
            if now - self.marked_at.get(server, -inf) >= self._part:
                self._served.discard(server)  # first: whoever comes from here on is told of the next time
                until = round(1000 * (self._lasts + 2 * self._part + HEARTBEAT_INTERVAL))
                yield BackgroundCommand(
                    ("SET", self._keys + server, 1, "PX", until), partial(self._was_told, server, now)
                )
        for server, wanted in self._wanted.copy().items():
            if now - wanted < FEED_TIMEOUT:
                yield BackgroundCommand(("GET", self._keys + server), partial(self._was_asked, server, now))
            elif now - wanted >= self._part:
                self._wanted.pop(server, None)
                self._answers.pop(server, None)

    def _was_told(self, server: str, now: float, answer: object) -> None:
        if isinstance(answer, StoreFailure):
            self._served.add(server)
        else:
            # servers come and go under ever new names
            self.marked_at = {each: when for each, when in self.marked_at.items() if now - when < self._part}
            self.marked_at[server] = now

    def _was_asked(self, server: str, now: float, answer: object) -> None:
        if not isinstance(answer, StoreFailure):
            self._answers[server] = now, answer is not None
