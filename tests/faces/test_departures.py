"""Clients that disconnect during an upload, and responses that are broken off: what an app raises or responds with
after its client has disconnected is not an error of its server, whichever exception it is.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from werkzeug.wrappers import Request as WerkzeugRequest

import sticky_asgi
import sticky_wsgi
from sticky_core.balance import RoundRobin
from sticky_core.errors import Failure, ServerFailure
from sticky_core.health.check import Check
from sticky_core.server.counters import Total

#: what the client sends of its 10 bytes
SENT = b"hello"


class UploadFailed(Exception):
    """An exception of the app's own."""


# -- ASGI


class Leaving:
    """An ASGI server with a client that sends a part of its body and disconnects. `how`: what the server does then."""

    def __init__(self, how: str = "disconnect") -> None:
        self.how = how
        self.status = 0
        self._messages = [{"type": "http.request", "body": SENT, "more_body": True}]

    async def receive(self) -> dict[str, Any]:
        if self._messages:
            return self._messages.pop()
        if self.how == "receive raises":
            raise UploadFailed
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if self.how == "send raises":
            raise OSError("the client has disconnected")
        if message["type"] == "http.response.start":
            self.status = message["status"]

    async def request(self, app: Callable[..., Any], method: str = "POST") -> None:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": "/",
            "raw_path": b"/",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", b"shop.example"), (b"content-length", b"10")],
            "client": ("192.0.2.1", 50000),
            "server": ("shop.example", 80),
        }
        await app(scope, self.receive, self.send)


async def reads_with_starlette(scope: Any, receive: Any, send: Any) -> None:
    await Request(scope, receive).body()


async def upload_route(request: Request) -> Response:
    return PlainTextResponse(await request.body())


starlette_app = Starlette(routes=[Route("/", upload_route, methods=["POST", "PUT"])])  # responds 500, and raises


async def raises_its_own(scope: Any, receive: Any, send: Any) -> None:
    while (await receive())["type"] == "http.request":
        pass
    raise UploadFailed


async def raises_a_group(scope: Any, receive: Any, send: Any) -> None:
    try:
        await Request(scope, receive).body()
    except ClientDisconnect as error:
        raise ExceptionGroup("tasks", [error]) from None


async def responds_500(scope: Any, receive: Any, send: Any) -> None:
    while (await receive())["type"] == "http.request":
        pass
    await PlainTextResponse("no body", 500)(scope, receive, send)


async def sends(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def raises_while_sending(scope: Any, receive: Any, send: Any) -> None:
    try:
        await send({"type": "http.response.start", "status": 200, "headers": []})
    except OSError as error:
        raise UploadFailed from error


ASGI = {
    "ClientDisconnect": (reads_with_starlette, "disconnect"),
    "ServerErrorMiddleware": (starlette_app, "disconnect"),
    "its own exception": (raises_its_own, "disconnect"),
    "a group of exceptions": (raises_a_group, "disconnect"),
    "a response 500": (responds_500, "disconnect"),
    "receive that raises": (raises_its_own, "receive raises"),
    "send that raises": (sends, "send raises"),
    "its own exception for send that raises": (raises_while_sending, "send raises"),
}

OBSERVING: dict[str, dict[str, Any]] = {
    "plain": {},
    "max_fails": {"max_fails": 1},
    "observe": {"check": Check(observe="layer7", error_limit=1, on_error="mark-down", inter=60)},
    "retry_on": {"max_fails": 1, "retry_on": "500"},
}


def backend_of(face: Any, app: Any, options: dict[str, Any]) -> Any:
    options = dict(options)
    server = {name: options.pop(name) for name in ("max_fails",) if name in options}
    servers = [face.Server(name, app, **server) for name in ("s1", "s2")]
    return face.Backend("web", servers, balance=RoundRobin(start=0), **options)


def assert_only_the_disconnect_is_counted(backend: Any) -> None:
    counters = backend["s1"].counters
    assert (counters[Total.CLI_ABRT], counters[Total.ERESP], counters[Total.ECON]) == (1, 0, 0)
    assert backend["s2"].counters.stot == 0
    assert backend["s1"].status == "UP"


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("options", OBSERVING.values(), ids=OBSERVING)
@pytest.mark.parametrize("app, how", ASGI.values(), ids=ASGI)
def test_client_that_leaves_during_an_upload_is_no_error_of_a_replica_on_asgi(
    app: Any, how: str, options: dict[str, Any], method: str
) -> None:
    backend = backend_of(sticky_asgi, app, options)
    try:
        asyncio.run(Leaving(how).request(sticky_asgi.Dispatcher(backend), method))
    except (Exception, ExceptionGroup):
        pass
    if app is responds_500:
        assert backend["s1"].status == "UP" and backend["s2"].counters.stot == 0
    else:
        assert_only_the_disconnect_is_counted(backend)


def test_send_of_a_dispatcher_around_this_one_may_raise() -> None:
    backend = backend_of(sticky_asgi, sends, {"max_fails": 1})
    around = backend_of(sticky_asgi, sticky_asgi.Dispatcher(backend), {"max_fails": 1})
    with pytest.raises(OSError, match="the client has disconnected"):
        asyncio.run(Leaving("send raises").request(sticky_asgi.Dispatcher(around)))
    assert_only_the_disconnect_is_counted(backend)
    assert_only_the_disconnect_is_counted(around)


async def raises_oserror(scope: Any, receive: Any, send: Any) -> None:
    open("/there/is/no/such/file")  # noqa: ASYNC230, SIM115


async def fails_and_reads_on(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 500, "headers": []})
    await send({"type": "http.response.body", "body": b""})
    while (await receive())["type"] == "http.request":
        pass  # servers report a disconnect after the end of the response


