"""Long responses over real servers: streams without buffering, WebSockets, clients that disconnect half way.

No test waits for time to pass. The app sends a chunk and waits for a second request before it sends the next, so a
server that buffered a chunk would wait for ever.
"""

import json
from contextlib import closing

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

STREAMS = {
    "uvicorn": "uvicorn streams_asgi:app",
    "hypercorn": "hypercorn streams_asgi:app",
    "granian": "granian streams_asgi:app",
    "gunicorn gthread": "gunicorn -k gthread -w 1 --threads 4 streams_wsgi:app",
    "waitress": "waitress-serve --threads 4 streams_wsgi:app",
}
SOCKETS = {name: command for name, command in STREAMS.items() if "asgi" in command}
# granian sends none of the headers of an accept
MARKED_SOCKETS = {name: command for name, command in SOCKETS.items() if name != "granian"}


@pytest.fixture(params=list(STREAMS.values()), ids=list(STREAMS))
def streams(request, serve):
    return serve(*request.param.split())


@pytest.fixture(params=list(SOCKETS.values()), ids=list(SOCKETS))
def sockets(request, serve):
    return serve(*request.param.split())


@pytest.fixture(params=list(MARKED_SOCKETS.values()), ids=list(MARKED_SOCKETS))
def marked_sockets(request, serve):
    return serve(*request.param.split())


#: the warning of a worker that has received a client of another worker's replica
WARNING = "Replicas live in one process"


def send_permission(served) -> dict[str, object]:
    """Allow the app to send one more chunk."""
    state: dict[str, object] = json.loads(served.client().request("/go-on", "POST").body)
    return state


def state_of(served) -> dict[str, object]:
    state: dict[str, object] = json.loads(served.client().request("/look").body)
    return state


def url(served, path: str) -> str:
    return f"ws://127.0.0.1:{served.port}{path}"


def test_chunk_arrives_before_the_next_is_sent(streams, until):
    with closing(streams.client().open("/sticky/stream")) as connection:
        head = connection.head()
        assert (head.status, len(head.values("set-cookie"))) == (200, 1)
        for number in range(1, 6):
            assert b"data: %d\n\n" % number in connection.read_until(b"\n\n")
            assert state_of(streams)["in_flight"] == 1
            send_permission(streams)
        connection.abort()
    until(lambda: send_permission(streams)["in_flight"] == 0, "no request in flight")


def test_client_that_disconnects_during_a_stream_leaves_nothing_in_flight(streams, until):
    connections = [streams.client().open("/sticky/stream") for _ in range(2)]
    for connection in connections:
        connection.read_until(b"data: 1\n\n")
    assert state_of(streams)["in_flight"] == 2
    for connection in connections:
        connection.abort()
    # A WSGI server notices it when it writes, so it needs something to write.
    until(lambda: send_permission(streams)["in_flight"] == 0, "no request in flight")
    until(lambda: state_of(streams)["closed"] == ["stream"] * 2, "both streams closed, and closed once")


def test_accepted_websocket_echoes_and_is_in_flight(sockets):
    with connect(url(sockets, "/sticky/echo"), subprotocols=[Subprotocol("echo")]) as socket:
        assert socket.subprotocol == "echo"
        assert state_of(sockets)["in_flight"] == 1
        for text in ("tea", "", "Käse"):
            socket.send(text)
            assert socket.recv() == text


def test_accepted_websocket_has_the_mark_in_its_101_and_a_bound_one_has_none(marked_sockets):
    with connect(url(marked_sockets, "/sticky/echo")) as socket:
        response = socket.response
        assert response is not None and response.status_code == 101
        (mark,) = response.headers.get_all("set-cookie")
        assert mark.startswith("SERVERID=s1@")
    bound = {"Cookie": mark.partition(";")[0]}
    with connect(url(marked_sockets, "/sticky/echo"), additional_headers=bound) as socket:
        assert socket.response is not None
        assert socket.response.headers.get_all("set-cookie") == []


def test_denied_websocket_has_the_mark_in_its_denial(sockets):
    with pytest.raises(InvalidStatus) as denied:
        connect(url(sockets, "/sticky/deny"))
    response = denied.value.response
    assert (response.status_code, bytes(response.body or b"")) == (403, b"not you")
    (mark,) = response.headers.get_all("set-cookie")
    assert mark.startswith("SERVERID=s1@")
    assert state_of(sockets)["in_flight"] == 0


def test_closed_websocket_leaves_nothing_in_flight(sockets, until):
    with connect(url(sockets, "/sticky/echo")) as socket:
        socket.send("tea")
        assert socket.recv() == "tea"
        assert state_of(sockets)["in_flight"] == 1
    until(lambda: state_of(sockets) == {"in_flight": 0, "closed": ["socket"]}, "the app received the disconnect")


def test_websocket_of_a_client_that_vanishes_leaves_nothing_in_flight(sockets, until):
    handshake = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    with closing(sockets.client().open("/sticky/echo", headers=handshake)) as connection:
        assert connection.head().status == 101
        assert state_of(sockets)["in_flight"] == 1
        connection.abort()
    until(lambda: state_of(sockets) == {"in_flight": 0, "closed": ["socket"]}, "the app received the disconnect")


@pytest.mark.parametrize("loading", ["--preload", ""], ids=["forked from a loaded app", "loaded by each worker"])
def test_replicas_of_two_workers_live_apart_and_the_older_worker_warns_once(loading, serve, until):
    served = serve(*f"gunicorn {loading} -k gthread -w 2 --threads 2 streams_wsgi:app".split())
    lives: set[str] = set()

    def visit() -> int:
        client = served.client()
        assert client.request("/sticky/hello").body == b"hello"
        lives.add(client.jar["SERVERID", "/"])
        return len(lives)

    def visit_as(mark: str) -> str:
        client = served.client()
        client.jar["SERVERID", "/"] = mark
        assert client.request("/sticky/hello").body == b"hello"
        mark_now: str = client.jar["SERVERID", "/"]
        return mark_now

    until(lambda: visit() == 2, "both workers have served")
    assert WARNING not in served.output
    older, younger = sorted(lives)  # s1@, and then when the instance started
    until(lambda: visit_as(younger) == older, "a client of the younger worker's replica meets the older one")
    until(lambda: WARNING in served.output, "the older worker warns")
    until(lambda: visit_as(older) == younger, "a client of the older worker's replica meets the younger one")
    until(lambda: visit_as(younger) == older, "the next client that the older one would warn of")
    assert served.output.count(WARNING) == 1
