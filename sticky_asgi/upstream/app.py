"""Upstream: a URL as an ASGI app. It forwards what it is called with, byte for byte, and keeps nothing of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from contextlib import suppress

from sticky_asgi.body import Body
from sticky_asgi.messages import ASGIApp, GivenUp, Message, Receive, Scope, Send, gone, send_page
from sticky_asgi.upstream.connections import Connection, Connections
from sticky_core.errors import ConfigError, Failure, ServerFailure
from sticky_core.fork import register
from sticky_core.http import http1
from sticky_core.http.error_page import error_page
from sticky_core.http.forwarding import IDEMPOTENT, Forward, Framing, OutgoingRequest, request_target
from sticky_core.http.timeouts import Timeouts
from sticky_core.server.server import ServerConfig
from sticky_core.upstream.upstream import RETRY_BODY_LIMIT
from sticky_core.upstream.upstream import Upstream as CoreUpstream

#: How long a client that waits for a 100 is left waiting for the upstream's, in seconds (RFC 9110, 10.1.1).
CONTINUE = 1.0


class Upstream(CoreUpstream):
    """An ASGI app that forwards to a URL: `http://host:port/base`, `https://…`, `unix:/path/of.sock:/base`.

    Request targets, header values and bodies go on as they come; what belongs to the connection does not (RFC 9110,
    7.6.1). Bodies stream both ways, and wait for the slower side. WebSockets are forwarded as well.

    `timeouts`, `forward`, `tls`: as with `Backend` and `Server`; `pool_max_conn` idle connections are kept for
    `pool_purge_delay` seconds, for each event loop its own. Alone it answers 502, 503 or 504 if the upstream does not;
    as a server of a Backend it leaves that to the others.

    Raises `ConfigError` for what can't work, and when httptools is not installed. It needs asyncio.
    """

    buffer_limit = 8 << 20  # one thread passes on all that the event loop's clients are sent

    def _set_up(self, config: ServerConfig, timeouts: Timeouts, forward: Forward) -> None:
        super()._set_up(config, timeouts, forward)
        try:
            from sticky_asgi.upstream.websockets import tunnel
        except ModuleNotFoundError as error:
            raise ConfigError(http1.MISSING_PACKAGE.format("wsproto")) from error
        self._tunnel = tunnel
        self._lock = threading.Lock()
        self._everywhere: dict[asyncio.AbstractEventLoop, Connections] = {}
        self._latest: Connections | None = None
        register(self)

    @property
    def app(self) -> ASGIApp:
        return self.forward

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward, and answer for the upstream if it does not."""
        if scope["type"] == "lifespan":
            return await self._lifespan(receive, send)
        body = Body(receive, RETRY_BODY_LIMIT)
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.forward(scope, body, watched)
        except ServerFailure as error:
            if begun:
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
        """Forward. ServerFailure if the upstream fails, before or behind the head of its answer."""
        if not isinstance(receive, Body):
            return self._read(scope, Body(receive, 0), send)
        if scope["type"] != "http":
            return self._tunnel(self, scope, receive, send)
        outgoing = self.head(scope, scope["method"])
        if outgoing.has_body:
            return self._with_body(scope, outgoing, receive, send)
        return self._through(scope, outgoing, None, receive, send)

    async def _read(self, scope: Scope, body: Body, send: Send) -> None:
        try:
            await self.forward(scope, body, send)
        finally:
            body.close()

    def head(self, scope: Scope, method: str, upgrade: tuple[bytes, ...] = ()) -> OutgoingRequest:
        """The head of the request that `scope` is."""
        client = scope.get("client")
        return self._heads.build(
            method,
            request_target(
                scope.get("raw_path") or None, scope.get("root_path") or "", scope["path"], scope["query_string"]
            ),
            scope["headers"],
            peer=client[0] if client else None,
            secure=scope["scheme"] in ("https", "wss"),
            untold=scope.get("http_version", "1.1")[0] > "1",
            upgrade=upgrade,
            trailers=_takes_trailers(scope),
        )

    async def _with_body(self, scope: Scope, outgoing: OutgoingRequest, body: Body, send: Send) -> None:
        first: Message | None = None
        if outgoing.expects_continue:
            body.silent = True  # to ask for the body is to promise that it is wanted
        else:
            first = await (body() if outgoing.framing is Framing.UNDECLARED else body.at_once())
            if first is not None:
                if first["type"] == "http.disconnect":
                    return gone(scope)
                outgoing = _told(outgoing, first)
        await self._through(scope, outgoing, first, body, send)

    def _through(
        self, scope: Scope, outgoing: OutgoingRequest, first: Message | None, body: Body, send: Send
    ) -> Awaitable[None]:
        """Through an idle connection, if there is one that may be used."""
        repeatable = scope["method"] in IDEMPOTENT
        connection = self.connections().take(repeatable and not outgoing.has_body)
        if connection is None:
            return self._anew(scope, outgoing, first, body, send)
        return self._exchange(connection, scope, outgoing, first, body, send, repeatable)

    async def _anew(
        self, scope: Scope, outgoing: OutgoingRequest, first: Message | None, body: Body, send: Send
    ) -> None:
        """Through a connection of its own."""
        connection = await self.connections().open(self.timeouts.connect, body)
        if connection is None:
            return gone(scope)
        await self._exchange(connection, scope, outgoing, first, body, send, False)

    async def _exchange(
        self,
        connection: Connection,
        scope: Scope,
        outgoing: OutgoingRequest,
        first: Message | None,
        body: Body,
        send: Send,
        again: bool,
    ) -> None:
        """`again`: if the connection turns out to be closed, the request may go through another one."""
        answer = connection.answer
        connection.begin(scope["method"], body)
        upload: asyncio.Task[None] | None = None
        try:
            if not outgoing.has_body:
                connection.write(outgoing.head)
            elif first is not None and _is_all(outgoing, first):
                connection.write(outgoing.head + _framed(outgoing, _fits(outgoing, first), True))
            else:
                connection.write(outgoing.head)
                upload = asyncio.ensure_future(_upload(connection, outgoing, first, body))
            while not answer.status:
                if await connection.news() and connection.left():
                    return gone(scope)
            start: Message = {"type": "http.response.start", "status": answer.status, "headers": answer.headers}
            trails = answer.trailer_names is not None and _takes_trailers(scope)
            if trails:
                start["trailers"] = True
                start["headers"] = [*answer.headers, (b"trailer", answer.trailer_names)]
            await send(start)
            while True:
                part = connection.take()
                if answer.finished and not answer.body_parts:
                    break
                if part:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                    if connection.gone:
                        return gone(scope)
                else:
                    if await connection.news() and connection.left():
                        return gone(scope)
            await send({"type": "http.response.body", "body": part})
            if trails:
                await send({"type": "http.response.trailers", "headers": answer.trailers})
            return
        except ServerFailure as error:
            # it was closed while it was idle: that is between the upstream and us, and no failure
            if error.failure is not Failure.CLOSED or not again or body.discarded:
                raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not connection.cut or task is None or task.uncancel():
                raise
            return gone(scope)
        except GivenUp:
            connection.gone = not answer.finished
            return
        except OSError:  # nobody takes the answer any more
            connection.gone = True
            return gone(scope)
        finally:
            if upload is not None and not upload.done():  # answered before it had heard all
                answer.reusable = False
                upload.cancel()
            connection.end()
        body.rewind()
        if first is not None:
            first = await body()
        await self._anew(scope, outgoing, first, body, send)

    def connections(self) -> Connections:
        """Those of this event loop."""
        latest = self._latest
        # To ask asyncio costs a system call, for it makes sure that we were not forked; who is forgets all connections.
        if latest is not None and latest.thread == threading.get_ident() and latest.loop.is_running():
            return latest
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigError(f"forwarding to {self.url} needs asyncio, and this event loop is another's") from None
        with self._lock:
            for old in [each for each in self._everywhere if each.is_closed()]:
                del self._everywhere[old]
            connections = self._everywhere.get(loop)
            if connections is None:
                connections = Connections(
                    loop, self._location, self._context, self._sni, self._pool(), self.timeouts.server
                )
                self._everywhere[loop] = connections
        connections.thread = threading.get_ident()
        self._latest = connections
        return connections

    def close(self) -> None:
        """Close the idle connections of this event loop."""
        with suppress(RuntimeError):
            connections = self._everywhere.get(asyncio.get_running_loop())
            if connections is not None:
                connections.close()

    def retire(self) -> None:
        super().retire()
        with self._lock:
            everywhere = list(self._everywhere.items())
        for loop, connections in everywhere:
            with suppress(RuntimeError):  # the loop has ended, and they with it
                loop.call_soon_threadsafe(connections.end)

    def after_fork(self) -> None:
        """We are a forked child: the parent's connections are not ours, not even to close."""
        self._lock = threading.Lock()
        self._everywhere = {}
        self._latest = None


