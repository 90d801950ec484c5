"""Upstream: a URL as a WSGI app. It forwards requests and responses byte for byte, and keeps none of their data."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from math import inf

from sticky_core.errors import Failure, ServerFailure
from sticky_core.http.error_page import error_page
from sticky_core.http.forwarding import IDEMPOTENT, Forward, Framing, OutgoingRequest
from sticky_core.http.request_target import request_target
from sticky_core.http.timeouts import SLOW_CLIENT, Timeouts
from sticky_core.options.spelling import name_unknown_options
from sticky_core.server.config import ServerConfig
from sticky_core.upstream.upstream import RETRY_BODY_LIMIT
from sticky_core.upstream.upstream import Upstream as CoreUpstream
from sticky_wsgi.body import Body
from sticky_wsgi.clients import disconnect_check, truncation
from sticky_wsgi.messages import (
    Environ,
    StartResponse,
    Transaction,
    WSGIApp,
    count_client_disconnect,
    end_for_disconnected_client,
    find_transaction,
    headers_of,
    start_page,
    with_transaction,
)
from sticky_wsgi.upstream.connections import ClientDisconnected, Connection, Connections

_log = logging.getLogger("sticky_sessions")

#: how much of a body is read and sent at once, in bytes
_PIECE = 16384


@name_unknown_options
class Upstream(CoreUpstream):
    """A WSGI app that forwards to a URL.

    Request targets, header values and bodies are forwarded unchanged, as far as WSGI passes them on; the headers that
    belong to one connection are not forwarded (RFC 9110, 7.6.1). Bodies are streamed in both directions, at the pace of
    the slower side.

    - `url`: `http://host:port/base`, `https://…` or `unix:/path/of.sock:/base`; the base is put before each path. No
      default. nginx `proxy_pass`.
    - `timeouts`: a `Timeouts`, in seconds or HAProxy's text; default: connect 5, server 60. HAProxy `timeout
      connect|server`, nginx `proxy_connect_timeout`, `proxy_read_timeout`.
    - `forward`: a `Forward`, how the client's address, scheme and host are passed on; default: X-Forwarded-For, -Proto,
      -Host and X-Real-IP, and the client's Host. HAProxy `option forwardfor|forwarded`, nginx `proxy_set_header`.
    - `tls`: a `TLS`, certificates and names for an `https://` URL; default: the system's certificate authorities and
      the URL's host. HAProxy `ca-file`, `crt`, `sni`, `verify`; nginx `proxy_ssl_*`.
    - `pool_max_conn`: how many idle connections are kept for further requests, for all threads; an int; default None,
      no limit. HAProxy `pool-max-conn`, nginx `keepalive`.
    - `pool_purge_delay`: how long an idle connection is kept, in seconds or HAProxy's text; default 5 s. HAProxy
      `pool-purge-delay`, nginx `keepalive_timeout`.

    It responds with 502, 503 or 504 if the upstream fails. A server of a `Backend` is the URL itself, `Server(name,
    url)`, so that another server can be tried.

    Raises `ConfigError` for options that can't work, and when httptools is not installed.
    """

    buffer_limit = 2 << 20  # one thread buffers for one client

    def _set_up(self, config: ServerConfig, timeouts: Timeouts, forward: Forward) -> None:
        super()._set_up(config, timeouts, forward)
        self._connections = Connections(
            self._location, self._context, self._sni, self._build_pool(), self.timeouts.server
        )

    @property
    def app(self) -> WSGIApp:
        return self.forward

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Forward a request; respond with an error page if the upstream fails before it has responded."""
        environ = {**with_transaction(environ, start_response), "wsgi.input": Body(environ, RETRY_BODY_LIMIT)}
        try:
            return self.forward(environ, start_response)
        except ServerFailure as error:
            return start_page(error_page(error.failure.status), environ, start_response)

    def forward(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Forward a request. ServerFailure if the upstream fails, before the head of its response or after it."""
        given: object = environ.get("wsgi.input")
        body = given if isinstance(given, Body) else Body(environ, 0)
        method: str = environ.get("REQUEST_METHOD", "GET")
        outgoing = self.head(environ, method)
        repeatable = method in IDEMPOTENT
        try:
            first = _read(body) if outgoing.has_body else b""
            connection = self._connections.acquire(repeatable and not outgoing.has_body)
            if connection is not None:
                try:
                    return self._exchange(connection, environ, outgoing, first, body, start_response)
                except ServerFailure as error:
                    # The upstream closed the connection while it was idle: no failure that the client needs to know.
                    if error.failure is not Failure.CLOSED or not repeatable or body.discarded:
                        raise
                body.rewind()
                first = _read(body) if outgoing.has_body else b""
            connection = self._open_connection(environ, start_response)
            return self._exchange(connection, environ, outgoing, first, body, start_response)
        except ClientDisconnected:
            return end_for_disconnected_client(environ, start_response)

    def _open_connection(self, environ: Environ, start_response: StartResponse) -> Connection:
        """Open a connection in the time that one may take, or in the rest of that for all attempts."""
        connect = self.timeouts.connect
        transaction = find_transaction(environ, start_response)
        left = transaction.seconds_left if transaction is not None else None
        if left is None or left > connect:
            return self._connections.open(connect)
        try:
            if left:
                return self._connections.open(left)
        except ServerFailure as error:
            if error.failure is not Failure.CONNECT_TIMEOUT:
                raise
        raise ServerFailure(Failure.TOTAL_TIMEOUT)

    def head(self, environ: Environ, method: str) -> OutgoingRequest:
        """Return the head of the request to the upstream for the client's request `environ`."""
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
        """Send one request over `connection` and pass its response on."""
        response = connection.response
        streams = False
        try:
            connection.begin(environ.get("REQUEST_METHOD", "GET"), disconnect_check(environ))
            if outgoing.has_body:
                _upload(connection, outgoing, first, body, find_transaction(environ, start_response))
            else:
                connection.write(outgoing.head)
            if not response.status:
                connection.read()
            while not response.status:
                connection.raise_if_client_gone()  # a head that arrives bit by bit leaves no ticks
                connection.read()
            # Servers send the head together with the body's first bytes (PEP 3333): no client has seen the head before.
            while not response.finished and not response.body_parts:
                transaction = find_transaction(environ, start_response)
                if transaction is not None:
                    transaction.lift_total_timeout()
                try:
                    connection.read()
                except ServerFailure as error:
                    if error.failure is Failure.TRUNCATED:
                        raise ServerFailure(Failure.CLOSED, detail="after the head of its response") from None
                    raise
            headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers]
            start_response(_STATUS_LINES[response.status], headers)
            if response.finished:
                return [response.take_body()]
            streams = True
            return _ResponseBody(self.url, connection, environ, start_response)
        finally:
            if not streams:
                connection.end()

    def close(self) -> None:
        """Close the idle connections."""
        self._connections.close()

    def retire(self) -> None:
        super().retire()
        self._connections.retire()


