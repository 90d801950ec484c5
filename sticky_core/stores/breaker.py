"""A circuit breaker: a store that fails is not asked again for a while, so that requests don't wait for it in vain.

Closed, it lets everybody through. The first failure opens it; nobody gets through until a pause is over. Then it is
half-open: one goes through and finds out, and the others do not wait for him. Pauses grow from failure to failure, and
chance makes each shorter than it might be, so that processes don't come back all at once.
"""

from __future__ import annotations

import logging
import threading
from enum import Enum

from sticky_core.clock import Rng

_log = logging.getLogger("sticky_sessions")

#: the first pause, and the longest, in seconds
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0


class State(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Backoff:
    """Pauses that grow: each up to twice as long as the one before, and never less than half of what it may be."""

    def __init__(self, rng: Rng) -> None:
        self._rng = rng
        self._most = FIRST_PAUSE

    def next_pause(self) -> float:
        most, self._most = self._most, min(2 * self._most, LONGEST_PAUSE)
        return most * (1 + self._rng.random()) / 2

    def reset(self) -> None:
        """It went well for long enough: the next is the first again."""
        self._most = FIRST_PAUSE


class Breaker:
    """The breaker of one store. `patience`: how long whoever goes through while it is half-open may take to find out,
    in seconds; then another may.

    What changes (`state`, `why`, the counts) changes under its lock. Each change is logged once.
    """

    def __init__(self, name: str, otherwise: str, patience: float, rng: Rng) -> None:
        self._name = name
        self._otherwise = otherwise
        self._patience = patience
        self._pauses = Backoff(rng)
        self._lock = threading.Lock()
        self.state = State.CLOSED
        #: what went wrong last
        self.last_error = ""
        #: how many failures there were, and how often it has opened
        self.failures = 0
        self.openings = 0
        self._since = 0.0  # it has been open
        self._until = 0.0  # nobody gets through
        self._back = float("-inf")  # when it was closed again

    @property
    def is_closed(self) -> bool:
        """Whether the store answers, as far as anybody knows."""
        return self.state is State.CLOSED

    def allows(self, now: float) -> bool:
        """Whether the store may be asked now. Whoever may tells how it went: `worked` or `failed`."""
        if self.is_closed:
            return True
        with self._lock:
            if self.is_closed:
                return True
            if now < self._until:
                return False
            self.state = State.HALF_OPEN
            self._until = now + self._patience
            return True

    def delay(self, now: float) -> float:
        """Seconds until the store may be asked."""
        return 0.0 if self.is_closed else max(0.0, self._until - now)

    def record_success(self, now: float) -> None:
        """It has answered."""
        if self.is_closed:
            return
        with self._lock:
            if self.is_closed:
                return
            self.state = State.CLOSED
            self._back = now
            _log.warning("store %s: back after %.1f s", self._name, now - self._since)

    def record_failure(self, now: float, why: str) -> None:
        """It has not."""
        with self._lock:
            self.failures += 1
            self.last_error = why
            if self.state is State.OPEN:
                return  # one of many that were on their way when it opened
            if self.state is State.CLOSED:
                # one that is back and gone, again and again, is asked as seldom as one that stays away
                if now - self._back > LONGEST_PAUSE:
                    self._pauses.reset()
                self.openings += 1
                self._since = now
                _log.warning("store %s: %s; %s until it is back", self._name, why, self._otherwise)
            self.state = State.OPEN
            self._until = now + self._pauses.next_pause()

    def after_fork(self) -> None:
        """We are a forked child: whoever holds the lock in the parent is not here."""
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Breaker {self._name} {self.state.value}, {self.failures} failures>"
