"""Begin and end: a lifespan passed on to every replica, each with a state of its own."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import TaskGroup, TaskStatus

from sticky_asgi.background.checks import Checks
from sticky_asgi.background.discovery import Discovery
from sticky_asgi.interruptible import InterruptibleApp
from sticky_asgi.messages import (
    ASGIApp,
    Message,
    Receive,
    Scope,
    Send,
    Soon,
    StatusRetryTransaction,
    Transaction,
    soon_here,
)
from sticky_asgi.stores import client as stores
from sticky_asgi.upstream.app import Upstream
from sticky_core.backend.backend import Backend
from sticky_core.backend.change import Change
from sticky_core.backend.snapshot import Snapshot
from sticky_core.errors import ConfigError
from sticky_core.runtime.apps import Apps
from sticky_core.runtime.apps import Replicas as CoreReplicas
from sticky_core.server.server import Server
from sticky_core.transaction.transaction import Reporting

_log = logging.getLogger("sticky_sessions")

State = dict[str, Any]
Errand = Callable[[], Coroutine[Any, Any, None]]

#: the key of a lifespan's scope under which nested middlewares tell each other which apps have had theirs
_SEEN = "sticky.lifespans"

_ENDING = "the application is ending"


class Reported(Reporting[Scope, Send], Transaction):
    """A transaction that reports how it turned out at each server."""

    __slots__ = ()


class ReportedSparing(Reporting[Scope, Send], StatusRetryTransaction):
    """The same of one whose answers may be held back."""

    __slots__ = ()


class Replicas(CoreReplicas):
    """The apps behind a backend's servers."""

    kind = "asgi"
    forwards = Upstream
    interruptible_app = InterruptibleApp
    apps: Apps[ASGIApp]

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self.checks = Checks(backend, self.apps)
        self.discovery = Discovery(backend)
        self.lifespans: Lifespans | None = None  # who runs them, so that nobody else does
        self.warned = False

    def _follow(self, snapshot: Snapshot) -> None:
        spares = bool(snapshot.retries.statuses)
        self.transaction: type[Transaction] = StatusRetryTransaction if spares else Transaction
        if snapshot.observes:
            self.transaction = ReportedSparing if spares else Reported
        super()._follow(snapshot)

    @property
    def _watched(self) -> bool:
        return self.checks.has_owner and self.discovery.has_owner and not self.discovery.is_pending

    def begin(self) -> None:
        if not self.checks.has_owner and self.lifespans is None:
            self.checks.start()
        if not self.discovery.has_owner and self.lifespans is None:
            self.discovery.start()
        super().begin()

    def make_all(self) -> bool:
        made = super().make_all()
        if made:
            self._are_made()
            self._warn()
        return made

    def start(self) -> None:
        self._are_made()
        super().start()

    def _are_made(self) -> None:
        """All apps are there, whoever made them."""
        self.seal(self.backend.servers)
        stores.listen(self.backend.stores)

    def begin_those_who_come(self, change: Change, on_ready: Callable[[Exception | None], None]) -> None:
        if self.lifespans is not None and self.made and not all(server.config.is_url for server in change.added):
            self.lifespans.prepare(self, change, on_ready)
        else:
            super().begin_those_who_come(change, on_ready)

    def undo(self, change: Change) -> None:
        if self.lifespans is not None:
            for server in change.added:
                self.lifespans.retire(server, lambda: None)
        super().undo(change)

    def after_swap(self, change: Change) -> None:
        super().after_swap(change)
        self.seal(change.added)
        self.discovery.update()
        self._check_anew()

    def after_move(self, server: Server) -> None:
        super().after_move(server)
        self._check_anew()

    def _check_anew(self) -> None:
        self.checks.update()
        if self.lifespans is not None and not (self.checks.has_owner and self.discovery.has_owner):
            self.lifespans.start_checks(self)

    def retire(self, server: Server, on_done: Callable[[], None]) -> None:
        self.checks.remove(server)
        if self.lifespans is not None:
            super().retire(server, lambda: None)
            self.lifespans.retire(server, on_done)
        else:
            super().retire(server, on_done)

    def _warn(self) -> None:
        if not self.warned and not all(server.config.is_url for server in self.apps):
            self.warned = True
            _log.warning(
                "backend %s: requests came before any lifespan, so the lifespans of its replicas do not run. If the "
                "dispatcher is mounted, run `dispatcher.lifespan()` in the lifespan of the app around it; with "
                "Starlette's TestClient, use `with TestClient(app)`.",
                self.backend.name,
            )

    def after_fork(self) -> None:
        self.checks.after_fork()
        self.discovery.after_fork()
        super().after_fork()

    async def restart(self, server: Server) -> None:
        """End one replica and begin another in its place. RuntimeError if that fails to start."""
        if self.lifespans is not None:
            await self.lifespans.restart(self, server)
        else:
            self.make(server)
        self.seal(server.as_tuple)


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
        self._running: dict[int, tuple[str, Lifespan]] = {}  # by the identity of the app
        self._app_of: dict[Server, int] = {}
        self._ending = False
        self._errands: deque[Errand] = deque()  # what others want to be done on this event loop

    async def start(self, group: TaskGroup) -> str | None:
        """Start them all, or none: why it could not be done, else None."""
        self._group = group
        self._soon: Soon = soon_here()
        self._bell = anyio.Event()
        self._running_errands = anyio.CancelScope()
        group.start_soon(self._run_errands)
        failure = await self._start_all()
        if failure is not None:
            await self.stop()
        return failure

    async def _start_all(self) -> str | None:
        if self._app is not None:
            state: State = self._scope.get("state", {})
            failure = await self._start("", self._app, state)
            if failure is not None:
                return failure
        for replicas in self._replicas:
            # looked at only now: a middleware further in may have begun them with the app
            if replicas.lifespans is not None:
                continue
            replicas.lifespans = self
            self._owned.append(replicas)
            replicas.discovery.start_in(self._group)
            await replicas.discovery.wait_for_first_answers()
            begun: set[Server] = set()
            while rest := [server for server in replicas.backend.servers if server not in begun]:
                for server in rest:  # while it starts, others may come and go
                    begun.add(server)
                    failure = None if server.removed else await self._start_replica(replicas, server)
                    if failure is not None:
                        return failure
            replicas.start()
            replicas.checks.start_in(self._group)
        return None

    async def _start_replica(self, replicas: Replicas, server: Server) -> str | None:
        name = f"backend {replicas.backend.name}: replica {server.name}"
        try:
            app = replicas.apps[server]
            if app is None:
                app = replicas.make(server)
        except Exception as error:
            return f"{name} failed to start: {type(error).__name__}: {error}"
        if app is None or server.config.is_url:
            return None  # a URL has its life elsewhere
        seen = self._seen.get(id(app))
        state: State = {} if seen is None else seen[1]
        if seen is None and (failure := await self._start(name, app, state)) is not None:
            return f"{name} failed to start: {failure}"
        self._app_of[server] = id(app)
        if state:
            replicas.apps[server] = WithState(app, state)
        return None

    async def _start(self, name: str, app: ASGIApp, state: State) -> str | None:
        self._seen[id(app)] = app, state
        lifespan = Lifespan(app, {**self._scope, "state": state, _SEEN: self._seen})
        failure: str | None = await self._group.start(lifespan.run)
        if failure is None:
            self._running[id(app)] = name, lifespan
        else:
            self._seen.pop(id(app), None)
        return failure

    async def restart(self, replicas: Replicas, server: Server) -> None:
        """End one replica and begin another in its place. RuntimeError if that fails to start."""
        await self._stop(server)
        replicas.apps[server] = None
        failure = await self._start_replica(replicas, server)
        if failure is not None:
            raise RuntimeError(failure)

    # From whatever thread

    def _spawn(self, errand: Errand) -> bool:
        """Run `errand` where the lifespans run. False: they have ended."""
        self._errands.append(errand)
        try:
            self._soon(lambda: self._bell.set())
        except RuntimeError:  # so has their event loop
            return False
        return not self._ending

    async def _run_errands(self) -> None:
        with self._running_errands:
            while True:
                self._bell = anyio.Event()
                self._begin_errands()
                await self._bell.wait()

    def _begin_errands(self) -> None:
        while self._errands:
            self._group.start_soon(self._errands.popleft())

    def prepare(self, replicas: Replicas, change: Change, on_ready: Callable[[Exception | None], None]) -> None:
        """Start the servers that `change` brings."""

        async def start() -> None:
            failure: str | None = None
            try:
                for server in change.added:
                    failure = _ENDING  # unless there is more to say when it has been waited for
                    if not self._ending:
                        failure = None if server.config.is_url else await self._start_replica(replicas, server)
                    if failure is not None:
                        break
            finally:
                on_ready(None if failure is None else RuntimeError(failure))
                if self._ending:
                    for server in change.added:
                        await self._stop(server)

        if not self._spawn(start):
            raise RuntimeError(_ENDING)

    def start_checks(self, replicas: Replicas) -> None:
        """There are some now."""

        async def start() -> None:
            if not self._ending:
                replicas.checks.start_in(self._group)
                replicas.discovery.start_in(self._group)

        self._spawn(start)

    def retire(self, server: Server, on_done: Callable[[], None]) -> None:
        """Stop the lifespan of a server that nobody uses any more."""

        async def stop() -> None:
            failure = await self._stop(server)
            if failure is not None:
                _log.error("server %s: %s", server.name, failure)
            on_done()

        if server not in self._app_of or not self._spawn(stop):
            on_done()

    async def _stop(self, server: Server) -> str | None:
        """Stop its lifespan, unless its app stands behind others as well; how it failed to end."""
        number = self._app_of.pop(server, None)
        if number is None or number in self._app_of.values():
            return None
        _, lifespan = self._running.pop(number, ("", None))
        if lifespan is None:
            return None  # somebody else runs it
        self._seen.pop(number, None)
        return await lifespan.stop()

    async def stop(self) -> list[str]:
        """End them all, the last first; how some failed to."""
        problems: list[str] = []
        self._ending = True
        self._running_errands.cancel()
        self._begin_errands()
        for replicas in self._owned:
            await replicas.discovery.stop()
            await replicas.checks.stop()
        for name, lifespan in reversed(list(self._running.values())):
            failure = await lifespan.stop()
            if failure is not None:
                problems.append(f"{name}: {failure}" if name else failure)
        for replicas in self._owned:
            await stores.close(replicas.backend.stores)
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
