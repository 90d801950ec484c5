"""Counters to which many threads add without a lock: each thread has a cell of its own, and a reader adds the cells up.

`x += 1` on a shared attribute loses counts in free-threaded builds, and a lock around it costs ten times the addition.
"""

from __future__ import annotations

import threading
from enum import IntEnum


class Total(IntEnum):
    """What is counted per server, by HAProxy's names for its columns (management guide, 9.1), where it has them.

    The counters of responses come first, each at the first digit of its statuses, so that a request costs one addition:
    `cell[status // 100]`.
    """

    NO_RESPONSE = 0
    HRSP_1XX = 1
    HRSP_2XX = 2
    HRSP_3XX = 3
    HRSP_4XX = 4
    HRSP_5XX = 5
    HRSP_OTHER = 6  #: up to 9, for statuses that HTTP does not have
    LBTOT = 10  #: requests for which balance chose the server, not persistence
    ECON = 11  #: attempts that failed to connect
    ERESP = 12  #: attempts that ended without a response, or with an exception of the app
    WREDIS = 13  #: requests redispatched to another server
    WRETR = 14  #: requests retried at the same server
    CLI_ABRT = 15  #: requests with a client that disconnected before the end
    FROM_PEER = 16  #: requests that another worker has forwarded to this one (`StickyWorkers`)
    LOST_SESSION = 17  #: requests of clients with a worker that has ended (`StickyWorkers`)


_RESPONSES = slice(0, 10)
_SIZE = 18

Cell = list[int]


class _Cells:
    """The cells of all threads. The counts of threads that have ended are kept in one more cell."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._by_thread: list[tuple[threading.Thread, Cell]] = []
        self._ended: Cell = [0] * _SIZE

    def add(self) -> Cell:
        """Add a cell for this thread, and return it."""
        cell = [0] * _SIZE
        with self.lock:
            # a WSGI server with a new thread for each request would leave a cell for each
            alive = [(threading.current_thread(), cell)]
            for thread, counted in self._by_thread:
                if thread.is_alive():
                    alive.append((thread, counted))
                else:
                    self._ended = [a + b for a, b in zip(self._ended, counted, strict=True)]
            self._by_thread = alive
        return cell

    def sum(self) -> Cell:
        """Return the sum of all cells."""
        with self.lock:
            return [sum(column) for column in zip(self._ended, *(cell for _, cell in self._by_thread), strict=True)]


class Counters(threading.local):
    """The counters of one server. `counters.cell[...] += 1` counts in this thread's cell; `counters[...]` returns the
    sum over all threads.
    """

    def __init__(self, cells: _Cells) -> None:
        # called once in each thread, at its first access (threading.local)
        self._cells = cells
        self.cell = cells.add()

    @classmethod
    def new(cls) -> Counters:
        return cls(_Cells())

    def __getitem__(self, total: Total) -> int:
        summed = self._cells.sum()
        return sum(summed[Total.HRSP_OTHER : Total.LBTOT]) if total is Total.HRSP_OTHER else summed[total]

    @property
    def stot(self) -> int:
        """Requests that are over, with or without a response."""
        return sum(self._cells.sum()[_RESPONSES])

    def renew_lock(self) -> None:
        """Renew the lock in a forked child: a thread of the parent may hold it."""
        self._cells.lock = threading.Lock()
