"""Streams, WebSockets and other requests in flight end when their replica is killed."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.testclient import WebSocketDenialResponse

import sticky_asgi.testing
from sticky_core.errors import Failure, ServerFailure
from sticky_core.testing.cluster import Cluster
from tests.faces.cluster.shop import (
    ASGI,
    ASGI_LAZY,
    ASGI_STARTED,
    DEADLINE,
    WEBSOCKET_ENDED,
    in_flight,
    in_thread,
    wait_until,
)


def kill(cluster: Cluster[Any]) -> None:
    cluster.kill("r1")


def kill_and_revive(cluster: Cluster[Any]) -> None:
    cluster.kill("r1")
    cluster.revive("r1")


def restart(cluster: Cluster[Any]) -> None:
    cluster.restart("r1")


@pytest.mark.parametrize("end", [kill, kill_and_revive, restart])
def test_stream_ends_with_its_replica(cluster, variant, shop, end):
    def read() -> None:
        with variant.stream(cluster.client(), "/stream") as items:
            assert next(items) == b"one"
            assert in_flight(cluster) == [1, 0, 0]
            end(cluster)
            next(items)

    with pytest.raises(ServerFailure, match="r1"):
        in_thread(read).result(DEADLINE)
    assert in_flight(cluster) == [0, 0, 0]
    assert shop.closed == 1
    assert cluster.decisions[-1].server == "r1"
    assert cluster.decisions[-1].failures == (Failure.TRUNCATED,)


def test_stream_that_another_thread_reads_ends_with_its_replica(cluster, variant, shop):
    client, reading = cluster.client(), threading.Event()

    def read() -> None:
        with variant.stream(client, "/stream") as items:
            for _ in items:
                reading.set()

    reader = in_thread(read)
    assert reading.wait(DEADLINE)
    cluster.kill("r1")
    with pytest.raises(ServerFailure, match="r1"):
        reader.result(DEADLINE)
    assert in_flight(cluster) == [0, 0, 0]
    assert shop.closed == 1


def test_streams_of_other_replicas_go_on(cluster, variant, shop):
    client, other = cluster.client(), cluster.client()
    client.get("/cart")
    with variant.stream(other, "/stream") as items:
        assert next(items) == b"one"
        cluster.kill("r1")
        cluster.maint("r2")
        assert in_flight(cluster) == [0, 1, 0]
        assert shop.closed == 0
    assert in_flight(cluster) == [0, 0, 0]
    assert cluster.decisions[-1].failures == (), "the client disconnected, no server failed"


def test_truncated_stream_raises_its_failure(cluster, variant):
    def read() -> None:
        with variant.stream(cluster.client(), "/stream") as items:
            next(items)
            cluster.kill("r1")
            next(items)

    with pytest.raises(ServerFailure, match=Failure.TRUNCATED.text):
        in_thread(read).result(DEADLINE)


@pytest.mark.parametrize("variant", ASGI_STARTED, indirect=True)
def test_open_stream_ends_when_the_cluster_ends(variant, shop):
    cluster: Any = variant.cluster(variant.create(shop), **variant.options)
    reading = threading.Event()

    def read() -> None:
        with suppress(ServerFailure), variant.stream(client, "/stream") as items:
            for _ in items:
                reading.set()

    cluster.__enter__()
    client = cluster.client()
    reader = in_thread(read)
    assert reading.wait(DEADLINE)
    in_thread(lambda: cluster.__exit__(None, None, None)).result(DEADLINE)
    reader.result(DEADLINE)
    assert in_flight(cluster) == [0, 0, 0]
    assert shop.closed == 1


@pytest.mark.parametrize("variant", ASGI_LAZY, indirect=True)
def test_stream_that_ends_while_its_replica_is_being_killed_does_not_fail_the_kill(start, variant, shop):
    cluster = start(1)
    first, second = cluster.client(), cluster.client()
    reading, stop = threading.Event(), threading.Event()

    def read() -> None:
        with variant.stream(second, "/stream") as items:
            next(items)
            reading.set()
            assert stop.wait(DEADLINE)

    stuck = in_thread(lambda: first.get("/stuck"))
    assert shop.arrived.wait(DEADLINE)
    reader = in_thread(read)
    try:
        assert reading.wait(DEADLINE)
        killer = in_thread(lambda: cluster.kill("r1"))  # waits for the event loop of the first client
        wait_until(lambda: "killed: r1" in repr(cluster))
        stop.set()
        reader.result(DEADLINE)  # the event loop of the second client has ended
    finally:
        shop.go_on.set()
    killer.result(DEADLINE)
    stuck.exception(DEADLINE)
    assert in_flight(cluster) == [0]


@pytest.mark.parametrize("variant", ASGI, indirect=True)
def test_request_in_flight_at_a_killed_replica_counts_as_executed_and_is_not_retried(cluster, shop):
    client = cluster.client()
    request = in_thread(lambda: client.get("/silent"))
    assert shop.arrived.wait(DEADLINE)
    cluster.kill("r1")
    assert request.result(DEADLINE).status_code == 502
    assert cluster.decisions[-1].attempts == ("r1",)
    assert cluster.decisions[-1].failures == (Failure.CLOSED,)
    assert in_flight(cluster) == [0, 0, 0]


@pytest.mark.parametrize("variant", ASGI, indirect=True)
def test_websocket_ends_with_its_replica(cluster, shop):
    client = cluster.client()
    with suppress(ServerFailure), client.websocket_connect("/chat") as chat:
        chat.send_text("hello")
        assert chat.receive_text() == "hello!"
        assert cluster.server_of(client) == "r1"
        cluster.kill("r1")
        wait_until(lambda: in_flight(cluster) == [0, 0, 0])
        with pytest.raises(WEBSOCKET_ENDED):
            chat.receive_text()
    assert shop.closed == 1
    assert cluster.decisions[-1].failures == (Failure.TRUNCATED,)


@pytest.mark.parametrize("variant", ASGI, indirect=True)
def test_websocket_that_another_thread_waits_on_ends_with_its_replica(cluster, shop):
    client, waiting = cluster.client(), threading.Event()

    def wait() -> None:
        with suppress(ServerFailure), client.websocket_connect("/chat") as chat:
            waiting.set()
            with pytest.raises(WEBSOCKET_ENDED):
                chat.receive_text()

    waiter = in_thread(wait)
    assert waiting.wait(DEADLINE)
    cluster.kill("r1")
    waiter.result(DEADLINE)
    assert in_flight(cluster) == [0, 0, 0]
    assert shop.closed == 1


@pytest.mark.parametrize("variant", ASGI, indirect=True)
def test_websocket_of_a_client_of_a_killed_replica_is_redispatched_with_a_new_cookie(cluster):
    client = cluster.client()
    client.get("/cart")
    cluster.kill("r1")
    with client.websocket_connect("/chat") as chat:
        chat.send_text("hello")
        assert chat.receive_text() == "hello!"
        headers = dict(chat.extra_headers or ())
    assert headers[b"set-cookie"].startswith(b"SERVERID=r2@")
    assert cluster.decisions[-1].attempts == ("r1", "r2")
    with pytest.raises(AssertionError, match="WebSocket /chat: r2"):
        cluster.assert_sticky(client)


@pytest.mark.parametrize("variant", ASGI, indirect=True)
def test_with_all_replicas_killed_a_websocket_is_denied(start):
    cluster = start(1)
    cluster.kill("r1")
    with (
        pytest.raises(WebSocketDenialResponse) as denied,
        cluster.client().websocket_connect("/chat"),
    ):
        pass
    assert denied.value.status_code == 503
    assert "retry-after" in denied.value.headers


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_kill_works_on_the_event_loop_of_the_requests(shop, backend):
    cluster = sticky_asgi.testing.Cluster(shop.asgi)
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/stream",
        "query_string": b"",
        "headers": [],
    }
    failed: list[ServerFailure] = []

    async def request_stream(streaming: anyio.Event) -> None:
        async def send(message: Any) -> None:
            if message.get("body"):
                streaming.set()

        try:
            await cluster.app(scope, anyio.sleep_forever, send)  # type: ignore[arg-type]  # it never returns a message
        except ServerFailure as error:
            failed.append(error)

    async def main() -> None:
        streaming = anyio.Event()
        with anyio.fail_after(DEADLINE):
            async with anyio.create_task_group() as group:
                group.start_soon(request_stream, streaming)
                await streaming.wait()
                assert in_flight(cluster) == [1, 0, 0]
                cluster.kill("r1")

    anyio.run(main, backend=backend)
    assert [error.server for error in failed] == ["r1"]
    assert in_flight(cluster) == [0, 0, 0]
    assert shop.closed == 1


@pytest.mark.parametrize("variant", ["wsgi", "wsgi started"], indirect=True)
def test_request_has_ended_when_the_whole_response_is_read(cluster):
    client = cluster.client()
    client.get("/cart")
    assert len(cluster.decisions) == 1
    assert in_flight(cluster) == [0, 0, 0]
    cluster.kill("r1")
    assert client.get("/cart", buffered=False).status_code == 200
