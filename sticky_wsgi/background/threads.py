"""Threads that do what is due, by the pattern leader/followers: one thread, the leader, waits for the next due time and
does itself what is due then. So a check takes one wake of one thread.

A thread that works is no leader: nothing else would begin while its work lasts. So a second thread, the deputy, waits
`GRACE` seconds longer than the leader would, and leads if there is no leader then. Work that hangs delays other work by
that at most, and only the work that is due in these seconds: the new leader finds all of it. What is due at the same
time is left to followers, which have nothing else to do, and to new threads, if there are too few; so each piece has a
thread at once. A thread that has finished leads if there is no leader, or is the deputy if there is none, or follows,
and ends if there is nothing to do for `IDLE` seconds.

What holds whenever the lock is free: a leader waits until the next due time at most; or a deputy waits until `GRACE`
seconds after it at most; or a thread is about to look, because it was started, was notified, or finishes its work.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

_log = logging.getLogger("sticky_sessions")

#: how many seconds work can be late because the leader does other work
GRACE = 0.05
#: seconds after which a thread without work ends
IDLE = 10.0

Work = Callable[[], object]


class Threads:
    """Threads that do what is due. Under `lock` means: with it held.

    - `name`: the name of the threads, for logs and debuggers.
    - `next_due`: returns when something is due next, by `time.monotonic()`. Called under the lock.
    - `pop_due`: returns what is due now, at least one piece if `next_due` has passed. Called under the lock.
    """

    def __init__(self, name: str, next_due: Callable[[], float], pop_due: Callable[[], Iterable[Work]]) -> None:
        self.lock = threading.Lock()
        self._name = name
        self._next_due = next_due
        self._pop_due = pop_due
        self._stopped = True
        self._leader = _Role(self.lock)
        self._deputy = _Role(self.lock)
        self._due: deque[Work] = deque()  # what no thread has taken yet
        self._has_due = threading.Condition(self.lock)  # what followers wait for; also notified for them to lead
        self._waiting: set[threading.Thread] = set()  # leader, deputy, followers, and threads that have just started

    @property
    def are_running(self) -> bool:
        return not self._stopped

    def start(self) -> None:
        """Start the first thread. RuntimeError if the system allows none."""
        with self.lock:
            if self._stopped:
                self._start_thread()
                self._stopped = False

    def stop(self) -> None:
        """Begin no more work, and wait until all threads have ended that do not work at the moment."""
        with self.lock:
            self._stopped = True
            self._due.clear()
            threads = list(self._waiting)
            for condition in (self._leader.condition, self._deputy.condition, self._has_due):
                condition.notify_all()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()

    def announce(self, due: float) -> None:
        """Have a thread look in time at something that is due at `due`. Under the lock."""
        if self._leader.is_held:
            self._leader.end_wait(due)
        elif self._deputy.is_held:
            self._deputy.end_wait(due + GRACE)

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        thread.start()
        self._waiting.add(thread)

    def _run(self) -> None:
        while (work := self._next_work()) is not None:
            try:
                work()
            except Exception:
                _log.exception("%s: an exception was raised; they go on", self._name)
            del work  # a thread that waits keeps no server alive

    def _next_work(self) -> Work | None:
        """Wait for a piece of work for this thread, and return it; None: the thread ends."""
        thread = threading.current_thread()
        work, is_surplus = None, False
        with self.lock:
            self._waiting.add(thread)
            while not self._stopped:
                if self._due:
                    work = self._due.popleft()
                    break
                if not self._leader.is_held:
                    self._leader.wait(self._next_due())
                    if not self._stopped and self._next_due() <= time.monotonic():
                        self._due.extend(self._pop_due())
                elif not self._deputy.is_held:
                    self._deputy.wait(max(self._leader.until, time.monotonic()) + GRACE)
                elif is_surplus:
                    break
                else:
                    is_surplus = not self._has_due.wait(IDLE)
            self._waiting.discard(thread)
            if work is not None:
                self._call_others()
        return work

    def _call_others(self) -> None:
        """Have other threads do what else is due, and look at what is due next, while this one works."""
        needed = len(self._due)
        if not self._leader.is_held:
            if self._deputy.is_held:
                self._deputy.end_wait(self._next_due() + GRACE)
            else:
                needed += 1
        if needed:
            followers = len(self._waiting) - self._leader.is_held - self._deputy.is_held
            self._has_due.notify(needed)
            with suppress(RuntimeError):  # the system allows no more threads: work with those that run
                for _ in range(needed - followers):
                    self._start_thread()


class _Role:
    """What one thread can be at a time, leader or deputy, while it waits until a time. All under the lock."""

    def __init__(self, lock: threading.Lock) -> None:
        self.condition = threading.Condition(lock)
        self.is_held = False
        self.until = 0.0  #: until when its thread waits

    def wait(self, until: float) -> None:
        """Wait in this role until `until`, or until `end_wait` is called."""
        self.is_held, self.until = True, until
        seconds = until - time.monotonic()
        if seconds > 0:
            self.condition.wait(seconds)
        self.is_held = False

    def end_wait(self, until: float) -> None:
        """Wake the thread that has this role, if it would wait for longer than until `until`."""
        if until < self.until:
            self.condition.notify()
