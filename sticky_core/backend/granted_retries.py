"""GrantedRetries: the retries of one backend that are in flight, and how many more its `RetryBudget` allows."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from enum import Enum
from math import inf
from typing import Final

from sticky_core.backend.retries import RetryBudget
from sticky_core.clock import Clock

_log = logging.getLogger("sticky_sessions")

#: After so many seconds without a denial, the next one is logged: a budget that is used up denies many a second.
LOG_INTERVAL: Final = 10.0


class RetryGrant(Enum):
    """Whether a retry may be made, and by which option of the budget."""

    DENIED = "denied"
    BY_RATE = "per_second"
    BY_SHARE = "share"


class GrantedRetries:
    """The retries of one backend that are in flight, and how many more its budget allows. Safe to use from any thread.

    - `in_flight`: how many requests in flight are retries: they have got a further attempt, and no response yet.
    - `denied`: how many retries the budget has denied so far.
    """

    def __init__(self, backend: str, clock: Clock) -> None:
        self._backend = backend
        self._clock = clock
        self._lock = threading.Lock()
        self.in_flight = 0
        self.denied = 0
        self._paused = 0  # requests in the pause before their retry, when they hold no slot at any server
        self._allowed = inf  # how many retries `per_second` allows at present; no more than that of one second
        self._refilled_at = -inf
        self._logs_from = -inf  # when a denial begins to be worth a log line

    def acquire(self, budget: RetryBudget, count_requests: Callable[[], int], is_counted: bool) -> RetryGrant:
        """Return whether one more retry may be made, and count its request as a retry in flight until `release`.

        - `count_requests`: returns how many requests are in flight, without those in a pause. It is called only if
          `per_second` does not allow the retry.
        - `is_counted`: whether the request has got a retry before, and so is counted.
        """
        with self._lock:
            now = self._clock.monotonic()
            most = max(1.0, budget.per_second) if budget.per_second else 0.0
            elapsed = now - self._refilled_at
            self._refilled_at = now
            self._allowed = min(most, self._allowed + elapsed * budget.per_second) if most else 0.0
            if self._allowed >= 1:
                self._allowed -= 1
                self.in_flight += not is_counted
                return RetryGrant.BY_RATE
        requests = count_requests()
        with self._lock:
            requests += self._paused
            retries = self.in_flight + (not is_counted)
            if retries <= budget.share * requests:
                self.in_flight = retries
                return RetryGrant.BY_SHARE
            self.denied += 1
            begins = now >= self._logs_from
            self._logs_from = now + LOG_INTERVAL
        if begins:
            _log.warning(
                "backend %s: retry_budget denies retries: %d of %d requests in flight are retries. Denied ones are "
                "counted in `Backend.granted_retries.denied`.",
                self._backend,
                retries - (not is_counted),
                requests,
            )
        return RetryGrant.DENIED

    def cancel(self, grant: RetryGrant, is_counted: bool) -> None:
        """Take the latest grant of a request back: there was no server for a retry. `is_counted`: whether the request
        was counted before that grant.
        """
        with self._lock:
            self.in_flight -= not is_counted
            self._allowed += grant is RetryGrant.BY_RATE

    def release(self) -> None:
        """Count one retry in flight fewer: its request has got a response, or has ended."""
        with self._lock:
            self.in_flight -= 1

    def count_pause(self, change: int) -> None:
        """Count a request that begins (1) or ends (-1) its pause before a retry."""
        with self._lock:
            self._paused += change

    def after_fork(self) -> None:
        """Forget the parent's requests, and renew the lock, in a forked child."""
        self._lock = threading.Lock()
        self.in_flight = self._paused = 0
