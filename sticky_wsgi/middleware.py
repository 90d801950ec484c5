"""The dispatch loop: the core chooses a server, its app responds, and the core stamps the response."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from werkzeug.wrappers import Request as WerkzeugRequest

from sticky_core.backend.backend import Backend
from sticky_core.decision import Decision
from sticky_core.errors import Failure, ServerFailure, collect_problems, raise_problems
from sticky_core.http.request_target import decoded_path
from sticky_core.options.spelling import name_unknown_options
from sticky_core.persistence.nesting import AROUND, InsertedCookie, InsertsCookies, cookies_inside, nested_problems
from sticky_core.routing import Frontend, require_backend
from sticky_core.server.server import Server
from sticky_core.target import own_app_problem, require_app
from sticky_core.upstream.local_limits import is_local_limit
from sticky_wsgi.apps import Replicas
from sticky_wsgi.body import Body
from sticky_wsgi.clients import truncation
from sticky_wsgi.messages import (
    KEY,
    Environ,
    StartResponse,
    StatusRetryTransaction,
    Transaction,
    WSGIApp,
    end_without_response,
    flush_writes,
    start_page,
)
from sticky_wsgi.waits import resolve_wait

_log = logging.getLogger("sticky_sessions")


class DispatchApp(InsertsCookies):
    """Dispatches a request once its backend is known."""

    _only_replicas: Replicas | None  #: the apps of every request's backend; None: call `_replicas_for`
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
        try:
            step = transaction.first(environ.get("HTTP_COOKIE"))
        finally:  # also if something raises here: middleware around this one may read the decision
            decision = transaction.decision
            if KEY in environ:
                decision.outer = environ[KEY]
                replicas.check_outer(environ[KEY])
            environ[KEY] = decision
        if self._debug:
            transaction.enable_debug()
        # the usual request without a body is spared the reader
        if replicas.needs_replay or ("REQUEST_METHOD" in environ and environ["REQUEST_METHOD"] != "GET"):
            environ["wsgi.input"] = transaction.body = Body(environ, replicas.retry_body_limit, decision)
        held: HeldBody | None = None
        server = step if isinstance(step, Server) else None
        while server is not None or (server := resolve_wait(transaction, step)) is not None:
            finished: bool | None = True
            try:
                app = replicas.apps[server]
                if app is None:
                    raise ServerFailure(Failure.NOT_STARTED, server.name)
                body = app(transaction.forwarded(), transaction.start_response)
                is_held = not decision.status and _has_no_response(transaction, body, environ)
                if not is_held:
                    if body.__class__ is list or _is_whole(body, environ):
                        # the app has finished; servers recognise these bodies by type, so they are passed unchanged
                        return body
                    body = TrackedBody(transaction, server, body)
                    # checked again: the app may have responded only at its first item
                    if decision.status or not transaction.holds_response:
                        finished = None  # the close of the body releases the slot
                        return body
                finished = False
                if held is not None:
                    held.discard()
                held = HeldBody(body)
                if isinstance(transaction, StatusRetryTransaction):
                    transaction.keep_head()
            except ServerFailure as error:
                failure = transaction.record_failure(error.failure)
                if decision.status:  # the client has got a head: all that is left is to break the response off
                    transaction.log_truncation(failure, error)
                    raise truncation(environ, failure, server.name, error.detail) from error
                finished = False
            except Exception as error:
                if transaction.app_raised(is_local_limit=is_local_limit(error)):
                    if not decision.status:
                        end_without_response(transaction)
                    raise
                finished = False
            except BaseException:  # such as a timeout of gevent
                if not decision.status:
                    end_without_response(transaction)
                raise
            finally:
                if finished is not None:
                    transaction.release(server, finished)
                if held is not None and finished is not False:
                    held.discard()
            replayable_body = transaction.replayable_body
            if replayable_body is not None:
                replayable_body.rewind()
            step = transaction.next()
            server = step if isinstance(step, Server) else None
        if (kept := transaction.restore_response()) is not None:
            status, headers, written = kept
            try:
                Transaction.start_response(transaction, status, headers)
            finally:
                transaction.finish_restored()
            assert held is not None
            return held.after(written)
        if held is not None:
            held.discard()
        page = transaction.unavailable_response()
        if transaction.has_writes:
            flush_writes(transaction)
        return start_page(page, environ, start_response)

    def _replicas_for(self, environ: Environ) -> Replicas | None:
        """Return the apps of the backend that serves this request; None if no backend does."""
        raise NotImplementedError

    def _handle_unrouted(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Handle a request that no backend serves."""
        raise NotImplementedError


@name_unknown_options
class Dispatcher(DispatchApp):
    """A WSGI app that dispatches each request to one of a backend's servers.

    `debug`: whether responses carry a header `x-sticky` with the decision: server, claim, attempts, and why.
    Raises `ConfigError` if a server can't be served on WSGI.
    """

    def __init__(self, backend: Backend, *, debug: bool = False) -> None:
        require_backend(backend, "Dispatcher")
        self.replicas = self._only_replicas = backend.component(Replicas)
        self._debug = debug
        raise_problems(self.replicas.problems())

    def inserted_cookies(self) -> list[InsertedCookie]:
        return self.replicas.backend.inserted_cookies()


