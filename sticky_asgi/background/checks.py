"""Run the checks of a backend on an event loop: a task for each, which sleeps and probes; and wait for news there."""

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
from sticky_core.backend.events import LieDown, Loop
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
#: how long after its beginning an event loop begins to check, in seconds
_SOON = 0.05


class Checks(BackgroundTask):
    """The checks of one backend, on the event loop that owns them."""

    def __init__(self, backend: Backend, apps: Apps[ASGIApp]) -> None:
        super().__init__()
        self._backend = backend
        self._apps = apps
        self._contexts: dict[Server, ssl.SSLContext] = {}

    @property
    def has_owner(self) -> bool:
        """Whether somebody runs them, or nobody has to."""
        return not self._backend.checked or not self._backend.checks_are_free

    @property
    def is_needed(self) -> bool:
        return self._backend.checked

    def _claimed(self) -> bool:
        self._bell = anyio.Event()
        return self._backend.own_checks(self)

    def _disowned(self) -> None:
        self._backend.disown_checks(self)
        self._backend.monitor.schedule_timers()

    async def _work(self) -> None:
        # A loop that lives for one request ends before there is anything to be cancelled.
        await anyio.sleep(_SOON)
        async with anyio.create_task_group() as group:
            while True:
                self._bell = anyio.Event()
                self._look(group)
                await self._bell.wait()

    def update(self) -> None:
        """Other servers are to be checked, or otherwise. From whatever thread."""
        soon = self._soon
        if soon is not None:
            with suppress(RuntimeError):  # the event loop has just ended, and they with it
                soon(lambda: self._bell.set())

    def remove(self, server: Server) -> None:
        """It was removed."""
        self._contexts.pop(server, None)

    def _look(self, group: anyio.abc.TaskGroup) -> None:
        """Watch those who are to be watched, and nobody else."""
        wanted = {
            checking: (server, ask)
            for server in self._backend.servers
            for checking, ask in ((server.checking, self._check), (server.agent, self._ask_agent))
            if checking is not None
        }
        for checking in [each for each in self._watched if each not in wanted]:
            self._watched.pop(checking).cancel()
        for checking, (server, ask) in wanted.items():
            if checking not in self._watched:
                self._watched[checking] = scope = anyio.CancelScope()
                group.start_soon(self._watch, server, checking, ask, scope)

    def _let_go(self) -> None:
        super()._let_go()
        self._watched: dict[CheckRuntime, anyio.CancelScope] = {}

    async def _watch(
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
        begun = anyio.current_time()
        check = checking.check
        if check.probe is not None:
            result = await self._called(check.probe, server, checking)
        elif server.config.is_url:
            result = await self._exchanged(HttpProbe(server, checking), server, checking)
        else:
            app = self._apps[server]
            result = await self._answered(app.app if isinstance(app, InterruptibleApp) else app, server, checking)
        self._backend.monitor.record_check(server, replace(result, duration=anyio.current_time() - begun), checking)

    async def _ask_agent(self, server: Server, agent: CheckRuntime) -> None:
        begun = anyio.current_time()
        probe = AgentProbe(server)
        result = await self._exchanged(probe, server, agent)
        result = replace(result, duration=anyio.current_time() - begun)
        told = probe.reply
        self._backend.monitor.on_agent_reply(
            server, AgentReply(result) if told is None else replace(told, result=result), agent
        )

    async def _called(self, probe: Callable[[Any], Any], server: Server, checking: CheckRuntime) -> CheckResult:
        with anyio.move_on_after(checking.timeout):
            try:
                if inspect.iscoroutinefunction(probe) or inspect.iscoroutinefunction(type(probe).__call__):
                    answer = await probe(server)
                else:
                    answer = await anyio.to_thread.run_sync(probe, server, abandon_on_cancel=True)
                return probe_result(answer)
            except ServerFailure as error:
                return result_from_failure(error.failure)
            except Exception as error:
                return CheckResult(CheckStatus.L7RSP, info=f"{type(error).__name__}: {error}")
        return CheckResult(CheckStatus.L7TOUT)

    async def _exchanged(self, probe: NetworkProbe, server: Server, checking: CheckRuntime) -> CheckResult:
        begun = anyio.current_time()
        connect, rest = checking.timeouts(self._backend.config.timeouts.in_seconds.connect)
        try:
            with anyio.fail_after(connect):
                stream = await self._connected(probe, server)
        except TimeoutError:
            return CheckResult(CheckStatus.L4TOUT)
        except (ssl.SSLError, anyio.EndOfStream, anyio.BrokenResourceError) as error:
            return CheckResult(CheckStatus.L6RSP, info=str(error))
        except OSError as error:
            return CheckResult(CheckStatus.L4CON, info=_why(error))
        try:
            result = probe.on_connected()
            left = max(0.0, begun + connect - anyio.current_time()) if rest is None else rest
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

    async def _connected(self, probe: NetworkProbe, server: Server) -> anyio.abc.ByteStream:
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

    async def _answered(self, app: ASGIApp | None, server: Server, checking: CheckRuntime) -> CheckResult:
        """What an app in this process answers."""
        path = checking.check.path
        if app is None:
            return CheckResult(CheckStatus.L4CON, info="not started")
        if path is None:
            return CheckResult(CheckStatus.L4OK)
        heard = _Heard()
        patience = anyio.move_on_after(checking.timeout)
        try:
            with patience:
                await app(_scope(checking, path, server), heard.asks(checking.check.payload), heard.send)
        except ServerFailure as error:
            return result_from_failure(error.failure)
        except _Enough:
            pass
        except Exception as error:
            if not heard.over:
                return result_from_exception(error)
        if patience.cancelled_caught and (not heard.status or checking.expect.needs_body):
            return CheckResult(CheckStatus.L7TOUT)
        if not heard.status:
            return CheckResult(CheckStatus.L7RSP, info="no answer")
        return checking.judge(heard.status, heard.headers, heard.body)


class _Enough(Exception):
    """Of an answer, there is no need to hear more."""


class _Heard:
    """What an app answers."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.body = b""
        self.over = False

    def asks(self, body: bytes) -> Callable[[], Any]:
        told = False

        async def receive() -> Message:
            nonlocal told
            if not told:
                told = True
                return {"type": "http.request", "body": body, "more_body": False}
            while not self.over:
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
                self.over = True
            elif len(self.body) >= MAX_BODY:
                self.over = True
                raise _Enough


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


def _why(error: OSError) -> str:
    """anyio tries several addresses, and says only that all have failed."""
    cause: BaseException | None = error.__cause__
    while isinstance(cause, BaseExceptionGroup):
        cause = cast("BaseExceptionGroup[BaseException]", cause).exceptions[0]
    known = cause if isinstance(cause, OSError) else error
    return os.strerror(known.errno) if known.errno else str(known)


async def sleep(lie_down: LieDown, at_most: float | None) -> None:
    """Until the bell rings, or for so many seconds."""
    woken = anyio.Event()
    lie_down(waker(woken))
    with anyio.move_on_after(at_most):
        await woken.wait()


Loop.sleep = sleep
