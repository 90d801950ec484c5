"""Begin and end: a lifespan passed on to every replica, each with a state of its own."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import TaskGroup, TaskStatus

from sticky_asgi.checks import Checks, Cut
from sticky_asgi.messages import ASGIApp, Message, Receive, Scope, Send, Sparing, Transaction
from sticky_asgi.upstream import Upstream
from sticky_core.backend import Backend
from sticky_core.errors import ConfigError
from sticky_core.events import StateChange
from sticky_core.replicas import Replicas as CoreReplicas
from sticky_core.server import Server
from sticky_core.transaction import Reporting

_log = logging.getLogger("sticky_sessions")

State = dict[str, Any]

#: the key of a lifespan's scope under which nested middlewares tell each other which apps have had theirs
_SEEN = "sticky.lifespans"


class Reported(Reporting[Scope, Send], Transaction):
    """A transaction that reports how it turned out at each server."""

    __slots__ = ()


class ReportedSparing(Reporting[Scope, Send], Sparing):
    """The same of one whose answers may be held back."""

    __slots__ = ()


class Replicas(CoreReplicas):
    """The apps behind a backend's servers."""

    kind = "asgi"
    forwards = Upstream
    apps: dict[Server, ASGIApp | None]

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        spares = bool(backend.retries.statuses)
        self.transaction: type[Transaction] = Sparing if spares else Transaction
        if backend.observes:
            self.transaction = ReportedSparing if spares else Reported
        self.checks = Checks(self)
        if backend.shuts_down:
            backend.events(self._marked)
        self.lifespans: Lifespans | None = None  # who runs them, so that nobody else does
        self.warned = False

    @property
    def _watched(self) -> bool:
        return self.checks.cared_for

    def begin(self) -> None:
        if not self.checks.cared_for and self.lifespans is None:
            self.checks.begin()
        super().begin()

    def make_all(self) -> bool:
        made = super().make_all()
        if made:
            self.seal()
            self._warn()
        return made

    def start(self) -> None:
        self.seal()
        super().start()

    def seal(self) -> None:
        """Let those apps be cut off whose servers take what is in flight with them."""
        for server, app in self.apps.items():
            check = server.checking.check if server.checking is not None else None
            if check is not None and check.on_marked_down and app is not None and not isinstance(app, Cut):
                self.apps[server] = Cut(app, server)

    def _marked(self, change: StateChange) -> None:
        if change.after == "DOWN":
            app = self.apps[self.backend[change.server]]
            if isinstance(app, Cut):
                app.end()

    def _warn(self) -> None:
        if not self.warned and len(self._upstreams) < len(self.apps):
            self.warned = True
            _log.warning(
                "backend %s: requests came before any lifespan, so the lifespans of its replicas do not run. If the "
                "dispatcher is mounted, run `dispatcher.lifespan()` in the lifespan of the app around it; with "
                "Starlette's TestClient, use `with TestClient(app)`.",
                self.backend.name,
            )

    def forked(self) -> None:
        self.checks.forked()
        super().forked()

    async def restart(self, server: Server) -> None:
        """End one replica and begin another in its place. RuntimeError if that fails to start."""
        if self.lifespans is not None:
            await self.lifespans.restart(self, server)
        else:
            self.make(server)
        self.seal()


class WithState:
    """A replica whose lifespan has left something for its requests: each finds a shallow copy of it, over what the
    server has left.
    """

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = {**scope.get("state", {}), **self._state}
        await self._app(scope, receive, send)


class Lifespan:
    """The lifespan of one app: a task that lives until it is told to stop."""

    def __init__(self, app: ASGIApp, scope: Scope) -> None:
        self.app = app
        self._scope = scope
        self._asked = False
        self._stop = anyio.Event()
        self._ended = anyio.Event()
        self._answered = False
        self._failure: str | None = None

    async def run(self, *, task_status: TaskStatus[str | None]) -> None:
        """Report why it can't start, or None; then stay until the app is through."""

        def report(failure: str | None) -> None:
            if not self._answered:
                self._answered = True
                task_status.started(failure)

        async def send(message: Message) -> None:
            match message["type"]:
                case "lifespan.startup.complete":
                    report(None)
                case "lifespan.startup.failed":
                    report(_said(message))
                case "lifespan.shutdown.failed":
                    self._failure = _said(message)
                    self._ended.set()
                case _:
                    self._ended.set()

        try:
            await self.app(self._scope, self._receive, send)
        except Exception as error:
            # An app that raises before it has answered knows no lifespan: servers go on without, and so do we.
            if self._answered and not self._ended.is_set():
                self._failure = f"{type(error).__name__}: {error}"
        finally:
            self._ended.set()
            report(None)

    async def _receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "lifespan.startup"}
        await self._stop.wait()
        return {"type": "lifespan.shutdown"}

    async def stop(self) -> str | None:
        """Ask the app to end, and wait until it has; how it failed, if it did."""
        self._stop.set()
        await self._ended.wait()
        return self._failure


def _said(message: Message) -> str:
    return message.get("message") or "no reason given"


