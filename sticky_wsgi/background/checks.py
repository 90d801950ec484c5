"""Run the health checks of a backend in threads: one that schedules them, and one for each probe while it lasts."""

from __future__ import annotations

import atexit
import inspect
import io
import logging
import socket
import ssl
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from heapq import heappop, heappush
from itertools import count
from typing import Any
from urllib.parse import unquote

from sticky_core.backend.backend import Backend
from sticky_core.errors import ServerFailure
from sticky_core.health.agent import AgentReply
from sticky_core.health.check import CheckResult, CheckStatus, probe_result
from sticky_core.health.expect import MAX_BODY
from sticky_core.health.runtime import CheckRuntime
from sticky_core.http.tls import TLS
from sticky_core.runtime.apps import Apps
from sticky_core.server.server import Server
from sticky_core.upstream.probe import AgentProbe, HttpProbe, NetworkProbe, result_from_exception, result_from_failure
from sticky_wsgi.interruptible import InterruptibleApp
from sticky_wsgi.messages import Environ, ExcInfo, Headers, WSGIApp

_log = logging.getLogger("sticky_sessions")

_READ = 65536
#: seconds until a server in maintenance is looked at again, and how much longer than its timeouts a probe may take
PAUSE = 1.0


class ScheduledCheck:
    """One check of one server, and whether a probe of it is running."""

    def __init__(self, server: Server, checking: CheckRuntime) -> None:
        self.server = server
        self.checking = checking
        self.is_agent = checking is server.agent
        self.running = False  #: whether a thread probes
        self.cancelled = False  #: whether the server has this check no more
        self.started = 0.0  #: when the latest probe was started
        self.timed_out = False  #: whether the running probe has taken too long, and was recorded as a timeout


