"""A circuit breaker: a store that fails is not queried again for a while, so that requests do not wait for it in vain.

Closed, it allows all commands. The first failure opens it: nothing is allowed until a pause has passed. Then it is
half-open: it allows one caller, which finds out whether the store is back, and the others do not wait for that. Pauses
grow from failure to failure, and chance makes each shorter, so that processes do not come back all at once.
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
    """Pauses that grow: the limit of each is twice that of the one before, and none is shorter than half its limit."""

    def __init__(self, rng: Rng) -> None:
        self._rng = rng
        self._limit = FIRST_PAUSE

    def next_pause(self) -> float:
        limit, self._limit = self._limit, min(2 * self._limit, LONGEST_PAUSE)
        return limit * (1 + self._rng.random()) / 2

    def reset(self) -> None:
        """Begin again with the first pause: it went well for long enough."""
        self._limit = FIRST_PAUSE


class Breaker:
    """The breaker of one store. Changes happen under its lock, and each is logged once.

    `name`: the store's, for the log. `consequence`: what happens while it is open, for the log. `probe_timeout`: for
    how many seconds a half-open breaker waits for the result of the caller that it has allowed, before it allows
    another.
    """

    def __init__(self, name: str, consequence: str, probe_timeout: float, rng: Rng) -> None:
        self._name = name
        self._consequence = consequence
        self._probe_timeout = probe_timeout
        self._backoff = Backoff(rng)
        self._lock = threading.Lock()
        self.state = State.CLOSED
        #: the text of the latest failure
        self.last_error = ""
        #: how many failures there were, and how often it has opened
        self.failures = 0
        self.openings = 0
        self._opened_at = 0.0
        self._blocked_until = 0.0
        self._closed_at = float("-inf")

    @property
    def is_closed(self) -> bool:
        """Whether the store replies, as far as is known."""
        return self.state is State.CLOSED

    def allows(self, now: float) -> bool:
        """Whether a command may be sent now. The caller has to call `record_success` or `record_failure` then."""
        if self.is_closed:
            return True
        with self._lock:
            if self.is_closed:
                return True
            if now < self._blocked_until:
                return False
            self.state = State.HALF_OPEN
            self._blocked_until = now + self._probe_timeout
            return True

    def delay(self, now: float) -> float:
        """Return the seconds until a command may be sent."""
        return 0.0 if self.is_closed else max(0.0, self._blocked_until - now)

    def record_success(self, now: float) -> None:
        """The store has replied: close."""
        if self.is_closed:
            return
        with self._lock:
            if self.is_closed:
                return
            self.state = State.CLOSED
            self._closed_at = now
            _log.warning("store %s: back after %.1f s", self._name, now - self._opened_at)

    def record_failure(self, now: float, error: str) -> None:
        """The store has not replied, or has refused a command: open."""
        with self._lock:
            self.failures += 1
            self.last_error = error
            if self.state is State.OPEN:
                return  # one of many that had been sent when it opened
            if self.state is State.CLOSED:
                # a store that comes and goes is queried as seldom as one that stays away
                if now - self._closed_at > LONGEST_PAUSE:
                    self._backoff.reset()
                self.openings += 1
                self._opened_at = now
                _log.warning("store %s: %s; %s until it is back", self._name, error, self._consequence)
            self.state = State.OPEN
            self._blocked_until = now + self._backoff.next_pause()

    def after_fork(self) -> None:
        """Replace the lock: a thread of the parent may hold it."""
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Breaker {self._name} {self.state.value}, {self.failures} failures>"