@name_unknown_options
class StickyMiddleware(DispatchApp):
    """WSGI middleware that dispatches some paths of an app, or all of them, to the servers of backends.

    - `routes`: backends by path, `{"/api": api, "/shop": web}`. A route matches whole segments, the longest wins, and
      `app` serves the paths that match none. Paths are forwarded as they are.
    - `backend`: one backend for every path.
    - `debug`: whether responses of servers carry a header `x-sticky` with the decision.

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
        problems: list[str] = []
        with collect_problems(problems):
            require_app(app, "wsgi", "StickyMiddleware")
        with collect_problems(problems):
            self._frontend = Frontend.build(backend, routes)
        raise_problems(problems)
        self._inserted_cookies = self._frontend.inserted_cookies()
        raise_problems(nested_problems(self._inserted_cookies, cookies_inside(app)))
        replicas = {each: each.component(Replicas) for each in self._frontend.backends}
        raise_problems(problem for each in replicas.values() for problem in each.problems())
        routes_of_replicas = self._frontend.routes.map_values(replicas)
        self._only_replicas = routes_of_replicas.only
        self._find_replicas = routes_of_replicas.find

    def inserted_cookies(self) -> list[InsertedCookie]:
        return self._frontend.inserted_cookies()

    def _replicas_for(self, environ: Environ) -> Replicas | None:
        path: str = environ.get("PATH_INFO") or "/"
        if not path.isascii():
            path = _unicode(path)
        if path[:1] != "/":  # else `decoded_path` would change nothing, and a call costs as much as the look-up
            path = decoded_path(path)
        return self._find_replicas(path)

    def _handle_unrouted(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        token = AROUND.set((*AROUND.get(), self._inserted_cookies))
        try:
            return self.app(environ, start_response)
        except RecursionError:
            raise_problems(filter(None, [own_app_problem(self.app, "wsgi", "StickyMiddleware")]))
            raise
        finally:
            AROUND.reset(token)


def decision(request: WerkzeugRequest | Environ) -> Decision:
    """Return the decision about `request`: a Werkzeug or Flask Request, or an environ. LookupError if there is none."""
    environ = request.environ if isinstance(request, WerkzeugRequest) else request
    found: Decision | None = environ.get(KEY)
    if found is None:
        raise LookupError("no decision here: the request has not come through StickyMiddleware or a Dispatcher")
    return found


def _has_no_response(transaction: Transaction, body: Iterable[bytes], environ: Environ) -> bool:
    """Return whether the response of an app that has sent no head so far is held back, as another server is tried."""
    if transaction.holds_response:
        return True
    if _is_whole(body, environ):  # then it sends none any more
        end_without_response(transaction)
    return False


def _unicode(path: str) -> str:
    """Return a path of an environ, which has a character per byte (PEP 3333), as routes are written."""
    try:
        return path.encode("latin-1").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return path  # an environ that no server has made


def _is_whole(body: Iterable[bytes], environ: Environ) -> bool:
    """Return whether the app has finished once it has returned `body`: a sequence without `close`, or the server's own
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


class HeldBody:
    """The body of a response that is held back. It is read only if no other server responds, and then passed on."""

    __slots__ = ("_body", "_items")

    def __init__(self, body: Iterable[bytes]) -> None:
        self._items = body.items if isinstance(body, TrackedBody) else body
        self._body = body.body if isinstance(body, TrackedBody) else body

    def after(self, written: list[bytes]) -> HeldBody:
        """Return the body with what its app has written before."""
        self._items = chain(written, self._items)
        return self

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._items)

    def close(self) -> None:
        _close(self._body)

    def discard(self) -> None:
        """Close the body unread: another server has responded."""
        try:
            self.close()
        except Exception:
            _log.exception("the close of a response that was held back failed")


class TrackedBody:
    """The body of a response on its way to the client. Its close releases the server's slot, once."""

    __slots__ = ("_closed", "_server", "_transaction", "body", "items")

    def __init__(self, transaction: Transaction, server: Server, body: Iterable[bytes]) -> None:
        self._transaction = transaction
        self._server = server
        self.body = body
        self._closed = False
        try:
            self.items: Iterator[bytes] = iter(body)
            if not transaction.decision.status:
                # A generator that responds at its first item: until then it may fail, and another server can be tried.
                for first in self.items:
                    self.items = chain((first,), self.items)
                    break
        except BaseException:
            self._close_body()
            raise

    def __iter__(self) -> Iterator[bytes]:
        try:
            # not `yield from`: that would close the app's iterable as well, which must be closed once
            for item in self.items:  # noqa: UP028
                yield item
        except ServerFailure as error:
            transaction = self._transaction
            failure = transaction.record_failure(error.failure)
            transaction.log_truncation(failure, error)
            raise truncation(transaction.raw_request, failure, self._server.name, error.detail) from error
        except Exception as error:
            self._transaction.app_raised(is_local_limit=is_local_limit(error))
            raise

    def _close_body(self) -> None:
        _close(self.body)

    def close(self) -> None:
        """Close the app's iterable and release the server's slot."""
        if not self._closed:
            self._closed = True
            try:
                self._close_body()
                if not self._transaction.decision.status:
                    end_without_response(self._transaction)
            finally:
                self._transaction.release(self._server, True)
