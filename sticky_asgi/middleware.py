"""The dispatch loop: the core chooses a server, its app responds, and the core stamps the response."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, cast

from sticky_asgi.apps import Replicas
from sticky_asgi.body import Body
from sticky_asgi.clients import breaks_off_incomplete, is_disconnect
from sticky_asgi.lifespan import lifespan_of, serve_lifespan
from sticky_asgi.messages import (
    KEY,
    ASGIApp,
    Message,
    Receive,
    Scope,
    Send,
    Transaction,
    cookie_key,
    end_without_response,
    event_loop,
    flush_writes,
    send_page,
    with_joined_cookies,
)
from sticky_asgi.open_websocket import OpenWebSocket, for_websocket
from sticky_asgi.waits import resolve_wait
from sticky_core.backend.backend import Backend
from sticky_core.decision import Decision
from sticky_core.errors import ConfigError, Failure, ServerFailure, collect_problems, raise_problems
from sticky_core.http.cookies import CookieKey
from sticky_core.http.request_target import decoded_path
from sticky_core.options.spelling import name_unknown_options
from sticky_core.persistence.nesting import InsertedCookie, InsertsCookies, cookies_inside, nested_problems
from sticky_core.routing import Frontend, PathIndex, require_backend
from sticky_core.server.server import Server
from sticky_core.target import own_app_problem, require_app
from sticky_core.transaction.steps import UNAVAILABLE
from sticky_core.upstream.local_limits import is_local_limit

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection


class DispatchApp(InsertsCookies):
    """Dispatches a request once its backend is known."""

    _only_replicas: Replicas | None  #: the apps of every request's backend; None: call `_replicas_for`
    _debug: bool
    _servers_drain = True  #: whether servers can drain, and then close their WebSockets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        replicas = self._only_replicas
        if replicas is None or scope["type"] != "http":
            if replicas is None or scope["type"] != "websocket":
                replicas = self._replicas_for(scope)
                if replicas is None:
                    return await self._handle_unrouted(scope, receive, send)
            if scope["type"] == "websocket":
                websocket = OpenWebSocket(replicas.backend, scope, receive, send, can_drain=self._servers_drain)
                receive, send = websocket.receive, websocket.send
                replicas = for_websocket(replicas, websocket)
        if not replicas.is_ready:
            replicas.get_ready()
            if replicas.is_starting:
                await replicas.wait_until_started()
        transaction = replicas.transaction_class()
        transaction.snapshot = replicas.snapshot
        transaction.owner = replicas.backend
        transaction.raw_request = request = scope
        transaction.client_send = send
        # in line: a call costs as much as the loop
        key: CookieKey = None
        for name, value in scope["headers"]:
            if name == b"cookie":
                if key is not None:
                    request = transaction.raw_request = with_joined_cookies(scope)
                    key = cookie_key(request)
                    break
                key = value
        try:
            step = transaction.first(key)
        finally:  # also if something raises here: middleware around this one may read the decision
            decision = transaction.decision
            if KEY in scope:
                decision.outer = scope[KEY]
                replicas.check_outer(scope[KEY])
            scope[KEY] = decision
            if request is not scope:
                request[KEY] = decision
        if self._debug:
            transaction.enable_debug()
        body: Body | None = None
        server = step if isinstance(step, Server) else None
        # the usual request without a body is spared the reader
        if replicas.needs_replay or server is None or ("method" in scope and scope["method"] != "GET"):
            receive = transaction.body = body = Body(receive, replicas.retry_body_limit, decision)
        while server is not None or (server := await resolve_wait(transaction, step, body)) is not None:
            finished = True
            try:
                app = replicas.apps[server]
                if app is None:
                    raise ServerFailure(Failure.NOT_STARTED, server.name)
                await app(transaction.forwarded(), receive, transaction.send)
                if decision.status:
                    return
                if not transaction.holds_response:
                    return await end_without_response(transaction)
                finished = False
            except ServerFailure as error:
                failure = transaction.record_failure(error.failure)
                if decision.status:  # the client has got a head: all that is left is to break the response off
                    transaction.log_truncation(failure, error)
                    if scope["type"] == "http" and breaks_off_incomplete(send):
                        return
                    raise ServerFailure(failure, server.name, error.detail) from error
                finished = False
            except Exception as error:
                if transaction.app_raised(is_disconnect(error, send), is_local_limit(error)):
                    if not decision.status:
                        await end_without_response(transaction)
                    raise
                finished = False
            except GeneratorExit:  # nothing can be awaited any more
                if not decision.status:
                    transaction.end_without_response()
                raise
            except BaseException:  # such as a cancellation
                if not decision.status:
                    await end_without_response(transaction)
                raise
            finally:
                transaction.release(server, finished)
                if body is not None:
                    if finished:
                        body.close()
                    else:
                        body.rewind()
            if body is None and (body := cast("Body | None", transaction.replayable_body)) is not None:
                body.rewind()  # the app has begun to read through it
                receive = body
            step = transaction.next() if body is None or not body.client_gone else UNAVAILABLE
            server = step if isinstance(step, Server) else None
            if body is None and server is None:
                receive = transaction.body = body = Body(receive, replicas.retry_body_limit, decision)
        if not transaction.finished and (kept := transaction.restore_response()) is not None:
            await _send_kept(transaction, kept, body)
        elif not transaction.finished:
            page = transaction.unavailable_response()
            try:
                if transaction.has_writes:
                    await flush_writes(transaction)
                if body is None or not body.client_gone:
                    await send_page(page, scope, send)
            finally:
                if body is not None:
                    body.close()

    def _replicas_for(self, scope: Scope) -> Replicas | None:
        """Return the apps of the backend that serves this request; None if no backend does."""
        raise NotImplementedError

    async def _handle_unrouted(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request that no backend serves."""
        raise NotImplementedError


