"""Upstreams as apps, in process: what ASGI and PEP 3333 require of them, from several event loops and threads. The
origin is at the other end of real sockets.
"""

import asyncio
import io
import os
import socket
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import anyio
import pytest
import trio
from starlette.testclient import TestClient

import sticky_asgi
import sticky_wsgi
from sticky_asgi import Backend, ConfigError, Forward, Server, ServerFailure, Timeouts
from sticky_asgi.upstream.connections import Connection
from sticky_core.server.counters import Total
from sticky_wsgi import messages

HOST = "127.0.0.1"
pytestmark = pytest.mark.usefixtures("no_open_resources")

#: seconds after which a step is taken to hang
DEADLINE = 300.0


def echo(received) -> None:
    """Respond with the target and the body."""
    received.respond(body=received.target.encode() + b" " + received.read_body())


def scope_of(path: str = "/", **more: object) -> dict[str, object]:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"shop.test")],
        "client": (HOST, 4711),
        "server": (HOST, 80),
        **more,
    }


class Exchange:
    """A server and its client in ASGI: the messages for the app, and those that it has sent."""

    def __init__(self, scope: dict[str, object], body: bytes = b"", takes: int | None = None) -> None:
        self.scope = scope
        self.messages: list[dict[str, object]] = []
        self.left = asyncio.Event()
        self._body: bytes | None = body
        self._takes = takes  # after so many messages `send` fails

    async def receive(self) -> dict[str, object]:
        body, self._body = self._body, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message) -> None:
        if self._takes is not None and len(self.messages) >= self._takes:
            raise OSError("no socket listens")
        self.messages.append(message)

    async def of(self, app) -> "Exchange":
        async with asyncio.timeout(DEADLINE):
            await app(self.scope, self.receive, self.send)
        return self

    @property
    def status(self) -> object:
        return self.messages[0]["status"]

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)  # type: ignore[misc]


