"""Run the checks of a backend in threads: one that knows who is next, and one for each probe while it lasts."""

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
#: seconds between two looks at a server in maintenance, and how long the end waits for a thread
PAUSE = 1.0


class Round:
    """One check of one server, and whether a probe of it is on its way."""

    def __init__(self, server: Server, checking: CheckRuntime) -> None:
        self.server = server
        self.checking = checking
        self.is_agent = checking is server.agent
        self.busy = False  #: somebody probes
        self.over = False  #: nobody wants to know any more
        self.begun = 0.0
        self.given_up = False  #: it took too long, and has been told so


class Checks:
    """The checks of one backend in this process."""

    def __init__(self, backend: Backend, apps: Apps[WSGIApp]) -> None:
        self._backend = backend
        self._apps = apps
        self._contexts: dict[Server, ssl.SSLContext] = {}
        self._thread: threading.Thread | None = None
        self._news = threading.Condition()
        self._stopped = False
        self._woken: set[Round] = set()
        self._rounds: dict[CheckRuntime, Round] = {}
        self._stale = False

    @property
    def has_owner(self) -> bool:
        """Whether somebody runs them, or nobody has to."""
        return not self._backend.checked or not self._backend.checks_are_free

    def start(self) -> None:
        """Run them, unless somebody does."""
        if not self._backend.checked or not self._backend.own_checks(self):
            return
        with self._news:
            if self._thread is not None:
                return
            self._stopped = False
            self._stale = True
            name = f"checks of {self._backend.name}"
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()
        _running.add(self)

    def stop(self) -> None:
        """Run them no more."""
        with self._news:
            thread, self._thread = self._thread, None
            self._stopped = True
            self._news.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._backend.disown_checks(self)

    def update(self) -> None:
        """Other servers are to be checked, or otherwise."""
        with self._news:
            self._stale = True
            self._news.notify_all()

    def remove(self, server: Server) -> None:
        """It was removed."""
        self._contexts.pop(server, None)

    def after_fork(self) -> None:
        """We are a forked child: their threads did not come along."""
        self._thread = None
        self._news = threading.Condition()
        self._woken = set()
        self._rounds = {}

    def _begun(self) -> list[Round]:
        """The rounds that are new. Those that nobody wants any more are over."""
        wanted = {
            checking: server
            for server in self._backend.servers
            for checking in (server.checking, server.agent)
            if checking is not None
        }
        for checking in [each for each in self._rounds if each not in wanted]:
            self._rounds.pop(checking).over = True
            checking.wake = None
        new = [Round(server, checking) for checking, server in wanted.items() if checking not in self._rounds]
        for each in new:
            self._rounds[each.checking] = each
            each.checking.wake = self._waker(each)
        return new

    def _run(self) -> None:
        """Know who is next. It never waits for a probe."""
        backend, now = self._backend, self._backend.clock.monotonic
        numbers = count()
        agenda: list[tuple[float, int, Round]] = []  # by our own clock: a clock that is moved by hand has no seconds
        while True:
            with self._news:
                left = agenda[0][0] - time.monotonic() if agenda else PAUSE
                if left > 0 and not self._woken and not self._stopped and not self._stale:
                    self._news.wait(left)
                if self._stopped:
                    break
                woken, self._woken = self._woken, set()
                stale, self._stale = self._stale, False
            for each in (*woken, *(self._begun() if stale else ())):
                heappush(agenda, (0.0, next(numbers), each))
            seen: set[Round] = set()
            while agenda and agenda[0][0] <= time.monotonic():
                each = heappop(agenda)[2]
                if each in seen or each.over:
                    continue
                seen.add(each)
                wait = self._look_at(each, now())
                heappush(agenda, (time.monotonic() + wait, next(numbers), each))
            agenda = _once(agenda)
            backend.monitor.run_due_timers()
        for checking in self._rounds:
            checking.wake = None
        self._rounds = {}

    def _look_at(self, each: Round, now: float) -> float:
        """Probe if it is time: after how many seconds to look again."""
        server, checking = each.server, each.checking
        if each.busy:
            late = time.monotonic() - each.begun - self._patience(each)
            if late < 0:
                return -late
            if not each.given_up:
                each.given_up = True
                self._tell(each, CheckResult(CheckStatus.L7TOUT, duration=time.monotonic() - each.begun))
            return max(checking.delay(now), 0.05)
        if server.is_unresolved or (server.in_maint and checking is server.checking):
            return PAUSE
        delay = checking.delay(now)
        if delay > 0.001:
            return delay
        if each.given_up:
            each.given_up = False
        each.busy, each.begun = True, time.monotonic()
        threading.Thread(target=self._probe, args=(each,), name=f"check of {server.name}", daemon=True).start()
        return self._patience(each)

    def _patience(self, each: Round) -> float:
        """How long a probe may take before it is given up: sockets know their own end."""
        connect, rest = each.checking.timeouts(self._backend.config.timeouts.in_seconds.connect)
        if each.checking.check.probe is None and each.server.config.is_url:
            return connect + (rest or 0.0) + PAUSE
        return each.checking.timeout

    def _waker(self, each: Round) -> Callable[[], None]:
        def wake() -> None:
            with self._news:
                self._woken.add(each)
                self._news.notify_all()

        return wake

    def _tell(self, each: Round, result: CheckResult, told: AgentReply | None = None) -> None:
        if each.is_agent:
            heard = AgentReply(result) if told is None else replace(told, result=result)
            self._backend.monitor.on_agent_reply(each.server, heard, each.checking)
        else:
            self._backend.monitor.record_check(each.server, result, each.checking)

    def _probe(self, each: Round) -> None:
        begun = time.monotonic()
        told: AgentReply | None = None
        try:
            if each.is_agent:
                asked = AgentProbe(each.server)
                result = self._exchanged(asked, each)
                told = asked.reply
            elif each.checking.check.probe is not None:
                result = _called(each.checking.check.probe, each.server)
            elif each.server.config.is_url:
                result = self._exchanged(HttpProbe(each.server, each.checking), each)
            else:
                app = self._apps[each.server]
                result = _answered(app.app if isinstance(app, InterruptibleApp) else app, each)
        except Exception as error:  # whatever it is, the next check comes
            _log.exception("a check of server %s failed by itself", each.server.name)
            result = CheckResult(CheckStatus.SOCKERR, info=str(error))
        if not each.given_up and not self._stopped:
            self._tell(each, replace(result, duration=time.monotonic() - begun), told)
        each.busy = False
        self._waker(each)()

    def _exchanged(self, probe: NetworkProbe, each: Round) -> CheckResult:
        begun = time.monotonic()
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
                    stream.settimeout(max(0.001, begun + connect - time.monotonic()))
                    stream = self._wrapped(stream, probe, each.server)
            except TimeoutError:
                return CheckResult(CheckStatus.L4TOUT)
            except ssl.SSLError as error:
                return CheckResult(CheckStatus.L6RSP, info=str(error))
            except OSError as error:
                return CheckResult(CheckStatus.L4CON, info=error.strerror or str(error))
            result = probe.on_connected()
            end = begun + connect if rest is None else time.monotonic() + rest
            try:
                if result is None and probe.request:
                    stream.settimeout(max(0.001, end - time.monotonic()))
                    stream.sendall(probe.request)
                while result is None:
                    left = end - time.monotonic()
                    if left <= 0:
                        return CheckResult(CheckStatus.L7TOUT)
                    stream.settimeout(left)
                    result = probe.feed(_received(stream))
            except TimeoutError:
                return CheckResult(CheckStatus.L7TOUT)
            except OSError as error:
                return CheckResult(CheckStatus.SOCKERR, info=error.strerror or str(error))
            return result
        finally:
            if stream is not None:
                stream.close()

    def _wrapped(self, stream: socket.socket, probe: NetworkProbe, server: Server) -> ssl.SSLSocket:
        tls = server.config.tls or TLS()
        context = self._contexts.get(server)
        if context is None:
            context = self._contexts[server] = tls.context()
        try:
            return context.wrap_socket(stream, server_hostname=tls.sni or probe.host)
        except BaseException:
            stream.close()
            raise


