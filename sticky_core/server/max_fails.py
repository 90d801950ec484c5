"""Failed requests take a server down for a while: a number of them (nginx `max_fails`, `fail_timeout`), or their share
of all requests (`fail_rate`, `fail_volume`).
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from sticky_core.durations import seconds
from sticky_core.server.config import ServerConfig

if TYPE_CHECKING:
    from sticky_core.server.fail_rate import FailRate

#: nginx's default for `fail_timeout`, in seconds
FAIL_TIMEOUT = 10.0
#: the default of `fail_volume`: how many requests have to end before the share of the failed ones counts
FAIL_VOLUME = 20


class MaxFails:
    """The failed requests of one server. Under the backend's lock.

    - `limit`: that many failed requests take the server down; 0: any number may fail.
    - `rate`: the share of failed requests that takes it down; None: any share may fail.
    """

    def __init__(self, config: ServerConfig) -> None:
        #: how many requests have failed since `record_success` last reset it; 0 without a limit
        self.count = 0
        self.rate: FailRate | None = None
        #: when failed requests have taken the server down last, by the clock's `monotonic`
        self.ejected_at = 0.0
        self._last = 0.0  # when a request failed last
        self._down_until: float | None = None
        self.configure(config)

    def configure(self, config: ServerConfig, *, counts: bool = True) -> None:
        """Set the limits. What was counted stays, except where `fail_timeout`, the window of `fail_rate`, has another
        length. `counts`: whether requests are counted at all; else there are no limits.
        """
        self._timeout = seconds(config.fail_timeout) if config.fail_timeout is not None else FAIL_TIMEOUT
        self.limit = config.max_fails if counts else 0
        if not self.limit:
            self.count = 0
        self.rate = self._rate_of(config) if counts else None
        #: whether requests are counted
        self.counts = self.limit > 0 or self.rate is not None
        self._find_what_successes_change()

    def _rate_of(self, config: ServerConfig) -> FailRate | None:
        if config.fail_rate is None:
            return None
        from sticky_core.server.fail_rate import FailRate

        volume = config.fail_volume if config.fail_volume is not None else FAIL_VOLUME
        if self.rate is None or self.rate.window != self._timeout:
            return FailRate(config.fail_rate, volume, self._timeout)
        self.rate.rate, self.rate.volume = config.fail_rate, volume
        return self.rate

    def _find_what_successes_change(self) -> None:
        #: whether one more request that succeeds changes nothing; kept because every request reads it
        self.ignores_success = not self.count and self.rate is None

    @property
    def is_down(self) -> bool:
        """Whether failed requests have taken the server down."""
        return self._down_until is not None

    def record_failure(self, now: float) -> str:
        """Count a failed request. Return why it is to take the server down (`take_down`); an empty text: it is not."""
        rate = self.rate
        if rate is not None:
            rate.record(True, now)
        if self.limit:
            self.count += 1
            self._last = now
            self.ignores_success = False
            if self.count >= self.limit:
                return f"{self.count} requests failed"
        if rate is not None and rate.is_reached:
            failed, requests = rate.counts
            return f"{failed} of {requests} requests failed"
        return ""

    def record_success(self, now: float) -> None:
        """Count a request that has succeeded. It resets `count` if the last failed request was longer ago than
        `fail_timeout`.
        """
        if self.rate is not None:
            self.rate.record(False, now)
        if self.count and now - self._last > self._timeout:
            self.count = 0
            self._find_what_successes_change()

    def take_down(self, now: float) -> None:
        """Take the server down for `fail_timeout`. The share of failed requests is counted anew when that is over."""
        self.ejected_at = now
        self._down_until = now + self._timeout
        if self.rate is not None:
            self.rate.reset()

    def expire(self, now: float) -> bool:
        """Set the server up again if `fail_timeout` is over. Return whether it was set up by this call."""
        if self._down_until is None or now < self._down_until:
            return False
        self._down_until = None
        return True

    def reset(self) -> None:
        """Set the server up, before `fail_timeout` is over: its health was assigned, or maintenance is over."""
        self._down_until = None

    @property
    def next_deadline(self) -> float:
        """When `fail_timeout` is over; infinity if the server is not down."""
        return inf if self._down_until is None else self._down_until
