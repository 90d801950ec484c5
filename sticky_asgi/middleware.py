"""The corridor: a request comes in, the core says where it goes, an app answers, the core stamps the answer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

from starlette.requests import HTTPConnection

from sticky_asgi.apps import Replicas
from sticky_asgi.body import Body
from sticky_asgi.lifespan import lifespan_of, serve_lifespan
from sticky_asgi.messages import KEY, ASGIApp, Receive, Scope, Send, cookie_key, event_loop, pay, send_page
from sticky_asgi.waits import resolve_wait
from sticky_core.backend.backend import Backend
from sticky_core.decision import Decision
from sticky_core.errors import ConfigError, Failure, ServerFailure, raise_problems
from sticky_core.routing import Frontend


class DispatchApp:
    """What Dispatcher and StickyMiddleware have in common: the way of a request once its backend is known."""

    _only_replicas: Replicas | None  #: whose every request is; None: `_replicas_for` knows
    _debug: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        replicas = self._only_replicas
        if replicas is None or (scope["type"] != "http" and scope["type"] != "websocket"):
            replicas = self._replicas_for(scope)
            if replicas is None:
                return await self._handle_unrouted(scope, receive, send)
        if not replicas.is_ready:
            replicas.get_ready()
            if replicas.discovery.is_pending:
                await replicas.discovery.wait_for_first_answers()
        transaction = replicas.transaction_class()
        transaction.snapshot = replicas.snapshot
        transaction.owner = replicas.backend
        transaction.raw_request = scope
        transaction.client_send = send
        transaction.status = 0
        if KEY in scope:
            transaction.set_outer(scope[KEY])
        scope[KEY] = transaction
        server = transaction.first(cookie_key(scope))
        if self._debug:
            transaction.enable_debug()
        body: Body | None = None
        if replicas.needs_replay or (server is None and transaction.wait is not None):
            receive = transaction.body = body = Body(receive, replicas.retry_body_limit)
        while server is not None or (server := await resolve_wait(transaction, body)) is not None:
            over = True
            try:
                app = replicas.apps[server]
                if app is None:
                    raise ServerFailure(Failure.NOT_STARTED, server.name)
                await app(transaction.forwarded(), receive, transaction.send)
                if transaction.status or not transaction.holds_response:
                    return
                over = False
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
                transaction.release(server, over)
                if body is not None:
                    if over:
                        body.close()
                    else:
                        body.rewind()
            server = transaction.next() if body is None or not body.gone else None
            if body is None and transaction.wait is not None:
                receive = transaction.body = body = Body(receive, replicas.retry_body_limit)
        if not transaction.finished:
            page = transaction.unavailable_response()
            try:
                if transaction.has_writes:
                    await pay(transaction)
                if body is None or not body.gone:
                    await send_page(page, scope, send)
            finally:
                if body is not None:
                    body.close()

    def _replicas_for(self, scope: Scope) -> Replicas | None:
        """Whose request this is; None if it is none of ours."""
        raise NotImplementedError

    async def _handle_unrouted(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What is none of ours."""
        raise NotImplementedError


class Dispatcher(DispatchApp):
    """An ASGI app that hands each request to one of a backend's servers.

    `debug`: answers carry a header `x-sticky` that says which server, which claim, which attempts, and why.
    Raises `ConfigError` if the backend's servers can't be served here.
    """

    def __init__(self, backend: Backend, *, debug: bool = False) -> None:
        self.replicas = self._only_replicas = backend.component(Replicas)
        self._debug = debug
        raise_problems(self.replicas.problems())

    def _replicas_for(self, scope: Scope) -> None:
        return None

    async def _handle_unrouted(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            raise ValueError(f"a dispatcher takes http, websocket and lifespan, not {scope['type']}")
        await serve_lifespan(None, [self.replicas], scope, receive, send)

    def lifespan(self, app: object = None) -> AbstractAsyncContextManager[None]:
        """The lifespans of the replicas, for an app that this dispatcher is mounted in; Starlette tells mounted apps of
        none.

        `FastAPI(lifespan=dispatcher.lifespan)`, or `async with dispatcher.lifespan():` inside your own. RuntimeError if
        one fails to start.
        """
        return lifespan_of(self.replicas)


class StickyMiddleware(DispatchApp):
    """ASGI middleware that dispatches some paths of an app, or all of them, to the servers of backends.

    `routes`: backends by path, `{"/api": api, "/shop": web}`; whole segments match, the longest wins, what matches none
    is `app`'s. Paths go on as they are. `backend`: one backend for every path; then `app` gets the lifespan and nothing
    else. `debug`: answers of servers carry a header `x-sticky` that says what was decided.

    Raises `ConfigError` for what cannot work. `add_middleware` constructs inside a running server, which would take the
    exception for an app without lifespan and go on: there it is kept, told as the reason why startup failed, and raised
    again by each request.
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
        self._error: ConfigError | None = None
        self._replicas: dict[Backend, Replicas] = {}
        try:
            self._frontend = Frontend.build(backend, routes)
            self._replicas = {each: each.component(Replicas) for each in self._frontend.backends}
            raise_problems(problem for replicas in self._replicas.values() for problem in replicas.problems())
        except ConfigError as error:
            if event_loop() is None:
                raise
            self._error = error
        else:
            if self._frontend.only is not None:
                self._only_replicas = self._replicas[self._frontend.only]

    def _replicas_for(self, scope: Scope) -> Replicas | None:
        if self._error is not None or scope["type"] not in ("http", "websocket"):
            return None
        backend = self._frontend.backend(_path(scope))
        return self._replicas[backend] if backend is not None else None

    async def _handle_unrouted(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await serve_lifespan(self.app, self._replicas.values(), scope, receive, send, self._error)
        elif self._error is not None:
            raise self._error
        else:
            await self.app(scope, receive, send)


def decision(request: HTTPConnection | Scope) -> Decision:
    """What was decided about `request`: a Starlette or FastAPI Request or WebSocket, or a scope. LookupError if nothing
    was.
    """
    scope = request.scope if isinstance(request, HTTPConnection) else request
    found: Decision | None = scope.get(KEY)
    if found is None:
        raise LookupError("no decision here: the request has not come through StickyMiddleware or a Dispatcher")
    return found


def _path(scope: Scope) -> str:
    """The path behind root_path, which servers and mounts put before it."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and (path == root or path.startswith(f"{root}/")) else path