def _takes_trailers(scope: Scope) -> bool:
    """Whether those of an answer can be passed on."""
    return "http.response.trailers" in (scope.get("extensions") or ())


def _told(outgoing: OutgoingRequest, first: Message) -> OutgoingRequest:
    """How the body is framed, where only its first message tells."""
    if outgoing.framing is not Framing.UNDECLARED:
        return outgoing
    if first.get("more_body", False):
        return outgoing.with_framing(Framing.CHUNKED)
    length = len(first.get("body", b""))
    return outgoing.with_framing(Framing.LENGTH, length) if length else outgoing.with_framing(Framing.NONE)


def _is_all(outgoing: OutgoingRequest, message: Message) -> bool:
    """Whether this is the whole body; some servers say so in a further message only."""
    if not message.get("more_body", False):
        return True
    return outgoing.framing is Framing.LENGTH and len(message.get("body", b"")) == outgoing.length


def _fits(outgoing: OutgoingRequest, message: Message) -> bytes:
    """The whole body. ServerFailure if it is not as long as it says."""
    data: bytes = message.get("body", b"")
    if outgoing.framing is Framing.LENGTH and len(data) != outgoing.length:
        raise ServerFailure(Failure.NOT_FORWARDABLE, detail="the body is not as long as Content-Length says")
    return data


