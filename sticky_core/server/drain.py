"""Drain: a server keeps its clients and gets no new ones, until no client is left or a deadline has passed."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

#: seconds between two examinations of a server that drains, or that a caller waits for
POLL_INTERVAL = 0.1


def _always_false() -> bool:
    """Return False. The default of `Drain.has_clients_elsewhere`: no stick table is shared."""
    return False


class Drain:
    """How far one server is drained. Under the backend's lock."""

    def __init__(self) -> None:
        #: for how many seconds a client may stay away and is still recognised; set by the backend
        self.max_idle = 0.0
        #: returns whether a process that shares a stick table may still serve clients of the server; set by the backend
        self.has_clients_elsewhere: Callable[[], bool] = _always_false
        #: when the clients are sent to other servers; None: never
        self.deadline: float | None = None
        #: whether no client is left, or the deadline has passed
        self.is_done = False
        self._deadline_after: float | None = None  # seconds from the first update
        self._total: int = 0  # requests so far, at the last update
        self._idle_since = -1.0  # below 0: not known yet

    def reset(self) -> None:
        """Forget the deadline: the server has another admin state."""
        self._deadline_after = self.deadline = None
        self.is_done = False

    def set_deadline(self, after: float | None) -> None:
        """Set the deadline to `after` seconds after the next update; None: no deadline."""
        self._deadline_after = after

    def inherit_from(self, before: Drain) -> None:
        """Take over the deadline of a server that is replaced."""
        self._deadline_after, self.deadline = before._deadline_after, before.deadline

    def stop(self) -> None:
        """Record that the server does not drain."""
        self._idle_since = -1.0

    def update(self, now: float, in_flight: int, total: int) -> bool:
        """Record the requests in flight and the total of requests so far. Return whether the deadline has passed."""
        if self._deadline_after is not None and self.deadline is None:
            self.deadline = now + self._deadline_after
        if self._idle_since < 0 or in_flight or total != self._total:
            self._total, self._idle_since = total, now
        has_passed = self.deadline is not None and now >= self.deadline
        if not self.is_done:
            is_idle = not in_flight and now - self._idle_since >= self.max_idle
            self.is_done = has_passed or (is_idle and not self.has_clients_elsewhere())
        return has_passed

    def next_deadline(self, updated: float) -> float:
        """Return when the next update is due, if the last one was at `updated`."""
        due = inf
        if self.deadline is not None and updated < self.deadline:
            due = self.deadline
        if not self.is_done:
            due = min(due, max(self._idle_since + self.max_idle, updated + POLL_INTERVAL))
        return due