@pytest.mark.parametrize("app", [raises_oserror, fails_and_reads_on])
@pytest.mark.parametrize("options", [OBSERVING["max_fails"], OBSERVING["observe"]], ids=["max_fails", "observe"])
def test_error_that_does_not_come_from_a_disconnect_is_the_replicas_on_asgi(app: Any, options: dict[str, Any]) -> None:
    if "max_fails" in options:
        options = {**options, "retry_on": "500"}  # where max_fails counts responses
    backend = backend_of(sticky_asgi, app, options)
    try:
        asyncio.run(Leaving().request(sticky_asgi.Dispatcher(backend)))
    except OSError:
        pass
    assert backend["s1"].counters[Total.CLI_ABRT] == 0
    assert backend["s1"].status == "DOWN"


# -- WSGI


class LeavingInput(io.RawIOBase):
    """A `wsgi.input` with a client that sends a part of its body and disconnects."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error
        self._left = SENT

    def read(self, size: int = -1) -> bytes:
        piece, self._left = self._left, b""
        if not piece and self._error is not None:
            raise self._error
        return piece

    def readline(self, size: int | None = -1) -> bytes:
        return self.read()


def request_on_wsgi(app: Callable[..., Any], error: Exception | None, method: str = "POST") -> str:
    environ = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": "/",
        "QUERY_STRING": "",
        "CONTENT_LENGTH": "10",
        "SERVER_NAME": "shop.example",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": "http",
        "wsgi.input": LeavingInput(error),
        "wsgi.multiprocess": False,
    }
    heads: list[str] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        heads.append(status)
        return lambda data: None

    body = app(environ, start_response)
    try:
        for _ in body:
            pass
    finally:
        getattr(body, "close", int)()
    return heads[-1]


def read_all(environ: dict[str, Any]) -> None:
    left = 10
    while left:
        piece = environ["wsgi.input"].read(left)
        left -= len(piece)
        if not piece:
            raise UploadFailed("the body is too short")


def reads(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    read_all(environ)
    return []


def reads_lines_while_it_responds(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [])
    yield b"one"
    yield from environ["wsgi.input"]
    raise UploadFailed


def raises_its_own_on_wsgi(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    try:
        read_all(environ)
    except Exception:
        raise UploadFailed from None
    return []


def responds_500_on_wsgi(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    try:
        read_all(environ)
    except Exception:
        start_response("500 Internal Server Error", [])
    return [b"error"]


def reads_with_werkzeug(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    WerkzeugRequest(environ).get_data()
    return []


def reads_once(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    if len(environ["wsgi.input"].read(10)) < 10:
        raise UploadFailed
    return []


def reads_a_line_once(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    if len(environ["wsgi.input"].readline(10)) < 10:
        raise UploadFailed
    return []


WSGI_APPS = [
    reads,
    reads_once,
    reads_a_line_once,
    reads_lines_while_it_responds,
    raises_its_own_on_wsgi,
    reads_with_werkzeug,
    responds_500_on_wsgi,
]


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("options", OBSERVING.values(), ids=OBSERVING)
@pytest.mark.parametrize("error", [OSError("reset"), ValueError("a bad chunk"), None], ids=["OSError", "other", "end"])
@pytest.mark.parametrize("app", WSGI_APPS)
def test_client_that_leaves_during_an_upload_is_no_error_of_a_replica_on_wsgi(
    app: Any, error: Exception | None, options: dict[str, Any], method: str
) -> None:
    backend = backend_of(sticky_wsgi, app, options)
    dispatcher = sticky_wsgi.Dispatcher(backend)
    try:
        request_on_wsgi(dispatcher, error, method)
    except Exception:
        pass
    dispatcher.replicas.stop()
    if app is responds_500_on_wsgi:
        assert backend["s1"].status == "UP" and backend["s2"].counters.stot == 0
    else:
        assert_only_the_disconnect_is_counted(backend)


def test_slow_client_is_not_taken_for_one_that_has_left() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(5)

    def fails_at_last(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        read_all(environ)
        raise UploadFailed

    backend = backend_of(sticky_wsgi, fails_at_last, {})
    dispatcher = sticky_wsgi.Dispatcher(backend)
    environ: dict[str, Any] = {"REQUEST_METHOD": "POST", "CONTENT_LENGTH": "10", "wsgi.input": Slow(b"0123456789")}
    with pytest.raises(UploadFailed):
        dispatcher(environ, lambda *_: lambda data: None)
    dispatcher.replicas.stop()
    assert (backend["s1"].counters[Total.CLI_ABRT], backend["s1"].counters[Total.ERESP]) == (0, 1)


def raises_oserror_on_wsgi(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    raise FileNotFoundError


@pytest.mark.parametrize("options", [OBSERVING["max_fails"], OBSERVING["observe"]], ids=["max_fails", "observe"])
def test_error_that_does_not_come_from_a_disconnect_is_the_replicas_on_wsgi(options: dict[str, Any]) -> None:
    if "max_fails" in options:
        options = {**options, "retry_on": "500"}
    backend = backend_of(sticky_wsgi, raises_oserror_on_wsgi, options)
    dispatcher = sticky_wsgi.Dispatcher(backend)
    with pytest.raises(FileNotFoundError):
        request_on_wsgi(dispatcher, OSError())
    dispatcher.replicas.stop()
    assert backend["s1"].counters[Total.CLI_ABRT] == 0
    assert backend["s1"].status == "DOWN"


# -- responses that are broken off


class ServerOf:
    """A web server's `send`. Its class is in the module that a test names."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    async def send(self, message: dict[str, Any]) -> None:
        self.messages.append(message)


