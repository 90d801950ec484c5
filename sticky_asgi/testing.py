"""A cluster of replicas of an ASGI app under test, and Starlette's test client to send requests to it."""

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
    """Several replicas of one ASGI app, which a test can kill, drain and restart. Options and methods are those of
    `sticky_core.testing.cluster.Cluster`, and:

    - `anyio_backend`: the library of the event loop, `"asyncio"` or `"trio"`; default `"asyncio"`.

    Used as a context manager, the cluster runs the replicas' lifespans, and all clients share one event loop; else each
    request has an event loop of its own.
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
        self.app.replicas.has_warned = True  # a test that enters no `with` leaves the lifespans out on purpose
        self._anyio_backend: Literal["asyncio", "trio"] = anyio_backend
        self._apps: dict[str, KillableApp] = {}
        self._running: TestClient | None = None
        self._stack = ExitStack()

    def _make_killable(self, name: str, app: App) -> App:
        self._apps[name] = killable = KillableApp(name, app, self._begin_request)
        return killable

    def _make_client(self, requests: list[RecordedRequest], **options: Any) -> TestClient:
        client = TestClient(_RecordingApp(self.app, requests), backend=self._anyio_backend, **options)
        client.portal = self._running.portal if self._running is not None else None
        return client

    def _end_streams(self, name: str) -> None:
        if name in self._apps:
            self._apps[name].end_requests()

    def _restart_app(self, server: Server) -> None:
        replicas = self.app.replicas
        if self._running is not None and self._running.portal is not None:
            self._running.portal.call(replicas.restart, server)
        else:
            replicas.build_app(server)

    def __enter__(self) -> Self:
        self._running = self._stack.enter_context(TestClient(self.app, backend=self._anyio_backend))
        for client, _ in self._requests:
            client.portal = self._running.portal
        return self

    def __exit__(self, *exc_info: object) -> None:
        for app in self._apps.values():
            app.end_requests()
        self._running = None
        for client, _ in self._requests:
            client.portal = None
        self._stack.close()


class KillableApp:
    """An app around a replica: once the replica is killed, new requests are refused and requests in flight end."""

    def __init__(self, name: str, app: ASGIApp, begin_request: Callable[[str], Callable[[], bool]]) -> None:
        self._name = name
        self._app = app
        self._begin_request = begin_request
        self._in_flight: dict[anyio.CancelScope, anyio.lowlevel.EventLoopToken] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        with anyio.CancelScope() as request:
            self._in_flight[request] = anyio.lowlevel.current_token()  # before the check, so that no kill is missed
            try:
                is_alive = self._begin_request(self._name)

                async def send_if_alive(message: Message) -> None:
                    # A thread that the app waits for can't be cancelled, and may return after the kill.
                    if not is_alive():
                        raise ServerFailure(Failure.CLOSED, self._name)
                    await send(message)

                await self._app(scope, receive, send_if_alive)
            finally:
                del self._in_flight[request]
        if request.cancelled_caught:
            raise ServerFailure(Failure.CLOSED, self._name)

    def end_requests(self) -> None:
        """End all requests in flight. Safe to call from any thread."""
        for request, token in list(self._in_flight.items()):
            if event_loop() == token:
                request.cancel()
            else:
                with suppress(RuntimeError):  # its event loop has just ended, and with it the request
                    anyio.from_thread.run_sync(request.cancel, token=token)


class _RecordingApp:
    """The cluster's app for one client: records the client's requests."""

    def __init__(self, app: ASGIApp, requests: list[RecordedRequest]) -> None:
        self._app = app
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            self._requests.append(RecordedRequest(f"{scope.get('method', 'WebSocket')} {scope['path']}", scope, KEY))
        try:
            await self._app(scope, receive, send)
        except ServerFailure as error:
            if scope["type"] != "websocket" or error.failure is not Failure.TRUNCATED:
                raise
            # what the client of a killed server sees: a connection that ends without a close frame
            await send({"type": "websocket.close", "code": 1006})
