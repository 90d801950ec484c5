"""Totals that many threads add to without a lock: each thread has a cell of its own, added up when looked at.

`x += 1` on a shared attribute loses counts in free-threaded builds, and a lock around it costs ten times the addition.
"""

from __future__ import annotations

import threading
from enum import IntEnum


class Total(IntEnum):
    """What is counted per server, by HAProxy's names for its columns (management guide, 9.1).

    Those of the answers come first and stand at their hundred, so that a request costs one addition: `cell[status //
    100]`.
    """

    NO_ANSWER = 0
    HRSP_1XX = 1
    HRSP_2XX = 2
    HRSP_3XX = 3
    HRSP_4XX = 4
    HRSP_5XX = 5
    HRSP_OTHER = 6  #: up to 9, for statuses that HTTP does not have
    LBTOT = 10  #: requests that balance had chosen it for, rather than persistence
    ECON = 11  #: attempts that nobody took
    ERESP = 12  #: attempts that ended without an answer, or with an exception out of the app
    WREDIS = 13  #: requests sent on to another server
    WRETR = 14  #: requests told again to the same one
    CLI_ABRT = 15  #: requests whose client left before the end


_ANSWERS = slice(0, 10)
_SIZE = 16

Cell = list[int]


class _Cells:
    """The cells of all threads. What threads that are gone had counted is kept as one more cell."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._of: list[tuple[threading.Thread, Cell]] = []
        self._settled: Cell = [0] * _SIZE

    def begin(self) -> Cell:
        """A cell for this thread."""
        cell = [0] * _SIZE
        with self.lock:
            # a server that takes a new thread for each request would leave a cell for each behind
            alive = [(threading.current_thread(), cell)]
            for thread, counted in self._of:
                if thread.is_alive():
                    alive.append((thread, counted))
                else:
                    self._settled = [a + b for a, b in zip(self._settled, counted, strict=True)]
            self._of = alive
        return cell

    def sum(self) -> Cell:
        """All cells added up."""
        with self.lock:
            return [sum(column) for column in zip(self._settled, *(cell for _, cell in self._of), strict=True)]


class Counters(threading.local):
    """The totals of one server. `counters.cell[...] += 1` counts in this thread's cell; `counters[...]` adds up those
    of all threads.
    """

    def __init__(self, cells: _Cells) -> None:
        # called in each thread, when it first looks (threading.local)
        self._cells = cells
        self.cell = cells.begin()

    @classmethod
    def new(cls) -> Counters:
        return cls(_Cells())

    def __getitem__(self, total: Total) -> int:
        summed = self._cells.sum()
        return sum(summed[Total.HRSP_OTHER : Total.LBTOT]) if total is Total.HRSP_OTHER else summed[total]

    @property
    def stot(self) -> int:
        """Requests that the server has let go, answered or not."""
        return sum(self._cells.sum()[_ANSWERS])

    def renew_lock(self) -> None:
        """In a forked child: whoever held the lock at that moment does not exist here."""
        self._cells.lock = threading.Lock()
