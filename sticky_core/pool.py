"""Connections that wait for their next request: which is used again, and when one has waited too long.

The last to come is the first to go, so that those nobody needs grow old and are purged (HAProxy `pool-max-conn`,
`pool-purge-delay`). The core does not know what a connection is: each face keeps its own kind here.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

C = TypeVar("C")

MAX_CONN = 100
PURGE_DELAY = 5.0
#: A request that must not be sent twice uses no connection that has idled longer, in seconds: servers close theirs
#: after some seconds, and whoever writes in that moment can't know whether it was read.
FRESH = 1.0


class Pool(Generic[C]):
    """Idle connections to one upstream. Not for several threads at once."""

    __slots__ = ("_idle", "_max", "_purge_delay")

    def __init__(self, max_conn: int = MAX_CONN, purge_delay: float = PURGE_DELAY) -> None:
        self._idle: deque[tuple[C, float]] = deque()
        self._max = max_conn
        self._purge_delay = purge_delay

    def take(self, now: float, repeatable: bool) -> C | None:
        """The one that came last. `repeatable`: whether the request may be sent again should the connection turn out to
        be closed; if not, it has not idled for long.
        """
        if self._idle and (repeatable or now - self._idle[-1][1] <= FRESH):
            return self._idle.pop()[0]
        return None

    def put(self, connection: C, now: float) -> bool:
        """Keep it. False: there are enough."""
        if len(self._idle) >= self._max:
            return False
        self._idle.append((connection, now))
        return True

    def remove(self, connection: C) -> None:
        """It is closed."""
        for at, (idle, _) in enumerate(self._idle):
            if idle is connection:
                del self._idle[at]
                return

    def purge(self, now: float) -> list[C]:
        """Those that have idled too long, to be closed."""
        old: list[C] = []
        while self._idle and now - self._idle[0][1] > self._purge_delay:
            old.append(self._idle.popleft()[0])
        return old

    def clear(self) -> list[C]:
        """All, to be closed."""
        all_of_them = [connection for connection, _ in self._idle]
        self._idle.clear()
        return all_of_them

    def __len__(self) -> int:
        return len(self._idle)
