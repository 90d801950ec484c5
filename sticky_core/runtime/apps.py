"""The apps behind the servers of one backend, in this process: made once, when they are first needed, in the process
that serves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sticky_core.backend.backend import BackendComponent
from sticky_core.backend.change import Change
from sticky_core.backend.events import Events, StateChange
from sticky_core.backend.snapshot import Snapshot
from sticky_core.errors import ConfigError
from sticky_core.http import http1
from sticky_core.runtime import discovery
from sticky_core.server import instance as life
from sticky_core.server.server import Health, Server, ServerConfig
from sticky_core.target import OTHER_FACE, App, Kind, possible_kinds
from sticky_core.upstream.upstream import Upstream

if TYPE_CHECKING:
    from sticky_core.backend.backend import Backend

_log = logging.getLogger("sticky_sessions")

A = TypeVar("A")


class Apps(dict[Server, A | None]):
    """Apps by server. Who is not here, because it was removed while a request was on the way, does not live."""

    def __missing__(self, server: Server) -> None:
        return None


class InterruptibleApp(Protocol):
    """An app that can be left before it is through (`on_marked_down`, `on_marked_up`)."""

    app: Any

    def __init__(self, app: Any, server: Server) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def interrupt(self, why: str) -> None:
        """End what is open, from whatever thread."""
        ...


class Replicas(BackendComponent):
    """One per backend and face (`Backend.keep`). A server whose app is None does not live, and refuses what comes."""

    kind: Kind
    forwards: type[Upstream]  #: what stands for a server that is a URL
    interruptible_app: type[InterruptibleApp]  #: what stands around an app that may be cut off

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        #: by what requests to come go
        self.snapshot: Snapshot = backend.snapshot
        #: whether a request may go straight to its server; else `begin`
        self.begun = False
        self.made = False
        self._timed = False
        self.apps: Apps[App] = Apps(dict.fromkeys(backend.servers))
        #: Whether a request may have to be read more than once, or looked after while it waits; and how much of it is
        #: kept for that.
        self.needs_replay = False
        self._upstreams: dict[Server, Upstream] = {}
        self._fresh: dict[Server, Upstream | None] = {}  # made for a change that is not in force yet
        self._stale: list[Upstream] = []  # to be let go
        self._misfits: list[Server] = []  # moved while they were to be sent another way
        self._making = False
        self._interruptible_apps: dict[Server, InterruptibleApp] = {}
        self._shuts_backups = False
        self._events: Events | None = None  # once somebody is to be cut off
        self._follow(self.snapshot)

    def _follow(self, snapshot: Snapshot) -> None:
        """Let requests go by `snapshot`."""
        # once more than one attempt needs it, it stays: a request may have begun by other rules than it is read by
        self.needs_replay = self.needs_replay or snapshot.needs_replay
        self.retry_body_limit = snapshot.config.retry_body_limit
        self._shuts_backups = snapshot.shuts_backups
        if (snapshot.shuts_down or snapshot.shuts_backups) and self._events is None:
            self._events = self.backend.events(self._marked)
        self.seal(snapshot.servers)
        self.snapshot = snapshot

    def problems(self) -> Iterator[str]:
        """Why the servers' targets can't be served by this face."""
        found = self.server_problems(server.requested for server in self.backend.servers)
        return (f"backend {self.backend.name}: {problem}" for problem in found)

    def server_problems(self, servers: Iterable[ServerConfig]) -> Iterator[str]:
        for asked in servers:
            where = f"server {asked.name}"
            if asked.is_url:
                try:
                    http1.require()
                except ConfigError as error:
                    yield f"{where}: {error}"
                yield from (f"{where}: {problem}" for problem in discovery.problems_of(asked, self.kind))
            elif asked.target is not None and self.kind not in possible_kinds(asked.target):
                other = OTHER_FACE[self.kind]
                yield (
                    f"{where}: {asked.target!r} is no {self.kind.upper()} app: import from {other}, or hand another app"
                )

    def begin(self) -> None:
        """What has to be done before a request while `begun` is not true. Make all apps, unless somebody has: one that
        can't be made leaves its server DOWN, and the others serve. Let time have its way with the servers.
        """
        if not self.made:
            self.make_all()
        self.backend.monitor.run_due_timers()
        if not self._timed:
            self._settle()

    def make_all(self) -> bool:
        """Make all apps. False: somebody has, or is about to and asks us for something meanwhile."""
        with self.backend.reconfigure.change_lock:
            if self.made or self._making:
                return False
            self._making = True
            begun: set[Server] = set()
            try:
                while rest := [server for server in self.backend.servers if server not in begun]:
                    for server in rest:  # while it is made, others may come and go
                        begun.add(server)
                        if not server.removed:
                            self._make_or_not(server)
            finally:
                self._making = False
            self.made = True
            return True

    def _make_or_not(self, server: Server) -> None:
        try:
            self.make(server)
        except Exception as error:
            text = "backend %s: replica %s failed to start and is DOWN"
            self.backend.reconfigure.change_lock.afterwards(
                partial(_log.error, text, self.backend.name, server.name, exc_info=error)
            )
            server.health = Health.DOWN

    def seal(self, servers: Iterable[Server]) -> None:
        """Let the apps of those servers be cut off that may have to be."""
        for server in servers:
            app = self.apps[server]
            if app is None or isinstance(app, self.interruptible_app):
                continue
            if server.shuts_down or (self._shuts_backups and server.config.backup):
                cut = self._interruptible_apps.get(server)
                if cut is None:
                    cut = self._interruptible_apps[server] = self.interruptible_app(app, server)
                cut.app = app  # one for all that it has had, so that whoever is still at one it has left is cut off too
                self.apps[server] = cut

    def _marked(self, change: StateChange) -> None:
        """A server has gone out, or is back: what ends with that (HAProxy `on-marked-down`, `on-marked-up`)."""
        server = next((each for each in self.backend.servers if each.name == change.server), None)
        if server is None:
            return
        if change.after in ("DOWN", "MAINT"):
            if server.shuts_down:
                self._cut_off(server, "marked down")
        elif change.after == "UP" and change.before != "DRAIN" and server.shuts_backups and server.electable:
            for backup in self.backend.servers:
                if backup.config.backup:
                    self._cut_off(backup, f"{server.name} is marked up")

    def _cut_off(self, server: Server, why: str) -> None:
        cut = self._interruptible_apps.get(server)
        if cut is not None:
            cut.interrupt(why)

    def start(self) -> None:
        """All apps are made: requests may come."""
        self.made = True
        self._settle()

    def set_has_timers(self, timed: bool) -> None:
        """Whether time changes something about the servers. Under the backend's lock."""
        self._timed = timed
        self.begun = self.made and not timed and self._watched

    @property
    def _watched(self) -> bool:
        """Whether the checks are on their way, if there are any."""
        return True

    def _settle(self) -> None:
        self.backend.monitor.schedule_timers()

    def make(self, server: Server) -> App | None:
        """Begin a server's life: a factory makes a new app with an empty memory; an app that was handed over keeps what
        it has. None: its address is not known.
        """
        config = server.config
        app: App | None
        if config.is_url:
            app = None if server.is_unresolved else self._upstream(server).app
        elif config.factory is not None:
            app = config.factory()
            server.instance = self._new_life(server)
        else:
            assert config.target is not None and not isinstance(config.target, str)
            app = config.target
            server.instance = server.instance or self._new_life(server)
        self.apps[server] = app
        return app

    def _upstream(self, server: Server) -> Upstream:
        upstream = self._upstreams.get(server)
        if upstream is None:
            asked = self.backend.snapshot.config
            upstream = self._upstreams[server] = self.forwards.build(server.config, asked.timeouts, asked.forward)
        return upstream

    def _new_life(self, server: Server) -> str:
        return life.new_instance(self.backend.clock, self.backend.rng) if server.is_in_process else ""

    # The backend is changed

    def prepare(self, change: Change, on_ready: Callable[[Exception | None], None]) -> None:
        config, before = change.config, self.snapshot.config
        self._fresh.clear()
        if self.made:
            anew = (config.timeouts, config.forward) != (before.timeouts, before.forward)
            for server in change.servers:
                if server in change.added:
                    asked = server.config
                elif anew or server in change.changed:
                    asked = server.effective_config(change.changed.get(server, server.requested))
                    if not anew and _way(asked) == _way(server.config):
                        continue
                else:
                    continue
                if asked.is_url:
                    known = asked.target is not None
                    self._fresh[server] = self.forwards.build(asked, config.timeouts, config.forward) if known else None
        self.begin_those_who_come(change, on_ready)

    def begin_those_who_come(self, change: Change, on_ready: Callable[[Exception | None], None]) -> None:
        """Make their apps. RuntimeError if that fails."""
        if self.made:
            for server in change.added:
                if not server.config.is_url:
                    try:
                        self.make(server)
                    except Exception as error:
                        raise RuntimeError(self.failed_to_start(server, error)) from error
        on_ready(None)

    def failed_to_start(self, server: Server, error: Exception) -> str:
        return f"backend {self.backend.name}: replica {server.name} failed to start: {type(error).__name__}: {error}"

    def undo(self, change: Change) -> None:
        for server in change.added:
            self.apps.pop(server, None)
        fresh, self._fresh = self._fresh, {}
        for upstream in fresh.values():
            if upstream is not None:
                upstream.retire()

    def swap(self, change: Change, snapshot: Snapshot) -> None:
        for server, upstream in self._fresh.items():
            if upstream is not None and upstream.url != server.config.target:  # it was moved in this moment
                self._stale.append(upstream)
                self._misfits.append(server)
            else:
                self._put(server, upstream)
        self._fresh.clear()
        self._follow(snapshot)

    def after_swap(self, change: Change) -> None:
        while self._misfits:
            server = self._misfits.pop()
            made = self.prepare_move(server, server.config)
            with self.backend.placement.lock:
                self.move(server, made)
        self._let_go()
        if self.made:
            for server in change.added:  # those for whom nobody was there to prepare
                if self.apps[server] is None:
                    self._make_or_not(server)

    def _put(self, server: Server, upstream: Upstream | None) -> None:
        """Forward to `server` by this from here on."""
        before = self._upstreams.pop(server, None)
        if before is not None:
            self._stale.append(before)
        if upstream is not None:
            self._upstreams[server] = upstream
        self.apps[server] = None if upstream is None else upstream.app

    def _let_go(self) -> None:
        """End what nobody is sent through any more: requests on their way finish."""
        with self.backend.placement.lock:
            stale, self._stale = self._stale, []
        for upstream in stale:
            upstream.retire()

    def prepare_move(self, server: Server, config: ServerConfig) -> Upstream | None:
        if not self.made or config.target is None:
            return None
        asked = self.snapshot.config
        return self.forwards.build(config, asked.timeouts, asked.forward)

    def move(self, server: Server, made: object) -> None:
        if self.made:
            assert made is None or isinstance(made, Upstream)
            self._put(server, made)
            self.seal(server.as_tuple)

    def after_move(self, server: Server) -> None:
        self._let_go()

    def refuse(self, server: Server) -> None:
        self.apps.pop(server, None)

    def retire(self, server: Server, on_done: Callable[[], None]) -> None:
        upstream = self._upstreams.pop(server, None)
        self._interruptible_apps.pop(server, None)
        if upstream is not None:
            upstream.retire()
        on_done()

    def end(self) -> None:
        """Let all apps go. The next to begin has new ones."""
        for upstream in self._upstreams.values():
            upstream.close()
        with self.backend.reconfigure.change_lock:
            self.begun = self.made = False
            self.apps.update(dict.fromkeys(self.apps))

    def after_fork(self) -> None:
        """What was made in the parent shares no memory with it from here on: begin again."""
        self._making = False
        self._fresh.clear()
        self._interruptible_apps.clear()
        for server in [each for each in self.apps if each not in self.snapshot.members]:
            del self.apps[server]
        for server in self.backend.servers:
            server.instance = ""
        self.end()


def _way(asked: ServerConfig) -> tuple[object, ...]:
    """What an upstream is made of."""
    return asked.target, asked.tls, asked.pool_max_conn, asked.pool_purge_delay
