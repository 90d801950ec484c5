"""What a client sees of a replica that dies with a request in its hands: what it would see of a process that does."""

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
def test_a_websocket_ends_without_a_word(backend: Any):
    def create() -> Starlette:
        return Starlette(routes=[WebSocketRoute("/echo", echo)])

    with sticky_asgi.testing.Cluster(create, replicas=2, anyio_backend=backend) as cluster:
        client = cluster.client()
        with client.websocket_connect("/echo") as socket:
            socket.send_text("tea")
            assert socket.receive_text() == "tea"
            cluster.kill(cluster.server_of(client))
            with pytest.raises(WebSocketDisconnect) as told:
                socket.receive_text()
        assert told.value.code == 1006
        assert [decision.failures for decision in cluster.decisions] == [(Failure.TRUNCATED,)]
        assert [len(server.in_flight) for server in cluster.backend.servers] == [0, 0]


def test_an_answer_that_a_thread_has_ready_too_late_is_not_heard():
    arrived, killed = threading.Event(), threading.Event()

    def slow(request: Request) -> Response:
        arrived.set()
        assert killed.wait(DEADLINE)
        return PlainTextResponse("bought")

    with sticky_asgi.testing.Cluster(lambda: Starlette(routes=[Route("/", slow)]), replicas=1) as cluster:
        client = cluster.client()
        answers: list[int] = []
        thread = threading.Thread(target=lambda: answers.append(client.get("/").status_code))
        thread.start()
        assert arrived.wait(DEADLINE)
        killer = threading.Thread(target=cluster.kill, args=("r1",))
        killer.start()
        killer.join(DEADLINE)
        killed.set()
        thread.join(DEADLINE)
        assert answers == [502], "it may have been executed, so nobody else is asked"
        assert cluster.decisions[-1].failures == (Failure.CLOSED,)


@pytest.mark.parametrize(
    "cluster, create, right",
    [
        (sticky_asgi.testing.Cluster, lambda: Flask("shop"), "sticky_wsgi.testing"),
        (sticky_wsgi.testing.Cluster, Starlette, "sticky_asgi.testing"),
    ],
    ids=["Flask for ASGI", "Starlette for WSGI"],
)
def test_an_app_of_the_other_face_is_told_where_to_go(cluster: Any, create: Any, right: str):
    with pytest.raises((ConfigError, RuntimeError), match=f"use Cluster of {right}"), cluster(create):
        pass


@pytest.mark.parametrize("cluster", [sticky_asgi.testing.Cluster, sticky_wsgi.testing.Cluster], ids=["asgi", "wsgi"])
def test_no_replicas_serve_nobody(cluster: Any):
    with pytest.raises(ConfigError, match="0 replicas can't serve requests"):
        cluster(Starlette, replicas=0)
