"""Serve requests in this worker: its own, and those that peers forward; and reply to queries and claims of keys."""

from __future__ import annotations

import io
import logging
import socket
import sys
import threading
import time
import traceback
from collections.abc import Container, Iterable
from contextlib import suppress
from typing import Any, Protocol

from sticky_core.errors import ServerFailure
from sticky_core.http.error_page import error_page
from sticky_core.workers.backend import Workers
from sticky_core.workers.frames import PIECE, BadFrame, Frame, Kind
from sticky_core.workers.heartbeat import NOT_IN_APP
from sticky_core.workers.transaction import PeerRequest
from sticky_wsgi.messages import KEY, Environ, ExcInfo, Head, Headers, StartResponse, Write, WSGIApp, start_page
from sticky_wsgi.workers.keys import KeyLookup
from sticky_wsgi.workers.learning import call_and_learn
from sticky_wsgi.workers.link import FramedConnection, warn_bad_frame
from sticky_wsgi.workers.protocol import EAGER_BODY
from sticky_wsgi.workers.transaction import ForwardingTransaction, Permits

_log = logging.getLogger("sticky_sessions")


class ServingWorker(Protocol):
    """The worker for which `PeerServer` serves: `LocalWorker`."""

    app: WSGIApp
    permits: Permits | None
    workers: Workers
    key_lookup: KeyLookup | None


class CountedApp:
    """The app itself, which takes a permit of this worker for each request that this worker has accepted. The response
    is a 503 if no permit can be waited for any longer.
    """

    def __init__(self, app: WSGIApp, permits: Permits | None) -> None:
        self._app = app
        self._permits = permits

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        permits = self._permits
        if permits is not None:
            try:
                permit = permits.acquire()
            except ServerFailure:  # not executed, but no other worker has the session
                return start_page(error_page(503), environ, start_response)
            ForwardingTransaction.of(start_response).permit = permit
        return self._app(environ, start_response)


class PeerServer(FramedConnection):
    """A connection of a peer to this worker, at the end that serves."""

    def __init__(self, connected: socket.socket, worker: ServingWorker) -> None:
        super().__init__(connected)
        self._worker = worker
        self._decides = False  # whether a claim is being decided
        #: since when the app works on the request in flight, without having waited for the peer
        self.in_app_since = NOT_IN_APP
        self.client_left = False  #: whether the client of the request in flight is known to have disconnected

    def on_disconnect(self) -> PeerDisconnected:
        """Note that the peer has closed the connection during a request, and return the exception to raise."""
        self.client_left = True
        return PeerDisconnected("the client has disconnected")

    def enter_app(self) -> None:
        """Note that the app goes on with the request in flight."""
        self.in_app_since = time.monotonic()

    def leave_app(self) -> None:
        """Note that the app waits until the peer sends or reads more, or has ended."""
        self.in_app_since = NOT_IN_APP

    def serve(self, frame: Frame) -> bool:
        """Serve the request in a frame. Return whether the connection can carry another one."""
        try:
            request = ServedRequest(self, self._worker, frame)
        except (ValueError, TypeError, LookupError) as error:
            warn_bad_frame(error)
            return False
        return request.run()

    def reply_about_key(self, frame: Frame) -> None:
        """Reply to a query or a claim of a key. ValueError if the frame is neither, OSError if the peer does not read
        the replies.
        """
        keys = self._worker.workers.keys
        match frame:
            case (Kind.KEY_QUERY, str(key)):
                # at once: while this thread waited, the worker would serve none of its peers
                self.send_at_once(Kind.KEY_OWNER, keys.live_owner(key) if keys is not None else None)
            case (Kind.KEY_CLAIM, str(key), str(claimant), *silent):
                if self._decides:
                    raise ValueError("a claim before the reply to the last one")
                self._decides = True
                # in a thread: this one queries the peers, which may query this worker at the same time
                threading.Thread(target=self._reply_to_claim, args=(key, claimant, silent), daemon=True).start()
            case _:
                raise ValueError(f"a frame of kind {frame[0]}")

    def _reply_to_claim(self, key: str, claimant: str, silent: Container[object]) -> None:
        lookup = self._worker.key_lookup
        owner = lookup.decide(key, claimant, silent) if lookup is not None else claimant
        self._decides = False
        try:
            self.send_at_once(Kind.KEY_OWNER, owner)
        except OSError:  # the claimant has closed the connection, or does not read
            self.abort()

    def abort(self) -> None:
        """Shut the socket down, while another thread may use it."""
        with suppress(OSError):  # it may be closed already
            self.socket.shutdown(socket.SHUT_RDWR)


class PeerDisconnected(ConnectionError):
    """The peer has closed the connection: its client gets no response any more."""