class Checks:
    """The checks of one backend in this process."""

    def __init__(self, backend: Backend, apps: Apps[WSGIApp]) -> None:
        self._backend = backend
        self._apps = apps
        self._contexts: dict[Server, ssl.SSLContext] = {}
        self._thread: threading.Thread | None = None
        self._condition = threading.Condition()  # guards what follows; notified when there is something to do
        self._stopped = False
        self._woken: set[ScheduledCheck] = set()
        self._checks: dict[CheckRuntime, ScheduledCheck] = {}
        self._is_stale = False  # whether `_checks` may not be the backend's checks any more

    @property
    def has_owner(self) -> bool:
        """Whether the checks run, by this object or by another; true as well if there are none."""
        return not self._backend.checked or not self._backend.checks_are_free

    def start(self) -> None:
        """Start to check, unless another owner does."""
        if not self._backend.checked or not self._backend.acquire_checks(self):
            return
        with self._condition:
            if self._thread is not None:
                return
            self._stopped = False
            self._is_stale = True
            name = f"checks of {self._backend.name}"
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()
        _running.add(self)

    def stop(self) -> None:
        """End the scheduling thread, and wait until it has ended."""
        with self._condition:
            thread, self._thread = self._thread, None
            self._stopped = True
            self._condition.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._backend.release_checks(self)

    def update(self) -> None:
        """Start and cancel checks as the backend's servers now need it."""
        with self._condition:
            self._is_stale = True
            self._condition.notify_all()

    def remove(self, server: Server) -> None:
        """Forget a server that was removed."""
        self._contexts.pop(server, None)

    def after_fork(self) -> None:
        """Forget the parent process's threads in a forked child, which has none of them."""
        self._thread = None
        self._condition = threading.Condition()
        self._woken = set()
        self._checks = {}

    def _update_checks(self) -> list[ScheduledCheck]:
        """Cancel the checks that no server has any more; return the new ones."""
        wanted = {
            checking: server
            for server in self._backend.servers
            for checking in (server.checking, server.agent)
            if checking is not None
        }
        for checking in [each for each in self._checks if each not in wanted]:
            self._checks.pop(checking).cancelled = True
            checking.wake = None
        new = [ScheduledCheck(server, checking) for checking, server in wanted.items() if checking not in self._checks]
        for each in new:
            self._checks[each.checking] = each
            each.checking.wake = self._waker(each)
        return new

    def _run(self) -> None:
        """Start probes when they are due. This thread never waits for one."""
        backend, now = self._backend, self._backend.clock.monotonic
        numbers = count()
        # Due times are those of the system's clock: a backend's clock that is moved by hand passes no seconds.
        schedule: list[tuple[float, int, ScheduledCheck]] = []
        while True:
            with self._condition:
                left = schedule[0][0] - time.monotonic() if schedule else PAUSE
                if left > 0 and not self._woken and not self._stopped and not self._is_stale:
                    self._condition.wait(left)
                if self._stopped:
                    break
                woken, self._woken = self._woken, set()
                is_stale, self._is_stale = self._is_stale, False
            for each in (*woken, *(self._update_checks() if is_stale else ())):
                heappush(schedule, (0.0, next(numbers), each))
            seen: set[ScheduledCheck] = set()
            while schedule and schedule[0][0] <= time.monotonic():
                each = heappop(schedule)[2]
                if each in seen or each.cancelled:
                    continue
                seen.add(each)
                wait = self._probe_if_due(each, now())
                heappush(schedule, (time.monotonic() + wait, next(numbers), each))
            schedule = _without_duplicates(schedule)
            backend.monitor.run_due_timers()
        for checking in self._checks:
            checking.wake = None
        self._checks = {}

    def _probe_if_due(self, each: ScheduledCheck, now: float) -> float:
        """Start a probe if it is due, or record that the running one takes too long. Return after how many seconds to
        look again.
        """
        server, checking = each.server, each.checking
        if each.running:
            overtime = time.monotonic() - each.started - self._timeout(each)
            if overtime < 0:
                return -overtime
            if not each.timed_out:
                each.timed_out = True
                self._record(each, CheckResult(CheckStatus.L7TOUT, duration=time.monotonic() - each.started))
            return max(checking.delay(now), 0.05)
        if server.is_unresolved or (server.in_maint and checking is server.checking):
            return PAUSE
        delay = checking.delay(now)
        if delay > 0.001:
            return delay
        if each.timed_out:
            each.timed_out = False
        each.running, each.started = True, time.monotonic()
        threading.Thread(target=self._check, args=(each,), name=f"check of {server.name}", daemon=True).start()
        return self._timeout(each)

    def _timeout(self, each: ScheduledCheck) -> float:
        """Return how long a probe may take, in seconds; one over a socket ends by the socket's own timeouts."""
        connect, rest = each.checking.timeouts(self._backend.config.timeouts.in_seconds.connect)
        if each.checking.check.probe is None and each.server.config.is_url:
            return connect + (rest or 0.0) + PAUSE
        return each.checking.timeout

    def _waker(self, each: ScheduledCheck) -> Callable[[], None]:
        """Make a callback that has the scheduling thread look at a check at once."""

        def wake() -> None:
            with self._condition:
                self._woken.add(each)
                self._condition.notify_all()

        return wake

    def _record(self, each: ScheduledCheck, result: CheckResult, reply: AgentReply | None = None) -> None:
        if each.is_agent:
            reply = AgentReply(result) if reply is None else replace(reply, result=result)
            self._backend.monitor.on_agent_reply(each.server, reply, each.checking)
        else:
            self._backend.monitor.record_check(each.server, result, each.checking)

    def _check(self, each: ScheduledCheck) -> None:
        """Probe once, and record the result unless the probe has timed out before."""
        started = time.monotonic()
        reply: AgentReply | None = None
        try:
            if each.is_agent:
                probe = AgentProbe(each.server)
                result = self._exchange(probe, each)
                reply = probe.reply
            elif each.checking.check.probe is not None:
                result = _call_probe(each.checking.check.probe, each.server)
            elif each.server.config.is_url:
                result = self._exchange(HttpProbe(each.server, each.checking), each)
            else:
                app = self._apps[each.server]
                result = _check_app(app.app if isinstance(app, InterruptibleApp) else app, each)
        except Exception as error:  # whatever it is: the next check must run
            _log.exception("a check of server %s has raised an exception", each.server.name)
            result = CheckResult(CheckStatus.SOCKERR, info=str(error))
        if not each.timed_out and not self._stopped:
            self._record(each, replace(result, duration=time.monotonic() - started), reply)
        each.running = False
        self._waker(each)()

    def _exchange(self, probe: NetworkProbe, each: ScheduledCheck) -> CheckResult:
        """Connect to the server, send what `probe` sends, and feed it what arrives."""
        started = time.monotonic()
        connect, rest = each.checking.timeouts(self._backend.config.timeouts.in_seconds.connect)
        stream: socket.socket | None = None
        try:
            try:
                if probe.socket is not None:
                    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                    stream.settimeout(connect)
                    stream.connect(probe.socket)
                else:
                    stream = socket.create_connection((probe.host, probe.port), connect)
                if probe.tls:
                    stream.settimeout(max(0.001, started + connect - time.monotonic()))
                    stream = self._wrap_tls(stream, probe, each.server)
            except TimeoutError:
                return CheckResult(CheckStatus.L4TOUT)
            except ssl.SSLError as error:
                return CheckResult(CheckStatus.L6RSP, info=str(error))
            except OSError as error:
                return CheckResult(CheckStatus.L4CON, info=error.strerror or str(error))
            result = probe.on_connected()
            end = started + connect if rest is None else time.monotonic() + rest
            try:
                if result is None and probe.request:
                    stream.settimeout(max(0.001, end - time.monotonic()))
                    stream.sendall(probe.request)
                while result is None:
                    left = end - time.monotonic()
                    if left <= 0:
                        return CheckResult(CheckStatus.L7TOUT)
                    stream.settimeout(left)
                    result = probe.feed(_receive(stream))
            except TimeoutError:
                return CheckResult(CheckStatus.L7TOUT)
            except OSError as error:
                return CheckResult(CheckStatus.SOCKERR, info=error.strerror or str(error))
            return result
        finally:
            if stream is not None:
                stream.close()

    def _wrap_tls(self, stream: socket.socket, probe: NetworkProbe, server: Server) -> ssl.SSLSocket:
        tls = server.config.tls or TLS()
        context = self._contexts.get(server)
        if context is None:
            context = self._contexts[server] = tls.context()
        try:
            return context.wrap_socket(stream, server_hostname=tls.sni or probe.host)
        except BaseException:
            stream.close()
            raise


