"""A circuit breaker: a store that fails is not queried again for a while, so that requests do not wait for it in vain.

While it is closed, all commands are allowed. The first failure opens it: no command is allowed until a pause has
passed. Then it is half-open: one caller is allowed to find out whether the store is back, and no other caller waits for
that. The pauses double from failure to failure; each is shortened at random, so that the processes do not return to the
store all at once.
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
    """Pauses that double, from `FIRST_PAUSE` to `LONGEST_PAUSE`. Each is shortened at random, by half at most."""

    def __init__(self, rng: Rng) -> None:
        self._rng = rng
        self._limit = FIRST_PAUSE

    def next_pause(self) -> float:
        """Return the seconds of the next pause."""
        limit, self._limit = self._limit, min(2 * self._limit, LONGEST_PAUSE)
        return limit * (1 + self._rng.random()) / 2

    def reset(self) -> None:
        """Begin again with `FIRST_PAUSE`: the store has replied for long enough."""
        self._limit = FIRST_PAUSE


class Breaker:
    """The breaker of one store. Its state changes under its lock. It logs once that the store fails, and once that it
    is back.

    `name`: the name of the store, for the log. `consequence`: what happens while the breaker is open, for the log.
    `probe_timeout`: for how many seconds a half-open breaker waits for the result of the caller that it has allowed,
    before it allows another.
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
        """Return whether a command may be sent now. If so, call `record_success` or `record_failure` after it."""
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
        """Close: the store has replied."""
        if self.is_closed:
            return
        with self._lock:
            if self.is_closed:
                return
            self.state = State.CLOSED
            self._closed_at = now
            _log.warning("store %s: back after %.1f s", self._name, now - self._opened_at)

    def record_failure(self, now: float, error: str) -> None:
        """Open: the store has not replied, or has refused a command."""
        with self._lock:
            self.failures += 1
            self.last_error = error
            if self.state is State.OPEN:
                return  # the command was sent before the breaker opened
            if self.state is State.CLOSED:
                # the pauses go on growing if the store fails again soon after it was back
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
