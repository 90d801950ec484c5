"""Timeouts without a timer per request: one sweep per event loop looks at all its connections, every tenth of a second
while there are any.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncGenerator
from typing import Protocol

#: seconds between two sweeps, which is how late a timeout may be
TICK = 0.1


class SweepTarget(Protocol):
    """A connection that each sweep looks at."""

    def on_sweep(self, number: int) -> None:
        """Handle what has timed out by the sweep of this number."""
        ...


class IdleConnections(Protocol):
    """A pool of idle connections, which each sweep purges."""

    def purge(self) -> None:
        """Close the connections that have been idle for too long."""
        ...

    def close(self) -> None:
        """Close all idle connections."""
        ...


class TimeoutSweep:
    """The sweep of one event loop. It runs ten times a second while it has targets."""

    _by_loop: dict[asyncio.AbstractEventLoop, TimeoutSweep] = {}  # noqa: RUF012
    _lock = threading.Lock()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.number = 0  #: of the latest sweep
        self.pools: weakref.WeakSet[IdleConnections] = weakref.WeakSet()
        self._loop = loop
        self._targets: set[SweepTarget] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._end_of_loop = self._close_with_loop()

    @classmethod
    def for_loop(cls, loop: asyncio.AbstractEventLoop) -> TimeoutSweep:
        """Return the sweep of `loop`; the first call makes it."""
        with cls._lock:
            for closed in [each for each in cls._by_loop if each.is_closed()]:
                del cls._by_loop[closed]
            sweep = cls._by_loop.get(loop)
            if sweep is None:
                sweep = cls._by_loop[loop] = cls(loop)
                # An event loop that ends closes the asynchronous generators that were started on it. asyncio has no
                # other way to be notified of its end.
                started = sweep._end_of_loop.__anext__()
                try:
                    started.send(None)
                except StopIteration:
                    pass
            return sweep

    async def _close_with_loop(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            for pool in list(self.pools):
                pool.close()
            if self._timer is not None:
                self._timer.cancel()
            await asyncio.sleep(0)  # asyncio calls `connection_lost` in the loop's next round

    def add(self, target: SweepTarget) -> None:
        self._targets.add(target)
        if self._timer is None:
            self._schedule()

    def remove(self, target: SweepTarget) -> None:
        self._targets.discard(target)

    def _schedule(self) -> None:
        self._timer = self._loop.call_later(TICK, self._run)

    def _run(self) -> None:
        self.number += 1
        for target in list(self._targets):
            target.on_sweep(self.number)
        for pool in list(self.pools):
            pool.purge()
        self._timer = None
        if self._targets:
            self._schedule()
