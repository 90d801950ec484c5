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

from tests.conformance.servers import LEAK_MESSAGES, ServerProcess
from tests.conformance.wire import DEADLINE, HOST

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
    """A server in a thread that fails on command. It responds `way` to checks, and to clients `client_way`, or with its
    name if that is well.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.way = self.client_way = "well"
        self.checks = self.requests = 0
        self.may_respond = threading.Event()
        self.may_respond.set()
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
        connection.settimeout(DEADLINE)
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
                self.may_respond.wait(DEADLINE)
                sent = WAYS[way]
            elif self.client_way != "well":
                self.requests += 1
                sent = WAYS[self.client_way]
            else:
                self.requests += 1
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
        self.may_respond.set()
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
def serve_site(request: pytest.FixtureRequest, serve: Callable[..., Any]) -> Callable[..., Any]:
    """Start a server in front of unreliable ones."""
    kind, *arguments = request.param.split()

    def started(servers: dict[str, UnreliableServer], **limits: dict[str, Any]) -> Any:
        urls = {name: f"http://{HOST}:{server.port}" for name, server in servers.items()}
        variables = {"CHECKED": json.dumps(urls)}
        if limits:
            variables["CHECKED_LIMITS"] = json.dumps(limits)
        return serve(kind, *arguments, variables=variables)

    return started


@pytest.fixture
def site(serve_site: Callable[..., Any], unreliable: dict[str, UnreliableServer]) -> Any:
    """A server in front of the unreliable ones."""
    return serve_site(unreliable)


@pytest.fixture
def four() -> Iterator[dict[str, UnreliableServer]]:
    servers = {name: UnreliableServer(name) for name in ("a", "b", "c", "d")}
    yield servers
    for server in servers.values():
        server.end()


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


def look_at(site: Any) -> dict[str, dict[str, Any]]:
    known: dict[str, dict[str, Any]] = json.loads(site.client().request("/look").body)
    return known


def request_as_client_of(site: Any, name: str) -> str:
    """Return which server responds to a client of the server `name`."""
    response = site.client().request("/site", headers={"Cookie": f"SERVERID={name}"})
    assert response.status == 200, "no client sees a failure"
    return str(response.body.decode())


def test_failed_requests_take_down_no_more_servers_than_max_ejected(
    serve_site: Callable[..., Any], four: dict[str, UnreliableServer], until: Callable[..., None]
) -> None:
    site = serve_site(
        four,
        server={"max_fails": 2, "fail_timeout": 600},
        backend={"max_ejected": 0.5, "retry_on": "conn-failure empty-response 500"},
    )
    statuses = lambda: [known["status"] for known in look_at(site).values()]  # noqa: E731
    request_as_client_of(site, "d")  # with no lifespan, the checks begin with the first request
    until(lambda: all(known["check"] == "L7OK" for known in look_at(site).values()), "first checks")

    for name, way in (("a", "closes"), ("b", "responds 500"), ("c", "closes")):
        four[name].client_way = way
        for _ in range(2):
            assert request_as_client_of(site, name) != name
    assert statuses() == ["DOWN", "DOWN", "UP", "UP"]
    before = four["c"].requests
    assert [request_as_client_of(site, "c") for _ in range(10)] == ["d"] * 10
    assert four["c"].requests == before + 10, "it stays up, so its clients are sent there first"
    assert site.output.count("is not taken down") == 1
    assert "Server site/c is not taken down: max_ejected=0.5 allows 2 of 4 servers" in site.output

    four["a"].client_way = "well"
    four["c"].way = "responds 500"
    until(
        lambda: statuses() == ["UP", "DOWN", "DOWN", "UP"], "checks take c down, so of three servers one may be ejected"
    )
    assert [known["ejected"] for known in look_at(site).values()] == [False, True, False, False]
    assert request_as_client_of(site, "a") == "a"


def test_share_of_failed_requests_takes_a_server_down(
    serve_site: Callable[..., Any], four: dict[str, UnreliableServer], until: Callable[..., None]
) -> None:
    limits = {"fail_rate": 0.5, "fail_volume": 10, "fail_timeout": 600}
    site = serve_site(four, server=limits, backend={"retry_on": "conn-failure empty-response 500"})
    assert [request_as_client_of(site, "a") for _ in range(5)] == ["a"] * 5
    until(lambda: look_at(site)["a"]["counts"] == [0, 5], "the end of five requests")
    for number, way in enumerate(("closes", "responds 500", "closes", "responds 500", "closes"), 6):
        assert look_at(site)["a"]["status"] == "UP"
        four["a"].client_way = way
        assert request_as_client_of(site, "a") != "a"
        assert four["a"].requests == number
    assert look_at(site)["a"]["status"] == "DOWN"
    assert "Server site/a is DOWN, reason: 5 of 10 requests failed." in site.output
    assert request_as_client_of(site, "a") != "a"
    assert four["a"].requests == 10


# -- the start waits for the first checks

#: servers that run a lifespan, which waits
WITH_LIFESPAN = ["uvicorn checked_asgi:app", "hypercorn checked_asgi:app", "granian checked_asgi:app"]
#: servers of which the first requests wait
WITHOUT_LIFESPAN = [
    "uvicorn --lifespan off checked_asgi:app",
    "gunicorn -k gthread --threads 4 checked_wsgi:app",
    "gunicorn -k gevent checked_wsgi:app",
    "waitress-serve --threads 4 checked_wsgi:app",
]


def waiting(unreliable: dict[str, UnreliableServer], **options: object) -> dict[str, str]:
    """Return the variables of a site that waits for the first checks. Each server is checked once: the next check is
    due after the test.
    """
    urls = {name: f"http://{HOST}:{server.port}" for name, server in unreliable.items()}
    return {"CHECKED": json.dumps(urls), "CHECK_OPTIONS": json.dumps({"startup": "wait", "inter": DEADLINE} | options)}


@pytest.mark.parametrize("command", [*WITH_LIFESPAN, *WITHOUT_LIFESPAN])
def test_very_first_request_goes_to_the_server_that_lives(
    command: str, serve: Callable[..., Any], unreliable: dict[str, UnreliableServer]
) -> None:
    unreliable["a"].way = "responds 500"
    kind, *arguments = command.split()
    site = serve(kind, *arguments, variables=waiting(unreliable))
    response = site.client().request("/site")
    assert (response.status, response.body) == (200, b"b"), "a, which serves requests, has failed its check"
    assert [server.checks for server in unreliable.values()] == [1, 1]


@pytest.mark.parametrize("command", [WITH_LIFESPAN[0], WITHOUT_LIFESPAN[1]])
def test_servers_that_refuse_or_hang_are_known_at_the_first_request(
    command: str, serve: Callable[..., Any], unreliable: dict[str, UnreliableServer]
) -> None:
    unreliable["a"].way = "hangs"
    unreliable["b"].refuse()
    kind, *arguments = command.split()
    site = serve(kind, *arguments, variables=waiting(unreliable, timeout=0.5))
    client = site.client()
    assert client.request("/site").status == 503
    known = json.loads(client.request("/look").body)
    assert [(each["status"], each["check"]) for each in known.values()] == [("DOWN", "L7TOUT"), ("DOWN", "L4CON")]


@pytest.fixture
def held(unreliable: dict[str, UnreliableServer]) -> UnreliableServer:
    """Server b, which holds its response to the first check. Server a fails it."""
    unreliable["a"].way = "responds 500"
    unreliable["b"].may_respond.clear()
    return unreliable["b"]


def test_uvicorn_accepts_no_connection_before_the_first_checks(
    launch: Callable[..., ServerProcess],
    unreliable: dict[str, UnreliableServer],
    held: UnreliableServer,
    until: Callable[..., None],
) -> None:
    site = launch("uvicorn", "checked_asgi:app", variables=waiting(unreliable))
    until(lambda: held.checks == 1 or site.process.poll() is not None, "the check of b")
    assert not site.listens() and "Application startup complete" not in site.output
    held.may_respond.set()
    assert site.comes_up()
    assert site.client().request("/site").body == b"b"
    site.stop()


def test_uvicorn_that_is_ended_during_the_first_checks_leaves_nothing(
    launch: Callable[..., ServerProcess],
    unreliable: dict[str, UnreliableServer],
    held: UnreliableServer,
    until: Callable[..., None],
) -> None:
    site = launch("uvicorn", "checked_asgi:app", variables=waiting(unreliable))
    until(lambda: held.checks == 1 or site.process.poll() is not None, "the check of b")
    site.process.send_signal(site.kind.stop)
    held.may_respond.set()
    site.ends()
    assert [word for word in LEAK_MESSAGES if word in site.output] == []


@pytest.mark.parametrize("command", WITHOUT_LIFESPAN)
def test_first_request_has_no_response_before_the_first_checks(
    command: str,
    serve: Callable[..., Any],
    unreliable: dict[str, UnreliableServer],
    held: UnreliableServer,
    until: Callable[..., None],
) -> None:
    bodies: list[bytes] = []
    kind, *arguments = command.split()
    site = serve(kind, *arguments, variables=waiting(unreliable))
    assert held.checks == 0, "no checks before the first request"
    request = threading.Thread(target=lambda: bodies.append(site.client().request("/site").body))
    request.start()
    until(lambda: held.checks == 1, "the check of b")
    assert bodies == []
    held.may_respond.set()
    request.join(DEADLINE)
    assert bodies == [b"b"]
