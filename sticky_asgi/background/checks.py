"""Run the health checks of a backend on an event loop: one task for each check, which sleeps and probes.

Also `wait`, by which the core waits for a backend's events on an event loop.
"""

from __future__ import annotations

import inspect
import logging
import os
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast
from urllib.parse import unquote

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.to_thread
from anyio.streams.tls import TLSStream

from sticky_asgi.background.task import BackgroundTask
from sticky_asgi.interruptible import InterruptibleApp
from sticky_asgi.messages import ASGIApp, Message, Scope, waker
from sticky_core.backend.backend import Backend
from sticky_core.backend.event_loop import EventLoop, Subscribe
from sticky_core.errors import ServerFailure
from sticky_core.health.agent import AgentReply
from sticky_core.health.check import CheckResult, CheckStatus, probe_result
from sticky_core.health.expect import MAX_BODY
from sticky_core.health.runtime import CheckRuntime
from sticky_core.http.tls import TLS
from sticky_core.runtime.apps import Apps
from sticky_core.server.server import Server
from sticky_core.upstream.probe import AgentProbe, HttpProbe, NetworkProbe, result_from_exception, result_from_failure

_log = logging.getLogger("sticky_sessions")

_READ = 65536
#: how long after the start on an event loop the first checks begin, in seconds
_START_DELAY = 0.05


class Checks(BackgroundTask):
    """The checks of one backend, on the event loop that owns them."""

    def __init__(self, backend: Backend, apps: Apps[ASGIApp]) -> None:
        super().__init__()
        self._backend = backend
        self._apps = apps
        self._contexts: dict[Server, ssl.SSLContext] = {}

    @property
    def has_owner(self) -> bool:
        """Whether the checks run, on this event loop or on another; true as well if there are none."""
        return not self._backend.checked or not self._backend.checks_are_free

    @property
    def is_needed(self) -> bool:
        return self._backend.checked

    def _acquire(self) -> bool:
        self._changed = anyio.Event()
        return self._backend.acquire_checks(self)

    def _release(self) -> None:
        self._backend.release_checks(self)
        self._backend.monitor.schedule_timers()

    async def _run_forever(self) -> None:
        # An event loop that runs for one request ends before any check begins, which would have to be cancelled.
        await anyio.sleep(_START_DELAY)
        async with anyio.create_task_group() as group:
            while True:
                self._changed = anyio.Event()
                self._update_tasks(group)
                await self._changed.wait()

    def update(self) -> None:
        """Start and cancel checks as the backend's servers now need it. Safe to call from any thread."""
        schedule = self._schedule
        if schedule is not None:
            with suppress(RuntimeError):  # the event loop has just ended, and with it the checks
                schedule(lambda: self._changed.set())

    def remove(self, server: Server) -> None:
        """Forget a server that was removed."""
        self._contexts.pop(server, None)

    def _update_tasks(self, group: anyio.abc.TaskGroup) -> None:
        """Let one task run for each check of a server, and no others."""
        wanted = {
            checking: (server, check)
            for server in self._backend.servers
            for checking, check in ((server.checking, self._check), (server.agent, self._check_agent))
            if checking is not None
        }
        for checking in [each for each in self._tasks if each not in wanted]:
            self._tasks.pop(checking).cancel()
        for checking, (server, check) in wanted.items():
            if checking not in self._tasks:
                self._tasks[checking] = scope = anyio.CancelScope()
                group.start_soon(self._check_forever, server, checking, check, scope)

    def _reset(self) -> None:
        super()._reset()
        self._tasks: dict[CheckRuntime, anyio.CancelScope] = {}

    async def _check_forever(
        self, server: Server, checking: CheckRuntime, check: Callable[..., Any], scope: anyio.CancelScope
    ) -> None:
        with scope:
            now = self._backend.clock.monotonic
            while True:
                woken = anyio.Event()
                checking.wake = waker(woken)
                if server.is_unresolved or (server.in_maint and checking is server.checking):
                    await woken.wait()
                elif (delay := checking.delay(now())) > 0.001:
                    with anyio.move_on_after(delay):
                        await woken.wait()
                else:
                    checking.wake = None
                    await anyio.lowlevel.checkpoint()
                    await check(server, checking)
                    self._backend.monitor.run_due_timers()

    async def _check(self, server: Server, checking: CheckRuntime) -> None:
        started = anyio.current_time()
        check = checking.check
        if check.probe is not None:
            result = await self._call_probe(check.probe, server, checking)
        elif server.config.is_url:
            result = await self._exchange(HttpProbe(server, checking), server, checking)
        else:
            app = self._apps[server]
            result = await self._check_app(app.app if isinstance(app, InterruptibleApp) else app, server, checking)
        self._backend.monitor.record_check(server, replace(result, duration=anyio.current_time() - started), checking)

    async def _check_agent(self, server: Server, agent: CheckRuntime) -> None:
        started = anyio.current_time()
        probe = AgentProbe(server)
        result = await self._exchange(probe, server, agent)
        result = replace(result, duration=anyio.current_time() - started)
        reply = probe.reply
        self._backend.monitor.on_agent_reply(
            server, AgentReply(result) if reply is None else replace(reply, result=result), agent
        )

    async def _call_probe(self, probe: Callable[[Any], Any], server: Server, checking: CheckRuntime) -> CheckResult:
        """Call a user's probe."""
        with anyio.move_on_after(checking.timeout):
            try:
                if inspect.iscoroutinefunction(probe) or inspect.iscoroutinefunction(type(probe).__call__):
                    returned = await probe(server)
                else:
                    returned = await anyio.to_thread.run_sync(probe, server, abandon_on_cancel=True)
                return probe_result(returned)
            except ServerFailure as error:
                return result_from_failure(error.failure)
            except Exception as error:
                return CheckResult(CheckStatus.L7RSP, info=f"{type(error).__name__}: {error}")
        return CheckResult(CheckStatus.L7TOUT)

    async def _exchange(self, probe: NetworkProbe, server: Server, checking: CheckRuntime) -> CheckResult:
        """Connect to the server, send what `probe` sends, and feed it what arrives."""
        started = anyio.current_time()
        connect, rest = checking.timeouts(self._backend.config.timeouts.in_seconds.connect)
        try:
            with anyio.fail_after(connect):
                stream = await self._connect(probe, server)
        except TimeoutError:
            return CheckResult(CheckStatus.L4TOUT)
        except (ssl.SSLError, anyio.EndOfStream, anyio.BrokenResourceError) as error:
            return CheckResult(CheckStatus.L6RSP, info=str(error))
        except OSError as error:
            return CheckResult(CheckStatus.L4CON, info=_error_text(error))
        try:
            result = probe.on_connected()
            left = max(0.0, started + connect - anyio.current_time()) if rest is None else rest
            with anyio.fail_after(left):
                if result is None and probe.request:
                    await stream.send(probe.request)
                while result is None:
                    try:
                        data = await stream.receive(_READ)
                    except (anyio.EndOfStream, anyio.BrokenResourceError, OSError):
                        data = b""
                    result = probe.feed(data)
        except TimeoutError:
            return CheckResult(CheckStatus.L7TOUT)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as error:
            return CheckResult(CheckStatus.SOCKERR, info=str(error))
        finally:
            await anyio.aclose_forcefully(stream)
        return result

    async def _connect(self, probe: NetworkProbe, server: Server) -> anyio.abc.ByteStream:
        stream: anyio.abc.ByteStream
        if probe.socket is not None:
            stream = await anyio.connect_unix(probe.socket)
        else:
            stream = await anyio.connect_tcp(probe.host, probe.port)
        if probe.tls:
            tls = server.config.tls
            try:
                stream = await TLSStream.wrap(
                    stream,
                    hostname=(tls.sni if tls is not None else None) or probe.host,
                    ssl_context=self._context(server),
                    standard_compatible=False,
                )
            except BaseException:
                await anyio.aclose_forcefully(stream)
                raise
        return stream

    def _context(self, server: Server) -> ssl.SSLContext:
        context = self._contexts.get(server)
        if context is None:
            context = self._contexts[server] = (server.config.tls or TLS()).context()
        return context

    async def _check_app(self, app: ASGIApp | None, server: Server, checking: CheckRuntime) -> CheckResult:
        """Check an app in this process by a request."""
        path = checking.check.path
        if app is None:
            return CheckResult(CheckStatus.L4CON, info="not started")
        if path is None:
            return CheckResult(CheckStatus.L4OK)
        response = _RecordedResponse()
        time_limit = anyio.move_on_after(checking.timeout)
        try:
            with time_limit:
                await app(_scope(checking, path, server), response.make_receive(checking.check.payload), response.send)
        except ServerFailure as error:
            return result_from_failure(error.failure)
        except _BodyLimitReached:
            pass
        except Exception as error:
            if not response.finished:
                return result_from_exception(error)
        if time_limit.cancelled_caught and (not response.status or checking.expect.needs_body):
            return CheckResult(CheckStatus.L7TOUT)
        if not response.status:
            return CheckResult(CheckStatus.L7RSP, info="no response")
        return checking.judge(response.status, response.headers, response.body)


