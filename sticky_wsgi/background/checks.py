"""Run the health checks of a backend in threads: one that schedules them, and others that probe, one probe at a time
each. A thread that has probed takes the next probe that is due, and ends when there is none for a while.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf

from sticky_core.backend.backend import Backend
from sticky_core.health.agent import AgentCheck, AgentReply
from sticky_core.health.check import CheckResult, CheckStatus
from sticky_core.health.runtime import CheckRuntime
from sticky_core.runtime.apps import Apps
from sticky_core.server.server import Server
from sticky_core.upstream.probe import AgentProbe, ProbeFactory, checks_of
from sticky_wsgi.background.probes import Network, call_probe, check_app
from sticky_wsgi.interruptible import InterruptibleApp
from sticky_wsgi.messages import WSGIApp

_log = logging.getLogger("sticky_sessions")

#: seconds until a server in maintenance is looked at again, and how much longer than its timeouts a probe may take
PAUSE = 1.0
#: seconds after which a thread without a probe ends
_IDLE = 10.0


class ScheduledCheck:
    """One check of one server, and whether a probe of it is running."""

    def __init__(self, server: Server, checking: CheckRuntime, agent: AgentCheck | None) -> None:
        self.server = server
        self.checking = checking
        self.is_agent = agent is not None
        self.factory = ProbeFactory(server, checking, agent)
        self.entry = 0  #: the number of its valid entry in the schedule
        self.running = False  #: whether a thread probes
        self.cancelled = False  #: whether the server has this check no more
        self.started = 0.0  #: when the latest probe was started
        self.timed_out = False  #: whether the running probe has taken too long, and was recorded as a timeout


class _Schedule:
    """When to look at each check next, as a heap. Due times are those of the system's clock: a backend's clock that is
    moved by hand passes no seconds.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, ScheduledCheck]] = []  # with outdated entries, which `pop_due` skips
        self._numbers = count(1)

    @property
    def next(self) -> float:
        """The earliest due time; infinity if there is none."""
        return self._heap[0][0] if self._heap else inf

    def put(self, each: ScheduledCheck, due: float) -> None:
        """Look at a check when `due`, and not when it was due before."""
        each.entry = next(self._numbers)
        heappush(self._heap, (due, each.entry, each))

    def pop_due(self, now: float) -> Iterator[ScheduledCheck]:
        """Yield the checks that are due."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            _, number, each = heappop(heap)
            if number == each.entry and not each.cancelled:
                yield each

    def compact(self, most: int) -> None:
        """Drop the outdated entries if there are more than `most` entries."""
        if len(self._heap) > most:
            self._heap = [entry for entry in self._heap if entry[1] == entry[2].entry and not entry[2].cancelled]
            heapify(self._heap)


class Checks:
    """The checks of one backend in this process."""

    def __init__(self, backend: Backend, apps: Apps[WSGIApp]) -> None:
        self._backend = backend
        self._apps = apps
        self._network = Network()
        self._reset()

    def _reset(self) -> None:
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # guards what follows
        self._changed = threading.Condition(self._lock)  # notified when a check is due before `_wakes_at`
        self._stopped = False
        self._schedule = _Schedule()
        self._wakes_at = 0.0  # until when the scheduling thread sleeps
        self._checks: dict[Server, dict[CheckRuntime, ScheduledCheck]] = {}
        self._stale: list[Server] = []  # servers that may have other checks than those in `_checks`
        self._due: deque[ScheduledCheck] = deque()  # to be probed now
        self._has_due = threading.Condition(self._lock)  # notified when one is added
        self._idle: set[threading.Thread] = set()  # threads that wait for it

    @property
    def has_owner(self) -> bool:
        """Whether the checks run, by this object or by another; true as well if there are none."""
        return not self._backend.checked or not self._backend.checks_are_free

    def start(self) -> None:
        """Start to check, unless another owner does."""
        if not self._backend.checked or not self._backend.acquire_checks(self):
            return
        with self._lock:
            if self._thread is not None:
                return
            self._stopped = False
            self._stale = list(self._backend.servers)
            name = f"checks of {self._backend.name}"
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()
        _running.add(self)

    def stop(self) -> None:
        """End the threads, and wait until those have ended that do not probe at the moment."""
        with self._lock:
            threads, self._thread = [*self._idle, self._thread], None
            self._stopped = True
            self._changed.notify_all()
            self._has_due.notify_all()
        for thread in threads:
            if thread is not None and thread is not threading.current_thread():
                thread.join()
        self._backend.release_checks(self)

    def update(self, servers: Sequence[Server] | None) -> None:
        """Start and cancel the checks of `servers` as they are needed now; None: of all servers."""
        with self._lock:
            self._stale += self._backend.servers if servers is None else servers
            self._changed.notify()

    def remove(self, server: Server) -> None:
        """Forget a server that was removed."""
        self._network.remove(server)

    def after_fork(self) -> None:
        """Forget the parent process's threads in a forked child, which has none of them."""
        self._reset()

    # The thread that schedules

    def _run(self) -> None:
        """Let probes begin when they are due. This thread never waits for one."""
        while self._wait():
            self._work()
        for each in (each for checks in self._checks.values() for each in checks.values()):
            each.cancelled = True
            each.checking.wake = None
        self._checks = {}

    def _wait(self) -> bool:
        """Wait until a check is due, or others are needed, for a pause at most. Return False at the end."""
        with self._lock:
            self._wakes_at = min(self._schedule.next, time.monotonic() + PAUSE)
            left = self._wakes_at - time.monotonic()
            if left > 0 and not self._stopped and not self._stale:
                self._changed.wait(left)
            self._wakes_at = 0.0
            return not self._stopped

    def _work(self) -> None:
        with self._lock:
            stale, self._stale = self._stale, []
        self._update_checks(stale)
        with self._lock:
            due = list(self._schedule.pop_due(time.monotonic()))
            overdue = [each for each in due if self._probe_if_due(each)]
        for each in overdue:
            self._record(each, CheckResult(CheckStatus.L7TOUT, duration=time.monotonic() - each.started))
        self._backend.monitor.run_due_timers()

    def _update_checks(self, servers: Iterable[Server]) -> None:
        """Cancel the checks that these servers have no more, and begin their new ones."""
        for server in servers:
            wanted = dict(checks_of(server)) if server in self._backend.snapshot.members else {}
            running = self._checks.setdefault(server, {})
            for checking in [each for each in running if each not in wanted]:
                running.pop(checking).cancelled = True
                checking.wake = None
            for checking, agent in wanted.items():
                if checking not in running:
                    running[checking] = each = ScheduledCheck(server, checking, agent)
                    checking.wake = self._waker(each)
                    with self._lock:
                        self._schedule.put(each, 0.0)
            if not running:
                del self._checks[server]

    def _probe_if_due(self, each: ScheduledCheck) -> bool:
        """Let a probe begin if it is due, and set when to look at the check again. Under the lock. Return whether the
        running probe takes too long, and has to be recorded as a timeout.
        """
        server, checking = each.server, each.checking
        now, is_overdue = time.monotonic(), False
        delay = checking.delay(self._backend.clock.monotonic())
        if each.running:
            left = each.started + self._timeout(each) - now
            if left <= 0:
                is_overdue = not each.timed_out
                each.timed_out = True
                left = max(delay, 0.05)
            self._schedule.put(each, now + left)
        elif server.is_unresolved or (server.in_maint and not each.is_agent):
            self._schedule.put(each, now + PAUSE)
        elif delay > 0.001:
            self._schedule.put(each, now + delay)
        else:
            each.running, each.timed_out, each.started = True, False, now
            self._schedule.put(each, now + self._timeout(each))
            self._due.append(each)
            if len(self._due) <= len(self._idle):
                self._has_due.notify()
            else:
                name = f"check of {self._backend.name}"
                threading.Thread(target=self._probe_forever, name=name, daemon=True).start()
        self._schedule.compact(8 * len(self._checks) + 64)
        return is_overdue

    def _timeout(self, each: ScheduledCheck) -> float:
        """Return how long a probe may take, in seconds; one over a socket ends by the socket's own timeouts."""
        connect, rest = each.checking.timeouts(self._backend.config.timeouts.in_seconds.connect)
        if each.checking.check.probe is None and each.server.config.is_url:
            return connect + (rest or 0.0) + PAUSE
        return each.checking.timeout

    def _waker(self, each: ScheduledCheck) -> Callable[[], None]:
        """Make a callback that has the scheduling thread look at a check at once."""

        def wake() -> None:
            with self._lock:
                self._look_again(each, 0.0)

        return wake

    def _look_again(self, each: ScheduledCheck, due: float) -> None:
        """Look at a check when `due`, and wake the scheduling thread if it would sleep longer. Under the lock."""
        if not each.cancelled:
            self._schedule.put(each, due)
            if due < self._wakes_at:
                self._changed.notify()

    # The threads that probe

    def _probe_forever(self) -> None:
        thread = threading.current_thread()
        while True:
            with self._lock:
                while not self._due or self._stopped:
                    if self._stopped:
                        return
                    self._idle.add(thread)
                    is_notified = self._has_due.wait(_IDLE)
                    self._idle.discard(thread)
                    if not is_notified and not self._due:
                        return
                each = self._due.popleft()
            self._check(each)
            del each  # an idle thread keeps no server alive

    def _check(self, each: ScheduledCheck) -> None:
        """Probe once, and record the result unless the probe has timed out before."""
        started = time.monotonic()
        reply: AgentReply | None = None
        try:
            result, reply = self._probe(each)
        except Exception as error:  # whatever it is: the next check must run
            _log.exception("a check of server %s has raised an exception", each.server.name)
            result = CheckResult(CheckStatus.SOCKERR, info=str(error))
        if not each.timed_out and not self._stopped:
            self._record(each, replace(result, duration=time.monotonic() - started), reply)
            self._backend.monitor.run_due_timers()
        with self._lock:
            each.running = False
            self._look_again(each, time.monotonic() + each.checking.delay(self._backend.clock.monotonic()))

    def _probe(self, each: ScheduledCheck) -> tuple[CheckResult, AgentReply | None]:
        server, checking = each.server, each.checking
        if checking.check.probe is not None:
            return call_probe(checking.check.probe, server), None
        if not server.config.is_url:
            app = self._apps[server]
            return check_app(app.app if isinstance(app, InterruptibleApp) else app, server, checking), None
        connect, rest = checking.timeouts(self._backend.config.timeouts.in_seconds.connect)
        probe = each.factory.make()
        result = self._network.exchange(probe, server, connect, rest)
        return result, probe.reply if isinstance(probe, AgentProbe) else None

    def _record(self, each: ScheduledCheck, result: CheckResult, reply: AgentReply | None = None) -> None:
        if each.is_agent:
            reply = AgentReply(result) if reply is None else replace(reply, result=result)
            self._backend.monitor.on_agent_reply(each.server, reply, each.checking)
        else:
            self._backend.monitor.record_check(each.server, result, each.checking)


_running: weakref.WeakSet[Checks] = weakref.WeakSet()


def _stop_all() -> None:
    for checks in list(_running):
        checks.stop()


atexit.register(_stop_all)