@pytest.fixture
def loop():
    """An event loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def dispatcher(origin, face=sticky_asgi, **options: object):
    return face.Dispatcher(face.Backend("web", servers=[face.Server("a", origin.url)], **options))


# -- ASGI


APPS = {"dispatcher": dispatcher, "alone": lambda origin: sticky_asgi.Upstream(origin.url)}


@pytest.fixture(params=APPS.values(), ids=list(APPS))
def app(request, a):
    return request.param(a)


def test_one_app_serves_several_event_loops_one_after_another(app, a, until):
    with a.responding(echo):
        for number in range(3):
            for _ in range(2):
                exchange = asyncio.run(Exchange(scope_of(f"/{number}")).of(app))
                assert (exchange.status, exchange.body) == (200, b"/%d " % number)
    until(lambda: a.open_connections() == 0, "no connection outlives its loop")


def test_one_app_serves_several_event_loops_at_once(app, a, until):
    async def requests(name: str) -> list[bytes]:
        exchanges = [Exchange(scope_of(f"/{name}/{number}")) for number in range(20)]
        for exchange in exchanges[:10]:
            await exchange.of(app)
        await asyncio.gather(*(exchange.of(app) for exchange in exchanges[10:]))
        return [exchange.body for exchange in exchanges]

    with a.responding(echo), ThreadPoolExecutor(3) as threads:
        for name, bodies in zip("xyz", threads.map(lambda name: asyncio.run(requests(name)), "xyz"), strict=True):
            assert bodies == [f"/{name}/{number} ".encode() for number in range(20)]
    until(lambda: a.open_connections() == 0, "no connection outlives its loop")


def test_event_loop_may_move_to_another_thread(app, a, until):
    moves, stays = asyncio.new_event_loop(), asyncio.new_event_loop()
    moved, over = threading.Event(), threading.Event()

    async def in_another_thread() -> None:
        await Exchange(scope_of("/moved")).of(app)
        moved.set()
        await asyncio.to_thread(over.wait, DEADLINE)

    with a.responding(echo), ThreadPoolExecutor(1) as threads:
        moves.run_until_complete(Exchange(scope_of("/before")).of(app))
        gone = threads.submit(moves.run_until_complete, in_another_thread())
        try:
            assert moved.wait(DEADLINE)
            for number in range(2):
                exchange = stays.run_until_complete(Exchange(scope_of(f"/{number}")).of(app))
                assert (exchange.status, exchange.body) == (200, b"/%d " % number)
        finally:
            over.set()
            gone.result(DEADLINE)
    for loop in (moves, stays):
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    until(lambda: a.open_connections() == 0, "no connection outlives its loop")


def test_app_serves_an_event_loop_for_each_request(app, a):
    client = TestClient(app)
    with a.responding(echo):
        assert [client.post(f"/{number}", content=b"hello").content for number in range(3)] == [
            b"/0 hello",
            b"/1 hello",
            b"/2 hello",
        ]


def test_event_loop_other_than_asyncio_is_an_error(app):
    scope = scope_of()

    async def nothing(*_: object) -> dict[str, object]:
        return {"type": "http.request", "body": b""}

    with pytest.raises(ConfigError, match="asyncio"):
        trio.run(app, scope, nothing, nothing)


PHASES = {
    "before the head": lambda received: None,
    "in the middle of the body": lambda received: [
        received.head("200 OK", "Content-Length: 10"),
        received.send(b"01234"),
    ],
}


@pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES)
def test_cancelled_task_closes_its_upstream_connection(phase, app, a, loop):
    exchange = Exchange(scope_of())
    future = asyncio.run_coroutine_threadsafe(exchange.of(app), loop)
    received = a.next_request()
    phase(received)
    future.cancel()
    received.wait_closed()


@pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES)
def test_cancelled_scope_closes_its_upstream_connection(phase, app, a, loop):
    exchange = Exchange(scope_of())
    scopes: list[anyio.CancelScope] = []

    async def run() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await exchange.of(app)

    future = asyncio.run_coroutine_threadsafe(run(), loop)
    received = a.next_request()
    phase(received)
    loop.call_soon_threadsafe(scopes[0].cancel)
    received.wait_closed()
    future.result(DEADLINE)


@pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES)
def test_client_that_disconnects_closes_the_upstream_connection(phase, app, a, loop):
    exchange = Exchange(scope_of())
    future = asyncio.run_coroutine_threadsafe(exchange.of(app), loop)
    received = a.next_request()
    phase(received)
    loop.call_soon_threadsafe(exchange.left.set)
    received.wait_closed()
    future.result(DEADLINE)


def behind_middleware(app):
    """Return an app that passes the arguments of its calls to `app`."""
    return lambda *arguments: app(*arguments)


TARGETS: dict[str, Any] = {
    "URL": lambda face, url: url,
    "Upstream behind a middleware": lambda face, url: behind_middleware(face.Upstream(url)),
}


@pytest.mark.parametrize("options", [{}, {"retry_on": "503"}], ids=["", "retries statuses"])
@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_client_that_disconnects_is_counted_at_its_server(target, options, a, loop):
    web = Backend("web", servers=[Server("a", target(sticky_asgi, a.url))], **options)
    exchange = Exchange(scope_of())
    future = asyncio.run_coroutine_threadsafe(exchange.of(sticky_asgi.Dispatcher(web)), loop)
    received = a.next_request()
    loop.call_soon_threadsafe(exchange.left.set)
    received.wait_closed()
    future.result(DEADLINE)
    assert (web["a"].counters[Total.CLI_ABRT], len(web["a"].in_flight)) == (1, 0)


class Upload(Exchange):
    """An exchange with a client that sends `pieces` of a body, and then nothing."""

    def __init__(self, scope: dict[str, object], *pieces: bytes) -> None:
        super().__init__(scope)
        self._pieces = [*pieces]

    async def receive(self) -> dict[str, object]:
        if not self._pieces:
            await self.left.wait()
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": self._pieces.pop(0), "more_body": True}


class BodyRefused(Exception):
    """What a middleware between server and app may raise out of `receive`, such as for a body that is too large."""


def test_exception_of_receive_ends_the_request_and_is_no_failure_of_the_server(a, loop):
    class RefusedUpload(Upload):
        async def receive(self) -> dict[str, object]:
            if not self._pieces:
                raise BodyRefused
            return await super().receive()

    web = Backend("web", servers=[Server("a", a.url, max_fails=1), Server("b", a.url, max_fails=1)], balance="first")
    upload = RefusedUpload(scope_of(method="POST", headers=[(b"content-length", b"10")]), b"hello")
    future = asyncio.run_coroutine_threadsafe(upload.of(sticky_asgi.Dispatcher(web)), loop)
    assert a.next_request().wire.read_all() == b"hello"
    with pytest.raises(BodyRefused):
        future.result(DEADLINE)
    counters = web["a"].counters
    assert (counters[Total.CLI_ABRT], counters[Total.ERESP], web["a"].status) == (1, 0, "UP")


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX], ids=["TCP", "UNIX"])
@pytest.mark.parametrize("body", [b"too much", bytes(50_000)], ids=["short", "longer"])
def test_response_is_read_even_if_a_write_meets_the_reset_behind_it(family, body, monkeypatch, tmp_path):
    """A server that refuses an upload closes its connection without having read it, which resets it."""
    write = Connection.write
    written = 0

    def write_after_a_reset(connection: Connection, data: bytes) -> None:
        nonlocal written
        written += 1
        if written == 2:
            end, _ = listener.accept()
            end.sendall(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            end.close()
        write(connection, data)

    monkeypatch.setattr(Connection, "write", write_after_a_reset)
    with socket.socket(family) as listener:
        listener.bind((HOST, 0) if family == socket.AF_INET else str(tmp_path / "s"))
        listener.listen()
        name = listener.getsockname()
        url = f"unix:{name}" if family == socket.AF_UNIX else f"http://{HOST}:{name[1]}"
        web = Backend("web", servers=[Server("a", url, max_fails=1)])
        upload = Upload(scope_of(method="POST", headers=[(b"content-length", b"100")]), b"hello", b"more")
        asyncio.run(upload.of(sticky_asgi.Dispatcher(web)))
    assert (upload.status, upload.body, web["a"].status) == (413, body, "UP")


def test_body_that_no_header_declares_is_awaited_for_the_timeout_of_the_client(a, loop):
    scope = scope_of(method="POST", http_version="2")
    app = sticky_asgi.Upstream(a.url, timeouts=Timeouts(client=0.2))
    exchange = asyncio.run_coroutine_threadsafe(Upload(scope).of(app), loop).result(DEADLINE)
    assert exchange.status == 408
    assert a.open_connections() == 0


def test_wait_for_a_100_is_not_a_wait_for_the_server(a, loop):
    """A server need not send one; the body is sent without it after a second."""
    headers = [(b"host", b"shop.test"), (b"expect", b"100-continue"), (b"content-length", b"5")]
    app = sticky_asgi.Upstream(a.url, timeouts=Timeouts(server=0.3))
    with a.responding(echo):
        upload = Upload(scope_of(method="POST", headers=headers), b"hello")
        exchange = asyncio.run_coroutine_threadsafe(upload.of(app), loop).result(DEADLINE)
    assert (exchange.status, exchange.body) == (200, b"/ hello")


@pytest.mark.parametrize("takes", [0, 1, 2])
def test_failing_send_closes_the_upstream_connection(takes, a, loop):
    web = Backend("web", servers=[Server("a", a.url)])
    exchange = Exchange(scope_of(), takes=takes)
    future = asyncio.run_coroutine_threadsafe(exchange.of(sticky_asgi.Dispatcher(web)), loop)
    received = a.next_request()
    received.head("200 OK", "Transfer-Encoding: chunked")
    try:
        while not received.wire.is_readable():
            received.chunk(b"01234")
    except ConnectionError:
        pass
    received.wait_closed()
    future.exception(DEADLINE)
    assert len(web["a"].in_flight) == 0


def request_received(app, origin, loop, scope):
    """Return the request that the origin receives."""
    future = asyncio.run_coroutine_threadsafe(Exchange(scope).of(app), loop)
    received = origin.next_request()
    received.respond()
    future.result(DEADLINE)
    return received


@pytest.mark.parametrize(
    "path, arrives",
    [
        ("/caf\xe9/a b", "/caf%C3%A9/a%20b"),
        ("/a?b#c%", "/a%3Fb%23c%25"),
        ("/a;b=1/~u/it's", "/a;b=1/~u/it's"),
        ("", "/"),
    ],
)
@pytest.mark.parametrize("raw", [{"raw_path": None}, {}], ids=["None", "absent"])
def test_path_is_quoted_without_a_raw_path(raw, path, arrives, app, a, loop):
    scope = scope_of(query_string=b"q=%2F")
    del scope["raw_path"]
    scope |= {"path": path, **raw}
    assert request_received(app, a, loop, scope).target == f"{arrives}?q=%2F"


def test_quoted_path_is_without_the_root_path(app, a, loop):
    scope = scope_of(path="/under/caf\xe9", raw_path=None, root_path="/under")
    assert request_received(app, a, loop, scope).target == "/caf%C3%A9"


def test_root_path_that_is_no_prefix_is_not_removed(app, a, loop):
    for path, raw in (("/under/a", "/a%2Fb"), ("/underneath/a", "/underneath/a")):
        scope = scope_of(path=path, raw_path=raw.encode(), root_path="/under")
        assert request_received(app, a, loop, scope).target == raw


def test_client_without_an_address_adds_no_header(app, a, loop):
    received = request_received(
        app, a, loop, scope_of(client=None, headers=[(b"host", b"shop.test"), (b"x-forwarded-for", b"1.2.3.4")])
    )
    assert received.values("x-forwarded-for") == received.values("x-real-ip") == []
    assert (received.values("x-forwarded-proto"), received.values("x-forwarded-host")) == (["http"], ["shop.test"])


def test_client_behind_a_unix_socket_may_be_a_trusted_proxy(a, loop):
    app = dispatcher(a, forward=Forward(trusted_proxies=("unix",)))
    headers = [(b"host", b"shop.test"), (b"x-forwarded-for", b"203.0.113.9"), (b"x-forwarded-proto", b"https")]
    received = request_received(app, a, loop, scope_of(client=None, headers=headers))
    assert (received.values("x-forwarded-for"), received.values("x-forwarded-proto")) == (["203.0.113.9"], ["https"])


def test_https_of_the_client_is_forwarded(app, a, loop):
    assert request_received(app, a, loop, scope_of(scheme="https")).values("x-forwarded-proto") == ["https"]


def test_trailers_are_forwarded_where_a_server_supports_them(app, a, loop):
    exchange = Exchange(scope_of(extensions={"http.response.trailers": {}}))
    future = asyncio.run_coroutine_threadsafe(exchange.of(app), loop)
    received = a.next_request()
    received.head("200 OK", "Transfer-Encoding: chunked", "Trailer: X-Late")
    received.send(b"5\r\nhello\r\n0\r\nX-Late: 1\r\n\r\n")
    future.result(DEADLINE)
    assert exchange.messages[0].get("trailers") is True
    assert exchange.body == b"hello"
    assert exchange.messages[-1] == {"type": "http.response.trailers", "headers": [(b"x-late", b"1")]}


def test_scope_is_unchanged_for_the_next_server(a, loop):
    seen: list[object] = []

    async def app(scope, receive, send) -> None:
        seen.append(({name: scope[name] for name in scope_of()}, await receive()))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"from the app"})

    web = Backend(
        "web", servers=[Server("a", a.url), Server("app", app, backup=True)], retry_on=("empty-response",), retries=1
    )
    exchange = Exchange(scope_of("/a", method="PUT", headers=[(b"content-length", b"5")]), b"hello")
    future = asyncio.run_coroutine_threadsafe(exchange.of(sticky_asgi.Dispatcher(web)), loop)
    received = a.next_request()
    assert received.read_body() == b"hello"
    received.close()
    future.result(DEADLINE)
    assert exchange.body == b"from the app"
    told_scope = scope_of("/a", method="PUT", headers=[(b"content-length", b"5")])
    assert seen == [(told_scope, {"type": "http.request", "body": b"hello", "more_body": False})]


# -- WSGI


class StrictInput(io.BytesIO):
    """An input that fails where a socket would hang: if it is read beyond its end."""

    def __init__(self, body: bytes) -> None:
        super().__init__(body)
        self._left = len(body)

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None and 0 <= size <= self._left, f"{size} of {self._left} bytes: this would hang"
        self._left -= size
        return super().read(size)


def environ_of(target: str = "/", method: str = "GET", body: bytes | None = None, **more: object):
    environ: dict[str, object] = {}
    setup_testing_defaults(environ)
    environ |= {"REQUEST_METHOD": method, "PATH_INFO": target, "REMOTE_ADDR": HOST, "QUERY_STRING": ""}
    if body is not None:
        environ |= {"CONTENT_LENGTH": str(len(body)), "wsgi.input": StrictInput(body)}
    return environ | more


class AppResponse:
    """The response of an app, as far as a server has read it."""

    def __init__(self, app, environ) -> None:
        self.heads: list[tuple[str, list[tuple[str, str]]]] = []
        self.items = app(environ, self._start_response)

    def _start_response(self, status: str, headers: list[tuple[str, str]], exc_info: object = None):
        self.heads.append((status, headers))
        return lambda data: None

    def close(self) -> None:
        close = getattr(self.items, "close", None)
        if close is not None:
            close()


WSGI_APPS = {
    "dispatcher": lambda origin: dispatcher(origin, sticky_wsgi),
    "alone": lambda origin: sticky_wsgi.Upstream(origin.url),
}


@pytest.fixture(params=WSGI_APPS.values(), ids=list(WSGI_APPS))
def wsgi_app(request, a):
    return request.param(a)


def test_headers_are_those_of_the_request_whatever_came_before():
    turns = [
        {"HTTP_X_A": "1", "HTTP_HOST": "a"},
        {"HTTP_HOST": "b", "HTTP_X_A": "2"},
        {"HTTP_X_A": "", "HTTP_EXPECT": "100-continue", "CONTENT_TYPE": "", "CONTENT_LENGTH": "5", "HTTP_HOST": "c"},
        {"HTTP_X_A": "3", "HTTP_EXPECT": "x", "CONTENT_TYPE": "text/plain", "CONTENT_LENGTH": "", "HTTP_HOST": "\xe4"},
        {"SERVER_NAME": "d", "HTTP_X_A": "4"},
        {},
    ]
    found = [
        [(b"x-a", b"1"), (b"host", b"a")],
        [(b"host", b"b"), (b"x-a", b"2")],
        [(b"x-a", b""), (b"content-length", b"5"), (b"host", b"c")],
        [(b"x-a", b"3"), (b"content-type", b"text/plain"), (b"host", b"\xe4")],
        [(b"x-a", b"4")],
        [],
    ]
    for _ in range(2):
        assert [messages.headers_of({"wsgi.version": (1, 0), **turn}) for turn in turns] == found


def test_invented_header_names_use_bounded_memory():
    for number in range(2000):
        assert messages.headers_of({f"HTTP_X_{number}": "1"}) == [(b"x-%d" % number, b"1")]
    assert len(messages._HEADER_KEYS) <= 512
    for many in ({"HTTP_" + "X" * 60000: "1"}, {f"HTTP_X_{number}": "1" for number in range(1000)}):
        assert len(messages.headers_of(many)) == len(many)
        assert messages._HEADER_KEYS.get(tuple(many)) is None


@contextmanager
def run_app(app, environ):
    """Call `app` in a thread, as the origin runs in this one; yield its response, which is complete at the end."""
    results: list[AppResponse] = []
    thread = threading.Thread(target=lambda: results.append(AppResponse(app, environ)))
    thread.start()
    yield results
    thread.join(DEADLINE)
    assert not thread.is_alive()


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_app_is_valid_wsgi(method, wsgi_app, a):
    with run_app(validator(wsgi_app), environ_of("/a", method)) as results:
        received = a.next_request()
        fields = [
            "Content-Type: text/plain",
            "Connection: keep-alive, X-Gone",
            "Keep-Alive: 5",
            "X-Gone: 1",
            "Upgrade: x",
        ]
        if method == "HEAD":
            received.head("200 OK", "Content-Length: 5", *fields)
        else:
            received.respond("200 OK", *fields, body=b"hello")
    with closing(results[0]) as response:
        assert b"".join(response.items) == (b"" if method == "HEAD" else b"hello")
    ((status, headers),) = response.heads
    assert (status, dict(headers)["content-length"]) == ("200 OK", "5")


def test_input_is_read_up_to_its_length(wsgi_app, a):
    with run_app(validator(wsgi_app), environ_of("/", "POST", b"hello")) as results:
        received = a.next_request()
        assert (received.values("content-length"), received.read_body()) == (["5"], b"hello")
        received.respond("200 OK", "Content-Type: text/plain", body=b"thanks")
    with closing(results[0]) as response:
        assert b"".join(response.items) == b"thanks"


def test_input_with_an_end_is_read_to_its_end(wsgi_app, a):
    more: dict[str, Any] = {
        "wsgi.input": io.BytesIO(b"hello"),
        "wsgi.input_terminated": True,
        "HTTP_TRANSFER_ENCODING": "chunked",
    }
    with run_app(wsgi_app, environ_of("/", "POST", **more)) as results:
        received = a.next_request()
        assert (received.values("transfer-encoding"), received.read_body()) == (["chunked"], b"hello")
        received.respond(body=b"thanks")
    with closing(results[0]) as response:
        assert b"".join(response.items) == b"thanks"


@pytest.mark.parametrize("taken", [0, 1])
@pytest.mark.parametrize("field", ["Content-Length: 1000000", "Transfer-Encoding: chunked"])
def test_closing_an_unread_response_closes_the_upstream_connection(field, taken, a):
    web = sticky_wsgi.Backend("web", servers=[sticky_wsgi.Server("a", a.url)])
    with run_app(sticky_wsgi.Dispatcher(web), environ_of()) as results:
        received = a.next_request()
        received.head("200 OK", field)
        received.send(b"5\r\nhello\r\n")
    (response,) = results
    if taken:
        assert next(iter(response.items)) != b""
    assert len(web["a"].in_flight) == 1
    response.close()
    received.wait_closed()
    assert len(web["a"].in_flight) == 0
    response.close()
    assert len(web["a"].in_flight) == 0


@pytest.mark.parametrize("options", [{}, {"retry_on": "503"}], ids=["", "retries statuses"])
@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_client_that_disconnects_is_counted_at_its_server_on_wsgi(target, options, a):
    left = threading.Event()
    web = sticky_wsgi.Backend("web", servers=[sticky_wsgi.Server("a", target(sticky_wsgi, a.url))], **options)
    environ = environ_of() | {"waitress.client_disconnected": left.is_set}
    with run_app(sticky_wsgi.Dispatcher(web), environ) as results:
        received = a.next_request()
        left.set()
    with closing(results[0]) as response:
        assert b"".join(response.items) == b""
    received.wait_closed()
    assert (web["a"].counters[Total.CLI_ABRT], len(web["a"].in_flight)) == (1, 0)


@pytest.mark.parametrize("error", [OSError("reset"), ValueError("a bad chunk"), None], ids=["OSError", "other", "end"])
def test_input_that_ends_early_is_no_failure_of_the_server(error, a):
    class EndingInput(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            piece = super().read(size)
            if not piece and error is not None:
                raise error
            return piece

    servers = [sticky_wsgi.Server(name, a.url, max_fails=1) for name in "ab"]
    web = sticky_wsgi.Backend("web", servers=servers, balance="first")
    environ = environ_of("/", "POST") | {"CONTENT_LENGTH": "10", "wsgi.input": EndingInput(b"hello")}
    with suppress(ValueError):
        AppResponse(sticky_wsgi.Dispatcher(web), environ).close()
    assert a.next_request().wire.read_all() == b"hello"
    counters = web["a"].counters
    assert (counters[Total.CLI_ABRT], counters[Total.ERESP], web["a"].status) == (1, 0, "UP")


def test_input_that_takes_too_long_gives_a_408(wsgi_app, a):
    class SilentInput(io.BytesIO):
        def read(self, size=-1):
            raise TimeoutError

    environ = environ_of("/", "POST") | {"CONTENT_LENGTH": "5", "wsgi.input": SilentInput()}
    with run_app(wsgi_app, environ) as results:
        pass
    with closing(results[0]) as response:
        assert response.heads[-1][0].startswith("408")
    assert a.has_no_request()


def test_incomplete_response_raises_in_the_server(wsgi_app, a):
    with run_app(wsgi_app, environ_of()) as results:
        received = a.next_request()
        received.head("200 OK", "Content-Length: 10")
        received.send(b"hello")
        received.close()
    with closing(results[0]) as response, pytest.raises(ServerFailure):
        b"".join(response.items)


@pytest.mark.parametrize(
    "path, arrives",
    [("/caf\xc3\xa9/a b", "/caf%C3%A9/a%20b"), ("/\xff", "/%FF"), ("/a?b#c%", "/a%3Fb%23c%25"), ("", "/")],
)
def test_path_is_quoted_without_a_raw_uri(path, arrives, wsgi_app, a):
    with run_app(wsgi_app, environ_of(path, QUERY_STRING="q=%2F")) as results:
        received = a.next_request()
        assert received.target == f"{arrives}?q=%2F"
        received.respond()
    results[0].close()


@pytest.mark.parametrize("key", ["RAW_URI", "REQUEST_URI"])
@pytest.mark.parametrize(
    "raw, arrives",
    [("/under/a%2Fb?q=%2F", "/a%2Fb?q=%2F"), ("/under", "/"), ("/u%6Eder/%ff", "/%ff"), ("/underneath", "/underneath")],
)
def test_raw_uri_is_without_the_script_name(key, raw, arrives, wsgi_app, a):
    path = raw.removeprefix("/under")
    with run_app(wsgi_app, environ_of(path, SCRIPT_NAME="/under", QUERY_STRING="q=%2F", **{key: raw})) as results:
        received = a.next_request()
        assert received.target == arrives
        received.respond()
    results[0].close()


def test_peer_without_an_address_adds_no_header(wsgi_app, a):
    with run_app(
        wsgi_app, environ_of(REMOTE_ADDR="", HTTP_X_FORWARDED_FOR="1.2.3.4", HTTP_HOST="shop.test")
    ) as results:
        received = a.next_request()
        assert received.values("x-forwarded-for") == received.values("x-real-ip") == []
        assert received.values("x-forwarded-host") == ["shop.test"]
        received.respond()
    results[0].close()


def test_threads_share_a_pool_and_no_connection(wsgi_app, a):
    def visit(number: int) -> bytes:
        with closing(AppResponse(wsgi_app, environ_of(f"/{number}"))) as response:
            return b"".join(response.items)

    with a.responding(echo), ThreadPoolExecutor(8) as threads:
        assert list(threads.map(visit, range(200))) == [b"/%d " % number for number in range(200)]
    assert 1 <= a.open_connections() <= 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_forked_child_does_not_use_the_parents_connections(wsgi_app, a):
    def visit(target: str) -> bytes:
        with closing(AppResponse(wsgi_app, environ_of(target))) as response:
            return b"".join(response.items)

    wires = []

    def reply(received) -> None:
        wires.append(received.wire)
        echo(received)

    reader, writer = os.pipe()
    with a.responding(reply):
        assert visit("/parent") == b"/parent "
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # there are other threads, which the child does not need
            child = os.fork()
        if not child:
            os.write(writer, visit("/child"))
            os._exit(0)
        os.close(writer)
        with open(reader, "rb") as pipe:
            assert pipe.read() == b"/child "
        assert os.waitpid(child, 0)[1] == 0
        assert visit("/parent again") == b"/parent%20again "
    assert len(wires) == 3 and wires[0] is wires[2] and wires[0] is not wires[1]
