"""Probe a server once in a thread: over a connection, by a request to an app in this process, or by a function of the
user.
"""

from __future__ import annotations

import inspect
import io
import socket
import ssl
import sys
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from sticky_core.errors import ServerFailure
from sticky_core.health.check import Check, CheckResult, CheckStatus, probe_result
from sticky_core.health.expect import MAX_BODY
from sticky_core.health.runtime import CheckRuntime
from sticky_core.http.tls import TLS
from sticky_core.server.server import Server
from sticky_core.upstream.local_limits import connect_result
from sticky_core.upstream.probe import NetworkProbe, ProbeTarget, result_from_exception, result_from_failure
from sticky_wsgi.messages import Environ, ExcInfo, Headers, WSGIApp
from sticky_wsgi.upstream.connections import connect_to

_READ = 65536


class Network:
    """Connects to servers, and keeps their TLS contexts."""

    def __init__(self) -> None:
        self._contexts: dict[Server, ssl.SSLContext] = {}

    def exchange(self, probe: NetworkProbe, server: Server, connect: float, rest: float | None) -> CheckResult:
        """Connect to the server, send what `probe` sends, and feed it what arrives.

        `connect`, `rest`: how many seconds the connection may take, and the exchange; None: what is left of the first.
        """
        started = time.monotonic()
        stream: socket.socket | None = None
        try:
            try:
                stream = _connect(probe.target, connect)
                if probe.target.tls:
                    stream.settimeout(max(0.001, started + connect - time.monotonic()))
                    stream = self._wrap_tls(stream, probe.target, server)
            except TimeoutError:
                return CheckResult(CheckStatus.L4TOUT)
            except ssl.SSLError as error:
                return CheckResult(CheckStatus.L6RSP, info=str(error))
            except OSError as error:
                return connect_result(error, error.strerror or str(error), time.monotonic())
            result = probe.on_connected()
            end = started + connect if rest is None else time.monotonic() + rest
            try:
                if result is None and probe.target.request:
                    stream.settimeout(max(0.001, end - time.monotonic()))
                    stream.sendall(probe.target.request)
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

    def _wrap_tls(self, stream: socket.socket, target: ProbeTarget, server: Server) -> ssl.SSLSocket:
        tls = server.config.tls or TLS()
        context = self._contexts.get(server)
        if context is None:
            context = self._contexts[server] = tls.context()
        try:
            return context.wrap_socket(stream, server_hostname=tls.sni or target.host)
        except BaseException:
            stream.close()
            raise

    def remove(self, server: Server) -> None:
        """Forget a server that was removed."""
        self._contexts.pop(server, None)


def _connect(target: ProbeTarget, timeout: float) -> socket.socket:
    address: str | tuple[str, int]
    if target.socket is not None:
        family, address = socket.AF_UNIX, target.socket
    elif target.ip_version is not None:  # nothing has to be resolved
        family = socket.AF_INET if target.ip_version == 4 else socket.AF_INET6
        address = target.host, target.port
    else:
        return connect_to(target.host, target.port, timeout)
    stream = socket.socket(family, socket.SOCK_STREAM)
    try:
        stream.settimeout(timeout)
        stream.connect(address)
    except BaseException:
        stream.close()
        raise
    return stream


def _receive(stream: socket.socket) -> bytes:
    """Return what arrives next; nothing if the connection is closed or reset."""
    try:
        return stream.recv(_READ)
    except TimeoutError:
        raise
    except OSError:
        return b""


def call_probe(probe: Callable[[Any], Any], server: Server) -> CheckResult:
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


def check_app(app: WSGIApp | None, server: Server, checking: CheckRuntime) -> CheckResult:
    """Check an app in this process by a request."""
    path = checking.check.path
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
        items = app(_environ(server, checking.check, path), start_response)
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
    return checking.judge(status, response_headers, body)


def _environ(server: Server, check: Check, target: str) -> Environ:
    path, _, query = target.partition("?")
    environ: Environ = {
        "REQUEST_METHOD": check.http_method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote(path, "latin-1"),
        "QUERY_STRING": query,
        "SERVER_NAME": server.name,
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": server.name,
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
