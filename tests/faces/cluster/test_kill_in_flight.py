"""Requests in flight at a killed replica end as they would at a killed process; and what a cluster can't be made of."""

import threading
from typing import Any

import pytest
from flask import Flask
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

import sticky_asgi.testing
import sticky_wsgi.testing
from sticky_core.errors import ConfigError, Failure

DEADLINE = 300.0


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    while True:
        await websocket.send_text(await websocket.receive_text())


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_websocket_ends_without_a_close_frame(backend: Any):
    def create() -> Starlette:
        return Starlette(routes=[WebSocketRoute("/echo", echo)])

    with sticky_asgi.testing.Cluster(create, replicas=2, anyio_backend=backend) as cluster:
        client = cluster.client()
        with client.websocket_connect("/echo") as socket:
            socket.send_text("tea")
            assert socket.receive_text() == "tea"
            cluster.kill(cluster.server_of(client))
            with pytest.raises(WebSocketDisconnect) as disconnect:
                socket.receive_text()
        assert disconnect.value.code == 1006
        assert [decision.failures for decision in cluster.decisions] == [(Failure.TRUNCATED,)]
        assert [len(server.in_flight) for server in cluster.backend.servers] == [0, 0]


def test_response_of_a_thread_that_returns_after_the_kill_is_not_sent():
    arrived, killed = threading.Event(), threading.Event()

    def slow(request: Request) -> Response:
        arrived.set()
        assert killed.wait(DEADLINE)
        return PlainTextResponse("bought")

    with sticky_asgi.testing.Cluster(lambda: Starlette(routes=[Route("/", slow)]), replicas=1) as cluster:
        client = cluster.client()
        statuses: list[int] = []
        thread = threading.Thread(target=lambda: statuses.append(client.get("/").status_code))
        thread.start()
        assert arrived.wait(DEADLINE)
        killer = threading.Thread(target=cluster.kill, args=("r1",))
        killer.start()
        killer.join(DEADLINE)
        killed.set()
        thread.join(DEADLINE)
        assert statuses == [502], "it may have been executed, so it is not retried"
        assert cluster.decisions[-1].failures == (Failure.CLOSED,)


@pytest.mark.parametrize(
    "cluster, create, module",
    [
        (sticky_asgi.testing.Cluster, lambda: Flask("shop"), "sticky_wsgi.testing"),
        (sticky_wsgi.testing.Cluster, Starlette, "sticky_asgi.testing"),
    ],
    ids=["Flask for ASGI", "Starlette for WSGI"],
)
def test_app_of_the_other_face_is_an_error_that_names_the_right_cluster(cluster: Any, create: Any, module: str):
    with pytest.raises((ConfigError, RuntimeError), match=f"use Cluster of {module}"), cluster(create):
        pass


@pytest.mark.parametrize("cluster", [sticky_asgi.testing.Cluster, sticky_wsgi.testing.Cluster], ids=["asgi", "wsgi"])
def test_cluster_without_replicas_is_an_error(cluster: Any):
    with pytest.raises(ConfigError, match="0 replicas can't serve requests"):
        cluster(Starlette, replicas=0)
