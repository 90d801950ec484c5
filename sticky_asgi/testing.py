"""A cluster of replicas of an ASGI app under test, and Starlette's test client to visit it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, Literal, Self, Unpack

import anyio
import anyio.from_thread
import anyio.lowlevel

from sticky_asgi.messages import KEY, ASGIApp, Message, Receive, Scope, Send, event_loop
from sticky_asgi.middleware import Dispatcher
from sticky_core.errors import Failure, ServerFailure
from sticky_core.server.server import Server
from sticky_core.target import App, Factory
from sticky_core.testing.cluster import Cluster as CoreCluster
from sticky_core.testing.cluster import ClusterFactory, ClusterOptions, RecordedRequest

try:
    from starlette.testclient import TestClient
except (ImportError, RuntimeError) as error:
    raise ImportError("Starlette's test client needs httpx2: pip install 'sticky-sessions[testing]'") from error

__all__ = ["Cluster", "ClusterFactory"]


class Cluster(CoreCluster[TestClient]):
    """Several replicas of one ASGI app, to be killed and drained at will. Its words are those of
    `sticky_core.testing.cluster.Cluster`.

    `anyio_backend`: what the replicas run on, `"asyncio"` or `"trio"`. Used as a context manager, the cluster runs
    their lifespans, and all clients share one event loop; else each request has its own.
    """

    kind = "asgi"

    def __init__(
        self,
        create_app: Factory,
        replicas: int = 3,
        *,
        anyio_backend: Literal["asyncio", "trio"] = "asyncio",
        **options: Unpack[ClusterOptions],
    ) -> None:
        super().__init__(create_app, replicas, **options)
        self.app = Dispatcher(self.backend)
        self.app.replicas.has_warned = True  # whoever enters no `with` has read what that means
        self._anyio_backend: Literal["asyncio", "trio"] = anyio_backend
        self._lives: dict[str, Mortal] = {}
        self._running: TestClient | None = None
        self._stack = ExitStack()

    def _mortal(self, name: str, app: App) -> App:
        self._lives[name] = mortal = Mortal(name, app, self._alive)
        return mortal

    def _client(self, visits: list[RecordedRequest], **options: Any) -> TestClient:
        client = TestClient(_Visited(self.app, visits), backend=self._anyio_backend, **options)
        client.portal = self._running.portal if self._running is not None else None
        return client

    def _end_streams(self, name: str) -> None:
        if name in self._lives:
            self._lives[name].end()

    def _begin_anew(self, server: Server) -> None:
        replicas = self.app.replicas
        if self._running is not None and self._running.portal is not None:
            self._running.portal.call(replicas.restart, server)
        else:
            replicas.build_app(server)

    def __enter__(self) -> Self:
        self._running = self._stack.enter_context(TestClient(self.app, backend=self._anyio_backend))
        for client, _ in self._visits:
            client.portal = self._running.portal
        return self

    def __exit__(self, *exc_info: object) -> None:
        for mortal in self._lives.values():
            mortal.end()
        self._running = None
        for client, _ in self._visits:
            client.portal = None
        self._stack.close()


class Mortal:
    """An app that dies with its replica: it refuses what comes, and what it has open ends."""

    def __init__(self, name: str, app: ASGIApp, alive: Callable[[str], Callable[[], bool]]) -> None:
        self._name = name
        self._app = app
        self._alive = alive
        self._open: dict[anyio.CancelScope, anyio.lowlevel.EventLoopToken] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        with anyio.CancelScope() as open_here:
            self._open[open_here] = anyio.lowlevel.current_token()  # first of all, so that no kill comes in between
            try:
                alive = self._alive(self._name)

                async def send_alive(message: Message) -> None:
                    # a thread that the app waits for can't be cancelled: what it has to say comes too late
                    if not alive():
                        raise ServerFailure(Failure.CLOSED, self._name)
                    await send(message)

                await self._app(scope, receive, send_alive)
            finally:
                del self._open[open_here]
        if open_here.cancelled_caught:
            raise ServerFailure(Failure.CLOSED, self._name)

    def end(self) -> None:
        """End what is open, from whatever thread."""
        for open_here, token in list(self._open.items()):
            if event_loop() == token:
                open_here.cancel()
            else:
                with suppress(RuntimeError):  # its event loop has just ended, and it with that
                    anyio.from_thread.run_sync(open_here.cancel, token=token)


class _Visited:
    """The cluster's app as one client sees it."""

    def __init__(self, app: ASGIApp, visits: list[RecordedRequest]) -> None:
        self._app = app
        self._visits = visits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            self._visits.append(RecordedRequest(f"{scope.get('method', 'WebSocket')} {scope['path']}", scope, KEY))
        try:
            await self._app(scope, receive, send)
        except ServerFailure as error:
            if scope["type"] != "websocket" or error.failure is not Failure.TRUNCATED:
                raise
            # what a client sees whose server has died: a connection that ends without a word
            await send({"type": "websocket.close", "code": 1006})