def _without_duplicates(schedule: list[tuple[float, int, ScheduledCheck]]) -> list[tuple[float, int, ScheduledCheck]]:
    """Return the schedule with each check once, when it is first due."""
    seen: set[ScheduledCheck] = set()
    kept: list[tuple[float, int, ScheduledCheck]] = []
    for entry in sorted(schedule):
        if entry[2] not in seen:
            seen.add(entry[2])
            kept.append(entry)
    return kept


def _receive(stream: socket.socket) -> bytes:
    """Return what arrives next; nothing if the connection is closed or reset."""
    try:
        return stream.recv(_READ)
    except TimeoutError:
        raise
    except OSError:
        return b""


def _call_probe(probe: Callable[[Any], Any], server: Server) -> CheckResult:
    """Call a user's probe."""
    try:
        returned = probe(server)
        if inspect.iscoroutine(returned):
            returned.close()
            return CheckResult(CheckStatus.L7RSP, info="the probe is a coroutine function, which WSGI can't await")
        return probe_result(returned)
    except ServerFailure as error:
        return result_from_failure(error.failure)
    except Exception as error:
        return CheckResult(CheckStatus.L7RSP, info=f"{type(error).__name__}: {error}")


def _check_app(app: WSGIApp | None, each: ScheduledCheck) -> CheckResult:
    """Check an app in this process by a request."""
    path = each.checking.check.path
    if app is None:
        return CheckResult(CheckStatus.L4CON, info="not started")
    if path is None:
        return CheckResult(CheckStatus.L4OK)
    status = 0
    response_headers: Headers = []
    body = b""

    def start_response(line: str, headers: Headers, exc_info: ExcInfo | None = None, /) -> Callable[[bytes], object]:
        nonlocal status, response_headers
        status, response_headers = int(line[:3]), [*headers]
        return write

    def write(data: bytes) -> None:
        nonlocal body
        body += data

    try:
        items = app(_environ(each, path), start_response)
        try:
            for item in items:
                body += item
                if len(body) >= MAX_BODY:
                    break
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()
    except ServerFailure as error:
        return result_from_failure(error.failure)
    except Exception as error:
        return result_from_exception(error)
    if not status:
        return CheckResult(CheckStatus.L7RSP, info="no response")
    return each.checking.judge(status, response_headers, body)


def _environ(each: ScheduledCheck, target: str) -> Environ:
    check = each.checking.check
    path, _, query = target.partition("?")
    environ: Environ = {
        "REQUEST_METHOD": check.http_method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote(path, "latin-1"),
        "QUERY_STRING": query,
        "SERVER_NAME": each.server.name,
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": each.server.name,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(check.payload),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    if check.payload:
        environ["CONTENT_LENGTH"] = str(len(check.payload))
    for name, value in check.header_list:
        key = name.upper().replace("-", "_")
        environ[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"] = value
    return environ


_running: weakref.WeakSet[Checks] = weakref.WeakSet()


def _stop_all() -> None:
    for checks in list(_running):
        checks.stop()


atexit.register(_stop_all)