class ServedRequest:
    """A request that a peer has forwarded, and the `start_response` and `write` of the app that serves it.

    ValueError, TypeError or LookupError if the frame is malformed.
    """

    def __init__(self, connection: PeerServer, worker: ServingWorker, frame: Frame) -> None:
        _, claim, reason, key, environ, body = frame
        self._connection = connection
        self._worker = worker
        self._peer_request = PeerRequest(worker.workers, claim, reason, key)
        self._head: tuple[str, Headers] | None = None
        self._head_sent = False
        self._keys = worker.workers.keys
        # whether the app has ended: a thread of it may go on, while the connection carries the next request
        self._is_over = False
        self._body: RemoteBody | None = None  # of which the peer sends as much as the app reads
        source: io.BufferedIOBase
        if body is not None:
            source = io.BytesIO(body)
        else:
            self._body = RemoteBody(connection)
            source = io.BufferedReader(self._body, EAGER_BODY)
        self._environ: Environ = {
            **environ,
            "wsgi.version": (1, 0),
            "wsgi.errors": sys.stderr,
            "wsgi.input": source,
            "wsgi.input_terminated": True,
            # the peer sends nothing while it waits for the response, so only the end of the connection can be read
            "waitress.client_disconnected": connection.has_input,
            KEY: self._peer_request.decision,
        }

    def run(self) -> bool:
        """Have the app serve the request, under a permit. Return whether the connection can carry another one."""
        permits, peer_request = self._worker.permits, self._peer_request
        permit = permits.acquire() if permits is not None else None
        try:
            if self._connection.has_input():  # the client has disconnected while the request waited
                return False
            peer_request.start()
            self._connection.enter_app()
            try:
                return self._run_app()
            finally:
                self._end()
                self._connection.leave_app()
                peer_request.finish()
        finally:
            if permit is not None:
                permit.release()

    def _end(self) -> None:
        """Keep what is left of the app off the connection."""
        self._is_over = True
        if self._body is not None:
            self._body.end()

    def _run_app(self) -> bool:
        body: Iterable[bytes] = ()
        problem: str | None = None
        try:
            body = call_and_learn(self._keys, self._peer_request, self._worker.app, self._environ, self.start_response)
            rest: Iterable[bytes] = ()
            if isinstance(body, (list, tuple)):
                rest = body
            else:
                for item in body:
                    self.write(item)
            self._finish(rest)
        except PeerDisconnected:
            self._peer_request.app_raised(True)
            return False
        except BaseException as error:
            self._peer_request.app_raised(self._connection.client_left)
            problem = "".join(traceback.format_exception(error))
        finally:
            _close(body)
        if problem is not None:
            try:
                self._connection.send_frame(Kind.END, problem)
            except OSError:
                return False
        return True

    def start_response(self, status: str, headers: Headers, exc_info: ExcInfo | None = None, /) -> Write:
        """Take the head of the response. It is sent with the first piece of the body, and may be replaced until then
        (PEP 3333).
        """
        if exc_info is not None and exc_info[1] is not None:
            if self._head_sent:
                raise exc_info[1].with_traceback(exc_info[2])
        elif self._head is not None:
            raise AssertionError("start_response is called again without exc_info")
        self._head = status, list(headers)
        code = status[:3]
        self._peer_request.decision.status = int(code) if code.isascii() and code.isdigit() else 0
        keys = self._keys
        if keys is not None:
            keys.learn_from_response(Head(headers, True), self._worker.workers.own_server)
        return self.write

    def write(self, item: bytes) -> None:
        """Send a piece of the body. OSError once the request has ended."""
        if self._is_over:
            raise OSError("the request has ended: its client gets no more of the response")
        if item:
            messages = self._with_head((item,))
            self._connection.leave_app()
            try:
                self._connection.send_messages(*messages)
            except OSError:
                raise self._connection.on_disconnect() from None
            self._connection.enter_app()

    def _finish(self, items: Iterable[bytes]) -> None:
        """Send the last pieces of the body, and the end of the response."""
        messages = self._with_head(item for item in items if item)
        self._connection.leave_app()
        try:
            if sum(map(len, messages)) > PIECE:
                self._connection.send_messages(*messages)
                messages = []
            self._connection.send_frame(Kind.END, None, *messages)
        except OSError:
            raise self._connection.on_disconnect() from None

    def _with_head(self, items: Iterable[bytes]) -> list[Any]:
        """Return the items, with the head before them if it has not been sent."""
        if self._head is None:
            raise AssertionError("the app has responded without having called start_response")
        if self._head_sent:
            return list(items)
        self._head_sent = True
        return [self._head, *items]


class RemoteBody(io.RawIOBase):
    """The body of a request, of which the peer sends as much as the app reads."""

    def __init__(self, connection: PeerServer) -> None:
        self._connection = connection
        self._at_end = False

    def end(self) -> None:
        """Read no more: the request has ended."""
        self._at_end = True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._at_end or not len(buffer):
            return 0
        self._connection.leave_app()
        try:
            self._connection.send_frame(Kind.WANT_BODY, len(buffer))
            frame = self._connection.receive_frame()
        except (EOFError, OSError):
            raise self._connection.on_disconnect() from None
        self._connection.enter_app()
        match frame:
            case (Kind.MESSAGES, bytes(piece)) if len(piece) <= len(buffer):
                buffer[: len(piece)] = piece
                self._at_end = not piece
                return len(piece)
            case _:
                warn_bad_frame(BadFrame(f"a frame of kind {frame[0]} in the place of a piece of the body"))
                self._connection.abort()
                raise PeerDisconnected("the other worker has sent a bad frame")


def _close(body: Iterable[bytes]) -> None:
    """Close the app's iterable; an exception is logged, as its response has been sent already."""
    close = getattr(body, "close", None)
    if close is not None:
        try:
            close()
        except Exception:
            _log.exception("StickyWorkers: the response to a forwarded request has raised in close()")
