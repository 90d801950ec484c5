"""Upstream: a URL as a WSGI app. It forwards what it is called with, byte for byte, and keeps nothing of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any

from sticky_core.errors import Failure, ServerFailure
from sticky_core.http.error_page import error_page
from sticky_core.http.forwarding import IDEMPOTENT, Forward, Framing, OutgoingRequest, request_target
from sticky_core.http.timeouts import Timeouts
from sticky_core.server.server import ServerConfig
from sticky_core.upstream.upstream import RETRY_BODY_LIMIT
from sticky_core.upstream.upstream import Upstream as CoreUpstream
from sticky_wsgi.body import Body
from sticky_wsgi.clients import has_left
from sticky_wsgi.messages import KEY, Environ, StartResponse, WSGIApp, headers_of, start_page
from sticky_wsgi.upstream.connections import ClientDisconnected, Connection, Connections

#: how much of a body is read and sent on at once, in bytes
_PIECE = 16384


class Upstream(CoreUpstream):
    """A WSGI app that forwards to a URL: `http://host:port/base`, `https://…`, `unix:/path/of.sock:/base`.

    Request targets, header values and bodies go on as they come, as far as WSGI lets them through; what belongs to the
    connection does not (RFC 9110, 7.6.1). Bodies stream both ways, and wait for the slower side.

    `timeouts`, `forward`, `tls`: as with `Backend` and `Server`; `pool_max_conn` idle connections are kept for
    `pool_purge_delay` seconds, for all threads of the process. Alone it answers 502, 503 or 504 if the upstream does
    not; as a server of a Backend it leaves that to the others.

    Raises `ConfigError` for what can't work, and when httptools is not installed.
    """

    buffer_limit = 2 << 20  # each thread has one client

    def _set_up(self, config: ServerConfig, timeouts: Timeouts, forward: Forward) -> None:
        super()._set_up(config, timeouts, forward)
        self._connections = Connections(self._location, self._context, self._sni, self._pool(), self.timeouts.server)

    @property
    def app(self) -> WSGIApp:
        return self.forward

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Forward, and answer for the upstream if it does not."""
        environ = {**environ, "wsgi.input": Body(environ, RETRY_BODY_LIMIT)}
        try:
            return self.forward(environ, start_response)
        except ServerFailure as error:
            return start_page(error_page(error.failure.status), environ, start_response)

    def forward(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Forward. ServerFailure if the upstream fails, before or behind the head of its answer."""
        given: object = environ["wsgi.input"]
        body = given if isinstance(given, Body) else Body(environ, 0)
        method: str = environ["REQUEST_METHOD"]
        outgoing = self._head(environ, method)
        repeatable = method in IDEMPOTENT
        try:
            first = _read(body) if outgoing.has_body else b""
            connection = self._connections.take(repeatable and not outgoing.has_body)
            if connection is not None:
                try:
                    return self._exchange(connection, environ, outgoing, first, body, start_response)
                except ServerFailure as error:
                    # it was closed while it was idle: that is between the upstream and us, and no failure
                    if error.failure is not Failure.CLOSED or not repeatable or body.discarded:
                        raise
                body.rewind()
                first = _read(body) if outgoing.has_body else b""
            connection = self._connections.open(self.timeouts.connect)
            return self._exchange(connection, environ, outgoing, first, body, start_response)
        except ClientDisconnected:
            _gone(environ)
            start_response("499 Client Closed Request", [])
            return []

    def _head(self, environ: Environ, method: str) -> OutgoingRequest:
        raw: str | None = environ.get("RAW_URI") or environ.get("REQUEST_URI")
        script: str = environ.get("SCRIPT_NAME", "")
        if raw is not None:
            target = request_target(raw.encode("latin-1"), script, "", b"", "latin-1")
        else:
            query: str = environ.get("QUERY_STRING", "")
            path: str = script + environ.get("PATH_INFO", "")
            target = request_target(None, script, path, query.encode("latin-1"), "latin-1")
        return self._heads.build(
            method,
            target,
            headers_of(environ),
            peer=environ.get("REMOTE_ADDR") or None,
            secure=environ.get("wsgi.url_scheme") == "https",
        )

    def _exchange(
        self,
        connection: Connection,
        environ: Environ,
        outgoing: OutgoingRequest,
        first: bytes,
        body: Body,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        answer = connection.answer
        passed_on = False
        try:
            connection.begin(environ["REQUEST_METHOD"], has_left(environ))
            if outgoing.has_body:
                _upload(connection, outgoing, first, body)
            else:
                connection.write(outgoing.head)
            while not answer.status:
                connection.read()
            # Servers hold a head until there is something behind it (PEP 3333), so until then nobody has seen it.
            while not answer.finished and not answer.body_parts:
                try:
                    connection.read()
                except ServerFailure as error:
                    if error.failure is Failure.TRUNCATED:
                        raise ServerFailure(Failure.CLOSED, detail="behind the head of its answer") from None
                    raise
            headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.headers]
            start_response(_LINES[answer.status], headers)
            if answer.finished:
                return [answer.take_body()]
            passed_on = True
            return _Answered(connection, environ)
        finally:
            if not passed_on:
                connection.end()

    def close(self) -> None:
        """Close the idle connections."""
        self._connections.close()

    def retire(self) -> None:
        super().retire()
        self._connections.end()


class _Answered:
    """An answer's body as it comes. Closing it early closes the connection."""

    def __init__(self, connection: Connection, environ: Environ) -> None:
        self._connection = connection
        self._environ = environ

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        connection = self._connection
        answer = connection.answer
        while True:
            part = answer.take_body()
            if part:
                return part
            if answer.finished:
                raise StopIteration
            try:
                connection.read()
            except ClientDisconnected:
                connection.spoiled = True
                _gone(self._environ)
                raise StopIteration from None

    def close(self) -> None:
        connection = self._connection
        if not connection.answer.finished:
            connection.spoiled = True
        connection.end()


def _gone(environ: Environ) -> None:
    transaction: Any = environ.get(KEY)
    if transaction is not None:
        transaction.gone()


class _Lines(dict[int, str]):
    """Status lines. Of a status that HTTP does not know, no more can be said than its number."""

    def __missing__(self, status: int) -> str:
        return f"{status} Unknown"


_LINES = _Lines((status.value, f"{status.value} {status.phrase}") for status in HTTPStatus)


def _read(body: Body) -> bytes:
    """The next piece of a body. ClientLeft if the server can't get it."""
    try:
        return body.read(_PIECE)
    except OSError:
        raise ClientDisconnected from None


def _upload(connection: Connection, outgoing: OutgoingRequest, first: bytes, body: Body) -> None:
    """Send a body as it comes, as long as the upstream listens."""
    answer = connection.answer
    chunked = outgoing.framing is Framing.CHUNKED
    left = outgoing.length
    data = outgoing.head
    piece = first
    while True:
        left -= len(piece)
        if chunked:
            data += b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b"0\r\n\r\n"
        else:
            data += piece
        if not piece and not chunked and left > 0:
            connection.spoiled = True
            raise ServerFailure(Failure.NOT_FORWARDABLE, detail="the body is not as long as Content-Length says")
        heard = not connection.write(data) or connection.heard()
        over = not piece if chunked else left <= 0
        if heard and not over:
            connection.spoiled = True
            if not answer.status:
                connection.drain()
            return
        if over:
            return
        data = b""
        piece = _read(body)
