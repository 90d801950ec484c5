"""Probe a server once on an event loop: over a connection, by a request to an app in this process, or by a function of
the user.

On asyncio a probe over a connection uses its socket without a transport, and no cancel scope: these would cost more
than connecting and asking.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast
from urllib.parse import unquote

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.to_thread

from sticky_asgi.messages import ASGIApp, Message, Scope
from sticky_core.errors import ServerFailure
from sticky_core.health.check import CheckResult, CheckStatus, probe_result
from sticky_core.health.expect import MAX_BODY
from sticky_core.health.runtime import CheckRuntime
from sticky_core.http.tls import TLS
from sticky_core.options.callables import is_async
from sticky_core.server.server import Server
from sticky_core.upstream.local_limits import connect_result, error_of_attempts
from sticky_core.upstream.probe import NetworkProbe, ProbeTarget, result_from_exception, result_from_failure

T = TypeVar("T")

_READ = 65536


class Network:
    """Connects to servers, and keeps their TLS contexts. Belongs to one event loop.

    `loop`: the event loop, if it is asyncio's; None: another library's.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self._loop = loop
        self._contexts: dict[Server, ssl.SSLContext] = {}

    async def exchange(self, probe: NetworkProbe, server: Server, connect: float, rest: float | None) -> CheckResult:
        """Connect to the server, send what `probe` sends, and feed it what arrives.

        `connect`, `rest`: how many seconds the connection may take, and the exchange; None: what is left of the first.
        """
        started = anyio.current_time()
        try:
            stream = await self._within(connect, self._connect(probe.target, server))
        except TimeoutError:
            return CheckResult(CheckStatus.L4TOUT)
        except (ssl.SSLError, anyio.EndOfStream, anyio.BrokenResourceError) as error:
            return CheckResult(CheckStatus.L6RSP, info=str(error))
        except OSError as error:
            return connect_result(error, _error_text(error), anyio.current_time())
        try:
            left = max(0.0, started + connect - anyio.current_time()) if rest is None else rest
            result = probe.on_connected()
            return result if result is not None else await self._within(left, _converse(probe, stream))
        except TimeoutError:
            return CheckResult(CheckStatus.L7TOUT)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as error:
            return CheckResult(CheckStatus.SOCKERR, info=str(error))
        finally:
            await self._close(stream)

    async def _within(self, seconds: float, awaited: Awaitable[T]) -> T:
        """Return what `awaited` returns; TimeoutError if it takes longer than `seconds`."""
        if self._loop is not None:
            async with asyncio.timeout(seconds):
                return await awaited
        with anyio.fail_after(seconds):
            return await awaited

    async def _close(self, stream: anyio.abc.ByteStream) -> None:
        if self._loop is not None:
            await stream.aclose()  # waits for nothing
        else:
            await anyio.aclose_forcefully(stream)

    async def _connect(self, target: ProbeTarget, server: Server) -> anyio.abc.ByteStream:
        stream: anyio.abc.ByteStream
        if self._loop is not None:
            stream = _SocketStream(self._loop, await _connect_socket(self._loop, target))
        elif target.socket is not None:
            stream = await anyio.connect_unix(target.socket)
        else:
            stream = await anyio.connect_tcp(target.host, target.port)
        if target.tls:
            from anyio.streams.tls import TLSStream  # takes memory, and few checks are over TLS

            tls = server.config.tls
            try:
                stream = await TLSStream.wrap(
                    stream,
                    hostname=(tls.sni if tls is not None else None) or target.host,
                    ssl_context=self._context(server),
                    standard_compatible=False,
                )
            except BaseException:
                await self._close(stream)
                raise
        return stream

    def _context(self, server: Server) -> ssl.SSLContext:
        context = self._contexts.get(server)
        if context is None:
            context = self._contexts[server] = (server.config.tls or TLS()).context()
        return context

    def remove(self, server: Server) -> None:
        """Forget a server that was removed."""
        self._contexts.pop(server, None)


async def _converse(probe: NetworkProbe, stream: anyio.abc.ByteStream) -> CheckResult:
    if probe.target.request:
        await stream.send(probe.target.request)
    while True:
        try:
            data = await stream.receive(_READ)
        except (anyio.EndOfStream, anyio.BrokenResourceError, OSError):
            data = b""
        result = probe.feed(data)
        if result is not None:
            return result


class _SocketStream(anyio.abc.ByteStream):
    """A connected socket on asyncio."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
        self._loop = loop
        self._socket = connection

    async def receive(self, max_bytes: int = _READ) -> bytes:
        data = await self._loop.sock_recv(self._socket, max_bytes)
        if not data:
            raise anyio.EndOfStream
        return data

    async def send(self, item: bytes) -> None:
        await self._loop.sock_sendall(self._socket, item)

    async def send_eof(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    async def aclose(self) -> None:
        self._socket.close()


async def _connect_socket(loop: asyncio.AbstractEventLoop, target: ProbeTarget) -> socket.socket:
    """Return a socket that is connected to the first address of `target` that accepts a connection."""
    errors: list[OSError] = []
    for family, address in await _addresses(loop, target):
        try:
            connection = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            errors.append(error)
            continue
        try:
            connection.setblocking(False)
            await loop.sock_connect(connection, address)
            return connection
        except OSError as error:
            connection.close()
            errors.append(error)
        except BaseException:
            connection.close()
            raise
    raise error_of_attempts(errors) if errors else OSError(f"{target.host} has no address")


async def _addresses(loop: asyncio.AbstractEventLoop, target: ProbeTarget) -> list[tuple[int, Any]]:
    if target.socket is not None:
        return [(socket.AF_UNIX, target.socket)]
    if target.ip_version is not None:
        family = socket.AF_INET if target.ip_version == 4 else socket.AF_INET6
        return [(family, (target.host, target.port))]
    found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]


def _error_text(error: OSError) -> str:
    """Return why a connection failed. anyio tries several addresses; its own error reports only that all failed."""
    cause: BaseException | None = error.__cause__
    while isinstance(cause, BaseExceptionGroup):
        cause = cast("BaseExceptionGroup[BaseException]", cause).exceptions[0]
    known = cause if isinstance(cause, OSError) else error
    return os.strerror(known.errno) if known.errno else str(known)


async def call_probe(probe: Callable[[Any], Any], server: Server, checking: CheckRuntime) -> CheckResult:
    """Call a user's probe."""
    with anyio.move_on_after(checking.timeout):
        try:
            if is_async(probe):
                returned = await probe(server)
            else:
                returned = await anyio.to_thread.run_sync(probe, server, abandon_on_cancel=True)
                if inspect.isawaitable(returned):  # a decorator of a coroutine function
                    returned = await returned
            return probe_result(returned)
        except ServerFailure as error:
            return result_from_failure(error.failure)
        except Exception as error:
            return CheckResult(CheckStatus.L7RSP, info=f"{type(error).__name__}: {error}")
    return CheckResult(CheckStatus.L7TOUT)


async def check_app(app: ASGIApp | None, server: Server, checking: CheckRuntime) -> CheckResult:
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
