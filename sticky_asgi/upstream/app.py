"""Upstream: a URL as an ASGI app. It forwards requests and responses byte for byte, and keeps none of their data."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable
from contextlib import suppress

from sticky_asgi.body import Body
from sticky_asgi.clients import breaks_off_incomplete
from sticky_asgi.messages import (
    ASGIApp,
    HeldResponse,
    Message,
    Receive,
    ResponseDiscarded,
    Scope,
    Send,
    count_client_disconnect,
    find_transaction,
    send_page,
    with_joined_cookies,
    with_transaction,
)
from sticky_asgi.upstream.connections import Connection, Connections
from sticky_asgi.upstream.sweep import TICK
from sticky_core.errors import ConfigError, Failure, ServerFailure
from sticky_core.fork import register
from sticky_core.http import http1
from sticky_core.http.error_page import error_page
from sticky_core.http.forwarding import IDEMPOTENT, Forward, Framing, OutgoingRequest
from sticky_core.http.request_target import request_target
from sticky_core.http.timeouts import SLOW_CLIENT, Timeouts
from sticky_core.options.spelling import name_unknown_options
from sticky_core.server.config import ServerConfig
from sticky_core.transaction.status_retry import KEEP_TIMEOUT, KEPT_BODY_LIMIT
from sticky_core.upstream.upstream import RETRY_BODY_LIMIT
from sticky_core.upstream.upstream import Upstream as CoreUpstream

_log = logging.getLogger("sticky_sessions")

#: how many sweeps a client may take to read a part of a response
SLOW_TICKS = round(SLOW_CLIENT / TICK)

#: How long the upstream's 100 is awaited for a client that expects one, in seconds; then the body is sent without it
#: (RFC 9110, 10.1.1).
CONTINUE_TIMEOUT = 1.0


@name_unknown_options
class Upstream(CoreUpstream):
    """An ASGI app that forwards to a URL.

    Request targets, header values and bodies are forwarded unchanged; the headers that belong to one connection are not
    forwarded (RFC 9110, 7.6.1). Bodies are streamed in both directions, at the pace of the slower side. WebSockets are
    forwarded as well.

    - `url`: `http://host:port/base`, `https://…` or `unix:/path/of.sock:/base`; the base is put before each path. No
      default. nginx `proxy_pass`.
    - `timeouts`: a `Timeouts`, in seconds or HAProxy's text; default: connect 5, server 60, tunnel 3600, client 60.
      HAProxy `timeout connect|server|tunnel|client`, nginx `proxy_connect_timeout`, `proxy_read_timeout`,
      `client_body_timeout`.
    - `forward`: a `Forward`, how the client's address, scheme and host are passed on; default: X-Forwarded-For, -Proto,
      -Host and X-Real-IP, and the client's Host. HAProxy `option forwardfor|forwarded`, nginx `proxy_set_header`.
    - `tls`: a `TLS`, certificates and names for an `https://` URL; default: the system's certificate authorities and
      the URL's host. HAProxy `ca-file`, `crt`, `sni`, `verify`; nginx `proxy_ssl_*`.
    - `pool_max_conn`: how many idle connections are kept for further requests, for each event loop; an int; default
      None, no limit. HAProxy `pool-max-conn`, nginx `keepalive`.
    - `pool_purge_delay`: how long an idle connection is kept, in seconds or HAProxy's text; default 5 s. HAProxy
      `pool-purge-delay`, nginx `keepalive_timeout`.

    It responds with 502, 503 or 504 if the upstream fails. A server of a `Backend` is the URL itself, `Server(name,
    url)`, so that another server can be tried.

    Raises `ConfigError` for options that can't work, and when httptools is not installed. It needs asyncio.
    """

    buffer_limit = 8 << 20  # one thread buffers for all clients of the event loop

    def _set_up(self, config: ServerConfig, timeouts: Timeouts, forward: Forward) -> None:
        super()._set_up(config, timeouts, forward)
        try:
            from sticky_asgi.upstream.websockets import tunnel
        except ModuleNotFoundError as error:
            raise ConfigError(http1.MISSING_PACKAGE.format("wsproto")) from error
        self._tunnel = tunnel
        self._lock = threading.Lock()
        self._by_loop: dict[asyncio.AbstractEventLoop, Connections] = {}
        self._last_used: Connections | None = None
        register(self)

    @property
    def app(self) -> ASGIApp:
        return self.forward

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request; respond with an error page if the upstream fails before it has responded."""
        if scope["type"] == "lifespan":
            return await self._lifespan(receive, send)
        scope = with_joined_cookies(with_transaction(scope, send))
        body = Body(receive, RETRY_BODY_LIMIT)
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.forward(scope, body, send_and_note)
        except ServerFailure as error:
            if started:
                if find_transaction(scope, send) is not None:
                    raise  # the dispatcher handles it
                _log.warning("Upstream %s: %s", self.url, error)
                if scope["type"] == "http" and breaks_off_incomplete(send):
                    return
                raise
            await send_page(error_page(error.failure.status), scope, send)
        finally:
            body.close()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.close()
        await send({"type": "lifespan.shutdown.complete"})

    def forward(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Forward a request. ServerFailure if the upstream fails, before the head of its response or after it."""
        if not isinstance(receive, Body):
            return self._with_reader(scope, Body(receive, 0), send)
        if scope["type"] != "http":
            return self._tunnel(
                scope, receive, send, make_head=self.head, connections=self.connections(), timeouts=self.timeouts
            )
        outgoing = self.head(scope, scope["method"])
        if outgoing.has_body:
            return self._with_body(scope, outgoing, receive, send)
        return self._send_request(scope, outgoing, None, receive, send)

    async def _with_reader(self, scope: Scope, body: Body, send: Send) -> None:
        try:
            await self.forward(scope, body, send)
        finally:
            body.close()

    def head(self, scope: Scope, method: str, upgrade: tuple[bytes, ...] = ()) -> OutgoingRequest:
        """Return the head of the request to the upstream for the client's request `scope`."""
        client = scope.get("client")
        return self._heads.build(
            method,
            request_target(
                scope.get("raw_path") or None,
                scope.get("root_path") or "",
                scope["path"],
                scope.get("query_string", b""),
            ),
            scope["headers"],
            peer=client[0] if client else None,
            secure=scope.get("scheme") in ("https", "wss"),
            is_undeclared=scope.get("http_version", "1.1")[0] > "1",
            upgrade=upgrade,
            accepts_trailers=_accepts_trailers(scope),
        )

    async def _with_body(self, scope: Scope, outgoing: OutgoingRequest, body: Body, send: Send) -> None:
        first: Message | None = None
        if outgoing.expects_continue:
            body.awaits_continue = True  # to call `receive` makes the server in front send the client a 100
        else:
            first = await body.next_if_arrived()
            if first is None and outgoing.framing is Framing.UNDECLARED:
                first = await self._first_of_body(body)
            if first is not None:
                if first["type"] == "http.disconnect":
                    return count_client_disconnect(scope, send)
                outgoing = _with_framing(outgoing, first)
        await self._send_request(scope, outgoing, first, body, send)

    async def _first_of_body(self, body: Body) -> Message:
        """Wait for the first message of a body. ServerFailure if the client sends none in time."""
        try:
            async with asyncio.timeout(self.timeouts.client):
                return await body.receive_shielded()
        except TimeoutError:
            raise ServerFailure(Failure.CLIENT_TIMEOUT) from None

    def _send_request(
        self, scope: Scope, outgoing: OutgoingRequest, first: Message | None, body: Body, send: Send
    ) -> Awaitable[None]:
        """Send a request over an idle connection that may be used for it, or over a new one."""
        repeatable = scope["method"] in IDEMPOTENT
        connection = self.connections().acquire(repeatable and not outgoing.has_body)
        if connection is None:
            return self._over_new_connection(scope, outgoing, first, body, send)
        return self._exchange(connection, scope, outgoing, first, body, send, repeatable)

    async def _over_new_connection(
        self, scope: Scope, outgoing: OutgoingRequest, first: Message | None, body: Body, send: Send
    ) -> None:
        connection = await self.connections().open(self.timeouts.connect, body)
        if connection is None:
            return count_client_disconnect(scope, send)
        await self._exchange(connection, scope, outgoing, first, body, send, False)

    async def _exchange(
        self,
        connection: Connection,
        scope: Scope,
        outgoing: OutgoingRequest,
        first: Message | None,
        body: Body,
        send: Send,
        may_reconnect: bool,
    ) -> None:
        """Send one request over `connection` and pass its response on.

        `may_reconnect`: if the connection turns out to be closed, the request may be sent over another one.
        """
        response = connection.response
        connection.begin(scope["method"], body)
        upload: asyncio.Task[None] | None = None
        try:
            if not outgoing.has_body:
                connection.write(outgoing.head)
            elif first is not None and _is_whole_body(outgoing, first):
                connection.write(outgoing.head + _framed(outgoing, _whole_body(outgoing, first), True))
            else:
                connection.write(outgoing.head)
                upload = asyncio.ensure_future(_upload(connection, outgoing, first))
            while not response.status:
                if await connection.wait() and connection.raise_or_client_gone():
                    return count_client_disconnect(scope, send)
            start: Message = {"type": "http.response.start", "status": response.status, "headers": response.headers}
            has_trailers = response.trailer_names is not None and _accepts_trailers(scope)
            if has_trailers:
                start["trailers"] = True
                start["headers"] = [*response.headers, (b"trailer", response.trailer_names)]
            await send(start)
            while True:
                part = connection.take()
                if response.finished and not response.body_parts:
                    break
                if part:
                    sweep = connection.sweep
                    number = sweep.number
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                    if sweep.number > number + SLOW_TICKS:
                        connection.client_is_slow = True
                    if connection.client_gone:
                        return count_client_disconnect(scope, send)
                else:
                    if await connection.wait() and connection.raise_or_client_gone():
                        return count_client_disconnect(scope, send)
            await send({"type": "http.response.body", "body": part})
            if has_trailers:
                await send({"type": "http.response.trailers", "headers": response.trailers})
            return
        except ServerFailure as error:
            # The upstream closed the connection while it was idle: no failure that the client needs to know.
            if error.failure is not Failure.CLOSED or not may_reconnect or body.discarded:
                raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not connection.task_cancelled or task is None or task.uncancel():
                raise
            return count_client_disconnect(scope, send)
        except ResponseDiscarded as discarded:
            await _keep(connection, discarded.held)
            connection.client_gone = not response.finished
            return
        except OSError:  # `send` raises it when the client has disconnected
            connection.client_gone = True
            return count_client_disconnect(scope, send)
        finally:
            if upload is not None and not upload.done():  # the response came before the whole body was sent
                response.reusable = False
                upload.cancel()
            connection.end()
        body.rewind()
        if first is not None:
            first = await body()
        await self._over_new_connection(scope, outgoing, first, body, send)

    def connections(self) -> Connections:
        """Return the connections of the running event loop."""
        last_used = self._last_used
        # `get_running_loop` costs a system call (it checks the process id). It can be spared: a forked child forgets
        # all connections.
        if last_used is not None and last_used.thread == threading.get_ident() and last_used.loop.is_running():
            return last_used
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigError(
                f"forwarding to {self.url} needs asyncio, and this event loop is not asyncio's: under hypercorn, leave "
                "-k trio out"
            ) from None
        with self._lock:
            for closed in [each for each in self._by_loop if each.is_closed()]:
                del self._by_loop[closed]
            connections = self._by_loop.get(loop)
            if connections is None:
                connections = Connections(
                    loop, self._location, self._context, self._sni, self._build_pool(), self.timeouts
                )
                self._by_loop[loop] = connections
        connections.thread = threading.get_ident()
        self._last_used = connections
        return connections

    def close(self) -> None:
        """Close the idle connections of the running event loop."""
        with suppress(RuntimeError):
            connections = self._by_loop.get(asyncio.get_running_loop())
            if connections is not None:
                connections.close()

    def retire(self) -> None:
        super().retire()
        with self._lock:
            by_loop = list(self._by_loop.items())
        for loop, connections in by_loop:
            with suppress(RuntimeError):  # the loop is closed, and so are its connections
                loop.call_soon_threadsafe(connections.retire)

    def after_fork(self) -> None:
        """Forget the parent process's connections in a forked child: to close one would close it for the parent."""
        self._lock = threading.Lock()
        self._by_loop = {}
        self._last_used = None


def _accepts_trailers(scope: Scope) -> bool:
    """Return whether the server in front can send the trailers of a response."""
    return "http.response.trailers" in (scope.get("extensions") or ())


def _with_framing(outgoing: OutgoingRequest, first: Message) -> OutgoingRequest:
    """Return `outgoing` with the framing of its body, which its first message decides if the head does not."""
    if outgoing.framing is not Framing.UNDECLARED:
        return outgoing
    if first.get("more_body", False):
        return outgoing.with_framing(Framing.CHUNKED)
    length = len(first.get("body", b""))
    return outgoing.with_framing(Framing.LENGTH, length) if length else outgoing.with_framing(Framing.NONE)


def _is_whole_body(outgoing: OutgoingRequest, message: Message) -> bool:
    """Return whether `message` holds the whole body; some servers mark the end with a further, empty message."""
    if not message.get("more_body", False):
        return True
    return outgoing.framing is Framing.LENGTH and len(message.get("body", b"")) == outgoing.length


def _whole_body(outgoing: OutgoingRequest, message: Message) -> bytes:
    """Return the body, all of which is in `message`. ServerFailure if its length is not the announced one."""
    data: bytes = message.get("body", b"")
    if outgoing.framing is Framing.LENGTH and len(data) != outgoing.length:
        raise ServerFailure(Failure.NOT_FORWARDABLE, detail="the body is not as long as Content-Length says")
    return data


async def _keep(connection: Connection, held: HeldResponse) -> None:
    """Read the rest of a response that is held back, so that it can be passed on if no other server responds: if it is
    short, and arrives soon.
    """
    response = connection.response
    body = b""
    try:
        async with asyncio.timeout(KEEP_TIMEOUT):
            while True:
                while part := connection.take():
                    body += part
                if response.finished or len(body) > KEPT_BODY_LIMIT:
                    break
                if await connection.wait():
                    return
    except TimeoutError:
        return
    if response.finished:
        held.keep_body(body)


def _framed(outgoing: OutgoingRequest, data: bytes, last: bool) -> bytes:
    """Return a piece of the body as it is sent."""
    if outgoing.framing is not Framing.CHUNKED:
        return data
    chunk = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
    return chunk + b"0\r\n\r\n" if last else chunk


async def _upload(connection: Connection, outgoing: OutgoingRequest, first: Message | None) -> None:
    """Send the body as it arrives, no faster than the upstream reads it. An exception of the client's `receive` is
    raised where the response is awaited.
    """
    try:
        await _send_body(connection, outgoing, first)
    except Exception as error:
        connection.on_receive_error(error)


async def _send_body(connection: Connection, outgoing: OutgoingRequest, first: Message | None) -> None:
    response = connection.response
    if first is None:
        if outgoing.expects_continue:
            await connection.wait_for_continue(CONTINUE_TIMEOUT)
            if response.status or connection.closed:
                response.reusable = False  # the upstream still expects the body that the head announced
                return
        message = await connection.receive()
        outgoing = _with_framing(outgoing, message)
    else:
        message = first
    left = outgoing.length
    while not connection.closed and not connection.client_gone:
        if message["type"] == "http.disconnect":
            return connection.on_client_gone()
        data: bytes = message.get("body", b"")
        last = not message.get("more_body", False)
        left -= len(data)
        if outgoing.framing is Framing.LENGTH and (left < 0 or (last and left)):
            return connection.reject_body("the body is not as long as Content-Length says")
        connection.write(_framed(outgoing, data, last))
        if last or (left == 0 and outgoing.framing is Framing.LENGTH):
            return
        await connection.drain()
        message = await connection.receive()