async def is_cut_short(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise ServerFailure(Failure.TRUNCATED)


class Around:
    """A middleware that completes responses, as Starlette's BaseHTTPMiddleware does."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_on(message: dict[str, Any]) -> None:
            await send(message)

        await self.app(scope, receive, send_on)
        await send({"type": "http.response.body", "body": b""})


def in_starlette(app: Any) -> Any:
    return Starlette(middleware=[Middleware(sticky_asgi.StickyMiddleware, routes={"/": backend_of_app(app)})])


def backend_of_app(app: Any) -> Any:
    return sticky_asgi.Backend("web", [sticky_asgi.Server("s1", app)])


@pytest.mark.parametrize(
    "module, build, raises",
    [
        ("uvicorn.protocols.http.httptools_impl", lambda app: sticky_asgi.Dispatcher(backend_of_app(app)), False),
        ("hypercorn.protocol.http_stream", lambda app: sticky_asgi.Dispatcher(backend_of_app(app)), False),
        ("granian._granian", lambda app: sticky_asgi.Dispatcher(backend_of_app(app)), False),
        ("uvicorn", in_starlette, False),
        ("uvicorn", lambda app: Around(sticky_asgi.Dispatcher(backend_of_app(app))), True),
        ("daphne", lambda app: sticky_asgi.Dispatcher(backend_of_app(app)), True),
    ],
    ids=["uvicorn", "hypercorn", "granian", "Starlette's middleware", "a middleware around", "another server"],
)
def test_response_is_broken_off_without_an_exception_where_that_is_known_to_work(
    module: str, build: Callable[[Any], Any], raises: bool, caplog: pytest.LogCaptureFixture
) -> None:
    server: Any = type("Server", (ServerOf,), {"__module__": module})()
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    app = build(is_cut_short)
    if raises:
        with pytest.raises(ServerFailure):
            asyncio.run(app(scope, Leaving().receive, server.send))
    else:
        asyncio.run(app(scope, Leaving().receive, server.send))
    assert [message["type"] for message in server.messages] == ["http.response.start"]
    assert [each.getMessage() for each in caplog.records if "cut short" in each.getMessage()] == [
        "Server web/s1: response cut short"
    ]
