"""Which requests end when a server is marked down or up (HAProxy `on-marked-down`, `on-marked-up`), on both faces, at
replicas and at URLs. The rows were measured at HAProxy 2.6.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import pytest

from sticky_core.decision import Decision
from sticky_core.errors import Failure, ServerFailure
from sticky_core.health.check import Check
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.counters import Total
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health

if TYPE_CHECKING:
    from tests.faces.conftest import Face

DEADLINE = 300.0
PLAIN = Cookie("SERVERID", signed=False, nocache=False)
DOWN: dict[str, Any] = {"on_marked_down": "shutdown-sessions"}
UP: dict[str, Any] = {"on_marked_up": "shutdown-backup-sessions"}


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "the condition is still false"
        time.sleep(0.005)


def checked(**options: Any) -> Check:
    return Check(probe=lambda server: None, inter=0.05, **options)


class Origin:
    """The app or host of a server: it begins a response, and ends it when `released` is set. At `/silent` it sends
    nothing until then, at `/quick` all at once.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.received = 0
        self.released = threading.Event()

    async def asgi(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError
        self.received += 1
        start = {"type": "http.response.start", "status": 200, "headers": [(b"x-server", self.name.encode())]}
        if scope["path"] == "/held":
            await send(start)
            await send({"type": "http.response.body", "body": b"one", "more_body": True})
        while scope["path"] != "/quick" and not self.released.is_set():  # noqa: ASYNC110 - another thread sets it
            await anyio.sleep(0.005)
        if scope["path"] != "/held":
            await send(start)
        await send({"type": "http.response.body", "body": b"end"})

    def wsgi(self, environ: Any, start_response: Any) -> Iterator[bytes]:
        self.received += 1
        start_response("200 OK", [("x-server", self.name)])
        if environ["PATH_INFO"] != "/quick":
            while not self.released.wait(0.005):
                yield b"one" if environ["PATH_INFO"] == "/held" else b""
        yield b"end"

    def listen(self, stack: ExitStack) -> str:
        """Start a thread that sends the same responses at a URL, and return the URL."""
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        stack.callback(self.released.set)
        threading.Thread(target=self._accept, args=(listening,), daemon=True).start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=self._respond, args=(connection,), daemon=True).start()

    def _respond(self, connection: socket.socket) -> None:
        head = b"HTTP/1.1 200 OK\r\nx-server: %s\r\ntransfer-encoding: chunked\r\n\r\n" % self.name.encode()
        try:
            with connection:
                while data := connection.recv(65536):
                    self.received += 1
                    path = data.split(b" ", 2)[1]
                    if path == b"/held":
                        connection.sendall(head + b"3\r\none\r\n")
                    if path != b"/quick":
                        self.released.wait(DEADLINE)
                    connection.sendall((b"" if path == b"/held" else head) + b"3\r\nend\r\n0\r\n\r\n")
        except OSError:
            return  # the client has disconnected


