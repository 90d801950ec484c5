"""Monitor: the states of a backend's servers. Checks, agents and requests report to it; timers run; changes of state
are passed on to balance and the queue, and announced.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from math import inf
from typing import TYPE_CHECKING

from sticky_core.backend.announcements import Announcements
from sticky_core.backend.change import Change
from sticky_core.backend.change_lock import ChangeLock
from sticky_core.backend.events import StateChange
from sticky_core.backend.first_checks import FirstChecks
from sticky_core.backend.placement import Placement
from sticky_core.backend.queue import Ticket
from sticky_core.backend.state import BackendState
from sticky_core.errors import Failure
from sticky_core.health.agent import AgentReply
from sticky_core.health.check import CheckResult
from sticky_core.health.runtime import CheckRuntime
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState

if TYPE_CHECKING:
    from sticky_core.backend.ejections import Ejections

#: states in which a server serves some clients
_SERVING = ("UP", "NOLB", "DRAIN")


class Monitor:
    """Watches the servers of one backend. "Under the lock" means `Placement.lock`."""

    def __init__(self, backend: BackendState, placement: Placement, change_lock: ChangeLock) -> None:
        self._backend = backend
        self._placement = placement
        self._deadlines = placement.deadlines
        self.announcements = Announcements(backend.name, change_lock)
        self.first_checks = FirstChecks(backend)
        #: whether health is ignored at present, because too few servers are up (`on_empty="panic"`)
        self.panics = False
        self._is_empty = False  # whether no server was serving clients at the last change
        self._status: dict[Server, str] = {}  # as it was announced
        self._counted: dict[Server, tuple[bool, str]] = {}  # as what each server is counted in `_counts`
        self._counts: Counter[tuple[bool, str]] = Counter()  # backups (True) and others by status
        self._ejections: Ejections | None = None  # None: failed requests may take any number of servers down
        placement.run_due_timers = self.run_due_timers

    def start(self, now: float) -> None:
        """Read the states of the first servers. Nothing is announced."""
        snapshot = self._backend.snapshot
        for server in snapshot.servers:
            server.refresh_state(now)
            self._status[server] = server.status
            self._count(server)
            if not server.electable:  # balance takes it to be electable until it is notified
                snapshot.state_changed(server)
            self._deadlines.update(server)
        self.first_checks.update(snapshot.servers)
        self.first_checks.publish()
        self._count_ejected(())
        self.refresh_timers()

    # A server changes

    def on_change(self, server: Server) -> None:
        """Apply a change of `server`, and announce it. Called by the server."""
        with self._placement.lock:
            woken = self.apply_change(server)
            self.refresh_timers()
        self.publish(woken, server)

    def apply_change(self, server: Server) -> list[Ticket]:
        """Derive the state of `server`, and pass it on. Under the lock. Return the tickets that have left the queue,
        for `publish`.
        """
        if server.removed:
            return []
        before = self._status.get(server, "UP")
        woken = self._derive(server)
        if self._ejections is not None:
            woken += self._limit_ejected(server)
        return woken + self._update_panic() if self._status[server] != before else woken

    def _derive(self, server: Server) -> list[Ticket]:
        now = self._backend.clock.monotonic()
        before, drained = self._status.get(server, "UP"), server.drained
        server.refresh_state(now, self.panics)
        self._deadlines.update(server)
        after = self._status[server] = server.status
        if after != before:
            self._count(server)
            self._announce(server, before, after)
        if server.drained and not drained:
            self._announce(server, after, "DRAINED")
        woken = self._placement.state_changed(server)
        if after != before:
            self.first_checks.update(server.as_tuple)  # maintenance may have begun or ended
        server.reason, server.was_announced = "", False
        return woken

    def publish(self, woken: list[Ticket], *servers: Server) -> None:
        """Wake requests that have left the queue, announce what has changed, and notify the servers that track one of
        `servers`. Called without the lock.
        """
        self._placement.wake(woken)
        self.announcements.publish(servers)
        self.first_checks.publish()

    def on_swap(self, change: Change, servers: Iterable[Server], now: float) -> list[Ticket]:
        """Watch the servers of the snapshot that was put in force, and no longer those that `change` removes.
        `servers`: those that may have another state now. Under the lock. Return the tickets that have left the queue,
        for `publish`.
        """
        woken: list[Ticket] = []
        for server in servers:
            server.refresh_state(now, self.panics)
            self._deadlines.update(server)
            self._count(server)
        for server in change.removed:
            self._counts[self._counted.pop(server)] -= 1
        renamed = change.difference.renamed
        replacements = set(change.removed.values()).difference(renamed.values())
        for server in change.added:
            if server not in replacements:
                self._announce(server, "NEW", server.status)
            self._status[server] = server.status
        for server, replacement in change.removed.items():
            before = self._status.pop(server)
            if replacement is None or server in renamed:
                self._announce(server, before, server.status)
        for server in servers:
            woken += self._placement.state_changed(server)
        self.first_checks.update([*servers, *change.removed])
        self._count_ejected(change.removed, servers)
        woken += self._limit_ejected()
        return woken + self._update_panic()

    # Ejected servers

    def _count_ejected(self, removed: Iterable[Server], servers: Iterable[Server] = ()) -> None:
        """Count the ejected servers of the snapshot in force, if there is a limit. `removed`: the servers that are
        gone; `servers`: those that may have another state now.
        """
        snapshot = self._backend.snapshot
        limit = snapshot.config.max_ejected
        if limit is None:
            self._ejections = None
            return
        if self._ejections is None:
            from sticky_core.backend.ejections import Ejections

            self._ejections = Ejections(self._backend.name, self.announcements)
            # the longest ejected one first
            servers = sorted(snapshot.servers, key=lambda server: server.ejected_at)
        self._ejections.limit_to(limit)
        for server in removed:
            self._ejections.forget(server)
        for server in servers:
            self._ejections.update(server)

    def _limit_ejected(self, *changed: Server) -> list[Ticket]:
        """Count the ejected servers anew, of which `changed` are in another state, and set those up again that are too
        many. Under the lock. Return the tickets that have left the queue.
        """
        woken: list[Ticket] = []
        ejections = self._ejections
        if ejections is None:
            return woken
        for server in changed:
            ejections.update(server)
        surplus = ejections.surplus()
        for server in surplus:
            server.end_ejection(ejections.reason_to_end(server))
            woken += self._derive(server)
            ejections.update(server)
            self.announcements.queue_trackers(server)
        return woken + self._update_panic() if surplus else woken

    def _may_eject(self, server: Server, reason: str, now: float) -> bool:
        """Return whether failed requests may take `server` down for `reason`. If not, that is logged once."""
        ejections = self._ejections
        if ejections is None or ejections.allows(server):
            return True
        ejections.refuse(server, reason, now)
        return False

    # Panic

    def _count(self, server: Server) -> None:
        """Count a server with its present status."""
        before, after = self._counted.get(server), (server.config.backup, server.status)
        if before != after:
            if before is not None:
                self._counts[before] -= 1
            self._counts[after] += 1
            self._counted[server] = after

    def _count_serving(self, backup: bool) -> int:
        return sum(
            count for (is_backup, status), count in self._counts.items() if is_backup is backup and status in _SERVING
        )

    def _update_panic(self) -> list[Ticket]:
        """Begin or end panic, and derive the state of every server anew if it does. Return the tickets that have left
        the queue.
        """
        woken: list[Ticket] = []
        active = self._count_serving(False)
        usable = bool(active or self._count_serving(True))
        panics = False
        config = self._backend.snapshot.config
        if config.on_empty == "panic":
            threshold = config.panic_threshold or 0.0
            counted = active + self._counts[False, "DOWN"]
            panics = not usable or (bool(counted) and active < threshold * counted)
        log, name = self.announcements.queue_log_line, self._backend.name
        if panics is not self.panics:
            self.panics = panics
            now = self._backend.clock.monotonic()
            for server in self._backend.snapshot.servers:
                server.refresh_state(now, panics)
                self._deadlines.update(server)
                woken += self._placement.state_changed(server)
            if panics:
                log(logging.ERROR, "backend %s: too few servers are up, so all are used, whatever their health", name)
            else:
                log(logging.WARNING, "backend %s: enough servers are up again", name)
        if not usable and not self._is_empty:
            log(logging.ERROR, "backend %s has no server available!", name)
        self._is_empty = not usable
        return woken

    def _announce(self, server: Server, before: str, after: str) -> None:
        change = StateChange(self._backend.name, server.name, before, after, server.reason, self._backend.clock.wall())
        counts = self._count_serving(False), self._count_serving(True), self._placement.queue.waiting_for(server)
        self.announcements.queue_change(change, server, counts)

    # Timers

    @property
    def next_deadline(self) -> float:
        """When the next timer is due, by the clock's `monotonic`; infinity if there is none."""
        return self._deadlines.next

    @property
    def has_timers(self) -> bool:
        """Whether time will change the state of a server."""
        return self._deadlines.next < inf

    def run_due_timers(self) -> None:
        """Apply the timers that are due. Faces call this before requests while there are timers."""
        if self._deadlines.next == inf or self._backend.clock.monotonic() < self._deadlines.next:
            return
        now = self._backend.clock.monotonic()
        woken: list[Ticket] = []
        with self._placement.lock:
            due = self._deadlines.pop_due(now)
            for server in due:
                woken += self.apply_change(server)
            self.refresh_timers()
        self.publish(woken, *due)

    def schedule_timers(self) -> None:
        """Notify components again whether there are timers."""
        with self._placement.lock:
            self.refresh_timers()

    def refresh_timers(self) -> None:
        """Find the next deadline, and notify components whether there is one. Under the lock."""
        self._deadlines.refresh()
        for component in self._backend.components.values():
            component.set_has_timers(self._deadlines.next < inf)

    def forget(self, server: Server) -> None:
        """Drop the timer of `server`, which is removed. Under the lock."""
        self._deadlines.remove(server)

    # The first checks

    def begin_startup(self) -> None:
        """Wait for the first checks of the servers as they are now, unless that has begun: `first_checks.startup`."""
        if self.first_checks.has_begun:
            return
        with self._placement.lock:
            names = self.first_checks.begin(self._backend.clock.monotonic())
            self.refresh_timers()
        if names:
            values = self._backend.name, _listed(names)
            self.announcements.queue_log_line(logging.INFO, "backend %s: waiting for the first check of %s", *values)
        self.publish([])

    def end_startup(self) -> None:
        """Wait no longer for first checks, which have taken longer than they may."""
        with self._placement.lock:
            names = self.first_checks.give_up()
            self.refresh_timers()
        if names:
            text = "backend %s: no result of the first check of %s after %g s: requests are served without it"
            values = self._backend.name, _listed(names), self.first_checks.timeout
            self.announcements.queue_log_line(logging.WARNING, text, *values)
        self.publish([])

    def forget_first_checks(self) -> None:
        """Take all servers as unchecked: checks have ended. When they are started again, the start waits again."""
        with self._placement.lock:
            self.first_checks.restart()
            self.refresh_timers()
        self.publish([])

    # Checks, agents and requests report

    def record_check(self, server: Server, result: CheckResult, checking: CheckRuntime | None = None) -> None:
        """Record the result of a check of `server`. It is ignored if `checking`, which made the check, was replaced
        meanwhile.
        """
        with self._placement.lock:
            running = server.checking
            if running is None or server.removed or (checking is not None and checking is not running):
                return
            is_first = not running.has_run
            running.record_check(result, self._backend.clock.monotonic())
            if server.in_maint:
                return  # the check was in flight when maintenance began
            woken = self._apply_health(server, str(result))
            if is_first:
                self.first_checks.update(server.as_tuple)
                self.refresh_timers()
        self.publish(woken, server)

    def _apply_health(self, server: Server, why: str) -> list[Ticket]:
        if server.status != self._status.get(server, "UP"):
            server.reason = why
            woken = self.apply_change(server)
        elif self._ejections is not None:  # down as before, but for another reason
            woken = self._limit_ejected(server)
        else:
            return []
        self.refresh_timers()
        return woken

    def on_agent_reply(self, server: Server, reply: AgentReply, checking: CheckRuntime | None = None) -> None:
        """Record the reply of the agent of `server`. It is ignored if `checking`, which queried the agent, was replaced
        meanwhile.
        """
        agent = server.agent
        if agent is None or server.removed or (checking is not None and checking is not agent):
            return
        with self._placement.lock:
            agent.record_check(reply.result, self._backend.clock.monotonic())
            if reply.up is not None:
                server.agent_up = reply.up
            woken = self._apply_health(server, f"agent: {reply.result}")
        self.publish(woken, server)
        server.reason = f"agent: {reply.result}"
        if reply.admin is not None and server.state.value != reply.admin:
            if reply.admin == AdminState.DRAIN:
                server.drain(deadline=None)  # an agent's drain lasts, as in HAProxy, until the agent replies otherwise
            else:
                server.state = AdminState(reply.admin)
        weight = reply.weight
        if reply.percent is not None:
            weight = min(server.config.weight * reply.percent // 100, 256)
        if weight is not None and weight != server.weight and weight <= 256:
            server.weight = weight
        if reply.maxconn is not None and server.config.maxconn and reply.maxconn != server.maxconn:
            server.maxconn = reply.maxconn

    def record_request(self, server: Server, failure: Failure | None, status: int, seconds: float) -> None:
        """Record the result of a request to `server`: a failure, or the status of its response, which began `seconds`
        after the request was sent. Called only if the snapshot `observes`.
        """
        if server.removed:
            return
        snapshot = self._backend.snapshot
        if failure is None and status < 500 and snapshot.balancing.timed is not None:
            with self._placement.lock:
                snapshot.balancing.record_latency(server, seconds)
        failed = failure is not None
        checking = server.checking
        observe = checking.check.observe if checking is not None else None
        if observe == "layer4":
            succeeded = failure is None or failure.maybe_executed
        else:
            succeeded = not failed and (status < 500 or status in (501, 505))
        counts_as_fail = failed or (status in snapshot.retries.statuses)  # for max_fails and fail_rate
        if succeeded and not counts_as_fail:
            if server.is_error_free:
                return
            if checking is None or checking.is_error_free:
                self._count_success(server)
                return
        why = failure.text if failure is not None else f"status {status}"
        with self._placement.lock:
            now = self._backend.clock.monotonic()
            if server.status in ("DOWN", "MAINT"):
                return
            reason = ""  # why the health of the server may have changed
            if checking is not None and observe is not None:
                may_take_down = (
                    succeeded
                    or not checking.next_failure_takes_down
                    or self._may_eject(server, str(checking.errors_result(why)), now)
                )
                if checking.record_request(succeeded, why, now, may_take_down=may_take_down):
                    reason = str(checking.result)
            max_fails = server.max_fails
            if max_fails.counts:
                if not counts_as_fail:
                    max_fails.record_success(now)
                elif (text := max_fails.record_failure(now)) and self._may_eject(server, text, now):
                    max_fails.take_down(now)
                    reason = text
            woken = self._apply_health(server, reason) if reason else []
        if reason:
            self.publish(woken, server)
        elif self.announcements.has_lines:
            self.publish(woken)

    def _count_success(self, server: Server) -> None:
        """Count a request that has succeeded, for `max_fails` and `fail_rate` only."""
        max_fails = server.max_fails
        with self._placement.lock:
            # `reachable` is kept, and `status` takes longer to find than all the rest of this
            if max_fails.counts and server.reachable and not (self.panics and server.status == "DOWN"):
                max_fails.record_success(self._backend.clock.monotonic())

    def after_fork(self) -> None:
        """Discard what belongs to the parent process. Called in a forked child."""
        self.announcements.after_fork()
        self.first_checks.after_fork()
        for server in self._backend.snapshot.servers:
            for checking in (server.checking, server.agent):
                if checking is not None:
                    checking.wake = None


def _listed(names: Sequence[str]) -> str:
    """Return the names of some servers for a log line: ten of them, and how many more there are."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more
