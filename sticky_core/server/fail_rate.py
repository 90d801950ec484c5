"""FailRate: the share of the requests of a server that have failed lately.

The theory: the window has two halves. A request is counted in the half in which it ends, and when that half is over,
the one before it is dropped. So every request that is counted has ended within the window, and what has ended within
half a window is counted for certain; no times are kept.
"""

from __future__ import annotations

from math import inf

#: what the product of a share and a number may lack because of rounding
_ROUNDING = 1e-9


class FailRate:
    """Counts the requests of one server and those that have failed, over the last `window` seconds. Under the backend's
    lock.

    `rate`: the share that takes the server down; `volume`: how many requests have to be counted for that.
    """

    __slots__ = (
        "_began",
        "_earlier_failed",
        "_earlier_requests",
        "_failed",
        "_half",
        "_requests",
        "rate",
        "volume",
        "window",
    )

    def __init__(self, rate: float, volume: int, window: float) -> None:
        self.rate = rate
        self.volume = volume
        self.window = window
        self._half = window / 2
        self.reset()

    def reset(self) -> None:
        """Forget what was counted."""
        self._began = -inf  # when the present half began
        self._requests = self._failed = 0
        self._earlier_requests = self._earlier_failed = 0

    def record(self, failed: bool, now: float) -> None:
        """Count a request that has ended."""
        age = now - self._began
        if age >= self._half:
            is_next = age < self.window
            self._earlier_requests, self._earlier_failed = (self._requests, self._failed) if is_next else (0, 0)
            self._began = self._began + self._half if is_next else now
            self._requests = self._failed = 0
        self._requests += 1
        self._failed += failed

    @property
    def counts(self) -> tuple[int, int]:
        """How many requests have failed, of how many. As of the latest `record`."""
        return self._failed + self._earlier_failed, self._requests + self._earlier_requests

    @property
    def is_reached(self) -> bool:
        """Whether enough requests were counted, and too many of them have failed."""
        failed, requests = self.counts
        return requests >= self.volume and failed >= self.rate * requests - _ROUNDING
