"""Real servers that hang, refuse, flap, respond with 500 or garbage, behind real servers in front: their states are
right, their clients move once, and they start slowly when they are up again.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest

HOST = "127.0.0.1"
WELL = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"

#: the response of a server to a check; None: none, and it keeps the connection
WAYS: dict[str, bytes | None] = {
    "well": WELL,
    "responds 500": b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    "responds garbage": b"SSH-2.0-OpenSSH_9.2\r\n",
    "closes": b"",
    "hangs": None,
}


class UnreliableServer:
    """A server in a thread that fails on command. It sends its name to clients, and the response `way` to checks."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.way = "well"
        self.checks = 0
        self._kept: list[socket.socket] = []
        self._listener: socket.socket | None = None
        with socket.create_server((HOST, 0)) as found:
            self.port: int = found.getsockname()[1]
        self.listen()

    def listen(self) -> None:
        self._listener = socket.create_server((HOST, self.port))
        threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()

    def refuse(self) -> None:
        """Stop listening."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._respond, args=(connection,), daemon=True).start()

    def _respond(self, connection: socket.socket) -> None:
        connection.settimeout(300)
        head = b""
        try:
            while b"\r\n\r\n" not in head:
                data = connection.recv(65536)
                if not data:
                    return connection.close()
                head += data
            if b"/health " in head.partition(b"\r\n")[0]:
                self.checks += 1
                way = self.way if self.way != "flaps" else ("well" if self.checks % 2 else "responds 500")
                sent = WAYS[way]
            else:
                body = self.name.encode()
                sent = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body)
            if sent is None:
                self._kept.append(connection)
                return
            connection.sendall(sent)
        except OSError:
            pass
        connection.close()

    def end(self) -> None:
        self.refuse()
        for connection in self._kept:
            connection.close()


@pytest.fixture
def unreliable() -> Iterator[dict[str, UnreliableServer]]:
    servers = {name: UnreliableServer(name) for name in ("a", "b")}
    yield servers
    for server in servers.values():
        server.end()


@pytest.fixture(params=["uvicorn checked_asgi:app", "gunicorn -k gthread --threads 4 checked_wsgi:app"])
def site(request: pytest.FixtureRequest, serve: Callable[..., Any], unreliable: dict[str, UnreliableServer]) -> Any:
    """A server in front of the unreliable ones."""
    kind, *arguments = request.param.split()
    urls = {name: f"http://{HOST}:{server.port}" for name, server in unreliable.items()}
    return serve(kind, *arguments, variables={"CHECKED": json.dumps(urls)})


def test_failing_servers_are_down_and_their_clients_move_once(
    site: Any, unreliable: dict[str, UnreliableServer], until: Callable[..., None]
) -> None:
    client, looker = site.client(), site.client()

    def look(name: str) -> dict[str, Any]:
        known: dict[str, dict[str, Any]] = json.loads(looker.request("/look").body)
        return known[name]

    visits: list[str] = []

    def request_server() -> str:
        response = client.request("/site")
        assert response.status == 200, "no client sees a failure"
        visits.append(response.body.decode())
        return visits[-1]

    assert request_server() == "a"
    until(lambda: look("a")["check"] == "L7OK" and look("b")["check"] == "L7OK", "first checks")

    for way, status, code in (
        ("responds 500", "L7STS", 500),
        ("responds garbage", "L7RSP", 0),
        ("closes", "SOCKERR", 0),
        ("hangs", "L7TOUT", 0),
        ("refuses", "L4CON", 0),
    ):
        mine = request_server()
        other = "b" if mine == "a" else "a"
        if way == "refuses":
            unreliable[mine].refuse()
        else:
            unreliable[mine].way = way
        until(lambda mine=mine: look(mine)["status"] == "DOWN", f"{way} is DOWN")
        seen = look(mine)
        assert (seen["check"], seen["code"]) == (status, code)
        assert [request_server() for _ in range(3)] == [other] * 3, "its client is at another server, and stays there"
        if way == "refuses":
            unreliable[mine].listen()
        unreliable[mine].way = "well"
        until(lambda mine=mine: look(mine)["status"] == "UP", f"{way} is UP again")
        assert request_server() == other, "no client goes back"

    moves = sum(before != after for before, after in pairwise(visits))
    assert moves == 5, "each of the five has moved it once"

    mine = request_server()
    before = unreliable[mine].checks
    unreliable[mine].way = "flaps"
    until(lambda: unreliable[mine].checks > before + 6, "some checks")
    assert look(mine)["status"] == "UP", "one failure among successes does not count"
    assert request_server() == mine


def test_server_that_is_up_again_starts_slowly(
    site: Any, unreliable: dict[str, UnreliableServer], until: Callable[..., None]
) -> None:
    looker = site.client()
    assert site.client().request("/site").status == 200

    def look() -> dict[str, Any]:
        known: dict[str, dict[str, Any]] = json.loads(looker.request("/look").body)
        return known["a"]

    unreliable["a"].way = "responds 500"
    until(lambda: look()["status"] == "DOWN", "a is DOWN")
    unreliable["a"].way = "well"
    until(lambda: look()["status"] == "UP", "a is UP")
    throttles: list[int] = []

    def weight_grows() -> bool:
        throttles.append(look()["throttle"])
        return throttles[-1] == 100

    until(weight_grows, "all of its weight")
    assert throttles == sorted(throttles)
    assert throttles[0] < 100
