"""The app under test, and the variants of a cluster of it: on both faces, lazily and as a context manager, on asyncio
and on trio.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import flask
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

import sticky_asgi.testing
import sticky_wsgi.testing
from sticky_core.testing.cluster import Cluster

#: seconds; a wait that lasts longer is a failure
DEADLINE = 300.0

#: what Starlette's test client, and the libraries under it, raise when a WebSocket has ended
WEBSOCKET_ENDED = (anyio.ClosedResourceError, anyio.EndOfStream, WebSocketDisconnect)

T = TypeVar("T")


def in_thread(call: Callable[[], T]) -> Future[T]:
    """Call a function in a thread of its own, so that a call that hangs does not stop the test run."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        threading.Event().wait(0.001)


@dataclass
class Shop:
    """The app under test. A replica has a cart in memory, a stream without an end, and responses that wait for an
    event; what happens in all replicas is recorded here.
    """

    #: how many replicas were made
    made: int = 0
    #: the number of the replica that fails to start
    broken: int = 0
    #: how many streams were closed
    closed: int = 0
    #: the event loop on which each request of the ASGI app was served
    loops: list[anyio.lowlevel.EventLoopToken] = field(default_factory=list)
    #: the libraries of these event loops: asyncio or trio
    libraries: set[str] = field(default_factory=set)
    #: set when a request to /late, /stuck or /silent has arrived
    arrived: threading.Event = field(default_factory=threading.Event)
    #: set to let /late and /stuck respond; /stuck blocks its event loop until then
    go_on: threading.Event = field(default_factory=threading.Event)
    #: lets requests to /together continue when there are two
    two: threading.Barrier = field(default_factory=partial(threading.Barrier, 2, timeout=DEADLINE))

    def _start_replica(self) -> None:
        self.made += 1
        if self.made == self.broken:
            raise ValueError("no database")

    def _late(self) -> str:
        self.arrived.set()
        assert self.go_on.wait(DEADLINE)
        return "late"

    def _together(self) -> str:
        self.two.wait()
        return "together"

    def asgi(self) -> Starlette:
        self._start_replica()
        cart: list[str] = []

        async def show(request: Request) -> PlainTextResponse:
            self.loops.append(anyio.lowlevel.current_token())
            self.libraries.add(anyio.get_cancelled_exc_class().__module__.partition(".")[0])
            return PlainTextResponse(" ".join(cart))

        async def add(request: Request) -> PlainTextResponse:
            cart.append(request.path_params["item"])
            return await show(request)

        async def stream(request: Request) -> StreamingResponse:
            async def body() -> AsyncIterator[bytes]:
                try:
                    yield b"one"
                    await anyio.sleep_forever()
                finally:
                    self.closed += 1

            return StreamingResponse(body())

        async def chat(websocket: WebSocket) -> None:
            await websocket.accept()
            try:
                async for text in websocket.iter_text():
                    await websocket.send_text(f"{text}!")
            finally:
                self.closed += 1

        async def silent(request: Request) -> PlainTextResponse:
            self.arrived.set()
            await anyio.sleep_forever()
            raise AssertionError("unreachable")

        async def stuck(request: Request) -> PlainTextResponse:
            return PlainTextResponse(self._late())

        async def late(request: Request) -> PlainTextResponse:
            return PlainTextResponse(await run_in_threadpool(self._late))

        async def together(request: Request) -> PlainTextResponse:
            return PlainTextResponse(await run_in_threadpool(self._together))

        return Starlette(
            routes=[
                Route("/cart", show),
                Route("/cart/{item}", add, methods=["POST"]),
                Route("/stream", stream),
                Route("/silent", silent),
                Route("/stuck", stuck),
                Route("/late", late),
                Route("/together", together),
                WebSocketRoute("/chat", chat),
            ]
        )

    def wsgi(self) -> flask.Flask:
        self._start_replica()
        cart: list[str] = []
        app = flask.Flask(__name__)

        @app.get("/cart")
        def show() -> str:
            return " ".join(cart)

        @app.post("/cart/<item>")
        def add(item: str) -> str:
            cart.append(item)
            return show()

        @app.get("/stream")
        def stream() -> flask.Response:
            def body() -> Iterator[bytes]:
                try:
                    while True:
                        yield b"one"
                finally:
                    self.closed += 1

            return flask.Response(body())

        app.get("/late")(self._late)
        app.get("/together")(self._together)
        return app


@contextmanager
def asgi_stream(client: Any, path: str) -> Iterator[Iterator[bytes]]:
    with client.stream("GET", path) as response:
        yield response.iter_raw()


@contextmanager
def wsgi_stream(client: Any, path: str) -> Iterator[Iterator[bytes]]:
    response = client.get(path, buffered=False)
    try:
        yield iter(response.response)
    finally:
        response.close()


@dataclass(frozen=True)
class Variant:
    """One variant to use a cluster."""

    cluster: Callable[..., Cluster[Any]]
    create: Callable[[Shop], Callable[[], Any]]
    #: sends a request and yields the items of the response as they arrive
    stream: Callable[[Any, str], AbstractContextManager[Iterator[bytes]]]
    #: whether the cluster is used as a context manager
    started: bool
    options: dict[str, Any] = field(default_factory=dict)


def _asgi(started: bool, backend: str) -> Variant:
    options = {"anyio_backend": backend}
    return Variant(sticky_asgi.testing.Cluster, lambda shop: shop.asgi, asgi_stream, started, options)


def _wsgi(started: bool) -> Variant:
    return Variant(sticky_wsgi.testing.Cluster, lambda shop: shop.wsgi, wsgi_stream, started)


VARIANTS = {
    "asgi": _asgi(False, "asyncio"),
    "asgi started": _asgi(True, "asyncio"),
    "asgi on trio": _asgi(False, "trio"),
    "asgi on trio, started": _asgi(True, "trio"),
    "wsgi": _wsgi(False),
    "wsgi started": _wsgi(True),
}
ASGI = [name for name in VARIANTS if name.startswith("asgi")]
STARTED = [name for name, variant in VARIANTS.items() if variant.started]
LAZY = [name for name, variant in VARIANTS.items() if not variant.started]
ASGI_STARTED = [name for name in ASGI if VARIANTS[name].started]
ASGI_LAZY = [name for name in ASGI if not VARIANTS[name].started]


def in_flight(cluster: Cluster[Any]) -> list[int]:
    return [len(server.in_flight) for server in cluster.backend.servers]


def letters(cluster: Cluster[Any]) -> str:
    """Return the letters of claim and mark of the latest request, as in HAProxy's log."""
    return cluster.decisions[-1].claim.value + cluster.decisions[-1].mark.value
