"""Announcements: state changes of servers as events and as lines of the log, in HAProxy's words."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from functools import partial

from sticky_core.backend.change_lock import ChangeLock
from sticky_core.backend.events import EventBus, StateChange
from sticky_core.server.server import Server

_log = logging.getLogger("sticky_sessions")

_IN_WORDS = {
    "UP": "is UP",
    "DOWN": "is DOWN",
    "NOLB": "is stopping",
    "MAINT": "is going DOWN for maintenance",
    "DRAIN": "enters drain state",
    "DRAINED": "is drained",
    "REMOVED": "is removed",
}


class Announcements:
    """The state changes of the servers of a backend. They are queued under any lock, and published without one: a log
    handler may wait for a disk, and a callback may change servers in turn.
    """

    def __init__(self, backend: str, change_lock: ChangeLock) -> None:
        self._backend = backend
        self._change_lock = change_lock
        self.bus = EventBus()
        self._lines: deque[tuple[int, str, tuple[object, ...]]] = deque()
        self._tracked: deque[Server] = deque()

    def queue_log_line(self, level: int, text: str, *values: object) -> None:
        """Log a line at the next `publish`."""
        self._lines.append((level, text, values))

    def queue_change(self, change: StateChange, server: Server, counts: tuple[int, int, int]) -> None:
        """Send `change` of `server` to subscribers, and log it, at the next `publish`. `counts`: how many active
        servers and how many backups are up, and how many requests wait for `server`.
        """
        self.bus.put(change)
        before, after = change.before, change.after
        if after in ("DOWN", "MAINT", "REMOVED"):
            level, left = logging.WARNING, "left"
        else:
            level, left = (logging.INFO if after == "UP" else logging.WARNING), "online"
        text = _IN_WORDS[after] if before != "MAINT" or after != "UP" else "is UP/READY (leaving forced maintenance)"
        if before == "NEW" or after == "REMOVED" or server.was_announced:
            level = logging.INFO
            text = f"is new, and {text}" if before == "NEW" else text
        active, backups, waiting = counts
        self.queue_log_line(
            level,
            "Server %s/%s %s%s. %d active and %d backup servers %s. %d sessions active, %d remaining in queue.",
            self._backend,
            server.name,
            text,
            f", reason: {change.reason}" if change.reason else "",
            active,
            backups,
            left,
            len(server.in_flight),
            waiting,
        )

    def queue_trackers(self, server: Server) -> None:
        """Notify the servers that track `server` at the next `publish`."""
        self._tracked.append(server)

    @property
    def has_lines(self) -> bool:
        """Whether lines of the log are queued."""
        return bool(self._lines)

    def publish(self, servers: Iterable[Server] = ()) -> None:
        """Write the log, send events, and notify the servers that track one of `servers`. Called without a lock; if
        this thread holds the change lock, that is done when it releases it.
        """
        self._change_lock.call_after_release(partial(self._publish, servers))

    def _publish(self, servers: Iterable[Server]) -> None:
        while self._lines:
            try:
                level, text, values = self._lines.popleft()
            except IndexError:  # another thread has written it
                break
            _log.log(level, text, *values)
        self.bus.publish()
        for server in servers:
            self._notify_trackers(server)
        while self._tracked:
            try:
                self._notify_trackers(self._tracked.popleft())
            except IndexError:  # another thread has notified them
                break

    def _notify_trackers(self, server: Server) -> None:
        for tracker in server.trackers:
            tracker.reason = f"via {self._backend}/{server.name}"
            tracker.notify()

    def after_fork(self) -> None:
        """Discard what the parent has queued. Called in a forked child."""
        self.bus.after_fork()
        self._lines.clear()
        self._tracked.clear()
