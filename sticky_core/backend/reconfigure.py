"""Reconfigure: replaces the configuration of a backend while it runs, in four steps.

1. Draft: a `Change` lists what has to be added, removed and changed. Problems raise `ConfigError`; nothing has changed.
2. Prepare: components start what is added. If that fails, they undo it, and nothing has changed.
3. Swap: the new snapshot is put in force, under the lock. Requests from then on use it; those in flight keep theirs.
4. Retire: each removed server is ended when its last request in flight is over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from sticky_core.backend.change import Change
from sticky_core.backend.change_lock import ChangeLock
from sticky_core.backend.component import BackendComponent
from sticky_core.backend.config import BackendConfig
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
        self._set_up(snapshot, tracked)
        self._monitor.start(now)

    # Draft

    def draft(self, config: BackendConfig, given: Mapping[str, Server]) -> Change:
        """Return the change that `config` needs. ConfigError with every problem found; nothing has changed.

        `given`: servers of `config` that the caller has made already, by name.
        """
        backend = self._backend
        problems: list[str] = []
        where = f"backend {backend.name}: "
        if self._pending is not None:
            raise ConfigError(f"{where}another change is being prepared: await it first")
        if config.name != backend.name:
            problems.append(f"{where}the configuration is that of backend {config.name}")
        servers: list[Server] = []
        added: list[Server] = []
        replacements: dict[Server, Server | None] = {}
        changed: dict[Server, ServerConfig] = {}
        for requested in config.servers:
            server = backend.servers_by_name.get(requested.name)
            if server is None or requested.has_another_app_than(server.requested):
                replacement = given.get(requested.name) or Server.of(requested)
                if server is not None:
                    replacements[server] = replacement
                added.append(replacement)
                server = replacement
            elif requested != server.requested:
                with collect_problems(problems, where):
                    server.effective_config(requested)
                    changed[server] = requested
            servers.append(server)
        remaining = set(servers)
        removed = {server: replacements.get(server) for server in backend.snapshot.servers if server not in remaining}
        change = Change(config, backend.config, servers, added, removed, changed, self.retire_idle)
        _assign_ids(change)
        problems += (
            f"{where}server {server.name} is tracked by {tracker.name}: remove that first, or both"
            for server in removed
            for tracker in server.trackers
            if tracker not in removed and tracker not in remaining
        )
        find_tracked(backend, servers, problems)
        starting = [*(server.requested for server in added), *changed.values()]
        for component in backend.components.values():
            problems += (where + problem for problem in component.server_problems(starting))
            problems += component.config_problems(config)
        if not problems:
            with collect_problems(problems):
                trial = self._build(
                    config,
                    trial_copies(change) if changed else change.servers,
                    before=None if changed else backend.snapshot,
                )
                change.snapshot = None if changed else trial
                change.trial_persistences = trial.persistences
        raise_problems(problems)
        return change

    def _build(self, config: BackendConfig, servers: Sequence[Server], before: Snapshot | None) -> Snapshot:
        backend = self._backend
        return Snapshot.build(config, servers, clock=backend.clock, rng=backend.rng, log=backend.log, before=before)

    # Prepare

    def apply(self, config: BackendConfig, given: Mapping[str, Server]) -> Change:
        """Put `config` in force, at once or when all components are ready. Under the change lock."""
        change = self.draft(config, given)
        change.trial_persistences = None  # only a plan needs it
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
        for server, requested in change.changed.items():
            self._update(server, requested)
        snapshot = change.snapshot
        if snapshot is None:
            snapshot = self._build(change.config, change.servers, backend.snapshot)
        tracked = find_tracked(backend, change.servers, [])
        woken: list[Ticket] = []
        components = list(backend.components.values())
        with self._placement.lock:
            now = backend.clock.monotonic()
            for server, replacement in change.removed.items():
                if replacement is not None:
                    replacement.inherit_from(server)
            for server in change.added:
                self._register(server)
            self._set_up(snapshot, tracked)
            snapshot.refresh()
            backend.snapshot = snapshot
            backend.config = change.config
            for server in change.removed:
                woken += self._unregister(server)
            woken += monitor.on_swap(change, now)
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
        server.attach(self._monitor.on_change, self.move)

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

    def _set_up(self, snapshot: Snapshot, tracked: Mapping[Server, Server]) -> None:
        """Set what the servers of `snapshot` get from their backend: checks, agents, tracking, drain. Under the lock,
        except at the start.
        """
        new_checks: list[CheckRuntime] = []
        new_agents: list[CheckRuntime] = []
        for server in snapshot.servers:
            server.draining.max_idle = snapshot.max_idle
            server.draining.has_clients_elsewhere = partial(snapshot.has_clients_elsewhere, server)
            server.max_fails.limit = snapshot.max_fails[server]
            server.counts_requests = snapshot.counts_requests
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


def _assign_ids(change: Change) -> None:
    """Give new servers the lowest numbers that are free (HAProxy `id`), so that others keep theirs, and with that their
    points on a ring. A replacement has the number of the server that it replaces.
    """
    for server, replacement in change.removed.items():
        if replacement is not None:
            replacement.id = server.id
    replacements = set(change.removed.values())
    used = {server.id for server in change.servers if server not in change.added or server in replacements}
    number = 0
    for server in change.added:
        if server not in replacements:
            number += 1
            while number in used:
                number += 1
            server.id = number


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
