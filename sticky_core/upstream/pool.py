"""Idle connections: which one is used for the next request, and which have been idle too long.

The connection released last is acquired first, so that surplus connections grow old and are purged (HAProxy
`pool-max-conn`, `pool-purge-delay`). The core does not know the type of connections: each face has its own.
"""

from __future__ import annotations

from typing import Generic, TypeVar

C = TypeVar("C")

PURGE_DELAY = 5.0
#: A request that must not be sent twice gets no connection that has been idle longer, in seconds: servers close idle
#: connections after some seconds, and a client that writes at that moment can't know whether the server read it.
MAX_IDLE_UNREPEATABLE = 1.0


class Pool(Generic[C]):
    """Idle connections to one upstream. Not thread-safe.

    `max_conn`: the maximum number, None for no limit; `purge_delay`: after how many seconds `purge` removes one.
    """

    __slots__ = ("_idle", "_max", "_purge_delay")

    def __init__(self, max_conn: int | None = None, purge_delay: float = PURGE_DELAY) -> None:
        self._idle: dict[C, float] = {}
        self._max = max_conn
        self._purge_delay = purge_delay

    def acquire(self, now: float, repeatable: bool) -> C | None:
        """Remove and return the connection released last, or None. `repeatable`: whether the request may be sent again
        if the connection turns out to be closed; if not, only a connection that was idle for a short time is returned.
        """
        if not self._idle:
            return None
        connection, since = self._idle.popitem()
        if repeatable or now - since <= MAX_IDLE_UNREPEATABLE:
            return connection
        self._idle[connection] = since
        return None

    def release(self, connection: C, now: float) -> bool:
        """Add an idle connection. Return False, without adding it, if the pool is full."""
        if self._max is not None and len(self._idle) >= self._max:
            return False
        self._idle[connection] = now
        return True

    def remove(self, connection: C) -> None:
        """Remove a connection that has been closed."""
        self._idle.pop(connection, None)

    def purge(self, now: float) -> list[C]:
        """Remove and return the connections that have been idle too long, for the caller to close."""
        expired: list[C] = []
        for connection, since in self._idle.items():
            if now - since <= self._purge_delay:
                break
            expired.append(connection)
        for connection in expired:
            del self._idle[connection]
        return expired

    def clear(self) -> list[C]:
        """Remove and return all connections, for the caller to close."""
        connections = list(self._idle)
        self._idle.clear()
        return connections

    def retire(self) -> None:
        """Accept no more connections."""
        self._max = 0

    def __len__(self) -> int:
        return len(self._idle)
