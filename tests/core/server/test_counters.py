"""Totals: many threads add to them, and none is lost, neither with its lock nor with its thread."""

import gc
import threading
import weakref
from collections.abc import Callable

import pytest

from sticky_core.server.counters import Counters, Total

ROUNDS = 5_000


def in_threads(work: Callable[[], object], count: int) -> list[threading.Thread]:
    """`count` threads that begin together, and are over."""
    together = threading.Barrier(count)

    def run() -> None:
        together.wait()
        work()

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return threads


def test_counters_start_at_0_and_are_independent():
    counters = Counters.new()
    assert [counters[total] for total in Total] == [0] * len(Total)
    for number, total in enumerate(Total, 1):
        counters.cell[total] += number
    assert [counters[total] for total in Total] == [*range(1, len(Total) + 1)]


@pytest.mark.parametrize(
    "status, total",
    [
        (0, Total.NO_RESPONSE),
        (101, Total.HRSP_1XX),
        (200, Total.HRSP_2XX),
        (299, Total.HRSP_2XX),
        (304, Total.HRSP_3XX),
        (404, Total.HRSP_4XX),
        (503, Total.HRSP_5XX),
        (600, Total.HRSP_OTHER),
        (799, Total.HRSP_OTHER),
        (999, Total.HRSP_OTHER),
    ],
)
def test_response_is_counted_by_the_hundred_of_its_status(status: int, total: Total):
    counters = Counters.new()
    counters.cell[status // 100] += 1
    assert {each: counters[each] for each in Total if counters[each]} == {total: 1}
    assert counters.stot == 1


def test_other_counters_do_not_count_as_requests():
    counters = Counters.new()
    for total in (Total.LBTOT, Total.ECON, Total.ERESP, Total.WREDIS):
        counters.cell[total] += 1
    assert counters.stot == 0


def test_eight_concurrent_threads_lose_no_count():
    counters = Counters.new()

    def add() -> None:
        for _ in range(ROUNDS):
            counters.cell[Total.HRSP_2XX] += 1

    in_threads(add, 8)
    assert counters[Total.HRSP_2XX] == counters.stot == 8 * ROUNDS


def test_sum_read_while_threads_add_never_decreases():
    counters = Counters.new()
    seen: list[int] = []

    def add() -> None:
        for _ in range(ROUNDS):
            counters.cell[Total.ECON] += 1

    def look() -> None:
        seen.extend(counters[Total.ECON] for _ in range(ROUNDS // 10))

    work = iter([add, add, add, look])
    in_threads(lambda: next(work)(), 4)
    assert seen == sorted(seen)
    assert counters[Total.ECON] == 3 * ROUNDS


def test_each_thread_has_one_cell():
    counters = Counters.new()
    mine = counters.cell
    assert counters.cell is mine
    others: list[list[int]] = []
    in_threads(lambda: others.append(counters.cell), 1)
    assert others[0] is not mine


def test_ended_threads_leave_their_counts_and_nothing_else():
    counters = Counters.new()

    def add() -> None:
        counters.cell[Total.ECON] += 1

    gone: list[weakref.ref[threading.Thread]] = []
    for _ in range(50):
        gone += [weakref.ref(thread) for thread in in_threads(add, 1)]
    assert counters[Total.ECON] == 50
    in_threads(add, 1)  # a new thread removes the cells of threads that have ended
    gc.collect()
    assert [thread() for thread in gone] == [None] * 50
    assert counters[Total.ECON] == 51


def test_thread_that_ends_while_cells_are_removed_loses_no_count(monkeypatch: pytest.MonkeyPatch):
    class Ending:
        """A thread that is alive at the first look, and gone at the next."""

        looks = 0

        def is_alive(self) -> bool:
            self.looks += 1
            return self.looks == 1

    with monkeypatch.context() as patched:
        patched.setattr(threading, "current_thread", Ending)
        counters = Counters.new()
        counters.cell[Total.ECON] += 1
    for _ in range(3):
        in_threads(lambda: counters.cell, 1)
        assert counters[Total.ECON] == 1


def test_counters_of_two_servers_are_independent():
    one, other = Counters.new(), Counters.new()
    one.cell[Total.ECON] += 1
    assert (one[Total.ECON], other[Total.ECON]) == (1, 0)