def _framed(outgoing: OutgoingRequest, data: bytes, last: bool) -> bytes:
    """A piece of the body as it goes over the line."""
    if outgoing.framing is not Framing.CHUNKED:
        return data
    chunk = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
    return chunk + b"0\r\n\r\n" if last else chunk


async def _upload(connection: Connection, outgoing: OutgoingRequest, first: Message | None, body: Body) -> None:
    """Send a body as it comes, no faster than the upstream takes it in."""
    answer = connection.answer
    if first is None:
        if outgoing.expects_continue:
            await connection.continues(CONTINUE)
            if answer.status or connection.closed:
                answer.reusable = False  # it has not seen the body that it was promised
                return
        message = await body.unhurt()
        outgoing = _told(outgoing, message)
    else:
        message = first
    left = outgoing.length
    while not connection.closed and not connection.gone:
        if message["type"] == "http.disconnect":
            return connection.client_left()
        data: bytes = message.get("body", b"")
        last = not message.get("more_body", False)
        left -= len(data)
        if outgoing.framing is Framing.LENGTH and (left < 0 or (last and left)):
            return connection.spoil("the body is not as long as Content-Length says")
        connection.write(_framed(outgoing, data, last))
        if last or (left == 0 and outgoing.framing is Framing.LENGTH):
            return
        await connection.drain()
        message = await body.unhurt()
