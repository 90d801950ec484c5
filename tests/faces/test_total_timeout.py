"""`Timeouts(total=...)` on both faces: what ends when the time for all attempts of a request is over, and what goes on.

Where a wait is real, since event loops and sockets have clocks of their own, the limit ends what would never end by
itself. Everything else is done with a clock that stands still.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import sticky_asgi
import sticky_asgi.body
import sticky_wsgi.body
from sticky_core.backend.backend import Backend
from sticky_core.balance import Hash, RoundRobin
from sticky_core.clock import ManualClock
from sticky_core.decision import Decision
from sticky_core.errors import ConfigError, Failure, ServerFailure
from sticky_core.health.check import Check
from sticky_core.http.timeouts import Timeouts
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.samples.request import json_field
from sticky_core.server.counters import Total
from sticky_core.server.server import Server
from sticky_core.transaction.total_timeout import TotalTimeout

if TYPE_CHECKING:
    from tests.faces.conftest import Face, ReceivedRequest, RecordedResponse

PLAIN = Cookie("SERVERID", signed=False, nocache=False)
BOUND = "SERVERID=s1"
SOON = 0.1  # a limit that a test waits for
NEVER = 10_000.0  # a limit that no test waits for
PATIENCE = 300.0  # seconds, for waits that take milliseconds
HOST = "127.0.0.1"


def charged(backend: Backend) -> list[int]:
    """Return how many failures each server is charged with."""
    return [server.counters[Total.ECON] + server.counters[Total.ERESP] for server in backend.servers]


def delay(face: Face, name: str, clock: ManualClock) -> None:
    """Let the app of a server take as long as all attempts may."""
    app = face.apps[name]
    record = app.record

    def record_later(seen: ReceivedRequest) -> None:
        clock.advance(NEVER)
        record(seen)

    app.record = record_later  # type: ignore[method-assign]


def assert_ended(response: RecordedResponse, *failures: Failure) -> None:
    """Require that the time was over, after these failures."""
    assert (response.status, response.server, response.all("set-cookie")) == (504, None, [])
    assert b"The server took too long to respond." in response.body
    assert response.decision.failures == (*failures, Failure.TOTAL_TIMEOUT)
    assert response.decision.status == 504


# -- waits, and further attempts


def test_wait_in_a_queue_ends_when_the_time_is_over(face: Face):
    backend = face.backend(face.server("s1", maxconn=1), timeouts=Timeouts(total=SOON, queue=NEVER))
    backend.placement.acquire(backend["s1"])
    response = face.client(backend)()
    assert_ended(response)
    assert response.tried == ()
    assert backend.placement.queue.waiting == 0


def test_pause_before_a_retry_ends_when_the_time_is_over(face: Face):
    with closing(socket.socket()) as dead:
        dead.bind((HOST, 0))
        backend = Backend(
            "web",
            [Server("s1", f"http://{HOST}:{dead.getsockname()[1]}")],
            redispatch=False,
            timeouts=Timeouts(total=SOON),
        )
        response = face.client(backend)()
    assert response.status == 504
    assert response.decision.failures[-1] is Failure.TOTAL_TIMEOUT
    assert response.decision.attempts == ("s1",), "it would be tried four times"


@pytest.mark.parametrize("redispatch", [True, False])
def test_no_further_attempt_begins_when_the_time_is_over(redispatch: bool, face: Face):
    clock = ManualClock()
    backend = face.backend(
        face.server("s1"),
        face.server("s2"),
        persist=PLAIN,
        clock=clock,
        timeouts=Timeouts(total=NEVER),
        redispatch=redispatch,
    )

    face.apps["s1"].raises = ServerFailure(Failure.REFUSED, "s1")
    delay(face, "s1", clock)
    response = face.client(backend)(cookie=BOUND)
    assert_ended(response, Failure.REFUSED)
    assert [request.server for request in response.tried] == ["s1"]
    assert charged(backend) == [1, 0]


def test_second_attempt_in_time_succeeds(face: Face):
    backend = face.backend(
        face.server("s1", raises=ServerFailure(Failure.REFUSED, "s1")),
        face.server("s2"),
        persist=PLAIN,
        timeouts=Timeouts(total=NEVER),
    )
    response = face.client(backend)(cookie=BOUND)
    assert (response.status, response.server) == (200, "s2")


def test_wait_for_the_body_is_a_part_of_it(face: Face, monkeypatch: pytest.MonkeyPatch):
    clock = ManualClock()
    backend = face.backend(
        face.server("s1"), clock=clock, balance=Hash(json_field("id")), timeouts=Timeouts(total=NEVER)
    )
    body = sticky_asgi.body.Body if face.name == "asgi" else sticky_wsgi.body.Body
    peek: Any = body.peek

    def slow_peek(*args: Any) -> Any:
        clock.advance(NEVER)
        return peek(*args)

    monkeypatch.setattr(body, "peek", slow_peek)
    response = face.client(backend)(method="POST", body=b"{}", headers=[("content-type", "application/json")])
    assert_ended(response)


def test_limit_is_set_and_lifted_while_requests_are_served(face: Face):
    backend = face.backend(face.server("s1", maxconn=1), timeouts=Timeouts(queue=SOON))
    backend.placement.acquire(backend["s1"])
    get = face.client(backend)
    assert get().status == 503
    backend.apply(replace(backend.config, timeouts=Timeouts(queue=NEVER, total=SOON)))
    assert get().status == 504
    backend.apply(replace(backend.config, timeouts=Timeouts(queue=SOON)))
    assert get().status == 503


def test_app_in_a_thread_is_not_interrupted_and_its_response_passes():
    from tests.faces.conftest import Wsgi

    face, clock = Wsgi(), ManualClock()
    server = face.server("s1", status=503)
    backend = face.backend(server, face.server("s2"), clock=clock, timeouts=Timeouts(total=NEVER), retry_on="503")
    delay(face, "s1", clock)
    response = face.client(backend)()
    assert (response.status, response.server) == (503, "s1"), "and is not held back for a further attempt"
    assert response.decision.failures == ()


@pytest.mark.parametrize("upstream", ["asgi", "wsgi"])
def test_upstream_by_itself_has_no_further_attempts(upstream: str):
    from tests.faces.conftest import FACES

    with pytest.raises(ConfigError, match="total is over all attempts of a request"):
        FACES[upstream].package.Upstream("http://10.0.0.1", timeouts=Timeouts(total=3))


# -- upstreams


class Origin:
    """A server that accepts one connection after the other, reads the head of a request, and calls `respond`."""

    def __init__(self, respond: Callable[[socket.socket], object]) -> None:
        self._listener = socket.create_server((HOST, 0))
        self._respond = respond
        self.over = threading.Event()  # set at the end of the test
        self.url = f"http://{HOST}:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                try:
                    while (received := connection.recv(65536)) and b"\r\n\r\n" not in received:
                        pass
                    self._respond(connection)
                except OSError:
                    pass  # it was closed

    def close(self) -> None:
        self.over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def origin_of(stack: ExitStack, respond: Callable[[Origin, socket.socket], object]) -> Origin:
    made = Origin(lambda connection: respond(made, connection))
    stack.callback(made.close)
    return made


def backend_of(face: Face, *urls: str, **options: Any) -> Backend:
    asked: dict[str, Any] = {
        "balance": RoundRobin(start=0),
        "persist": PLAIN,
        "retry_on": "all-retryable-errors",
        "timeouts": Timeouts(connect=NEVER, server=NEVER, total=SOON),
        **options,
    }
    servers = [face.package.Server(f"s{number}", url, max_fails=1) for number, url in enumerate(urls, 1)]
    made: Backend = face.package.Backend("web", servers, **asked)
    return made


def test_upstream_that_does_not_respond_is_left_and_not_charged(face: Face, stack: ExitStack):
    silent = origin_of(stack, lambda origin, connection: connection.recv(1))
    backend = backend_of(face, silent.url, silent.url)
    response = face.client(backend)(cookie=BOUND)
    assert_ended(response)
    assert response.decision.attempts == ("s1",)
    assert charged(backend) == [0, 0]
    assert [server.status for server in backend.servers] == ["UP", "UP"], "max_fails does not count it"


def test_upstream_that_sends_its_head_bit_by_bit_is_left(face: Face, stack: ExitStack):
    def trickle(origin: Origin, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nx-long: ")
        while not origin.over.wait(0.001):
            connection.sendall(b"a")

    response = face.client(backend_of(face, origin_of(stack, trickle).url))()
    assert_ended(response)


def test_upload_that_takes_too_long_is_given_up_on_wsgi_as_well(stack: ExitStack):
    from tests.faces.conftest import Wsgi

    face, clock, reads = Wsgi(), ManualClock(), []

    class EndlessInput:
        def read(self, size: int) -> bytes:
            reads.append(size)
            assert len(reads) < 10, "the upload goes on"
            if len(reads) == 3:
                clock.advance(NEVER)
            return bytes(size)

    def take_all(origin: Origin, connection: socket.socket) -> None:
        while connection.recv(65536):
            pass

    log: list[Decision] = []
    timeouts = Timeouts(connect=NEVER, server=NEVER, total=NEVER)
    backend = backend_of(face, origin_of(stack, take_all).url, clock=clock, timeouts=timeouts, log=log.append)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": "http",
        "wsgi.input": EndlessInput(),
        "wsgi.input_terminated": True,
        "HTTP_TRANSFER_ENCODING": "chunked",
    }
    heads: list[str] = []
    face.dispatcher(backend)(environ, lambda status, headers, exc_info=None: heads.append(status))
    assert [head[:3] for head in heads] == ["504"]
    assert [decision.failures for decision in log] == [(Failure.TOTAL_TIMEOUT,)]
    assert charged(backend) == [0]


def test_attempt_that_has_exceeded_its_own_timeout_is_charged(face: Face, stack: ExitStack):
    silent = origin_of(stack, lambda origin, connection: connection.recv(1))
    backend = backend_of(face, silent.url, retries=0, timeouts=Timeouts(server=SOON, total=NEVER))
    response = face.client(backend)()
    assert (response.status, response.decision.failures) == (504, (Failure.TIMEOUT,))
    assert charged(backend) == [1]


def test_connection_that_is_not_established_is_left_and_not_charged(face: Face, stack: ExitStack):
    full = stack.enter_context(closing(socket.socket()))
    full.bind((HOST, 0))
    full.listen(0)
    stack.enter_context(closing(socket.create_connection(full.getsockname())))  # which fills the backlog
    url = f"http://{HOST}:{full.getsockname()[1]}"
    backend = backend_of(face, url, url)
    response = face.client(backend)(cookie=BOUND)
    assert_ended(response)
    assert response.decision.attempts == ("s1",)
    assert charged(backend) == [0, 0]


@pytest.mark.parametrize("beginning", [b"", b"first "], ids=["the head", "a part of the body"])
def test_response_that_has_begun_is_not_cut_off(
    beginning: bytes, face: Face, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
):
    clock, has_begun = ManualClock(), threading.Event()
    looks: list[float | None] = []  # at the time that is left; on WSGI ten times a second

    def respond(origin: Origin, connection: socket.socket) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n"
        connection.sendall(head % (len(beginning) + 6) + beginning)
        assert has_begun.wait(PATIENCE)
        clock.advance(NEVER)
        looks.clear()
        while face.name == "wsgi" and len(looks) < 2:
            assert not origin.over.wait(0.01)
        connection.sendall(b"second")

    lift: Any = TotalTimeout.lift_total_timeout
    seconds_left: Any = TotalTimeout.seconds_left

    def look(transaction: Any) -> Any:
        looks.append(seconds_left.fget(transaction))
        return looks[-1]

    def lift_and_note(transaction: Any) -> None:
        lift(transaction)
        has_begun.set()

    monkeypatch.setattr(TotalTimeout, "lift_total_timeout", lift_and_note)
    monkeypatch.setattr(TotalTimeout, "seconds_left", property(look))
    backend = backend_of(
        face, origin_of(stack, respond).url, clock=clock, timeouts=Timeouts(connect=NEVER, server=NEVER, total=NEVER)
    )
    response = face.client(noting_head(face, backend, has_begun.set))()
    assert (response.status, response.body) == (200, beginning + b"second")
    assert response.decision.failures == ()


def noting_head(face: Face, backend: Backend, note: Callable[[], object]) -> Callable[..., Any]:
    """Return a dispatcher in front of `backend` that calls `note` when the head of a response passes."""
    dispatcher = face.dispatcher(backend)

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        def send_and_note(message: Any) -> Any:
            note()
            return send(message)

        await dispatcher(scope, receive, send_and_note)

    def wsgi(environ: Any, start_response: Any) -> Any:
        def start_and_note(*args: Any) -> Any:
            note()
            return start_response(*args)

        return dispatcher(environ, start_and_note)

    return asgi if face.name == "asgi" else wsgi


# -- apps in this process, which ASGI can cancel


@pytest.fixture(params=["asyncio", "trio"])
def call(request: pytest.FixtureRequest) -> Callable[..., list[dict[str, Any]]]:
    """Return a function that runs a request, and returns the messages that its client got."""

    def called(backend: Backend, kind: str = "http", cookie: str = BOUND, method: str = "GET") -> list[dict[str, Any]]:
        received: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if kind == "websocket" and not connected:
                connected.append(True)
                return {"type": "websocket.connect"}
            await anyio.sleep_forever()
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            received.append(message)

        connected: list[bool] = []
        scope = {
            "type": kind,
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "path": "/",
            "query_string": b"",
            "headers": [(b"cookie", cookie.encode()), (b"content-type", b"application/json")],
            **({"method": method} if kind == "http" else {}),
        }
        dispatcher: Any = sticky_asgi.Dispatcher(backend)
        anyio.run(dispatcher, scope, receive, send, backend=request.param)
        return received

    return called


def build_asgi_backend(*apps: Any, **options: Any) -> Backend:
    asked: dict[str, Any] = {
        "balance": RoundRobin(start=0),
        "persist": PLAIN,
        "timeouts": Timeouts(total=SOON),
        **options,
    }
    return Backend("web", [Server(f"s{number}", app) for number, app in enumerate(apps, 1)], **asked)


async def hang(scope: Any, receive: Any, send: Any) -> None:
    await anyio.sleep_forever()


async def respond(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"here"})


def statuses(messages: list[dict[str, Any]]) -> list[int]:
    return [message["status"] for message in messages if message["type"] == "http.response.start"]


def test_app_that_does_not_respond_is_cancelled(call):
    cancelled: list[BaseException] = []
    log: list[Any] = []

    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class() as error:
            cancelled.append(error)
            raise

    backend = build_asgi_backend(waiting, respond, log=log.append, retry_on="all-retryable-errors")
    assert statuses(call(backend)) == [504]
    assert len(cancelled) == 1
    (decision,) = log
    assert (decision.attempts, decision.failures) == (("s1",), (Failure.TOTAL_TIMEOUT,))
    assert charged(backend) == [0, 0]
    assert [len(server.in_flight) for server in backend.servers] == [0, 0]


def test_app_that_waits_for_the_client_is_cancelled_too(call):
    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    assert statuses(call(build_asgi_backend(waiting))) == [504]


def test_what_can_not_be_cancelled_is_awaited_and_its_response_is_too_late(call):
    finished: list[bool] = []

    async def shielded(scope: Any, receive: Any, send: Any) -> None:
        with anyio.CancelScope(shield=True):  # as around a function in a thread
            await anyio.sleep(2 * SOON)
            finished.append(True)
        await respond(scope, receive, send)

    log: list[Decision] = []
    backend = build_asgi_backend(shielded, respond, log=log.append)
    assert (statuses(call(backend)), finished) == ([504], [True])
    assert [decision.failures for decision in log] == [(Failure.TOTAL_TIMEOUT,)]
    assert charged(backend) == [0, 0]


def test_exception_by_which_an_app_reacts_to_the_cancellation_is_no_failure_of_it(call):
    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            raise LookupError("no result") from None

    backend = build_asgi_backend(waiting)
    assert statuses(call(backend)) == [504]
    assert charged(backend) == [0]


def test_response_by_which_an_app_reacts_to_the_cancellation_does_not_reach_the_client(call):
    refused: list[Exception] = []

    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            try:
                await send({"type": "http.response.start", "status": 200, "headers": []})
            except OSError as error:
                refused.append(error)
            raise

    backend = build_asgi_backend(waiting)
    assert statuses(call(backend)) == [504]
    assert charged(backend) == [0]
    assert "taken too long" in str(refused[0])


def test_request_that_waits_for_its_body_is_ended(call):
    backend = build_asgi_backend(respond, balance=Hash(json_field("id")))
    assert statuses(call(backend, cookie="", method="POST")) == [504]


def test_request_in_a_queue_is_ended(call):
    backend = Backend("web", [Server("s1", respond, maxconn=1)], timeouts=Timeouts(total=SOON, queue=NEVER))
    backend.placement.acquire(backend["s1"])
    assert statuses(call(backend)) == [504]


def test_second_attempt_has_the_rest_of_the_time(call):
    clock, deadlines = ManualClock(), list[float]()

    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        deadlines.append(anyio.current_effective_deadline())
        clock.advance(NEVER / 2)
        raise ServerFailure(Failure.REFUSED, "s1")

    async def note_and_respond(scope: Any, receive: Any, send: Any) -> None:
        deadlines.append(anyio.current_effective_deadline())
        await respond(scope, receive, send)

    backend = build_asgi_backend(refuse, note_and_respond, clock=clock, timeouts=Timeouts(total=NEVER))
    assert statuses(call(backend)) == [200]
    assert deadlines[1] < deadlines[0] - NEVER / 4


@pytest.mark.parametrize("options", [{}, {"retry_on": "503"}], ids=["", "statuses are retried"])
def test_app_that_has_begun_to_respond_has_no_deadline(options, call):
    deadlines: list[float] = []

    async def streaming(scope: Any, receive: Any, send: Any) -> None:
        deadlines.append(anyio.current_effective_deadline())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        deadlines.append(anyio.current_effective_deadline())
        await send({"type": "http.response.body", "body": b"late"})

    assert statuses(call(build_asgi_backend(streaming, timeouts=Timeouts(total=NEVER), **options))) == [200]
    assert deadlines[0] < deadlines[1] == inf


def test_response_that_was_kept_is_passed_on_when_the_time_is_over(call):
    clock = ManualClock()

    async def unavailable(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b"kept"})

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        clock.advance(NEVER)
        raise ServerFailure(Failure.CLOSED, "s2")

    messages = call(
        build_asgi_backend(
            unavailable, slow, respond, clock=clock, timeouts=Timeouts(total=NEVER), retry_on="503 empty-response"
        )
    )
    assert statuses(messages) == [503]
    assert messages[-1]["body"] == b"kept"


@pytest.mark.parametrize("answer", ["websocket.accept", "websocket.close"])
def test_websocket_is_limited_until_its_handshake_is_answered(answer, call):
    deadlines: list[float] = []

    async def handshake(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        deadlines.append(anyio.current_effective_deadline())
        await send({"type": answer})
        deadlines.append(anyio.current_effective_deadline())
        if answer == "websocket.accept":
            await send({"type": "websocket.close"})

    call(build_asgi_backend(handshake, timeouts=Timeouts(total=NEVER)), "websocket")
    assert deadlines[0] < deadlines[1] == inf


def test_websocket_with_a_handshake_that_takes_too_long_is_refused(call):
    log: list[Any] = []
    assert call(build_asgi_backend(hang, log=log.append), "websocket") == [{"type": "websocket.close", "code": 1013}]
    assert (log[0].status, log[0].failures) == (504, (Failure.TOTAL_TIMEOUT,))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"timeouts": Timeouts(total=NEVER)}, id="total"),
        pytest.param({"timeouts": Timeouts(), "check": Check(on_marked_down="shutdown-sessions")}, id="on_marked_down"),
    ],
)
@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_app_that_may_be_cancelled_has_its_lifespan_once_also_after_a_first_request(library, options):
    started: list[dict[str, Any]] = []
    received: list[dict[str, Any]] = []

    async def with_state(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": repr(scope.get("state")).encode()})
            return
        assert (await receive())["type"] == "lifespan.startup"
        scope["state"]["key"] = "value"
        started.append(scope["state"])
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def send(message: dict[str, Any]) -> None:
        received.append(message)

    async def request_before_and_after() -> None:
        dispatcher: Any = sticky_asgi.Dispatcher(build_asgi_backend(with_state, with_state, **options))
        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
        await dispatcher({**scope}, anyio.sleep_forever, send)
        async with dispatcher.lifespan():
            await dispatcher({**scope}, anyio.sleep_forever, send)

    anyio.run(request_before_and_after, backend=library)
    assert [message["body"] for message in received if "body" in message] == [b"None", b"{'key': 'value'}"]
    assert len(started) == 1, "both servers have the same app"


def test_limit_that_is_set_at_run_time_cancels_apps(call):
    backend = build_asgi_backend(hang, respond, timeouts=Timeouts())
    assert statuses(call(backend, cookie="SERVERID=s2")) == [200]
    backend.apply(replace(backend.config, timeouts=Timeouts(total=SOON)))
    assert statuses(call(backend)) == [504]
    backend.add(Server("s3", hang))
    assert statuses(call(backend, cookie="SERVERID=s3")) == [504]
    backend.apply(replace(backend.config, timeouts=Timeouts()))
    assert statuses(call(backend, cookie="SERVERID=s2")) == [200]
