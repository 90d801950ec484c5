"""The threads of checks on WSGI: what is due is done in time, also while other work hangs, by as few threads as can be.
No test ends by a time that has passed: what is not announced is not due.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial

import pytest

import sticky_wsgi.background.threads
from sticky_wsgi.background.threads import Threads, Work
from tests.faces.running import DEADLINE, until

NAME = "checks of these tests"


class Schedule:
    """What is due when, and threads that do it. There is no pause: a thread that is not notified does
    not look."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, Work]] = []
        self.pool = Threads(NAME, self._next_due, self._pop_due)

    def _next_due(self) -> float:
        return min((due for due, _ in self._entries), default=time.monotonic() + 10 * DEADLINE)

    def _pop_due(self) -> list[Work]:
        now = time.monotonic()
        due = [work for at, work in self._entries if at <= now]
        self._entries = [entry for entry in self._entries if entry[0] > now]
        return due

    def add(self, *added: Work, seconds: float = 0.0) -> None:
        """Let work be due in so many seconds."""
        due = time.monotonic() + seconds
        with self.pool.lock:
            self._entries += [(due, work) for work in added]
            self.pool.announce(due)


@pytest.fixture
def schedule() -> Iterator[Schedule]:
    made = Schedule()
    made.pool.start()
    yield made
    made.pool.stop()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


def hanging(started: threading.Event, released: threading.Event) -> Work:
    def hang() -> None:
        started.set()
        released.wait(10 * DEADLINE)

    return hang


def run(schedule: Schedule, *, seconds: float = 0.0) -> None:
    """Let work be due, and wait until it is done."""
    done = threading.Event()
    schedule.add(done.set, seconds=seconds)
    assert done.wait(DEADLINE)


@pytest.fixture
def hang(schedule: Schedule) -> Iterator[Callable[[], None]]:
    """Let work hang until the end of the test; return when it does, and only the deputy is left to look."""
    released = threading.Event()

    def hang_once() -> None:
        run(schedule)
        until(lambda: schedule.pool._leader.is_held and schedule.pool._deputy.is_held)
        started = threading.Event()
        schedule.add(hanging(started, released))
        assert started.wait(DEADLINE)

    yield hang_once
    released.set()


def test_work_that_is_due_at_once_is_done_at_once(schedule: Schedule) -> None:
    together = threading.Barrier(6)
    schedule.add(*[lambda: together.wait(DEADLINE)] * 5)
    together.wait(DEADLINE)
    assert len(threads()) <= 7, "five that work, and at most a leader and a deputy"


def test_work_that_hangs_does_not_keep_other_work_from_being_done(schedule: Schedule, hang: Callable[[], None]) -> None:
    for _ in range(5):
        hang()
        for _ in range(10):
            run(schedule)
        run(schedule, seconds=0.01)
    assert len(threads()) < 20, "five that hang, a leader, a deputy, and some that had not finished; not one for each"


def test_work_that_was_due_later_is_done_though_the_leader_hangs(schedule: Schedule) -> None:
    run(schedule)
    until(lambda: schedule.pool._leader.is_held and schedule.pool._deputy.is_held)
    done, started, released = threading.Event(), threading.Event(), threading.Event()
    schedule.add(done.set, seconds=0.05)
    schedule.add(hanging(started, released))
    try:
        assert started.wait(DEADLINE) and done.wait(DEADLINE)
    finally:
        released.set()


def test_work_that_hangs_one_after_the_other_delays_none(schedule: Schedule) -> None:
    released, started = threading.Event(), [threading.Event() for _ in range(8)]
    for number, each in enumerate(started):
        schedule.add(hanging(each, released), seconds=0.003 * number)
    try:
        assert all(each.wait(DEADLINE) for each in started)
    finally:
        released.set()


def test_further_threads_end_when_there_is_nothing_to_do(schedule: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sticky_wsgi.background.threads, "IDLE", 0.001)
    together = threading.Barrier(21)
    schedule.add(*[lambda: together.wait(DEADLINE)] * 20)
    together.wait(DEADLINE)
    until(lambda: len(threads()) == 2, "a leader and a deputy are left")
    run(schedule)


@pytest.mark.parametrize("hangs", [False, True], ids=["while a thread leads", "while the leader hangs"])
def test_nothing_that_is_announced_is_forgotten(schedule: Schedule, hang: Callable[[], None], hangs: bool) -> None:
    if hangs:
        hang()
    for _ in range(300):
        run(schedule)


def test_nothing_that_many_threads_announce_is_forgotten(schedule: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sticky_wsgi.background.threads, "IDLE", 0.001)  # threads end while they are called

    def announce() -> None:
        for number in range(100):
            run(schedule, seconds=number % 3 * 0.001)

    announcing = [threading.Thread(target=announce) for _ in range(6)]
    for thread in announcing:
        thread.start()
    for thread in announcing:
        thread.join(DEADLINE)
        assert not thread.is_alive()


def test_nothing_is_begun_after_the_stop(schedule: Schedule) -> None:
    began: list[int] = []
    started, released = threading.Event(), threading.Event()
    schedule.add(hanging(started, released))
    assert started.wait(DEADLINE)
    schedule.add(partial(began.append, 1), seconds=DEADLINE)
    schedule.pool.stop()
    (hung,) = threads()
    schedule.add(partial(began.append, 2))
    released.set()
    hung.join(DEADLINE)
    assert not threads() and began == []
    schedule.pool.start()
    until(lambda: began == [2], "what was due meanwhile is done after another start")


def test_work_may_stop_the_threads(schedule: Schedule) -> None:
    schedule.add(schedule.pool.stop)
    until(lambda: not threads())


def test_work_that_raises_is_logged_and_other_work_is_done(
    schedule: Schedule, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise LookupError("out of order")

    for _ in range(5):
        schedule.add(fail)
    until(lambda: len(caplog.records) == 5)
    run(schedule)
    assert {record.getMessage() for record in caplog.records} == {f"{NAME}: an exception was raised; they go on"}


def test_if_the_system_allows_no_more_threads_work_is_done_by_those_that_run(
    schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(schedule)
    until(lambda: len(threads()) == 2)
    done: list[int] = []

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    schedule.add(*[partial(done.append, number) for number in range(5)])
    until(lambda: sorted(done) == [0, 1, 2, 3, 4])
    run(schedule)
    other = Schedule()
    with pytest.raises(RuntimeError, match="can't start new thread"):
        other.pool.start()
    assert not other.pool.are_running


def test_threads_that_wait_keep_no_finished_work(schedule: Schedule) -> None:
    class Kept:
        def work(self) -> None: ...

    kept = [Kept() for _ in range(5)]
    references = [weakref.ref(each) for each in kept]
    schedule.add(*[each.work for each in kept])
    del kept
    until(lambda: not any(reference() for reference in references))
