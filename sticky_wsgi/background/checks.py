"""Run the health checks of a backend in threads, one probe at a time each: `Threads` has one of them wait until a check
is due. Here is when each check is due, and what is to be done then.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
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
from sticky_wsgi.background.threads import Threads, Work
from sticky_wsgi.interruptible import InterruptibleApp
from sticky_wsgi.messages import WSGIApp

_log = logging.getLogger("sticky_sessions")

#: seconds until a server in maintenance is looked at again, and how much longer than its timeouts a probe may take
PAUSE = 1.0


class ScheduledCheck:
    """One check of one server, and whether a probe of it is running."""

    def __init__(self, server: Server, checking: CheckRuntime, agent: AgentCheck | None) -> None:
        self.server = server
        self.checking = checking
        self.is_agent = agent is not None
        self.factory = ProbeFactory(server, checking, agent)
        self.entry = 0  #: the number of its valid entry in the schedule
        self.cancelled = False  #: whether the server has this check no more, or checks have ended
        self.running = False  #: whether a thread probes
        self.started = 0.0  #: when the latest probe was started
        self.deadline = 0.0  #: when it times out
        self.has_result = False  #: whether it has one; a probe that has timed out gets no second one

    def cancel(self) -> None:
        """Begin no more probes, and record no more results."""
        self.cancelled = True
        self.checking.wake = None


class _Schedule:
    """When to look at each check next, as a heap. Due times are those of the system's clock: a backend's clock that is
    moved by hand passes no seconds.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, ScheduledCheck]] = []  # with outdated entries
        self._numbers = count(1)

    @property
    def next(self) -> float:
        """The earliest due time; infinity if there is none."""
        heap = self._heap
        while heap and _is_outdated(heap[0]):  # no thread has to be woken for it
            heappop(heap)
        return heap[0][0] if heap else inf

    def put(self, each: ScheduledCheck, due: float) -> None:
        """Look at a check when `due`, and not when it was due before."""
        each.entry = next(self._numbers)
        heappush(self._heap, (due, each.entry, each))

    def pop_due(self, now: float) -> list[ScheduledCheck]:
        """Return the checks that are due."""
        due: list[ScheduledCheck] = []
        while self.next <= now:
            due.append(heappop(self._heap)[2])
        return due

    def compact(self, most: int) -> None:
        """Drop the outdated entries if there are more than `most` entries."""
        if len(self._heap) > most:
            self._heap = [entry for entry in self._heap if not _is_outdated(entry)]
            heapify(self._heap)


def _is_outdated(entry: tuple[float, int, ScheduledCheck]) -> bool:
    _, number, each = entry
    return number != each.entry or each.cancelled


