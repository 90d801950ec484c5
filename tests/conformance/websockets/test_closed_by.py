"""The log of the decision says which side has ended a WebSocket, and with which code, over real sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.conformance.websockets.conftest import (
    FrameConnection,
    Gateway,
    Origins,
    Upstream,
)

Connect = Callable[..., tuple[FrameConnection, Upstream]]


@pytest.fixture(autouse=True)
def nothing_before(gateway: Gateway) -> None:
    gateway.forget_ended()


@pytest.fixture
def replica(gateway: Gateway) -> FrameConnection:
    """A WebSocket to an app in the gateway's process."""
    client = gateway.request_websocket("/replica")
    assert client.head().status == 101
    return client


@pytest.mark.parametrize("code", [1000, 1001, 4002, None])
@pytest.mark.parametrize("target", ["upstream", "replica"])
def test_close_frame_of_the_client(gateway: Gateway, connected: Connect, target: str, code: int | None) -> None:
    if target == "upstream":
        client, upstream = connected()
        client.close(code)
        upstream.complete_close()  # else the middleware waits for that
    else:
        client = gateway.request_websocket("/replica")
        assert client.head().status == 101
        client.close(code)
    if gateway.server == "hypercorn":  # does not report the code
        expected: list[object] = ["CLIENT", None]
    elif gateway.server == "granian" and code is None:  # reports it as a client that is lost
        expected = ["LOST_CLIENT", 1006]
    else:
        expected = ["CLIENT", code or 1005]
    assert gateway.ended() == [expected]


@pytest.mark.parametrize("lose", ["close_socket", "reset_socket"])
def test_client_without_a_close_frame_is_lost(gateway: Gateway, connected: Connect, lose: str) -> None:
    client, upstream = connected()
    getattr(client, lose)()
    upstream.complete_close()
    assert gateway.ended() == [["LOST_CLIENT", 1006]]


@pytest.mark.parametrize("lose", ["close_socket", "reset_socket"])
def test_client_of_a_replica_without_a_close_frame_is_lost(
    gateway: Gateway, replica: FrameConnection, lose: str
) -> None:
    getattr(replica, lose)()
    assert gateway.ended() == [["LOST_CLIENT", 1006]]


@pytest.mark.parametrize("code", [1000, 4002, None])
def test_close_frame_of_the_upstream(gateway: Gateway, connected: Connect, code: int | None) -> None:
    client, upstream = connected()
    upstream.close(code)
    client.complete_close()
    assert gateway.ended() == [["SERVER", code or 1005]]


@pytest.mark.parametrize("lose", ["close_socket", "reset_socket"])
def test_upstream_without_a_close_frame_is_lost(gateway: Gateway, connected: Connect, lose: str) -> None:
    client, upstream = connected()
    getattr(upstream, lose)()
    client.complete_close()
    assert gateway.ended() == [["LOST_SERVER", 1006]]


def test_upstream_that_sends_no_frames_is_closed_by_the_middleware(gateway: Gateway, connected: Connect) -> None:
    client, upstream = connected()
    upstream.send(b"\xff\xff\xff")
    client.complete_close()
    assert gateway.ended() == [["MIDDLEWARE", 1011]]


def test_silence_for_longer_than_the_tunnel_timeout_is_ended_by_the_middleware(
    gateway: Gateway, connected: Connect
) -> None:
    client, upstream = connected("/quiet")
    client.complete_close()
    upstream.complete_close()
    assert gateway.ended() == [["MIDDLEWARE", 1001]]


@pytest.mark.parametrize("text, code", [("close", 4001), ("return", None)])
def test_end_of_the_app(gateway: Gateway, replica: FrameConnection, text: str, code: int | None) -> None:
    replica.send_frame("text", text)
    replica.complete_close()
    assert gateway.ended() == [["SERVER", code]]


@pytest.fixture
def drained(gateway: Gateway) -> Iterator[Callable[[str], None]]:
    """Return a function that drains the servers behind a path, for the duration of a test."""
    paths: list[str] = []

    def drain(path: str) -> None:
        paths.append(path)
        gateway.drain(path)

    yield drain
    for path in paths:
        gateway.drain(path, "ready")


@pytest.mark.parametrize("path", ["/ws", "/replica"])
def test_drain_that_is_over(gateway: Gateway, origins: Origins, drained: Callable[[str], None], path: str) -> None:
    client = gateway.request_websocket(path)
    if path == "/ws":
        upstream = origins.first.next_connection()
        upstream.accept()
    assert client.head().status == 101
    drained(path)
    assert client.complete_close() == (1012, "server has drained")
    if path == "/ws":
        upstream.complete_close()
    assert gateway.ended() == [["MIDDLEWARE", 1012]]


def test_handshake_that_is_refused_has_no_end(gateway: Gateway, origins: Origins) -> None:
    client = gateway.request_websocket("/ws")
    origins.first.next_connection().deny("403 Forbidden", b"not you")
    assert client.head().status == 403
    assert gateway.ended() == [[None, None]]