class _ResponseBody:
    """The body of a response as it arrives. Closing it early closes the connection."""

    def __init__(self, url: str, connection: Connection, environ: Environ, start_response: StartResponse) -> None:
        self._url = url
        self._connection = connection
        self._environ = environ
        self._start_response = start_response
        self._taken_at = inf  # when the server in front got the latest part
        self._client_is_slow = False  # whether it has let a part wait for long

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        connection = self._connection
        response = connection.response
        if time.monotonic() > self._taken_at + SLOW_CLIENT:
            self._client_is_slow = True
        while True:
            part = response.take_body()
            if part:
                self._taken_at = time.monotonic()
                return part
            if response.finished:
                raise StopIteration
            try:
                connection.read()
            except ClientDisconnected:
                connection.broken = True
                count_client_disconnect(self._environ, self._start_response)
                raise StopIteration from None
            except ServerFailure as error:
                if self._client_is_slow and error.failure is Failure.TRUNCATED:
                    error.failure = Failure.CLIENT_SLOW
                if find_transaction(self._environ, self._start_response) is not None:
                    raise  # the dispatcher handles it
                _log.warning("Upstream %s: %s", self._url, error)
                raise truncation(self._environ, error.failure, self._url, error.detail) from error

    def close(self) -> None:
        connection = self._connection
        if not connection.response.finished:
            connection.broken = True
        connection.end()


class _StatusLines(dict[int, str]):
    """Status lines by status. A status that HTTP does not know has no phrase of its own."""

    def __missing__(self, status: int) -> str:
        return f"{status} Unknown"


_STATUS_LINES = _StatusLines((status.value, f"{status.value} {status.phrase}") for status in HTTPStatus)


def _read(body: Body) -> bytes:
    """Read the next piece of a body. ClientDisconnected if the server in front can't read it, ServerFailure if the
    client has sent none for as long as that server waits.
    """
    try:
        return body.read(_PIECE)
    except TimeoutError:
        raise ServerFailure(Failure.CLIENT_TIMEOUT) from None
    except OSError:
        raise ClientDisconnected from None


def _upload(
    connection: Connection, outgoing: OutgoingRequest, first: bytes, body: Body, transaction: Transaction | None
) -> None:
    """Send head and body as the body arrives, until the upstream responds. ServerFailure if the time for all attempts
    of `transaction` is over before that.
    """
    response = connection.response
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
            connection.broken = True
            raise ServerFailure(Failure.NOT_FORWARDABLE, detail="the body is not as long as Content-Length says")
        responded = not connection.write(data) or connection.has_responded()
        is_whole = not piece if chunked else left <= 0
        if responded and not is_whole:
            connection.broken = True
            if not response.status:
                connection.read_early_response()
            return
        if is_whole:
            return
        data = b""
        piece = _read(body)
        if transaction is not None and transaction.seconds_left == 0:  # else looked at only where nothing can be sent
            raise ServerFailure(Failure.TOTAL_TIMEOUT)
