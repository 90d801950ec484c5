"""Deadlines: when time changes the state of a server next, because of slow start, `fail_timeout` or drain."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from itertools import count
from math import inf

from sticky_core.server.server import Server


class Deadlines:
    """The next deadline of each server that has one, as a heap. Called under the backend's lock; `next` may be read
    without it.
    """

    def __init__(self) -> None:
        #: the earliest deadline as of the last `refresh`, by the clock's `monotonic`; infinity if there is none
        self.next = inf
        self._by_server: dict[Server, float] = {}
        # With outdated entries, which `refresh` skips. The number keeps servers from being compared.
        self._heap: list[tuple[float, int, Server]] = []
        self._numbers = count()

    def update(self, server: Server) -> None:
        """Replace the deadline of `server` by its present `next_deadline`."""
        due = server.next_deadline
        if due == self._by_server.get(server, inf):
            return
        if due == inf:
            del self._by_server[server]
            return
        self._by_server[server] = due
        heappush(self._heap, (due, next(self._numbers), server))
        if len(self._heap) > 2 * len(self._by_server) + 32:
            self._heap = [(when, next(self._numbers), each) for each, when in self._by_server.items()]
            heapify(self._heap)

    def remove(self, server: Server) -> None:
        self._by_server.pop(server, None)

    def pop_due(self, now: float) -> list[Server]:
        """Return the servers that are due, and remove their deadlines."""
        due: list[Server] = []
        heap = self._heap
        while heap and heap[0][0] <= now:
            when, _, server = heappop(heap)
            if self._by_server.get(server) == when:
                del self._by_server[server]
                due.append(server)
        return due

    def refresh(self) -> None:
        """Set `next` to the earliest deadline."""
        heap = self._heap
        while heap and self._by_server.get(heap[0][2]) != heap[0][0]:
            heappop(heap)
        self.next = heap[0][0] if heap else inf