def _once(agenda: list[tuple[float, int, Round]]) -> list[tuple[float, int, Round]]:
    """Each round once, when it is first due."""
    seen: set[Round] = set()
    kept: list[tuple[float, int, Round]] = []
    for entry in sorted(agenda):
        if entry[2] not in seen:
            seen.add(entry[2])
            kept.append(entry)
    return kept


def _received(stream: socket.socket) -> bytes:
    try:
        return stream.recv(_READ)
    except TimeoutError:
        raise
    except OSError:
        return b""


def _called(probe: Callable[[Any], Any], server: Server) -> CheckResult:
    try:
        answer = probe(server)
        if inspect.iscoroutine(answer):
            answer.close()
            return CheckResult(CheckStatus.L7RSP, info="the probe is a coroutine function, which WSGI can't await")
        return probe_result(answer)
    except ServerFailure as error:
        return result_from_failure(error.failure)
    except Exception as error:
        return CheckResult(CheckStatus.L7RSP, info=f"{type(error).__name__}: {error}")


def _answered(app: WSGIApp | None, each: Round) -> CheckResult:
    """What an app in this process answers."""
    path = each.checking.check.path
    if app is None:
        return CheckResult(CheckStatus.L4CON, info="not started")
    if path is None:
        return CheckResult(CheckStatus.L4OK)
    status = 0
    said_headers: Headers = []
    body = b""

    def start_response(line: str, headers: Headers, exc_info: ExcInfo | None = None, /) -> Callable[[bytes], object]:
        nonlocal status, said_headers
        status, said_headers = int(line[:3]), [*headers]
        return written

    def written(data: bytes) -> None:
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
        return CheckResult(CheckStatus.L7RSP, info="no answer")
    return each.checking.judge(status, said_headers, body)


def _environ(each: Round, target: str) -> Environ:
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


def _end_all() -> None:
    for checks in list(_running):
        checks.stop()


atexit.register(_end_all)
