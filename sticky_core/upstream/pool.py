"""Connections that wait for their next request: which is used again, and when one has waited too long.

The last to come is the first to go, so that those nobody needs grow old and are purged (HAProxy `pool-max-conn`,
`pool-purge-delay`). The core does not know what a connection is: each face keeps its own kind here.
"""

from __future__ import annotations

from typing import Generic, TypeVar

C = TypeVar("C")

PURGE_DELAY = 5.0
#: A request that must not be sent twice uses no connection that has idled longer, in seconds: servers close theirs
#: after some seconds, and whoever writes in that moment can't know whether it was read.
MAX_IDLE_UNREPEATABLE = 1.0


class Pool(Generic[C]):
    """Idle connections to one upstream. Not for several threads at once.

    `max_conn`: how many at most; None is any number, which the `purge_delay` keeps small.
    """

    __slots__ = ("_idle", "_max", "_purge_delay")

    def __init__(self, max_conn: int | None = None, purge_delay: float = PURGE_DELAY) -> None:
        self._idle: dict[C, float] = {}
        self._max = max_conn
        self._purge_delay = purge_delay

    def acquire(self, now: float, repeatable: bool) -> C | None:
        """The one that came last. `repeatable`: whether the request may be sent again should the connection turn out to
        be closed; if not, it has not idled for long.
        """
        if not self._idle:
            return None
        connection, since = self._idle.popitem()
        if repeatable or now - since <= MAX_IDLE_UNREPEATABLE:
            return connection
        self._idle[connection] = since
        return None

    def release(self, connection: C, now: float) -> bool:
        """Keep it. False: there are enough."""
        if self._max is not None and len(self._idle) >= self._max:
            return False
        self._idle[connection] = now
        return True

    def remove(self, connection: C) -> None:
        """It is closed."""
        self._idle.pop(connection, None)

    def purge(self, now: float) -> list[C]:
        """Those that have idled too long, to be closed."""
        old: list[C] = []
        for connection, since in self._idle.items():
            if now - since <= self._purge_delay:
                break
            old.append(connection)
        for connection in old:
            del self._idle[connection]
        return old

    def clear(self) -> list[C]:
        """All, to be closed."""
        every = list(self._idle)
        self._idle.clear()
        return every

    def retire(self) -> None:
        """Keep none from here on."""
        self._max = 0

    def __len__(self) -> int:
        return len(self._idle)