class Visit:
    """A request in flight."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.status = 0
        self.body = b""
        self.server = ""
        self.future: Future[None]

    @property
    def end(self) -> Exception | None:
        """The exception that ended the request; None if it ended with a response."""
        error = self.future.exception(DEADLINE)
        assert error is None or isinstance(error, Exception)
        return error

    def set_head(self, status: int, headers: list[tuple[str, str]]) -> None:
        self.status, self.server = status, dict(headers).get("x-server", "")


class Bench:
    """Servers of one kind behind a dispatcher of one face."""

    def __init__(self, face: Face, kind: str, stack: ExitStack) -> None:
        self.face = face
        self.kind = kind
        self.stack = stack
        self.origins: dict[str, Origin] = {}
        self._portal = stack.enter_context(anyio.from_thread.start_blocking_portal())

    def server(self, name: str, **options: Any) -> Server:
        origin = self.origins[name] = Origin(name)
        target = origin.listen(self.stack) if self.kind == "URL" else getattr(origin, self.face.name)
        return Server(name, target, **options)

    def backend(self, *servers: Server, is_checked: bool = False, **options: Any) -> Any:
        """Start a backend. `is_checked`: its checks run; else the test sets the health of its servers."""
        backend = self.face.backend(*servers, persist=PLAIN, **options)
        if not is_checked:
            backend.acquire_checks(self)
        dispatcher: Any = self.face.dispatcher(backend)
        self._dispatcher = dispatcher
        if self.face.name == "asgi":
            self.stack.enter_context(self._portal.wrap_async_context_manager(dispatcher.lifespan()))
        else:
            self.stack.callback(dispatcher.replicas.stop)
        self.stack.callback(self.release_all)
        return backend

    def release_all(self) -> None:
        for origin in self.origins.values():
            origin.released.set()

    def visit(self, server: str = "", path: str = "/held") -> Visit:
        """Send a request of a client of `server`, and wait for all that the server sends before `released` is set."""
        visit = Visit()
        cookie = f"SERVERID={server}" if server else ""
        before = sum(origin.received for origin in self.origins.values())
        if self.face.name == "asgi":
            visit.future = self._portal.start_task_soon(self._asgi, visit, cookie, path)
        else:
            visit.future = Future()
            threading.Thread(target=self._wsgi, args=(visit, cookie, path), daemon=True).start()
        if path == "/held":
            assert visit.begun.wait(DEADLINE)
        elif path == "/silent":
            until(lambda: sum(origin.received for origin in self.origins.values()) > before)
        return visit

    async def _asgi(self, visit: Visit, cookie: str, path: str) -> None:
        async def receive() -> dict[str, Any]:
            if not received:
                received.append(None)
                return {"type": "http.request", "body": b"", "more_body": False}
            await asyncio.sleep(3600)
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = [(name.decode(), value.decode()) for name, value in message["headers"]]
                visit.set_head(message["status"], headers)
            else:
                visit.body += message.get("body", b"")
                visit.begun.set()

        received: list[None] = []
        headers = [(b"host", b"here"), *([(b"cookie", cookie.encode())] if cookie else [])]
        scope: dict[str, Any] = {
            "type": "http",
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
        }
        scope |= {"scheme": "http", "headers": headers, "http_version": "1.1", "client": None, "root_path": ""}
        await self._dispatcher(scope, receive, send)

    def _wsgi(self, visit: Visit, cookie: str, path: str) -> None:
        environ: dict[str, Any] = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": "",
            "HTTP_HOST": "here",
            "wsgi.url_scheme": "http",
            "wsgi.input": None,
            **({"HTTP_COOKIE": cookie} if cookie else {}),
        }
        try:
            body = self._dispatcher(environ, lambda status, headers, *_: visit.set_head(int(status[:3]), headers))
            try:
                for item in body:
                    visit.body += item
                    if visit.body:
                        visit.begun.set()
            finally:
                getattr(body, "close", lambda: None)()
        except Exception as error:
            visit.future.set_exception(error)
        else:
            visit.future.set_result(None)


@pytest.fixture(params=["replica", "URL"])
def bench(face: Face, request: pytest.FixtureRequest) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(face, request.param, stack)


def put(server: Server, state: str) -> None:
    if state in ("DOWN", "UP", "NOLB"):
        server.health = Health(state)
    elif state.startswith("weight"):
        server.weight = int(state.split()[1])
    else:
        server.state = AdminState(state)


@pytest.mark.parametrize("state, ends", [("DOWN", True), ("maint", True), ("drain", False), ("NOLB", False)])
def test_requests_in_flight_end_with_a_server_that_is_marked_down(bench: Bench, state: str, ends: bool) -> None:
    backend = bench.backend(bench.server("s1"), bench.server("s2"), check=checked(**DOWN))
    here, elsewhere = bench.visit("s1"), bench.visit("s2")
    put(backend["s1"], state)
    if ends:
        assert isinstance(here.end, ServerFailure)
        until(lambda: not backend["s1"].in_flight)
    bench.release_all()
    assert elsewhere.end is None and (elsewhere.server, elsewhere.body[-3:]) == ("s2", b"end")
    assert ends or (here.end is None and here.body[-3:] == b"end")


def test_without_on_marked_down_requests_in_flight_continue(bench: Bench) -> None:
    backend = bench.backend(bench.server("s1"), bench.server("s2"), check=checked())
    visit = bench.visit("s1")
    put(backend["s1"], "DOWN")
    bench.origins["s1"].released.set()
    assert visit.end is None and visit.body[-3:] == b"end"


@pytest.mark.parametrize("option", ["marked down", "marked up"])
@pytest.mark.parametrize("retried", [False, True])
def test_a_client_without_a_response_head_gets_502_or_another_server(bench: Bench, option: str, retried: bool) -> None:
    """HAProxy responds 502, or with `retry-on empty-response` retries."""
    if bench.face.name == "wsgi" and bench.kind == "replica":
        pytest.skip("WSGI: a request without a response cannot be ended")
    check = checked(**(DOWN if option == "marked down" else UP))
    servers = bench.server("s1"), bench.server("s2", backup=option == "marked up")
    backend = bench.backend(*servers, check=check, retry_on="empty-response" if retried else "conn-failure")
    cut, other = ("s1", "s2") if option == "marked down" else ("s2", "s1")
    server = "" if option == "marked up" else "s1"
    if option == "marked up":
        put(backend["s1"], "DOWN")
    assert bench.visit(server, "/quick").end is None  # so that the next request uses an idle connection of the pool
    visit = bench.visit(server, "/silent")
    assert bench.origins[cut].received == 2
    bench.origins[other].released.set()
    put(backend["s1"], "UP" if option == "marked up" else "DOWN")
    assert visit.end is None
    assert (visit.status, visit.server) == ((200, other) if retried else (502, ""))
    assert bench.origins[cut].received == 2, "the request is not sent again on another connection"
    assert backend[cut].counters[Total.ERESP] == 1


@pytest.mark.parametrize(
    "before, after, ends",
    [
        pytest.param(["DOWN"], ["UP"], True, id="up again"),
        pytest.param(["maint"], ["ready"], True, id="back from maintenance"),
        pytest.param(["NOLB"], ["UP"], True, id="takes new clients again"),
        pytest.param(["drain"], ["ready"], False, id="back from a drain"),
        pytest.param(["weight 0"], ["weight 1"], False, id="has its weight again"),
        pytest.param(["weight 0", "DOWN"], ["UP"], False, id="up again without weight"),
        pytest.param(["drain", "DOWN"], ["UP"], False, id="up again while it drains"),
    ],
)
def test_a_server_that_is_marked_up_ends_the_requests_at_the_backups(
    bench: Bench, before: list[str], after: list[str], ends: bool
) -> None:
    servers = [bench.server("s1"), *(bench.server(name, backup=True, cookie=name) for name in ("b1", "b2"))]
    backend = bench.backend(*servers, check=checked(**UP))
    for state in before:
        put(backend["s1"], state)
    visits = [bench.visit(name) for name in ("b1", "b2")]
    assert [visit.server for visit in visits] == ["b1", "b2"]
    for state in after:
        put(backend["s1"], state)
    if ends:
        assert all(isinstance(visit.end, ServerFailure) for visit in visits)
        until(lambda: not any(server.in_flight for server in backend.servers))
    bench.release_all()
    assert ends or [(visit.end, visit.body[-3:]) for visit in visits] == [(None, b"end")] * 2


def test_a_server_that_is_added_is_marked_up_and_a_backup_is_not(bench: Bench) -> None:
    backend = bench.backend(
        bench.server("s1"), bench.server("b1", backup=True), bench.server("b2", backup=True), check=checked(**UP)
    )
    put(backend["s1"], "DOWN")
    visit = bench.visit()
    assert visit.server == "b1"
    put(backend["b2"], "DOWN")
    put(backend["b2"], "UP")
    assert not visit.future.done()
    backend.add(bench.server("s2")).wait(DEADLINE)
    assert isinstance(visit.end, ServerFailure)


def test_a_request_ended_at_a_backup_is_no_failure_of_the_backup(bench: Bench) -> None:
    check = checked(observe="layer7", error_limit=1, on_error="mark-down", **UP)
    backend = bench.backend(bench.server("s1"), bench.server("b1", backup=True, max_fails=1), check=check)
    put(backend["s1"], "DOWN")
    visit = bench.visit()
    put(backend["s1"], "UP")
    assert isinstance(visit.end, ServerFailure)
    until(lambda: not backend["b1"].in_flight)
    assert backend["b1"].status == "UP"


def test_requests_to_an_earlier_address_end_with_their_server(face: Face) -> None:
    with ExitStack() as stack:
        bench = Bench(face, "URL", stack)
        backend = bench.backend(bench.server("s1"), bench.server("s2"), check=checked(**DOWN))
        elsewhere = bench.origins["s3"] = Origin("s3")
        visit = bench.visit("s1")
        backend["s1"].target = elsewhere.listen(stack)
        moved = bench.visit("s1")
        assert (visit.server, moved.server) == ("s1", "s3")
        put(backend["s1"], "DOWN")
        assert isinstance(visit.end, ServerFailure) and isinstance(moved.end, ServerFailure)


@pytest.mark.parametrize("face", ["asgi"], indirect=True)
def test_an_exception_by_which_an_app_reacts_to_its_end_is_no_failure_of_it(face: Face) -> None:
    async def reacting(scope: Any, receive: Any, send: Any) -> None:
        backend["s1"].health = Health.DOWN
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            raise LookupError("the connection is needed no more") from None

    log: list[Decision] = []
    backend = face.backend(Server("s1", reacting, check=checked(**DOWN)), persist=PLAIN, log=log.append)
    backend.acquire_checks(log)
    response = face.client(backend)()
    assert (response.status, response.raised) == (502, None)
    assert [decision.failures for decision in log] == [(Failure.SHUT,)]


def test_a_check_of_a_backup_is_not_ended(face: Face) -> None:
    with ExitStack() as stack:
        bench = Bench(face, "replica", stack)
        servers = bench.server("s1", check=checked(rise=100_000, **UP)), bench.server("b1", backup=True)
        backend = bench.backend(*servers, is_checked=True, check=Check("/silent", inter=0.05, timeout=DEADLINE, fall=1))
        put(backend["s1"], "DOWN")
        assert bench.visit(path="/quick").end is None
        until(lambda: bench.origins["b1"].received > 1)
        put(backend["s1"], "UP")
        bench.origins["b1"].released.set()
        checking = backend["b1"].checking
        until(lambda: checking.result.code or not checking.is_up)
        assert backend["b1"].status == "UP" and str(checking.result).startswith("Layer7 check passed")


def test_failures_that_are_no_fault_of_the_server() -> None:
    assert {failure for failure in Failure if not failure.is_server_fault} == {
        Failure.NOT_FORWARDABLE,
        Failure.NO_WEBSOCKET,
        Failure.CLIENT_TIMEOUT,
        Failure.CLIENT_SLOW,
        Failure.TOTAL_TIMEOUT,
        Failure.LOCAL_LIMIT,
        Failure.SHUT,
    }
