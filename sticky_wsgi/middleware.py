"""The corridor: a request comes in, the core says where it goes, an app answers, the core stamps the answer."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from werkzeug.wrappers import Request as WerkzeugRequest

from sticky_core.backend.backend import Backend
from sticky_core.decision import Decision
from sticky_core.errors import Failure, ServerFailure, raise_problems
from sticky_core.routing import Frontend
from sticky_core.server.server import Server
from sticky_wsgi.apps import Replicas
from sticky_wsgi.body import Body
from sticky_wsgi.messages import KEY, Environ, StartResponse, Transaction, WSGIApp, pay, start_page
from sticky_wsgi.waits import resolve_wait

_log = logging.getLogger("sticky_sessions")


class DispatchApp:
    """What Dispatcher and StickyMiddleware have in common: the way of a request once its backend is known."""

    _only_replicas: Replicas | None  #: whose every request is; None: `_replicas_for` knows
    _debug: bool

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        replicas = self._only_replicas
        if replicas is None:
            replicas = self._replicas_for(environ)
            if replicas is None:
                return self._handle_unrouted(environ, start_response)
        if not replicas.is_ready:
            replicas.get_ready()
        transaction = replicas.transaction_class()
        transaction.snapshot = replicas.snapshot
        transaction.owner = replicas.backend
        transaction.raw_request = environ
        transaction.client_send = start_response
        transaction.status = 0
        if KEY in environ:
            transaction.set_outer(environ[KEY])
        environ[KEY] = transaction
        server = transaction.first(environ.get("HTTP_COOKIE"))
        if self._debug:
            transaction.enable_debug()
        transaction.body = Body(environ, replicas.retry_body_limit) if replicas.needs_replay else None
        while server is not None or (server := resolve_wait(transaction)) is not None:
            over: bool | None = True
            try:
                app = replicas.apps[server]
                if app is None:
                    raise ServerFailure(Failure.NOT_STARTED, server.name)
                body = app(transaction.forwarded(), transaction.start_response)
                spared = not transaction.status and transaction.holds_response
                if not spared:
                    if body.__class__ is list or _is_whole(body, environ):
                        # servers treat these in ways of their own, so they go on untouched; the app is done with them
                        return body
                    body = TrackedBody(transaction, server, body)
                    if (
                        transaction.status or not transaction.holds_response
                    ):  # it may have answered at its first item only
                        over = None  # that is told when the body is closed
                        return body
                over = False
                _give_up(body)
            except ServerFailure as error:
                failure = transaction.record_failure(error.failure)
                if transaction.status:  # the client has seen a head: all that is left is to let it see the end
                    raise ServerFailure(failure, server.name) from error
                over = False
            except Exception:
                if transaction.app_raised():
                    raise
                over = False
            finally:
                if over is not None:
                    transaction.release(server, over)
            reread = transaction.reread
            if reread is not None:
                reread.rewind()
            server = transaction.next()
        page = transaction.unavailable_response()
        if transaction.has_writes:
            pay(transaction)
        return start_page(page, environ, start_response)

    def _replicas_for(self, environ: Environ) -> Replicas | None:
        """Whose request this is; None if it is none of ours."""
        raise NotImplementedError

    def _handle_unrouted(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """What is none of ours."""
        raise NotImplementedError


class Dispatcher(DispatchApp):
    """A WSGI app that hands each request to one of a backend's servers.

    `debug`: answers carry a header `x-sticky` that says which server, which claim, which attempts, and why.
    Raises `ConfigError` if the backend's servers can't be served here.
    """

    def __init__(self, backend: Backend, *, debug: bool = False) -> None:
        self.replicas = self._only_replicas = backend.component(Replicas)
        self._debug = debug
        raise_problems(self.replicas.problems())


class StickyMiddleware(DispatchApp):
    """WSGI middleware that dispatches some paths of an app, or all of them, to the servers of backends.

    `routes`: backends by path, `{"/api": api, "/shop": web}`; whole segments match, the longest wins, what matches none
    is `app`'s. Paths go on as they are. `backend`: one backend for every path. `debug`: answers of servers carry a
    header `x-sticky` that says what was decided.

    Raises `ConfigError` for what cannot work.
    """

    def __init__(
        self,
        app: WSGIApp,
        backend: Backend | None = None,
        *,
        routes: Mapping[str, Backend] | None = None,
        debug: bool = False,
    ) -> None:
        self.app = app
        self._debug = debug
        self._frontend = Frontend.build(backend, routes)
        self._replicas = {each: each.component(Replicas) for each in self._frontend.backends}
        raise_problems(problem for replicas in self._replicas.values() for problem in replicas.problems())
        self._only_replicas = self._replicas[self._frontend.only] if self._frontend.only is not None else None

    def _replicas_for(self, environ: Environ) -> Replicas | None:
        backend = self._frontend.backend(environ.get("PATH_INFO") or "/")
        return self._replicas[backend] if backend is not None else None

    def _handle_unrouted(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        return self.app(environ, start_response)


def decision(request: WerkzeugRequest | Environ) -> Decision:
    """What was decided about `request`: a Werkzeug or Flask Request, or an environ. LookupError if nothing was."""
    environ = request.environ if isinstance(request, WerkzeugRequest) else request
    found: Decision | None = environ.get(KEY)
    if found is None:
        raise LookupError("no decision here: the request has not come through StickyMiddleware or a Dispatcher")
    return found


def _is_whole(body: Iterable[bytes], environ: Environ) -> bool:
    """Whether the app is done once it has returned `body`: a sequence that needs no closing, or the server's own
    wrapper of a file.
    """
    wrapper = environ.get("wsgi.file_wrapper")
    return (isinstance(wrapper, type) and isinstance(body, wrapper)) or (
        hasattr(body, "__len__") and not hasattr(body, "close")
    )


def _close(body: Iterable[bytes]) -> None:
    close = getattr(body, "close", None)
    if close is not None:
        close()


def _give_up(body: Iterable[bytes]) -> None:
    """An answer that was held back is closed without having been seen."""
    try:
        _close(body.body if isinstance(body, TrackedBody) else body)
    except Exception:
        _log.exception("an answer that was held back failed when it was closed")


class TrackedBody:
    """An app's iterable on its way past us; the server's place is given back when it is closed, once."""

    __slots__ = ("_closed", "_items", "_server", "_transaction", "body")

    def __init__(self, transaction: Transaction, server: Server, body: Iterable[bytes]) -> None:
        self._transaction = transaction
        self._server = server
        self.body = body
        self._closed = False
        try:
            self._items: Iterator[bytes] = iter(body)
            if not transaction.status:
                # a generator that answers at its first item: until then it can fail unseen, and another server step up
                for first in self._items:
                    self._items = chain((first,), self._items)
                    break
        except BaseException:
            self._close_body()
            raise

    def __iter__(self) -> Iterator[bytes]:
        try:
            # not `yield from`: that would close the app's iterable as well, and it is to be closed once
            for item in self._items:  # noqa: UP028
                yield item
        except ServerFailure as error:
            raise ServerFailure(self._transaction.record_failure(error.failure), self._server.name) from error
        except Exception:
            self._transaction.app_raised()
            raise

    def _close_body(self) -> None:
        _close(self.body)

    def close(self) -> None:
        """Close the app's iterable and let the server go."""
        if not self._closed:
            self._closed = True
            try:
                self._close_body()
            finally:
                self._transaction.release(self._server, True)
