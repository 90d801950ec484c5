"""Lifespans: each replica has a lifespan and a state of its own, inside the lifespan of the app around it."""

from __future__ import annotations

import inspect
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
from anyio.abc import TaskGroup, TaskStatus

from sticky_asgi.apps import Replicas
from sticky_asgi.messages import ASGIApp, Message, Receive, Schedule, Scope, Send, scheduler
from sticky_asgi.stores import client as stores
from sticky_core.backend.change import Change
from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import ConfigError
from sticky_core.persistence.nesting import InsertedCookie, nested_problems
from sticky_core.server.server import Server

_log = logging.getLogger("sticky_sessions")

State = dict[str, Any]
Job = Callable[[], Coroutine[Any, Any, None]]

#: the key of a lifespan's scope under which nested middlewares note the apps that have a lifespan already
_SEEN = "sticky.lifespans"

#: the key of a lifespan's scope under which nested middlewares find the cookies that those around them insert
_COOKIES = "sticky.cookies"

_STOPPING = "the application is ending"

#: what the scope of a request has, and that of a lifespan has not
_ONLY_IN_REQUESTS = (
    "method",
    "path",
    "raw_path",
    "query_string",
    "headers",
    "scheme",
    "http_version",
    "client",
    "server",
)


class AppWithState:
    """A replica with a state of its lifespan: each request gets a shallow copy of it, over the state of the server."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = {**scope.get("state", {}), **self._state}
        await self._app(scope, receive, send)


@dataclass(frozen=True, slots=True)
class StartFailure:
    """Why an app has not started.

    - `reason`: the reason as text, for the operator.
    - `error`: the exception that the app raised; None if it raised none.
    - `is_announced`: whether servers are to be sent `lifespan.startup.failed`. An app that raises without having sent
      it leaves the decision to the server: `--lifespan on` ends there, `auto` serves without a lifespan.
    - `replica`: the name of the replica; empty for the app around the replicas.
    """

    reason: str
    error: Exception | None = None
    is_announced: bool = True
    replica: str = ""

    def of(self, name: str) -> StartFailure:
        """Return the failure as that of the replica `name`."""
        return replace(self, reason=f"{name} failed to start: {self.reason}", replica=name)

    def with_reason(self) -> RuntimeError:
        """Return an exception with the reason as its text, and the app's exception as its cause."""
        made = RuntimeError(self.reason)
        made.__cause__ = self.error
        return made

    def as_raised(self) -> Exception:
        """Return the exception to be raised to the server: that of the app itself where the server expects one."""
        if self.error is None or (self.replica and self.is_announced):
            return self.with_reason()
        if self.replica:
            self.error.add_note(self.reason)
        return self.error


class Lifespan:
    """The lifespan of one app: a task that runs until `stop`."""

    def __init__(self, app: ASGIApp, scope: Scope) -> None:
        self.app = app
        self._scope = scope
        self._startup_received = False
        self._stop = anyio.Event()
        self._stopped = anyio.Event()
        self._started = False
        self._startup_failure: str | None = None  # the message of `lifespan.startup.failed`
        self._speaks_another_protocol = False
        self._failure: str | None = None
        #: why the app has no lifespan, in its own words; None if it has one
        self.absence: str | None = None

    async def run(self, *, task_status: TaskStatus[StartFailure | None]) -> None:
        """Report why the app can't start, or None; then run until the app returns."""

        def report(failure: StartFailure | None) -> None:
            if not self._started:
                self._started = True
                task_status.started(failure)

        async def send(message: Message) -> None:
            match message["type"]:
                case "lifespan.startup.complete":
                    report(None)
                case "lifespan.startup.failed":  # reported once the app has returned, or raised the reason
                    self._startup_failure = _reason(message)
                    self._stop.set()
                case "lifespan.shutdown.failed":
                    self._failure = _reason(message)
                    self._stopped.set()
                case kind:
                    self._speaks_another_protocol = not kind.startswith("lifespan.")
                    self._stopped.set()

        failure: StartFailure | None = None
        try:
            await run_app(self.app, self._scope, self._receive, send)
            if self._startup_failure is not None:
                failure = StartFailure(self._startup_failure)
        except Exception as error:
            text = _text(error)
            if self._startup_failure is not None:
                failure = StartFailure(self._startup_failure, error)
            elif self._started:
                if not self._stopped.is_set():
                    self._failure = text
            elif self._speaks_another_protocol or (not self._startup_received and _refuses_scope(error)):
                self.absence = text
            else:
                failure = StartFailure(text, error, is_announced=False)
        finally:
            self._stopped.set()
            report(failure)

    async def _receive(self) -> Message:
        if not self._startup_received:
            self._startup_received = True
            return {"type": "lifespan.startup"}
        await self._stop.wait()
        return {"type": "lifespan.shutdown"}

    async def stop(self) -> str | None:
        """Shut the app down and wait for it. Return how the shutdown failed, or None."""
        self._stop.set()
        await self._stopped.wait()
        return self._failure


