"""Slow start: after a recovery, a server's weight and `maxconn` grow step by step (HAProxy `slowstart`)."""

from __future__ import annotations

from math import inf

from sticky_core.durations import Duration, seconds

#: in how many steps a weight grows: effective weights are multiples of 1/16 (HAProxy `BE_WEIGHT_SCALE`)
SCALE = 16


class SlowStart:
    """How far the slow start of one server is. Under the backend's lock."""

    def __init__(self, duration: Duration | None) -> None:
        self.configure(duration)
        self._was_down = False
        self._since: float | None = None  # when it began; None: it is over, or was not needed
        self._grown = 1.0  # the share of weight and maxconn that counts now

    def configure(self, duration: Duration | None) -> None:
        """Set for how long weight and `maxconn` grow; None: both are full at once."""
        self._seconds = seconds(duration) if duration is not None else 0.0

    def update(self, now: float, is_down: bool, may_start: bool) -> None:
        """Record whether the server is down or in maintenance, and how far weight and `maxconn` have grown.
        `may_start`: whether a recovery begins a slow start.
        """
        if is_down:
            self._was_down = True
            self._since = None
        elif self._was_down:
            self._was_down = False
            if may_start:
                self._since = now
        if self._since is not None and now - self._since >= self._seconds:
            self._since = None
        self._grown = 1.0 if self._since is None else (now - self._since) / self._seconds

    def eweight(self, weight: int) -> int:
        """Return the effective weight, in sixteenths (HAProxy `server_recalc_eweight`)."""
        return weight * (SCALE if self._since is None else int(SCALE * self._grown) + 1)

    def limit(self, maxconn: int) -> int:
        """Return how many requests may be in flight; 0: any number (HAProxy `srv_dynamic_maxconn`)."""
        return maxconn if self._since is None or not maxconn else max(1, int(maxconn * self._grown))

    def next_deadline(self, updated: float) -> float:
        """Return when the next step is due, if the last `update` was at `updated`."""
        return inf if self._since is None else updated + max(1.0, self._seconds / 20)