class _BodyLimitReached(Exception):
    """The response's body is as long as the part that a check reads: the app need not send more."""


class _RecordedResponse:
    """The response of an app to a check."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.body = b""
        self.finished = False

    def make_receive(self, body: bytes) -> Callable[[], Any]:
        """Make the `receive` of a request with `body`."""
        received = False

        async def receive() -> Message:
            nonlocal received
            if not received:
                received = True
                return {"type": "http.request", "body": body, "more_body": False}
            while not self.finished:
                await anyio.sleep_forever()
            return {"type": "http.disconnect"}

        return receive

    async def send(self, message: Message) -> None:
        await anyio.lowlevel.checkpoint()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            pairs = message.get("headers") or ()
            self.headers = [(bytes(name).decode("latin-1"), bytes(value).decode("latin-1")) for name, value in pairs]
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")
            if not message.get("more_body", False):
                self.finished = True
            elif len(self.body) >= MAX_BODY:
                self.finished = True
                raise _BodyLimitReached


def _scope(checking: CheckRuntime, target: str, server: Server) -> Scope:
    check = checking.check
    path, _, query = target.partition("?")
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in check.header_list]
    if not any(name == b"host" for name, _ in headers):
        headers.insert(0, (b"host", server.name.encode()))
    if check.payload:
        headers.append((b"content-length", b"%d" % len(check.payload)))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": check.http_method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode("latin-1"),
        "root_path": "",
        "query_string": query.encode("latin-1"),
        "headers": headers,
        "client": None,
        "server": None,
        "extensions": {},
    }


def _error_text(error: OSError) -> str:
    """Return why a connection failed. anyio tries several addresses; its own error reports only that all failed."""
    cause: BaseException | None = error.__cause__
    while isinstance(cause, BaseExceptionGroup):
        cause = cast("BaseExceptionGroup[BaseException]", cause).exceptions[0]
    known = cause if isinstance(cause, OSError) else error
    return os.strerror(known.errno) if known.errno else str(known)


async def wait(subscribe: Subscribe, at_most: float | None) -> None:
    """Wait until the callback passed to `subscribe` is called, for at most `at_most` seconds (None: no limit)."""
    woken = anyio.Event()
    subscribe(waker(woken))
    with anyio.move_on_after(at_most):
        await woken.wait()


EventLoop.wait = wait