async def run_app(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Call `app` with the scope of a lifespan. One that is no coroutine function, and returns none, can't serve a
    request either: that is sent as the reason why the startup failed, and raised as ConfigError.
    """
    called: object = app(scope, receive, send)
    if inspect.isawaitable(called):
        await called
        return
    problem = f"{app!r} returned {called!r}, which can't be awaited: an ASGI app is written with `async def`"
    await send({"type": "lifespan.startup.failed", "message": f"ConfigError: {problem}"})
    raise ConfigError(problem)


def _reason(message: Message) -> str:
    text: str = message.get("message") or "no reason given"
    return text.rstrip()


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _refuses_scope(error: Exception) -> bool:
    """Return whether an app that raised `error`, and had received no message, refuses the type of a lifespan's scope.
    An app without a lifespan raises there (ASGI, Lifespan Protocol), and so does one that is broken, as when a
    middleware can't be made: only the exception shows which of them it is.
    """
    text = str(error).lower()
    match error:
        case NotImplementedError():
            return True
        case AssertionError() if not text:  # `assert scope["type"] == "http"`
            return True
        case KeyError(args=[key]) if key in _ONLY_IN_REQUESTS:
            return True
        case TypeError():  # such as an argument with the name scope that a middleware lacks
            return "lifespan" in text
        case _:
            return "lifespan" in text or "scope" in text


class Lifespans:
    """The lifespans of an app and of all replicas behind it: started in order, stopped in the opposite order."""

    def __init__(self, app: ASGIApp | None, replicas: Iterable[Replicas], scope: Scope) -> None:
        self._app = app
        self._scope = scope
        self._replicas = list(replicas)
        self._owned: list[Replicas] = []
        # An app object may be the target of several servers, or be wrapped and served. It has one lifespan, one state.
        self._seen: dict[int, tuple[ASGIApp, State]] = scope.get(_SEEN, {})
        self._running: dict[int, tuple[str, Lifespan]] = {}  # by the identity of the app
        self._app_of: dict[Server, int] = {}
        self._stopping = False
        self._jobs: deque[Job] = deque()  # to run on this event loop, put there by any thread

    async def start(self, group: TaskGroup) -> StartFailure | None:
        """Start all lifespans, or none. Return why one can't start, or None."""
        self._group = group
        self._schedule: Schedule = scheduler()
        self._jobs_added = anyio.Event()
        self._jobs_scope = anyio.CancelScope()
        group.start_soon(self._run_jobs)
        failure = await self._start_all()
        if failure is not None:
            await self.stop()
        return failure

    async def _start_all(self) -> StartFailure | None:
        if self._app is not None:
            failure = await self._start("", self._app, self._scope.get("state"))
            if failure is not None:
                return failure
        for replicas in self._replicas:
            # checked only now: another middleware inside the app may have started them together with the app
            if replicas.lifespans is not None:
                continue
            replicas.lifespans = self
            self._owned.append(replicas)
            replicas.discovery.start_in(self._group)
            await replicas.discovery.wait_for_first_answers()
            started: set[Server] = set()
            while rest := [server for server in replicas.backend.servers if server not in started]:
                for server in rest:  # while it starts, others may be added and removed
                    started.add(server)
                    failure = None if server.removed else await self._start_replica(replicas, server)
                    if failure is not None:
                        return failure
            replicas.start()
            replicas.checks.start_in(self._group)
            replicas.backend.monitor.begin_startup()  # those of all backends run side by side
        for replicas in self._owned:
            await replicas.checks.wait_for_first_checks()
        return None

    async def _start_replica(self, replicas: Replicas, server: Server) -> StartFailure | None:
        name = f"backend {replicas.backend.name}: replica {server.name}"
        try:
            app: ASGIApp | None = replicas.uninterruptible_app(server)
            if app is None:
                app = replicas.build_app(server)
        except Exception as error:
            return StartFailure(_text(error), error).of(name)
        if app is None or server.config.is_url:
            return None  # an app at a URL has its lifespan in another process
        seen = self._seen.get(id(app))
        state: State = {} if seen is None else seen[1]
        if seen is None and (failure := await self._start(name, app, state)) is not None:
            return failure.of(name)
        self._app_of[server] = id(app)
        if state:
            replicas.apps[server] = AppWithState(app, state)
        return None

    async def _start(self, name: str, app: ASGIApp, state: State | None) -> StartFailure | None:
        """Start the lifespan of `app`. `state`: None if the server has none."""
        self._seen[id(app)] = app, {} if state is None else state
        own = {} if state is None else {"state": state}
        lifespan = Lifespan(app, {**self._scope, **own, _SEEN: self._seen})
        failure: StartFailure | None = await self._group.start(lifespan.run)
        if lifespan.absence is not None:
            _log.info("%s has no lifespan, and is served without one: %s", name or "the app", lifespan.absence)
        if failure is None:
            self._running[id(app)] = name, lifespan
        else:
            self._seen.pop(id(app), None)
        return failure

    async def restart(self, replicas: Replicas, server: Server) -> None:
        """Stop one replica and start another in its place. RuntimeError if that fails to start."""
        await self._stop(server)
        replicas.apps[server] = None
        failure = await self._start_replica(replicas, server)
        if failure is not None:
            raise failure.with_reason()

    # Called from any thread

    def _spawn(self, job: Job) -> bool:
        """Run `job` on the event loop of the lifespans. Return False if they have stopped."""
        self._jobs.append(job)
        try:
            self._schedule(lambda: self._jobs_added.set())
        except RuntimeError:  # the event loop has ended as well
            return False
        return not self._stopping

    async def _run_jobs(self) -> None:
        with self._jobs_scope:
            while True:
                self._jobs_added = anyio.Event()
                self._start_jobs()
                await self._jobs_added.wait()

    def _start_jobs(self) -> None:
        while self._jobs:
            self._group.start_soon(self._jobs.popleft())

    def prepare(self, replicas: Replicas, change: Change, on_ready: Callable[[Exception | None], None]) -> None:
        """Start the servers that `change` adds, then call `on_ready`."""

        async def start() -> None:
            failure: StartFailure | None = None
            try:
                for server in change.added:
                    failure = StartFailure(_STOPPING)  # unless the start of the replica gives another reason
                    if not self._stopping:
                        failure = None if server.config.is_url else await self._start_replica(replicas, server)
                    if failure is not None:
                        break
            finally:
                on_ready(None if failure is None else failure.with_reason())
                if self._stopping:
                    for server in change.added:
                        await self._stop(server)

        if not self._spawn(start):
            raise RuntimeError(_STOPPING)

    def start_background_tasks(self, replicas: Replicas) -> None:
        """Start the checks and the discovery of `replicas`, which a change has made necessary."""

        async def start() -> None:
            if not self._stopping:
                replicas.checks.start_in(self._group)
                replicas.discovery.start_in(self._group)

        self._spawn(start)

    def retire(self, server: Server, on_done: Callable[[], None]) -> None:
        """Stop the lifespan of a server that no request uses any more, then call `on_done`."""

        async def stop() -> None:
            failure = await self._stop(server)
            if failure is not None:
                _log.error("server %s: %s", server.name, failure)
            on_done()

        if server not in self._app_of or not self._spawn(stop):
            on_done()

    async def _stop(self, server: Server) -> str | None:
        """Stop the lifespan of the server's app, unless other servers have the same app. Return how it failed, or
        None.
        """
        number = self._app_of.pop(server, None)
        if number is None or number in self._app_of.values():
            return None
        _, lifespan = self._running.pop(number, ("", None))
        if lifespan is None:
            return None  # another middleware runs it
        self._seen.pop(number, None)
        return await lifespan.stop()

    async def stop(self) -> list[str]:
        """Stop all lifespans, the last first. Return how some of them failed."""
        problems: list[str] = []
        self._stopping = True
        self._jobs_scope.cancel()
        self._start_jobs()
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

    def record_absence(self) -> None:
        """Record that requests will come although no lifespan runs, which the operator knows by now."""
        for replicas in self._replicas:
            replicas.has_warned = True

    def release(self) -> None:
        """Release the replicas, stopped or not: the next lifespan starts them anew."""
        for replicas in self._owned:
            if replicas.lifespans is self:
                replicas.lifespans = None
                replicas.stop()


async def serve_lifespan(
    app: ASGIApp | None,
    replicas: Iterable[Replicas],
    scope: Scope,
    receive: Receive,
    send: Send,
    cookies: Sequence[InsertedCookie],
    error: ConfigError | None = None,
) -> None:
    """Serve a server's lifespan for `app` and the replicas behind it. `cookies`: those that the dispatcher inserts.
    `error`: why startup fails.

    A failure is sent and then raised, as in Starlette: servers read the message, its TestClient the exception. If an
    app raises without having sent anything, its exception is raised likewise.
    """
    await receive()
    around: tuple[InsertedCookie, ...] = scope.get(_COOKIES, ())
    problems = nested_problems(around, cookies)
    error = ConfigError(*problems) if error is None and problems else error
    if error is not None:
        await send({"type": "lifespan.startup.failed", "message": f"ConfigError: {error}"})
        raise error
    lifespans = Lifespans(app, replicas, {**scope, _COOKIES: (*around, *cookies)})
    problems = []
    failure: StartFailure | None = None
    try:
        async with anyio.create_task_group() as group:
            failure = await lifespans.start(group)
            if failure is None:
                await send({"type": "lifespan.startup.complete"})
                await receive()
                problems = await lifespans.stop()
    finally:
        lifespans.release()
    if failure is not None:
        if failure.is_announced:
            await send({"type": "lifespan.startup.failed", "message": failure.reason})
        else:
            lifespans.record_absence()
            _log.warning(
                "%s%s. This was raised in the lifespan, and lifespan.startup.failed was not sent: with `--lifespan on` "
                "a server ends here, otherwise it serves requests, and no lifespan runs.",
                "" if failure.replica else "the app failed to start: ",
                failure.reason,
            )
        raise failure.as_raised()
    if problems:
        await send({"type": "lifespan.shutdown.failed", "message": "; ".join(problems)})
        raise RuntimeError("; ".join(problems))
    await send({"type": "lifespan.shutdown.complete"})


@asynccontextmanager
async def lifespan_of(replicas: Replicas) -> AsyncGenerator[None]:
    """Run the lifespans of `replicas` for a mounted dispatcher, which gets no lifespan from a server. RuntimeError if a
    replica fails to start.
    """
    lifespans = Lifespans(None, [replicas], {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}})
    raised: BaseException | None = None
    failure: StartFailure | None = None
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
        lifespans.release()
    if raised is not None:
        raise raised
    if failure is not None:
        raise failure.with_reason()
