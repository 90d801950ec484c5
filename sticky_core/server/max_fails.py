"""Failed requests take a server down for a while (nginx `max_fails`, `fail_timeout`)."""

from __future__ import annotations

from math import inf

from sticky_core.durations import Duration, seconds

#: nginx's default for `fail_timeout`, in seconds
FAIL_TIMEOUT = 10.0


class MaxFails:
    """The failed requests of one server. Under the backend's lock.

    `limit`: that many failed requests take the server down; 0: they are not counted. Set by the backend.
    """

    def __init__(self, limit: int, timeout: Duration | None) -> None:
        self.limit = limit
        self.configure(timeout)
        #: how many requests have failed since `record_success` last reset it
        self.count = 0
        self._last = 0.0  # when a request failed last
        self._down_until: float | None = None

    def configure(self, timeout: Duration | None) -> None:
        """Set `fail_timeout`; None: 10 seconds."""
        self._timeout = seconds(timeout) if timeout is not None else FAIL_TIMEOUT

    @property
    def is_down(self) -> bool:
        """Whether failed requests have taken the server down."""
        return self._down_until is not None

    def record_failure(self, now: float) -> bool:
        """Count a failed request. Return whether it takes the server down."""
        self.count += 1
        self._last = now
        if self.count < self.limit:
            return False
        self._down_until = now + self._timeout
        return True

    def record_success(self, now: float) -> None:
        """Reset `count` if the last failed request was longer ago than `fail_timeout`."""
        if now - self._last > self._timeout:
            self.count = 0

    def expire(self, now: float) -> bool:
        """Set the server up again if `fail_timeout` is over. Return whether it was set up by this call."""
        if self._down_until is None or now < self._down_until:
            return False
        self._down_until = None
        return True

    def reset(self) -> None:
        """Set the server up: its health was assigned."""
        self._down_until = None

    @property
    def next_deadline(self) -> float:
        """When `fail_timeout` is over; infinity if the server is not down."""
        return inf if self._down_until is None else self._down_until
