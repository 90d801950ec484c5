"""Drain: a server keeps its clients and gets no new ones, until no client is left or a deadline has passed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import inf
from typing import Final, Protocol
from weakref import WeakSet

#: seconds between two examinations of a server that drains, or that a caller waits for
POLL_INTERVAL = 0.1
#: after how many seconds the clients of a server that drains are sent to other servers
DEADLINE: Final = 300.0
#: over how many seconds the WebSockets that are open at the deadline are closed, as their clients reconnect
SPREAD: Final = 10.0
#: the code with which they are closed (RFC 6455, 7.4.1, and IANA's registry: Service Restart)
CLOSE_CODE: Final = 1012
CLOSE_REASON: Final = "server has drained"


def _always_false() -> bool:
    """Return False. The default of `Drain.has_clients_elsewhere`: no stick table is shared."""
    return False


class OpenConnection(Protocol):
    """A connection of a client that stays open until one side closes it: a WebSocket."""

    def on_drain_changed(self) -> None:
        """Read `Drain.seconds_left` again. Called from any thread, also under the backend's lock."""
        ...


class Drain:
    """How far one server is drained. Called under the backend's lock, except for the connections that stay open."""

    def __init__(self) -> None:
        #: for how many seconds a client may stay away and is still recognised; set by the backend
        self.max_idle = 0.0
        #: returns whether a process that shares a stick table may still serve clients of the server; set by the backend
        self.has_clients_elsewhere: Callable[[], bool] = _always_false
        #: when the clients are sent to other servers; None: never
        self.deadline: float | None = None
        #: over how many seconds after the deadline WebSockets are closed
        self.spread = SPREAD
        #: whether no client is left, or the deadline has passed, and no request is in flight
        self.is_done = False
        self._deadline_after: float | None = None  # seconds from the first update
        self._total: int = 0  # requests so far, at the last update
        self._idle_since = -1.0  # below 0: not known yet
        self._has_passed = False  # the deadline, at the last update
        self._lock = threading.Lock()  # guards `_connections`
        self._connections: WeakSet[OpenConnection] | None = None  # most servers have none, and a set takes a kilobyte

    def reset(self, deadline_after: float | None, spread: float) -> None:
        """Begin anew: the server has another admin state. `deadline_after`: seconds from the next update to the
        deadline; None: no deadline.
        """
        self._deadline_after, self.deadline = deadline_after, None
        self.spread = spread
        self.is_done = self._has_passed = False

    def inherit_from(self, before: Drain) -> None:
        """Take over the deadline of a server that is replaced."""
        self._deadline_after, self.deadline, self.spread = before._deadline_after, before.deadline, before.spread

    def stop(self) -> None:
        """Record that the server does not drain."""
        self._idle_since = -1.0

    def update(self, now: float, in_flight: int, total: int) -> bool:
        """Record the requests in flight and the total of requests so far. Return whether the deadline has passed."""
        if self._deadline_after is not None and self.deadline is None:
            self.deadline = now + self._deadline_after
        if self._idle_since < 0 or in_flight or total != self._total:
            self._total, self._idle_since = total, now
        has_passed = self._has_passed = self.deadline is not None and now >= self.deadline
        if not self.is_done and not in_flight:
            is_idle = now - self._idle_since >= self.max_idle
            self.is_done = has_passed or (is_idle and not self.has_clients_elsewhere())
        return has_passed

    def next_deadline(self, updated: float) -> float:
        """Return when the next update is due, if the last one was at `updated`."""
        due = inf
        if self.deadline is not None and updated < self.deadline:
            due = self.deadline
        if not self.is_done:
            poll = updated + POLL_INTERVAL
            due = min(due, poll if self._has_passed else max(self._idle_since + self.max_idle, poll))
        return due

    # Connections that stay open

    def add_connection(self, connection: OpenConnection) -> None:
        """Call `on_drain_changed` of `connection` whenever the drain begins, ends or gets another deadline."""
        with self._lock:
            if self._connections is None:
                self._connections = WeakSet()
            self._connections.add(connection)

    def notify_connections(self) -> None:
        """Notify the open connections that the drain has changed."""
        with self._lock:
            connections = list(self._connections or ())
        for connection in connections:
            connection.on_drain_changed()

    def after_fork(self) -> None:
        """Forget the connections in a forked child: they are the parent's."""
        self._lock = threading.Lock()
        self._connections = None
