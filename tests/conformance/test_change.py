"""Servers are added, moved and removed under load, over real sockets: no request fails, and no client moves in vain."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import uvicorn
import waitress  # type: ignore[import-untyped]  # it has no types

import sticky_asgi
import sticky_wsgi
from sticky_core.backend.backend import Backend
from sticky_core.balance import RoundRobin
from sticky_core.health.check import Check
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.server import Server
from tests.conformance.servers import close_waitress

HOST = "127.0.0.1"
DEADLINE = 300.0
CLIENTS = 9


class CountingServer:
    """A server that responds with its name, and counts its connections."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.connected = 0
        lock = threading.Lock()
        origin = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                with lock:
                    origin.connected += 1

            def finish(self) -> None:
                super().finish()
                with lock:
                    origin.connected -= 1

            def do_GET(self) -> None:
                body = origin.name.encode()
                self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

            def log_message(self, *args: object) -> None:
                """No log: it is not read."""

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://{HOST}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def uvicorn_before(backend: Backend, until: Callable[..., None]) -> Iterator[int]:
    app: Any = sticky_asgi.Dispatcher(backend)
    server = uvicorn.Server(uvicorn.Config(app, HOST, 0, log_level="critical", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started, "the gateway listens")
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def waitress_before(backend: Backend, until: Callable[..., None]) -> Iterator[int]:
    dispatcher = sticky_wsgi.Dispatcher(backend)
    server: Any = waitress.create_server(dispatcher, host=HOST, port=0, threads=CLIENTS + 1)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server.effective_port
    finally:
        server.task_dispatcher.shutdown()
        close_waitress(server)
        thread.join()
        dispatcher.replicas.stop()


@dataclass
class Exchange:
    status: int
    origin: str
    marked: str  #: the server that the cookie of the response names; empty if it has none


class PersistentClient(threading.Thread):
    """A client that sends request after request on one connection, with the latest cookie."""

    def __init__(self, port: int, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._over = over
        self.visits: list[Exchange] = []
        self.failure: BaseException | None = None

    def run(self) -> None:
        cookie = ""
        connection = http.client.HTTPConnection(HOST, self._port, timeout=DEADLINE)
        try:
            while not self._over.is_set():
                connection.request("GET", "/", headers={"cookie": cookie} if cookie else {})
                response = connection.getresponse()
                body = response.read().decode()
                given = (response.getheader("set-cookie") or "").partition(";")[0]
                cookie = given or cookie
                self.visits.append(Exchange(response.status, body, given.partition("=")[2]))
        except BaseException as failure:
            self.failure = failure
        finally:
            connection.close()

    @property
    def marks(self) -> list[str]:
        """The servers that its cookies have named, in order."""
        return [visit.marked for visit in self.visits if visit.marked]


@pytest.mark.parametrize("gateway", [uvicorn_before, waitress_before], ids=["uvicorn", "waitress"])
def test_servers_are_added_moved_and_removed_under_load(
    gateway: Callable[..., Any], until: Callable[..., None]
) -> None:
    with ExitStack() as stack:
        o1, o2, o3, o4, o5 = origins = [CountingServer(f"o{number}") for number in range(1, 6)]
        for origin in origins:
            stack.callback(origin.end)
        backend = Backend(
            "web",
            [Server("s1", o1.url), Server("s2", o2.url), Server("s3", o3.url)],
            balance=RoundRobin(start=0),
            persist=Cookie("SRV", signed=False),
            check=Check(inter=1, fall=10),  # a busy machine is late
        )
        port = stack.enter_context(gateway(backend, until))
        over = threading.Event()
        clients = [PersistentClient(port, over) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        stack.callback(over.set)

        def wait_for_requests(visits: int = 10) -> None:
            """Wait until each client has sent a few more requests."""
            so_far = [len(client.visits) + visits for client in clients]
            until(
                lambda: all(
                    client.failure is not None or len(client.visits) >= seen
                    for client, seen in zip(clients, so_far, strict=True)
                ),
                "the clients come",
            )

        wait_for_requests()
        assert {client.marks[0] for client in clients} == {"s1", "s2", "s3"}
        backend.add(Server("s4", o4.url)).wait(DEADLINE)
        wait_for_requests()
        backend["s2"].target = o5.url
        wait_for_requests(2)
        moved_by = [len(client.visits) for client in clients]
        wait_for_requests()
        until(lambda: not o2.connected, "all connections to the old address are closed")
        change = backend.remove("s3")
        assert change.wait(DEADLINE) and change.retired.wait(DEADLINE)
        wait_for_requests()
        until(lambda: not o3.connected, "all connections to the server that has gone are closed")
        backend.remove("s4")
        for number in range(20):
            backend.add(Server(f"x{number}", o4.url))
            backend["s1"].weight = 1 + number
            backend.remove(f"x{number}")
        wait_for_requests()
        over.set()
        for client in clients:
            client.join(DEADLINE)

    assert [client.failure for client in clients] == [None] * CLIENTS
    assert {visit.status for client in clients for visit in client.visits} == {200}
    for client, seen in zip(clients, moved_by, strict=True):
        first, *further = client.marks
        if first in ("s1", "s2"):
            assert further == [], "it had no reason to move"
        if first == "s2":
            assert {visit.origin for visit in client.visits[seen:]} == {"o5"}
        if first == "s3":
            assert "s3" not in further and further[0] in ("s1", "s2", "s4")