class Lifespans:
    """The lifespans of an app and of all replicas behind it: begun in order, ended in the opposite one."""

    def __init__(self, app: ASGIApp | None, replicas: Iterable[Replicas], scope: Scope) -> None:
        self._app = app
        self._scope = scope
        self._replicas = list(replicas)
        self._owned: list[Replicas] = []
        # An app object may stand behind several servers, or be wrapped and served. It has one lifespan, and one state.
        self._seen: dict[int, tuple[ASGIApp, State]] = scope.get(_SEEN, {})
        self._running: dict[object, tuple[str, Lifespan]] = {}  # by server, and the wrapped app's

    async def start(self, group: TaskGroup) -> str | None:
        """Start them all, or none: why it could not be done, else None."""
        self._group = group
        failure = await self._start_all()
        if failure is not None:
            await self.stop()
        return failure

    async def _start_all(self) -> str | None:
        if self._app is not None:
            state: State = self._scope.get("state", {})
            failure = await self._start("the app", "", self._app, state)
            if failure is not None:
                return failure
        for replicas in self._replicas:
            # looked at only now: a middleware further in may have begun them with the app
            if replicas.lifespans is not None:
                continue
            replicas.lifespans = self
            self._owned.append(replicas)
            for server in replicas.backend.servers:
                failure = await self._start_replica(replicas, server)
                if failure is not None:
                    return failure
            replicas.start()
            replicas.checks.start(self._group)
        return None

    async def _start_replica(self, replicas: Replicas, server: Server) -> str | None:
        name = f"backend {replicas.backend.name}: replica {server.name}"
        try:
            app = replicas.apps[server]
            if app is None:
                app = replicas.make(server)
        except Exception as error:
            return f"{name} failed to start: {type(error).__name__}: {error}"
        if isinstance(server.config.target, str):
            return None  # a URL has its life elsewhere
        seen = self._seen.get(id(app))
        state: State = {} if seen is None else seen[1]
        if seen is None and (failure := await self._start(server, name, app, state)) is not None:
            return f"{name} failed to start: {failure}"
        if state:
            replicas.apps[server] = WithState(app, state)
        return None

    async def _start(self, key: object, name: str, app: ASGIApp, state: State) -> str | None:
        self._seen[id(app)] = app, state
        lifespan = Lifespan(app, {**self._scope, "state": state, _SEEN: self._seen})
        failure: str | None = await self._group.start(lifespan.run)
        if failure is None:
            self._running[key] = name, lifespan
        return failure

    async def restart(self, replicas: Replicas, server: Server) -> None:
        """End one replica and begin another in its place. RuntimeError if that fails to start."""
        _, lifespan = self._running.pop(server, ("", None))
        if lifespan is not None:
            await lifespan.stop()
            self._seen.pop(id(lifespan.app), None)
        replicas.apps[server] = None
        failure = await self._start_replica(replicas, server)
        if failure is not None:
            raise RuntimeError(failure)

    async def stop(self) -> list[str]:
        """End them all, the last first; how some failed to."""
        problems: list[str] = []
        for replicas in self._owned:
            await replicas.checks.end()
        for name, lifespan in reversed(self._running.values()):
            failure = await lifespan.stop()
            if failure is not None:
                problems.append(f"{name}: {failure}" if name else failure)
        for problem in problems:
            _log.error("at shutdown: %s", problem)
        return problems

    def let_go(self) -> None:
        """The replicas are anybody's again, ended or not: the next lifespan begins them anew."""
        for replicas in self._owned:
            if replicas.lifespans is self:
                replicas.lifespans = None
                replicas.end()


async def serve_lifespan(
    app: ASGIApp | None,
    replicas: Iterable[Replicas],
    scope: Scope,
    receive: Receive,
    send: Send,
    error: ConfigError | None = None,
) -> None:
    """Answer a server's lifespan for `app` and the replicas behind it, or tell why there can be none.

    What fails is told and then raised, as Starlette does it: servers read the message, its TestClient the exception.
    """
    await receive()
    if error is not None:
        await send({"type": "lifespan.startup.failed", "message": f"ConfigError: {error}"})
        raise error
    lifespans = Lifespans(app, replicas, scope)
    problems: list[str] = []
    failure: str | None = None
    try:
        async with anyio.create_task_group() as group:
            failure = await lifespans.start(group)
            if failure is None:
                await send({"type": "lifespan.startup.complete"})
                await receive()
                problems = await lifespans.stop()
    finally:
        lifespans.let_go()
    if failure is not None:
        await send({"type": "lifespan.startup.failed", "message": failure})
        raise RuntimeError(failure)
    if problems:
        await send({"type": "lifespan.shutdown.failed", "message": "; ".join(problems)})
        raise RuntimeError("; ".join(problems))
    await send({"type": "lifespan.shutdown.complete"})


@asynccontextmanager
async def lifespan_of(replicas: Replicas) -> AsyncGenerator[None]:
    """The same for a dispatcher that no server tells of its lifespan, because it is mounted. RuntimeError if a replica
    fails to start.
    """
    lifespans = Lifespans(None, [replicas], {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}})
    raised: BaseException | None = None
    failure: str | None = None
    try:
        async with anyio.create_task_group() as group:
            failure = await lifespans.start(group)
            if failure is None:
                try:
                    yield
                except BaseException as error:  # kept out of the task group, which would wrap it
                    raised = error
                with anyio.CancelScope(shield=True):
                    await lifespans.stop()
    finally:
        lifespans.let_go()
    if raised is not None:
        raise raised
    if failure is not None:
        raise RuntimeError(failure)
