"""Run the health checks of a backend on an event loop: one task for each check, which sleeps and probes.

Also `wait`, by which the core waits for a backend's events on an event loop (`EventLoop.place`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

import anyio
import anyio.abc
import anyio.lowlevel

from sticky_asgi.background.probes import Network, call_probe, check_app
from sticky_asgi.background.task import BackgroundTask
from sticky_asgi.interruptible import InterruptibleApp
from sticky_asgi.messages import ASGIApp, scheduler, waker
from sticky_core.backend.backend import Backend
from sticky_core.backend.event_loop import Subscribe
from sticky_core.health.agent import AgentCheck, AgentReply
from sticky_core.health.check import CheckResult
from sticky_core.health.runtime import CheckRuntime
from sticky_core.runtime.apps import Apps
from sticky_core.server.server import Server
from sticky_core.upstream.probe import AgentProbe, NetworkProbe, ProbeFactory, checks_of

#: how long after the start on an event loop the first checks begin, in seconds
_START_DELAY = 0.05

#: checks a server once, and records the result
_CheckOnce = Callable[[], Awaitable[None]]


class Checks(BackgroundTask):
    """The checks of one backend, on the event loop that owns them."""

    _loop: asyncio.AbstractEventLoop | None  # None: an event loop of another library
    _network: Network | None
    _stale: list[Server]  # servers that may have other checks than those that run

    def __init__(self, backend: Backend, apps: Apps[ASGIApp]) -> None:
        super().__init__()
        self._backend = backend
        self._apps = apps

    @property
    def has_owner(self) -> bool:
        """Whether the checks run, on this event loop or on another; true as well if there are none."""
        return not self._backend.has_checks or not self._backend.checks_are_free

    @property
    def are_pending(self) -> bool:
        """Whether requests have to wait for the first checks (`Check.startup`)."""
        return not self._backend.monitor.first_checks.is_over

    async def wait_for_first_checks(self) -> None:
        """Wait until each server with `startup="wait"` has been checked once, no longer than that may take."""
        monitor = self._backend.monitor
        monitor.begin_startup()
        first_checks = monitor.first_checks
        if not first_checks.is_over:
            with anyio.move_on_after(first_checks.timeout) as scope:
                await first_checks.startup
            if scope.cancelled_caught:
                monitor.end_startup()

    @property
    def is_needed(self) -> bool:
        return self._backend.has_checks

    def _acquire(self) -> bool:
        self._changed = anyio.Event()
        return self._backend.acquire_checks(self)

    def _release(self) -> None:
        self._backend.release_checks(self)
        self._backend.monitor.schedule_timers()

    async def _run_forever(self) -> None:
        # An event loop that runs for one request ends before any check begins, which would have to be cancelled, unless
        # that request waits for checks.
        if not self._backend.monitor.first_checks.are_awaited:
            await anyio.sleep(_START_DELAY)
        native: object = anyio.lowlevel.current_token().native_token
        self._loop = native if isinstance(native, asyncio.AbstractEventLoop) else None
        self._network = Network(self._loop)
        async with anyio.create_task_group() as group:
            self._update_tasks(group, self._backend.servers)
            while True:
                await self._changed.wait()
                self._changed = anyio.Event()
                self._update_stale(group)

    def update(self, servers: Sequence[Server] | None) -> None:
        """Start and cancel the checks of `servers` as they are needed now; None: of all servers. Safe to call from any
        thread.
        """
        schedule = self._schedule
        if schedule is not None:
            with suppress(RuntimeError):  # the event loop has just ended, and with it the checks
                schedule(lambda: self._update_soon(servers))

    def _update_soon(self, servers: Sequence[Server] | None) -> None:
        self._stale += self._backend.servers if servers is None else servers
        self._changed.set()

    def remove(self, server: Server) -> None:
        """Forget a server that was removed."""
        if self._network is not None:
            self._network.remove(server)

    def _update_stale(self, group: anyio.abc.TaskGroup) -> None:
        stale, self._stale = self._stale, []
        self._update_tasks(group, stale)

    def _update_tasks(self, group: anyio.abc.TaskGroup, servers: Iterable[Server]) -> None:
        """Let one task run for each check of these servers, and no others."""
        for server in servers:
            wanted = dict(checks_of(server)) if server in self._backend.snapshot.members else {}
            running = self._tasks.setdefault(server, {})
            for checking in [each for each in running if each not in wanted]:
                running.pop(checking).cancel()
            for checking, agent in wanted.items():
                if checking not in running:
                    running[checking] = scope = anyio.CancelScope()
                    check_once = self._agent_query(server, checking, agent) if agent else self._check(server, checking)
                    group.start_soon(self._check_forever, server, checking, check_once, scope)
            if not running:
                del self._tasks[server]

    def _reset(self) -> None:
        super()._reset()
        self._tasks: dict[Server, dict[CheckRuntime, anyio.CancelScope]] = {}
        self._stale = []
        self._loop = self._network = None

    async def _check_forever(
        self, server: Server, checking: CheckRuntime, check_once: _CheckOnce, scope: anyio.CancelScope
    ) -> None:
        sleeper = _AsyncioSleeper(self._loop) if self._loop is not None else _Sleeper()
        now = self._backend.clock.monotonic
        with scope:
            while True:
                checking.wake = sleeper.wake
                if server.pauses(checking):
                    await sleeper.sleep(None)
                elif (delay := checking.delay(now())) > 0.001:
                    await sleeper.sleep(delay)
                else:
                    checking.wake = None
                    await check_once()
                    self._backend.monitor.run_due_timers()

    def _check(self, server: Server, checking: CheckRuntime) -> _CheckOnce:
        """Return the function that checks a server once."""
        probe = self._probe_of(server, checking)

        async def check_once() -> None:
            started = anyio.current_time()
            result = await probe()
            result = result.after(anyio.current_time() - started)
            self._backend.monitor.record_check(server, result, checking)

        return check_once

    def _probe_of(self, server: Server, checking: CheckRuntime) -> Callable[[], Awaitable[CheckResult]]:
        function = checking.check.probe
        if function is None and server.config.is_url:
            factory = ProbeFactory(server, checking)
            return lambda: self._exchange(factory.make(), server, checking)

        async def probe_in_process() -> CheckResult:
            await anyio.lowlevel.checkpoint()  # what is called may never wait
            if function is not None:
                return await call_probe(function, server, checking)
            app = self._apps[server]
            return await check_app(app.app if isinstance(app, InterruptibleApp) else app, server, checking)

        return probe_in_process

    def _agent_query(self, server: Server, checking: CheckRuntime, agent: AgentCheck) -> _CheckOnce:
        """Return the function that queries the agent of a server once."""
        factory = ProbeFactory(server, checking, agent)

        async def query_once() -> None:
            started = anyio.current_time()
            probe = factory.make()
            assert isinstance(probe, AgentProbe)
            result = await self._exchange(probe, server, checking)
            result = result.after(anyio.current_time() - started)
            reply = AgentReply(result) if probe.reply is None else replace(probe.reply, result=result)
            self._backend.monitor.on_agent_reply(server, reply, checking)

        return query_once

    def _exchange(self, probe: NetworkProbe, server: Server, checking: CheckRuntime) -> Awaitable[CheckResult]:
        assert self._network is not None
        connect, rest = checking.timeouts(self._backend.config.timeouts.in_seconds.connect)
        return self._network.exchange(probe, server, connect, rest)


class _Sleeper:
    """Lets one task sleep, until it is woken from any thread."""

    def __init__(self) -> None:
        self._schedule = scheduler()
        self._woken = anyio.Event()

    def wake(self) -> None:
        with suppress(RuntimeError):  # the event loop has ended
            self._schedule(lambda: self._woken.set())

    async def sleep(self, seconds: float | None) -> None:
        """Sleep until `wake` is called, for at most `seconds`; None: no limit."""
        self._woken = anyio.Event()
        with anyio.move_on_after(seconds):
            await self._woken.wait()


class _AsyncioSleeper:
    """The same on asyncio, with a future and a timer: a cancel scope would cost ten times as much."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._woken: asyncio.Future[None] | None = None

    def wake(self) -> None:
        with suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    async def sleep(self, seconds: float | None) -> None:
        self._woken = self._loop.create_future()
        timer = self._loop.call_later(seconds, self._end) if seconds is not None else None
        try:
            await self._woken
        finally:
            if timer is not None:
                timer.cancel()


async def wait(subscribe: Subscribe, at_most: float | None) -> None:
    """Wait until the callback passed to `subscribe` is called, for at most `at_most` seconds (None: no limit)."""
    woken = anyio.Event()
    subscribe(waker(woken))
    with anyio.move_on_after(at_most):
        await woken.wait()