class MiddlewareApp(DispatchApp):
    """A `DispatchApp` around another app. `add_middleware` builds it inside a running server, which would conclude from
    an exception that the app has no lifespan, and go on. So there a problem of the arguments is kept.
    """

    _error: ConfigError | None = None  #: the reason why the start of the server fails

    def _keep_error(self, error: ConfigError) -> bool:
        """Keep a problem of the arguments, and return True, inside a running server."""
        if event_loop() is None:
            return False
        self._error = error if self._error is None else ConfigError(*self._error.problems, *error.problems)
        return True


@name_unknown_options
class Dispatcher(DispatchApp):
    """An ASGI app that dispatches each request to one of a backend's servers.

    `debug`: whether responses carry a header `x-sticky` with the decision: server, claim, attempts, and why.
    Raises `ConfigError` if a server can't be served on ASGI.
    """

    def __init__(self, backend: Backend, *, debug: bool = False) -> None:
        require_backend(backend, "Dispatcher")
        self.replicas = self._only_replicas = backend.component(Replicas)
        self._debug = debug
        raise_problems(self.replicas.problems())

    def inserted_cookies(self) -> list[InsertedCookie]:
        return self.replicas.backend.inserted_cookies()

    def _replicas_for(self, scope: Scope) -> None:
        return None

    async def _handle_unrouted(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            raise ValueError(f"a dispatcher takes http, websocket and lifespan, not {scope['type']}")
        await serve_lifespan(None, [self.replicas], scope, receive, send, self.inserted_cookies())

    def lifespan(self, app: object = None) -> AbstractAsyncContextManager[None]:
        """Run the lifespans of the replicas, for an app that this dispatcher is mounted in: Starlette passes no
        lifespan to a mounted app.

        `FastAPI(lifespan=dispatcher.lifespan)`, or `async with dispatcher.lifespan():` inside your own. RuntimeError if
        one fails to start.
        """
        return lifespan_of(self.replicas)


@name_unknown_options
class StickyMiddleware(MiddlewareApp):
    """ASGI middleware that dispatches some paths of an app, or all of them, to the servers of backends.

    - `routes`: backends by path, `{"/api": api, "/shop": web}`. A route matches whole segments, the longest wins, and
      `app` serves the paths that match none. Paths are forwarded as they are.
    - `backend`: one backend for every path; then `app` gets the lifespan and nothing else.
    - `debug`: whether responses of servers carry a header `x-sticky` with the decision.

    Raises `ConfigError` for what cannot work; inside a running server, it is kept, sent as the reason why startup
    failed, and raised again by each request.
    """

    def __init__(
        self,
        app: ASGIApp,
        backend: Backend | None = None,
        *,
        routes: Mapping[str, Backend] | None = None,
        debug: bool = False,
    ) -> None:
        self.app = app
        self._only_replicas = None
        self._debug = debug
        self._replicas: dict[Backend, Replicas] = {}
        self._find_replicas = PathIndex[Replicas]({}).find  # after an error no path has any
        try:
            problems: list[str] = []
            with collect_problems(problems):
                require_app(app, "asgi", "StickyMiddleware")
            with collect_problems(problems):
                self._frontend = Frontend.build(backend, routes)
            raise_problems(problems)
            raise_problems(nested_problems(self._frontend.inserted_cookies(), cookies_inside(app)))
            self._replicas = {each: each.component(Replicas) for each in self._frontend.backends}
            raise_problems(problem for replicas in self._replicas.values() for problem in replicas.problems())
        except ConfigError as error:
            if not self._keep_error(error):
                raise
        else:
            if self._error is None:
                routes_of_replicas = self._frontend.routes.map_values(self._replicas)
                self._only_replicas = routes_of_replicas.only
                self._find_replicas = routes_of_replicas.find

    def inserted_cookies(self) -> list[InsertedCookie]:
        return [] if self._error is not None else self._frontend.inserted_cookies()

    def _replicas_for(self, scope: Scope) -> Replicas | None:
        if scope["type"] not in ("http", "websocket"):
            return None
        path: str = scope["path"]
        root: str | None = scope.get("root_path")
        if root or path[:1] != "/":  # else `decoded_path` would change nothing, and a call costs as much as the look-up
            path = decoded_path(path, root or "")
        return self._find_replicas(path)

    async def _handle_unrouted(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            cookies = self.inserted_cookies()
            await serve_lifespan(self.app, self._replicas.values(), scope, receive, send, cookies, self._error)
        elif self._error is not None:
            raise self._error
        else:
            try:
                await self.app(scope, receive, send)
            except RecursionError:
                raise_problems(filter(None, [own_app_problem(self.app, "asgi", "StickyMiddleware")]))
                raise


async def _send_kept(transaction: Transaction, messages: list[Message], body: Body | None) -> None:
    """Send the response that was held back, as no other server has responded."""
    try:
        for message in messages:
            if body is None or not body.client_gone:
                await Transaction.send(transaction, message)
    finally:
        transaction.finish_restored()
        if body is not None:
            body.close()


def decision(request: HTTPConnection | Scope) -> Decision:
    """Return the decision about `request`: a Starlette or FastAPI Request or WebSocket, or a scope. LookupError if
    there is none.
    """
    given: Any = request
    scope: Scope = getattr(given, "scope", given)  # apps without Starlette are spared the import of its classes
    found: Decision | None = scope.get(KEY)
    if found is None:
        raise LookupError("no decision here: the request has not come through StickyMiddleware or a Dispatcher")
    return found
