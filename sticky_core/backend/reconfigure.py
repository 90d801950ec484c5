"""Reconfigure: replaces the configuration of a backend while it runs, in four steps.

1. Draft: a `Change` lists what has to be added, removed and changed. Problems raise `ConfigError`; nothing has changed.
2. Prepare: components start what is added. If that fails, they undo it, and nothing has changed.
3. Swap: the new snapshot is put in force, under the lock. Requests from then on use it; those in flight keep theirs.
4. Retire: each removed server is ended when its last request in flight is over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import cast

from sticky_core.backend.change import Change
from sticky_core.backend.change_lock import ChangeLock
from sticky_core.backend.component import BackendComponent
from sticky_core.backend.config import BackendConfig
from sticky_core.backend.difference import ServerDifference
from sticky_core.backend.monitor import Monitor
from sticky_core.backend.placement import Placement
from sticky_core.backend.queue import Ticket
from sticky_core.backend.snapshot import Snapshot
from sticky_core.backend.state import BackendState
from sticky_core.backend.tracking import find_tracked, track
from sticky_core.errors import ConfigError, collect_problems, raise_problems
from sticky_core.health.agent import AgentCheck
from sticky_core.health.check import Check
from sticky_core.health.runtime import CheckRuntime, stagger_first_checks
from sticky_core.server.config import ServerConfig
from sticky_core.server.server import Server


class ServerIds:
    """The numbers of the servers of one backend, from 1 on (HAProxy `id`)."""

    def __init__(self, count: int) -> None:
        self._next = count + 1  # this one and all after it are free
        self._free: list[int] = []  # those before it that are free, sorted

    def lowest(self, count: int, released: Iterable[int]) -> list[int]:
        """Return the `count` lowest numbers that are free, if `released` are free as well."""
        free = sorted((*self._free[:count], *released))[:count]
        return [*free, *range(self._next, self._next + count - len(free))]

    def update(self, added: Iterable[Server], removed: Iterable[Server]) -> None:
        """Record that `added` have their numbers now, and that those of `removed` are free unless they have them."""
        used = {server.id for server in added}
        released = {server.id for server in removed}
        self._next = max((self._next, *(number + 1 for number in used)))
        if released or not used.isdisjoint(self._free):
            self._free = sorted({*self._free, *released} - used)


class Reconfigure:
    """Changes the configuration of one backend, one change at a time. "Under the lock" means `Placement.lock`."""

    def __init__(self, backend: BackendState, placement: Placement, monitor: Monitor, change_lock: ChangeLock) -> None:
        self._backend = backend
        self._placement = placement
        self._monitor = monitor
        #: Held while a change is drafted, prepared as far as that needs no event loop, and swapped.
        self.change_lock = change_lock
        self._pending: Change | None = None  # prepared, and not in force yet
        self._retiring: dict[Server, Change] = {}  # removed servers with requests in flight

    def start(self, tracked: Mapping[Server, Server]) -> None:
        """Attach the servers of the first snapshot."""
        snapshot = self._backend.snapshot
        now = self._backend.clock.monotonic()
        for server in snapshot.servers:
            self._register(server)
        self._set_up(snapshot, snapshot.servers, tracked)
        self._ids = ServerIds(len(snapshot.servers))
        self._monitor.start(now)

    # Draft

    def draft(self, config: BackendConfig, given: Mapping[str, Server]) -> Change:
        """Return the change that `config` needs. ConfigError with every problem found; nothing has changed.

        `given`: servers of `config` that the caller has made already, by name.
        """
        backend = self._backend
        problems: list[str] = []
        where = f"backend {backend.name}: "
        if not isinstance(cast(object, config), BackendConfig):
            raise ConfigError(
                f"{where}{config!r} is no BackendConfig: change the one in force: replace(backend.config, retries=1)"
            )
        if self._pending is not None:
            raise ConfigError(f"{where}another change is being prepared: await it first")
        if config.name != backend.name:
            problems.append(f"{where}the configuration is that of backend {config.name}")
        difference = ServerDifference.find(backend.snapshot.servers, backend.config.servers, config.servers, given)
        change = Change(config, backend.config, difference, self.retire_idle)
        for server, requested in change.changed.items():
            with collect_problems(problems, where):
                server.effective_config(requested)
        self._assign_ids(change)
        problems += (
            f"{where}server {server.name} is tracked by {tracker.name}: remove that first, or both"
            for server in change.removed
            for tracker in server.trackers
            if tracker not in change.removed and tracker not in backend.snapshot.members
        )
        self._find_tracked(change, problems)
        starting = [*(server.requested for server in change.added), *change.changed.values()]
        for component in backend.components.values():
            problems += (where + problem for problem in component.server_problems(starting))
            problems += component.config_problems(config)
        if not problems:
            with collect_problems(problems):
                self._try(change)
        raise_problems(problems)
        return change

    def _try(self, change: Change) -> None:
        """Find out whether a snapshot can be built for `change`. ConfigError if it can't."""
        snapshot, config = self._backend.snapshot, change.config
        change.is_derived = snapshot.can_derive(config, change.difference)
        if change.is_derived:
            copies = [server.trial_copy(requested) for server, requested in change.changed.items()]
            change.trial_persistences = snapshot.try_persistences(config, change.difference, copies)
            change.trial_servers = (*change.added, *copies)
            return
        trial = self._build(
            config,
            trial_copies(change) if change.changed else change.servers,
            before=None if change.changed else snapshot,
        )
        change.snapshot = None if change.changed else trial
        change.trial_persistences = trial.persistences

    def _assign_ids(self, change: Change) -> None:
        """Give new servers the lowest numbers that are free (HAProxy `id`), so that others keep theirs, and with that
        their points on a ring. A replacement has the number of the server that it replaces.
        """
        replacements: set[Server] = set()
        for server, replacement in change.removed.items():
            if replacement is not None:
                replacement.id = server.id
                replacements.add(replacement)
        new = [server for server in change.added if server not in replacements]
        free = (server.id for server, replacement in change.removed.items() if replacement is None)
        for server, number in zip(new, self._ids.lowest(len(new), free), strict=True):
            server.id = number

    def _find_tracked(self, change: Change, problems: list[str]) -> dict[Server, Server]:
        """Return the servers that are tracked, by the servers that may track another one after `change` than before."""
        difference = change.difference
        gone = {server.name for server in difference.removed}
        new = {server.name: server for server in difference.added}

        def named(name: str) -> Server | None:
            return new.get(name) if name in new or name in gone else self._backend.servers_by_name.get(name)

        return find_tracked(self._backend, self._retracked(change), named, problems, difference.changed)

    def _retracked(self, change: Change) -> list[Server]:
        """Return the servers that may track another server after `change` than before: those that are new or changed,
        and those that track one that is removed or changed.
        """
        members = self._backend.snapshot.members
        trackers = (tracker for server in (*change.removed, *change.changed) for tracker in server.trackers)
        tracking = (
            each for each in trackers if isinstance(each, Server) and each in members and each not in change.removed
        )
        return [*dict.fromkeys((*change.added, *change.changed, *tracking))]

    def _build(self, config: BackendConfig, servers: Sequence[Server], before: Snapshot | None) -> Snapshot:
        backend = self._backend
        return Snapshot.build(config, servers, clock=backend.clock, rng=backend.rng, log=backend.log, before=before)

    # Prepare

    def apply(self, config: BackendConfig, given: Mapping[str, Server]) -> Change:
        """Put `config` in force, at once or when all components are ready. Under the change lock."""
        change = self.draft(config, given)
        change.trial_persistences, change.trial_servers = None, ()  # only a plan needs them
        components = list(self._backend.components.values())
        change.wait_for(components)
        self._pending = change
        for component in components:
            try:
                component.prepare(change, self._on_ready(change, component))
            except BaseException as error:
                if self._pending is change:
                    self._fail(change, error)
                raise
            if change.failure is not None:
                raise change.failure
        if not components:
            self._swap(change)
        return change

    def _on_ready(self, change: Change, component: BackendComponent) -> Callable[[Exception | None], None]:
        """Return the callback that `component` calls when it is ready for `change`, or has failed."""

        def on_ready(failure: Exception | None) -> None:
            with self.change_lock:
                if self._pending is not change:
                    component.undo(change)  # another component has failed meanwhile
                elif failure is not None:
                    self._monitor.announcements.queue_log_line(logging.ERROR, "%s, so nothing has changed", failure)
                    self._fail(change, failure)
                elif change.mark_ready(component):
                    self._swap(change)

        return on_ready

    def _fail(self, change: Change, failure: BaseException) -> None:
        self._pending = None
        for component in self._backend.components.values():
            component.undo(change)
        change.fail(failure)
        self._monitor.publish([])

    # Swap

    def _swap(self, change: Change) -> None:
        """Put a change in force. Under the change lock."""
        backend, monitor = self._backend, self._monitor
        self._pending = None
        before, difference = backend.snapshot, change.difference
        changes_ids = difference.changes_ids
        for server, requested in change.changed.items():
            self._update(server, requested)
        snapshot = change.snapshot
        if snapshot is None and not change.is_derived:
            snapshot = self._build(change.config, change.servers, before)
        tracked = self._find_tracked(change, [])
        woken: list[Ticket] = []
        components = list(backend.components.values())
        with self._placement.lock:
            now = backend.clock.monotonic()
            for server, replacement in change.removed.items():
                if replacement is not None:
                    replacement.inherit_from(server)
            if snapshot is None:
                snapshot = before.derive(change.config, difference, changes_ids)
            for server in change.added:
                self._register(server)
            affected = self._affected(change, before, snapshot)
            self._set_up(snapshot, affected, tracked)
            if change.is_derived and (change.added or change.removed):
                for server in change.added:
                    server.refresh_state(now, monitor.panics)
                snapshot.balancing.replace_servers(change.servers, change.added, tuple(change.removed))
            snapshot.refresh(affected)
            backend.snapshot = snapshot
            backend.config = change.config
            for server in change.removed:
                server.draining.has_clients_elsewhere = partial(before.has_clients_elsewhere, server)
                woken += self._unregister(server)
            woken += monitor.on_swap(change, affected, now)
            self._ids.update(change.added, change.removed)
            for component in components:
                component.swap(change, snapshot)
            monitor.refresh_timers()
            self._retiring.update(dict.fromkeys(change.removed, change))
            self._update_on_release()
            change.start_retiring((server, each) for server in change.removed for each in (*components, self))
        monitor.announcements.queue_log_line(logging.INFO, "backend %s: %s", backend.name, change.summary)
        monitor.publish(woken)
        for component in components:
            component.after_swap(change)
        change.complete()
        self.retire_idle()

    def _affected(self, change: Change, before: Snapshot, snapshot: Snapshot) -> Sequence[Server]:
        """Return the servers of `snapshot` that are not set up as they must be, or have other states under it."""
        is_alike = (before.counts_requests, before.max_idle, before.has_single_server) == (
            snapshot.counts_requests,
            snapshot.max_idle,
            snapshot.has_single_server,
        )
        return self._retracked(change) if change.is_derived and is_alike and not change.options else snapshot.servers

    def _update(self, server: Server, requested: ServerConfig) -> None:
        """Change a server in place."""
        with self._placement.lock:
            target = server.config.target
            server.update(requested)
            if server.config.target != target:
                self._backend.snapshot.balancing.address_changed(server)
            woken = self._monitor.apply_change(server)
            self._monitor.refresh_timers()
        self._monitor.publish(woken, server)

    def _register(self, server: Server) -> None:
        self._backend.servers_by_name[server.name] = server
        server.draining.has_clients_elsewhere = partial(self._has_clients_elsewhere, server)
        server.attach(self._monitor.on_change, self.move)

    def _has_clients_elsewhere(self, server: Server) -> bool:
        return self._backend.snapshot.has_clients_elsewhere(server)

    def _unregister(self, server: Server) -> list[Ticket]:
        """Detach a server from the backend. Return the tickets that have left the queue."""
        if self._backend.servers_by_name.get(server.name) is server:
            del self._backend.servers_by_name[server.name]
        if server.tracks is not None:
            server.tracks.trackers = tuple(each for each in server.tracks.trackers if each is not server)
        self._monitor.forget(server)
        server.counts_requests = True  # so that the end of its last request is noticed
        server.remove()
        return self._placement.queue.dismiss(server)

    def _set_up(self, snapshot: Snapshot, servers: Iterable[Server], tracked: Mapping[Server, Server]) -> None:
        """Set what `servers` of `snapshot` get from their backend: checks, agents, tracking, drain. Those that may
        track another server than before are among the servers. Under the lock, except at the start.
        """
        new_checks: list[CheckRuntime] = []
        new_agents: list[CheckRuntime] = []
        for server in servers:
            server.draining.max_idle = snapshot.max_idle
            server.max_fails.configure(server.config, counts=snapshot.counts_failures_of(server))
            server.counts_requests = snapshot.counts_requests
            if server.requested.track is None or server in tracked:
                track(server, tracked.get(server))
            server.checking = self._renew(server.checking, snapshot.config.check_of(server.config), new_checks)
            server.agent = self._renew(server.agent, _check_of_agent(server.config.agent_check), new_agents)
        stagger_first_checks(new_checks)
        stagger_first_checks(new_agents)

    def _renew(self, running: CheckRuntime | None, check: Check | None, new: list[CheckRuntime]) -> CheckRuntime | None:
        """Return `running` if it runs `check`; else a new run of `check`, which is appended to `new`."""
        if check is not None and running is not None and running.check == check:
            return running
        checking = CheckRuntime(check, self._backend.rng) if check is not None else None
        if checking is not None:
            if running is not None:
                checking.inherit_from(running)
            new.append(checking)
        if running is not None and running.wake is not None:
            running.wake()
        return checking

    def move(self, server: Server, config: ServerConfig) -> None:
        """Give `server` the address of `config`, or none. Called by the server."""
        components = list(self._backend.components.values())
        results = [component.prepare_move(server, config) for component in components]
        with self._placement.lock:
            if server.removed:
                return
            before = server.config.target
            server.move(config)
            self._backend.snapshot.balancing.address_changed(server)
            if not server.reason:
                server.reason = "resolution" if server.is_unresolved else f"address {config.target}"
            for component, prepared in zip(components, results, strict=True):
                component.move(server, prepared)
            woken = self._monitor.apply_change(server)
            self._monitor.refresh_timers()
        from_to = before or "nowhere", config.target or "nowhere"
        self._monitor.announcements.queue_log_line(
            logging.INFO, "%s/%s moved from %s to %s", self._backend.name, server.name, *from_to
        )
        self._monitor.publish(woken, server)
        for component in components:
            component.after_move(server)

    # Retire

    def _update_on_release(self) -> None:
        """Set `Placement.on_release` to `retire_idle` while removed servers have requests in flight. Under the lock."""
        self._placement.on_release = self.retire_idle if self._retiring else None

    def retire_idle(self) -> None:
        """End the servers that were removed and have no request in flight any more."""
        for server in list(self._retiring):
            self._retire(server)

    def _retire(self, server: Server) -> None:
        if server.in_flight:
            return
        components = list(self._backend.components.values())
        for component in components:
            component.refuse(server)
        if server.in_flight:
            return  # a request has arrived just before; its release leads here again
        with self._placement.lock:
            change = self._retiring.pop(server, None)
            self._update_on_release()
            self._placement.queue.forget(server)
        if change is None:
            return
        for component in components:
            component.retire(server, partial(change.mark_retired, server, component))
        change.mark_retired(server, self)

    def after_fork(self) -> None:
        """Discard what belongs to the parent process. Called in a forked child."""
        self.change_lock.after_fork()
        self._pending = None
        self._retiring.clear()
        self._update_on_release()


def trial_copies(change: Change) -> list[Server]:
    """Return copies of the servers as they would be after `change`. They belong to no backend."""
    added = set(change.added)
    copies: list[Server] = []
    for server, requested in zip(change.servers, change.config.servers, strict=True):
        if server in added:
            copy = Server.of(requested)
            copy.id = server.id
        else:
            copy = server.trial_copy(requested)
        copies.append(copy)
    return copies


def _check_of_agent(agent: AgentCheck | None) -> Check | None:
    """Return the schedule of the queries of an agent, as a check (HAProxy `agent-inter`, with rise and fall of 1)."""
    return Check(inter=agent.inter, timeout=agent.timeout, rise=1, fall=1) if agent is not None else None
