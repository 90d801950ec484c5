"""The apps behind the servers of one backend, in this process: built once, when a request first needs them, in the
process that serves.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sticky_core.backend.backend import BackendComponent
from sticky_core.backend.change import Change
from sticky_core.backend.config import BackendConfig
from sticky_core.backend.events import Events, StateChange
from sticky_core.backend.snapshot import Snapshot
from sticky_core.decision import Decision
from sticky_core.errors import ConfigError, raise_problems
from sticky_core.health.check import Check
from sticky_core.http import http1
from sticky_core.options.callables import is_async
from sticky_core.persistence.nesting import AROUND, InsertedCookie, cookies_inside, nested_problems
from sticky_core.runtime import discovery
from sticky_core.server.config import ServerConfig
from sticky_core.server.instance import new_instance
from sticky_core.server.server import Server
from sticky_core.server.state import Health
from sticky_core.target import OTHER_FACE, App, Kind, possible_kinds, require_made_app
from sticky_core.upstream.upstream import Upstream

if TYPE_CHECKING:
    from sticky_core.backend.backend import Backend

_log = logging.getLogger("sticky_sessions")

A = TypeVar("A")

#: the apps of all backends of this process
_all: weakref.WeakSet[Replicas] = weakref.WeakSet()


class Apps(dict[Server, A | None]):
    """Apps by server. A server that is missing, because it was removed while a request was in flight, has none."""

    def __missing__(self, server: Server) -> None:
        return None


class InterruptibleApp(Protocol):
    """An app with requests that can be ended early (`on_marked_down`, `on_marked_up`)."""

    app: Any

    def __init__(self, app: Any, server: Server) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def interrupt(self, reason: str) -> None:
        """End the requests in flight, from any thread."""
        ...


class Replicas(BackendComponent):
    """The apps of one backend: one object per backend and face. A server with None as its app refuses requests."""

    kind: Kind
    interruptible_app: type[InterruptibleApp]  #: wraps an app with requests that may be ended early

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        #: the snapshot for new requests
        self.snapshot: Snapshot = backend.snapshot
        #: whether a request may go straight to its server; if not, call `get_ready` first
        self.is_ready = False
        self.apps_built = False
        self._has_timers = False
        self.apps: Apps[App] = Apps(dict.fromkeys(backend.servers))
        #: whether a request may have to be read more than once, or its client watched while it waits
        self.needs_replay = False
        self._upstreams: dict[Server, Upstream] = {}
        self._prepared_upstreams: dict[Server, Upstream | None] = {}  # built for a change that is not in force yet
        self._replaced_upstreams: list[Upstream] = []  # to be retired
        self._moved_while_prepared: list[Server] = []  # got another address during `prepare`
        self._is_building = False
        self._interruptible_apps: dict[Server, InterruptibleApp] = {}
        self._shuts_down_backup_sessions = False
        self._events: Events | None = None  # once a server may end requests early
        self._has_warned_of_cookies = self._has_checked_outer = self._has_checked_around = False
        _all.add(self)
        self._use_snapshot(self.snapshot)

    @property
    def upstream_class(self) -> type[Upstream]:
        """The app of a server that is a URL."""
        raise NotImplementedError

    def _use_snapshot(self, snapshot: Snapshot) -> None:
        """Use `snapshot` for new requests."""
        # Once true it stays true: a request may have begun under an older snapshot than the one that is read here.
        self.needs_replay = self.needs_replay or snapshot.needs_replay
        self.retry_body_limit = snapshot.config.retry_body_limit
        self._shuts_down_backup_sessions = snapshot.shuts_down_backup_sessions
        if (snapshot.shuts_down_sessions or snapshot.shuts_down_backup_sessions) and self._events is None:
            self._events = self.backend.events(self._on_state_change)
        if snapshot.shuts_down_sessions or snapshot.shuts_down_backup_sessions:
            self.make_interruptible(snapshot.servers)
        self.snapshot = snapshot

    def problems(self) -> Iterator[str]:
        """Describe the targets that this face can't serve."""
        found = self.server_problems(server.requested for server in self.backend.servers)
        yield from (f"backend {self.backend.name}: {problem}" for problem in found)
        yield from self.config_problems(self.backend.config)

    def config_problems(self, config: BackendConfig) -> Iterator[str]:
        """Yield a problem for each probe that this face can't call."""
        if self.kind != "wsgi":
            return
        probes = {"check": config.check.probe if config.check is not None else None}
        for server in [server for server in config.servers if server.check]:  # few have their own
            if isinstance(server.check, Check):
                probes[f"server {server.name}: check"] = server.check.probe
        for where, probe in probes.items():
            if is_async(probe):
                yield (
                    f"backend {config.name}: {where}: probe {probe!r} is a coroutine function, which WSGI can't await: "
                    "pass a plain function"
                )

    def server_problems(self, servers: Iterable[ServerConfig]) -> Iterator[str]:
        nested: dict[int, list[str]] = {}  # by the identity of the app, which several servers may have
        for config in servers:
            where = f"server {config.name}"
            if config.is_url:
                try:
                    http1.require()
                except ConfigError as error:
                    yield f"{where}: {error}"
                yield from (f"{where}: {problem}" for problem in discovery.problems_of(config, self.kind))
            elif config.target is not None and self.kind not in possible_kinds(config.target):
                other = OTHER_FACE[self.kind]
                yield (
                    f"{where}: {config.target!r} is no {self.kind.upper()} app: "
                    f"import from {other}, or pass another app"
                )
            elif config.target is not None:
                key = id(config.target)
                if key not in nested:
                    nested[key] = self._nested_problems(config.target)
                yield from (f"{where}: {problem}" for problem in nested[key])

    def _nested_problems(self, app: object) -> list[str]:
        """Return a problem for each cookie that a dispatcher inside `app` inserts as this backend does."""
        inside = cookies_inside(app)
        return nested_problems(self.backend.inserted_cookies(), inside) if inside else []

    def get_ready(self) -> None:
        """Build the apps, unless they are built, and run the timers that are due. Call this before a request while
        `is_ready` is false. An app that can't be built leaves its server DOWN, and the others serve.
        """
        if not self.apps_built:
            self.build_apps()
        if not self._has_checked_around:
            self._has_checked_around = True
            self.warn_of_cookies([cookie for cookies in AROUND.get() for cookie in cookies])
        self.backend.monitor.run_due_timers()
        if not self._has_timers:
            self._update_readiness()

    def warn_of_cookies(self, around: Sequence[InsertedCookie]) -> None:
        """Log a warning, once, if the cookies `around` are inserted by dispatchers around this one, and overlap its."""
        problems = nested_problems(around, self.backend.inserted_cookies())
        if problems and not self._has_warned_of_cookies:
            self._has_warned_of_cookies = True
            for problem in problems:
                _log.warning("%s", problem)

    def check_outer(self, outer: Decision) -> None:
        """Log a warning, once, if the dispatcher that has made the decision `outer` inserts a cookie that this one
        inserts: it removes that from the requests, or overwrites it.
        """
        if self._has_checked_outer:
            return
        self._has_checked_outer = True
        others = [each.backend for each in list(_all) if each.backend.name == outer.backend]
        self.warn_of_cookies([cookie for other in others for cookie in other.inserted_cookies()])

    def build_apps(self) -> bool:
        """Build all apps. Return False if they are built already, or are being built by a caller further up."""
        with self.backend.reconfigure.change_lock:
            if self.apps_built or self._is_building:
                return False
            self._is_building = True
            seen: set[Server] = set()
            try:
                while rest := [server for server in self.backend.servers if server not in seen]:
                    for server in rest:  # while its app is built, others may be added and removed
                        seen.add(server)
                        if not server.removed:
                            self._build_app_or_mark_down(server)
            finally:
                self._is_building = False
            self.apps_built = True
            return True

    def _build_app_or_mark_down(self, server: Server) -> None:
        try:
            self.build_app(server)
        except Exception as error:
            text, *arguments = "backend %s: replica %s failed to start and is DOWN", self.backend.name, server.name
            if isinstance(error, ConfigError):  # it says what to write: a traceback would hide that
                report = partial(_log.error, f"{text}: %s", *arguments, error)
            else:
                report = partial(_log.error, text, *arguments, exc_info=error)
            self.backend.reconfigure.change_lock.call_after_release(report)
            if server.tracks is None:  # else its health is another server's, and its requests fail as not started
                server.health = Health.DOWN

    def make_interruptible(self, servers: Iterable[Server]) -> None:
        """Wrap the apps of those servers that may have to end requests early."""
        for server in servers:
            app = self.apps[server]
            if app is None or isinstance(app, self.interruptible_app):
                continue
            if self._may_end_requests(server):
                known = self._interruptible_apps.get(server)
                if known is None:
                    known = self._interruptible_apps[server] = self.interruptible_app(app, server)
                known.app = app  # one wrapper for every app of the server, so that requests at an earlier app end too
                self.apps[server] = known

    def uninterruptible_app(self, server: Server) -> Any:
        """Return the app of a server without the wrapper of `make_interruptible`; None if it has no app."""
        app = self.apps[server]
        return app.app if isinstance(app, self.interruptible_app) else app

    def _may_end_requests(self, server: Server) -> bool:
        """Return whether requests in flight at `server` may have to be ended early."""
        return server.shuts_down_sessions or (self._shuts_down_backup_sessions and server.config.backup)

    def _on_state_change(self, change: StateChange) -> None:
        """End the requests that a change of state ends (HAProxy `on-marked-down`, `on-marked-up`)."""
        server = next((each for each in self.backend.servers if each.name == change.server), None)
        if server is None:
            return
        if change.after in ("DOWN", "MAINT"):
            if server.shuts_down_sessions:
                self._interrupt(server, "marked down")
        elif (
            change.after == "UP" and change.before != "DRAIN" and server.shuts_down_backup_sessions and server.electable
        ):
            for backup in self.backend.servers:
                if backup.config.backup:
                    self._interrupt(backup, f"{server.name} is marked up")

    def _interrupt(self, server: Server, why: str) -> None:
        app = self._interruptible_apps.get(server)
        if app is not None:
            app.interrupt(why)

    def start(self) -> None:
        """Mark the apps as built: requests may come."""
        self.apps_built = True
        self._update_readiness()

    def set_has_timers(self, has_timers: bool) -> None:
        self._has_timers = has_timers
        self.is_ready = self.apps_built and not has_timers and self._background_is_running

    @property
    def _background_is_running(self) -> bool:
        """Whether all background tasks that this backend needs are running."""
        return True

    def _update_readiness(self) -> None:
        self.backend.monitor.schedule_timers()

    def build_app(self, server: Server) -> App | None:
        """Build the app of a server and start a new instance of it. A factory makes a new app with an empty memory; an
        app object keeps its memory. Return None if the server's address is not known yet.
        """
        config = server.config
        app: App | None
        if config.is_url:
            app = None if server.is_unresolved else self._upstream_of(server).app
        elif config.factory is not None:
            app = config.factory()
            require_made_app(app, config.factory, self.kind)
            raise_problems(self._nested_problems(app))
            server.instance = self._new_instance(server)
        else:
            assert config.target is not None and not isinstance(config.target, str)
            app = config.target
            server.instance = server.instance or self._new_instance(server)
        self.apps[server] = app
        return app

    def _upstream_of(self, server: Server) -> Upstream:
        upstream = self._upstreams.get(server)
        if upstream is None:
            config = self.backend.snapshot.config
            upstream = self.upstream_class.build(server.config, config.timeouts, config.forward)
            self._upstreams[server] = upstream
        return upstream

    def _new_instance(self, server: Server) -> str:
        return new_instance(self.backend.clock, self.backend.rng) if server.is_in_process else ""

    # What the backend calls when its configuration changes

    def prepare(self, change: Change, on_ready: Callable[[Exception | None], None]) -> None:
        config, before = change.config, self.snapshot.config
        self._prepared_upstreams.clear()
        if self.apps_built:
            rebuild_all = (config.timeouts, config.forward) != (before.timeouts, before.forward)
            added = set(change.added)
            for server in change.servers if rebuild_all else (*change.added, *change.changed):
                if server in added:
                    wanted = server.config
                else:
                    wanted = server.effective_config(change.changed.get(server, server.requested))
                    if not rebuild_all and _connection_config(wanted) == _connection_config(server.config):
                        continue
                if wanted.is_url:
                    is_resolved = wanted.target is not None
                    self._prepared_upstreams[server] = (
                        self.upstream_class.build(wanted, config.timeouts, config.forward) if is_resolved else None
                    )
        self.build_added(change, on_ready)

    def build_added(self, change: Change, on_ready: Callable[[Exception | None], None]) -> None:
        """Build the apps of the added servers, then call `on_ready`. RuntimeError if one can't be built."""
        if self.apps_built:
            for server in change.added:
                if not server.config.is_url:
                    try:
                        self.build_app(server)
                    except Exception as error:
                        raise RuntimeError(self.start_failure(server, error)) from error
        on_ready(None)

    def start_failure(self, server: Server, error: Exception) -> str:
        return f"backend {self.backend.name}: replica {server.name} failed to start: {type(error).__name__}: {error}"

    def undo(self, change: Change) -> None:
        for server in change.added:
            self.apps.pop(server, None)
        prepared, self._prepared_upstreams = self._prepared_upstreams, {}
        for upstream in prepared.values():
            if upstream is not None:
                upstream.retire()

    def swap(self, change: Change, snapshot: Snapshot) -> None:
        for server, upstream in self._prepared_upstreams.items():
            if (
                upstream is not None and upstream.url != server.config.target
            ):  # the server got another address meanwhile
                self._replaced_upstreams.append(upstream)
                self._moved_while_prepared.append(server)
            else:
                self._set_upstream(server, upstream)
        self._prepared_upstreams.clear()
        self._use_snapshot(snapshot)

    def after_swap(self, change: Change) -> None:
        while self._moved_while_prepared:
            server = self._moved_while_prepared.pop()
            upstream = self.prepare_move(server, server.config)
            with self.backend.placement.lock:
                self.move(server, upstream)
        self._close_replaced_upstreams()
        if self.apps_built:
            for server in change.added:  # those that `prepare` has not built, because the apps were built after it
                if self.apps[server] is None:
                    self._build_app_or_mark_down(server)

    def _set_upstream(self, server: Server, upstream: Upstream | None) -> None:
        """Forward requests to `server` through `upstream` from now on."""
        before = self._upstreams.pop(server, None)
        if before is not None:
            self._replaced_upstreams.append(before)
        if upstream is not None:
            self._upstreams[server] = upstream
        self.apps[server] = None if upstream is None else upstream.app

    def _close_replaced_upstreams(self) -> None:
        """Retire the upstreams that get no new requests. Requests in flight finish."""
        with self.backend.placement.lock:
            replaced, self._replaced_upstreams = self._replaced_upstreams, []
        for upstream in replaced:
            upstream.retire()

    def prepare_move(self, server: Server, config: ServerConfig) -> Upstream | None:
        if not self.apps_built or config.target is None:
            return None
        current = self.snapshot.config
        return self.upstream_class.build(config, current.timeouts, current.forward)

    def move(self, server: Server, prepared: object) -> None:
        if self.apps_built:
            assert prepared is None or isinstance(prepared, Upstream)
            self._set_upstream(server, prepared)
            self.make_interruptible(server.as_tuple)

    def after_move(self, server: Server) -> None:
        self._close_replaced_upstreams()

    def refuse(self, server: Server) -> None:
        self.apps.pop(server, None)

    def retire(self, server: Server, on_done: Callable[[], None]) -> None:
        upstream = self._upstreams.pop(server, None)
        self._interruptible_apps.pop(server, None)
        if upstream is not None:
            upstream.retire()
        on_done()

    def stop(self) -> None:
        """Close the upstreams and drop all apps. `get_ready` builds new ones."""
        for upstream in self._upstreams.values():
            upstream.close()
        with self.backend.reconfigure.change_lock:
            self.is_ready = self.apps_built = False
            self.apps.update(dict.fromkeys(self.apps))
        self.backend.monitor.forget_first_checks()

    def after_fork(self) -> None:
        """Drop the apps: those of the parent process share no memory with it from here on."""
        self._is_building = False
        self._prepared_upstreams.clear()
        self._interruptible_apps.clear()
        for server in [each for each in self.apps if each not in self.snapshot.members]:
            del self.apps[server]
        for server in self.backend.servers:
            server.instance = ""
        self.stop()


def _connection_config(config: ServerConfig) -> tuple[object, ...]:
    """Return what an upstream is built from."""
    return config.target, config.tls, config.pool_max_conn, config.pool_purge_delay