class Checks:
    """The checks of one backend in this process."""

    def __init__(self, backend: Backend, apps: Apps[WSGIApp]) -> None:
        self._backend = backend
        self._apps = apps
        self._network = Network()
        self._reset()

    def _reset(self) -> None:
        self._threads = Threads(f"checks of {self._backend.name}", self._next_due, self._pop_due)
        self._lock = self._threads.lock  # guards the schedule, and what is in it
        self._schedule = _Schedule()
        self._looked_at = time.monotonic()  # when a thread has looked at the schedule last
        self._checks: dict[Server, dict[CheckRuntime, ScheduledCheck]] = {}
        self._update_lock = threading.Lock()  # guards `_checks`; acquired before `_lock`

    @property
    def has_owner(self) -> bool:
        """Whether the checks run, by this object or by another; true as well if there are none."""
        return not self._backend.has_checks or not self._backend.checks_are_free

    @property
    def are_pending(self) -> bool:
        """Whether requests have to wait for the first checks (`Check.startup`)."""
        return not self._backend.monitor.first_checks.is_over

    def wait_for_first_checks(self) -> None:
        """Wait until each server with `startup="wait"` has been checked once, no longer than that may take."""
        monitor = self._backend.monitor
        monitor.begin_startup()
        first_checks = monitor.first_checks
        if not first_checks.startup.wait(first_checks.timeout):
            monitor.end_startup()

    def start(self) -> None:
        """Start to check, unless another owner does. RuntimeError if the system allows no thread."""
        if not self._backend.has_checks or not self._backend.acquire_checks(self):
            return
        try:
            self._threads.start()
        except RuntimeError:
            self._backend.release_checks(self)  # the next request tries again
            raise
        self.update(None)
        _running.add(self)

    def stop(self) -> None:
        """End the threads, and wait until those have ended that do not probe at the moment."""
        self._threads.stop()
        with self._update_lock:
            self._cancel_all()
        self._backend.release_checks(self)

    def update(self, servers: Sequence[Server] | None) -> None:
        """Start and cancel the checks of `servers` as they are needed now; None: of all servers."""
        with self._update_lock:
            if self._threads.are_running:
                self._update_checks(self._backend.servers if servers is None else servers)

    def remove(self, server: Server) -> None:
        """Forget a server that was removed."""
        self._network.remove(server)

    def after_fork(self) -> None:
        """Forget the parent process's threads in a forked child, which has none of them."""
        self._reset()

    def _update_checks(self, servers: Iterable[Server]) -> None:
        """Cancel the checks that these servers have no more, and begin their new ones."""
        added: list[ScheduledCheck] = []
        for server in servers:
            wanted = dict(checks_of(server)) if server in self._backend.snapshot.members else {}
            running = self._checks.setdefault(server, {})
            for checking in [each for each in running if each not in wanted]:
                running.pop(checking).cancel()
            for checking, agent in wanted.items():
                if checking not in running:
                    running[checking] = each = ScheduledCheck(server, checking, agent)
                    checking.wake = self._waker(each)
                    added.append(each)
            if not running:
                del self._checks[server]
        with self._lock:
            for each in added:
                self._look_at(each, 0.0)

    def _cancel_all(self) -> None:
        for checks in self._checks.values():
            for each in checks.values():
                each.cancel()
        self._checks = {}
        self._schedule = _Schedule()

    # What is due; under the lock

    def _next_due(self) -> float:
        """Return when to look at a check next; after a pause at the latest, for timers and clocks moved by hand."""
        return min(self._schedule.next, self._looked_at + PAUSE)

    def _pop_due(self) -> list[Work]:
        """Return what is to be done now, and set when to look at each check next: at least timers are run."""
        self._looked_at = time.monotonic()
        due = [work for each in self._schedule.pop_due(self._looked_at) if (work := self._work_for(each)) is not None]
        self._schedule.compact(8 * len(self._checks) + 64)
        return due or [self._backend.monitor.run_due_timers]

    def _work_for(self, each: ScheduledCheck) -> Work | None:
        """Return what is to be done now about a check, and set when to look at it again."""
        server, checking = each.server, each.checking
        now, delay = time.monotonic(), checking.delay(self._backend.clock.monotonic())
        work: Work | None = None
        if each.running:
            if now < each.deadline:
                due = each.deadline
            else:
                due = now + max(delay, 0.05)
                if not each.has_result:
                    each.has_result = True
                    work = partial(self._record_timeout, each)
        elif server.pauses(checking):
            due = now + PAUSE
        elif delay > 0.001:
            due = now + delay
        else:
            each.running, each.has_result, each.started = True, False, now
            due = each.deadline = now + self._timeout(each)
            work = partial(self._check, each)
        self._schedule.put(each, due)
        return work

    def _timeout(self, each: ScheduledCheck) -> float:
        """Return how long a probe may take, in seconds; one over a socket ends by the socket's own timeouts."""
        if each.checking.check.probe is None and each.server.config.is_url:
            return each.checking.longest(self._backend.config.timeouts.in_seconds.connect) + PAUSE
        return each.checking.longest(None)

    def _look_at(self, each: ScheduledCheck, due: float) -> None:
        """Look at a check when `due`."""
        if not each.cancelled:
            self._schedule.put(each, due)
            self._threads.announce(due)

    def _waker(self, each: ScheduledCheck) -> Callable[[], None]:
        """Make a callback that has a thread look at a check at once."""

        def wake() -> None:
            with self._lock:
                self._look_at(each, 0.0)

        return wake

    # What threads do

    def _check(self, each: ScheduledCheck) -> None:
        """Probe once, and record the result unless the probe has timed out before."""
        started = time.monotonic()
        reply: AgentReply | None = None
        try:
            result, reply = self._probe(each)
        except Exception as error:  # whatever it is: the next check must run
            _log.exception("a check of server %s has raised an exception", each.server.name)
            result = CheckResult(CheckStatus.SOCKERR, info=str(error))
        duration = time.monotonic() - started
        with self._lock:
            is_first, each.has_result = not each.has_result, True
        try:
            if is_first:
                self._record(each, result.after(duration), reply)
        finally:
            with self._lock:
                each.running = False
                self._look_at(each, time.monotonic() + each.checking.delay(self._backend.clock.monotonic()))
        self._backend.monitor.run_due_timers()

    def _record_timeout(self, each: ScheduledCheck) -> None:
        self._record(each, CheckResult(CheckStatus.L7TOUT, duration=time.monotonic() - each.started))
        self._backend.monitor.run_due_timers()

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
        if each.cancelled:
            return
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
