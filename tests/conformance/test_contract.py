"""What PEP 3333 and the ASGI specification require of a middleware between a server and an app, in process.

WSGI goes through the validator of the standard library, on both of our sides. ASGI runs on asyncio and trio.
"""

import asyncio
import gc
import io
import json
import logging
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice
from wsgiref.types import WSGIEnvironment
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from starlette.types import Message, Scope

import sticky_asgi
import sticky_wsgi
from sticky_asgi import Backend, Cookie, Failure, Server, ServerFailure

#: seconds; only a test that hangs takes so long
DEADLINE = 300.0
SECRET = "a-secret-of-the-contract-tests"


def backend(*servers: Server, name: str = "web") -> Backend:
    return Backend(name, servers=servers, persist=Cookie(f"{name}-server", secret=SECRET))


@pytest.fixture(autouse=True)
def nothing_is_left_open():
    """Collect sockets, streams and generators that are still open, each of which then raises a warning as an error."""
    yield
    gc.collect()


# -- WSGI

PLAIN = [("Content-Type", "text/plain")]
ITEMS = [b"one, ", b"two, ", b"three"]
WHOLE = b"".join(ITEMS)


@dataclass
class RecordedResponse:
    """The response that an app has sent to a server; `heads` counts its heads, of which the last one counts."""

    status: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    heads: int = 0
    environ: WSGIEnvironment = field(default_factory=dict)

    @property
    def marks(self) -> list[str]:
        return [value for name, value in self.headers if name.lower() == "set-cookie"]


def serve(
    app, method: str = "GET", *, take: int | None = None, response: RecordedResponse | None = None
) -> RecordedResponse:
    """Call an app as a WSGI server does (PEP 3333). After `take` items the client disconnects."""
    response = response if response is not None else RecordedResponse()
    environ = response.environ
    setup_testing_defaults(environ)
    environ |= {"REQUEST_METHOD": method, "QUERY_STRING": "", "wsgi.file_wrapper": FileWrapper}

    def write(data: bytes) -> None:
        response.body += data

    def start_response(status: str, headers: list[tuple[str, str]], exc_info=None):
        if exc_info and response.body:
            raise exc_info[1].with_traceback(exc_info[2])
        assert exc_info or not response.heads, "a second head needs exc_info"
        response.status, response.headers, response.heads = status, list(headers), response.heads + 1
        return write

    items = app(environ, start_response)
    try:
        for item in islice(items, take):
            assert response.heads, "a body before its head"
            write(item)
    finally:
        if hasattr(items, "close"):
            items.close()
    return response


def as_list(environ, start_response):
    start_response("200 OK", PLAIN)
    return list(ITEMS)


def as_generator(environ, start_response):
    start_response("200 OK", PLAIN)
    return (item for item in ITEMS)


def as_file(environ, start_response):
    start_response("200 OK", PLAIN)
    wrapper: type[FileWrapper] = environ["wsgi.file_wrapper"]
    return wrapper(io.BytesIO(WHOLE), 5)


def by_write(environ, start_response):
    write = start_response("200 OK", PLAIN)
    write(ITEMS[0])
    write(ITEMS[1])
    return [ITEMS[2]]


def answering_late(environ, start_response):
    start_response("200 OK", PLAIN)
    yield from ITEMS


def taking_its_head_back(environ, start_response):
    start_response("202 Accepted", PLAIN)
    try:
        raise ValueError("second thoughts")
    except ValueError:
        start_response("200 OK", PLAIN, sys.exc_info())
    return list(ITEMS)


def taking_its_head_back_late(environ, start_response):
    yield from taking_its_head_back(environ, start_response)


SHAPES = (
    as_list,
    as_generator,
    as_file,
    by_write,
    answering_late,
    taking_its_head_back,
    taking_its_head_back_late,
)


def name_of(app) -> str:
    return str(app.__name__).replace("_", " ")


@pytest.mark.parametrize("app", SHAPES, ids=name_of)
def test_both_sides_are_valid_wsgi_and_nothing_is_lost(app):
    server = Server("s1", validator(app))
    response = serve(validator(sticky_wsgi.Dispatcher(backend(server))))
    assert (response.status, response.body) == ("200 OK", WHOLE)
    assert len(response.marks) == 1
    assert len(server.in_flight) == 0


@pytest.mark.parametrize("app", SHAPES, ids=name_of)
def test_a_request_that_a_middleware_passes_to_its_app_is_valid_wsgi(app):
    middleware = sticky_wsgi.StickyMiddleware(validator(app), routes={"/sticky": backend(Server("s1", as_list))})
    response = serve(validator(middleware))
    assert (response.status, response.body, response.marks) == ("200 OK", WHOLE, [])


def test_response_to_head_keeps_its_content_length():
    def app(environ, start_response):
        start_response("200 OK", [*PLAIN, ("Content-Length", "1234")])
        return []

    response = serve(validator(sticky_wsgi.Dispatcher(backend(Server("s1", validator(app))))), "HEAD")
    assert (response.body, dict(response.headers)["Content-Length"], len(response.marks)) == (b"", "1234", 1)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_error_page_without_a_server_is_valid_wsgi(method):
    server = Server("s1", as_list)
    server.state = "maint"
    response = serve(validator(sticky_wsgi.Dispatcher(backend(server))), method)
    assert (response.status, response.marks) == ("503 Service Unavailable", [])
    assert bool(response.body) is (method == "GET")


def breaking_before_its_head(environ, start_response):
    raise ValueError("broken")


def breaking_after_its_head(environ, start_response):
    start_response("200 OK", PLAIN)
    raise ValueError("broken")


def breaking_at_its_first_item(environ, start_response):
    if start_response is not None:
        raise ValueError("broken")
    yield b""


def breaking_half_way(environ, start_response):
    start_response("200 OK", PLAIN)
    yield ITEMS[0]
    raise ValueError("broken")


def breaking_half_way_and_saying_so(environ, start_response):
    start_response("200 OK", PLAIN)
    yield ITEMS[0]
    try:
        raise ValueError("broken")
    except ValueError:
        start_response("500 Oh", PLAIN, sys.exc_info())  # the head is out: the server raises it again
    yield ITEMS[1]


BROKEN = (
    breaking_before_its_head,
    breaking_after_its_head,
    breaking_at_its_first_item,
    breaking_half_way,
    breaking_half_way_and_saying_so,
)


@pytest.mark.parametrize("app", BROKEN, ids=name_of)
def test_an_exception_of_the_app_is_raised_unchanged(app):
    server = Server("s1", validator(app))
    response = RecordedResponse()
    with pytest.raises(ValueError, match=r"^broken$"):
        serve(validator(sticky_wsgi.Dispatcher(backend(server))), response=response)
    assert response.body == (ITEMS[0] if "half_way" in app.__name__ else b"")
    assert len(server.in_flight) == 0


class Body:
    """An iterable that counts how often it is begun and closed. It may break at an item; -1 is `iter`."""

    def __init__(self, begin: Callable[[], object], breaks_at: int | None) -> None:
        self.begin = begin
        self.breaks_at = breaks_at
        self.begun = 0
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        self.begun += 1
        if self.breaks_at == -1:
            raise ValueError("broken")
        return self.items()

    def items(self) -> Iterator[bytes]:
        self.begin()
        for number, item in enumerate(ITEMS):
            if number == self.breaks_at:
                raise ValueError("broken")
            yield item

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("late", [False, True], ids=["head at once", "head with the first item"])
@pytest.mark.parametrize(
    "take, breaks_at",
    [
        pytest.param(None, None, id="read to the end"),
        pytest.param(1, None, id="client disconnects half way"),
        pytest.param(0, None, id="client disconnects before the first item"),
        pytest.param(None, 2, id="app breaks half way"),
        pytest.param(None, 0, id="app breaks at the first item"),
        pytest.param(None, -1, id="app breaks when `iter` is called"),
    ],
)
def test_a_body_is_closed_exactly_once_and_never_begun_twice(take, breaks_at, late):
    bodies: list[Body] = []

    def app(environ, start_response):
        def begin() -> object:
            return start_response("200 OK", PLAIN)

        if not late:
            begin()
        bodies.append(Body(begin if late else lambda: None, breaks_at))
        return bodies[0]

    server = Server("s1", app)
    try:
        serve(sticky_wsgi.Dispatcher(backend(server)), take=take)
    except ValueError:
        assert breaks_at is not None
    else:
        assert breaks_at is None
    (body,) = bodies
    assert (body.begun > 1, body.closed) == (False, 1)
    assert len(server.in_flight) == 0


def test_a_body_that_fails_to_close_releases_its_slot():
    class Stuck(Body):
        def close(self) -> None:
            super().close()
            raise OSError("stuck")

    def app(environ, start_response):
        start_response("200 OK", PLAIN)
        return Stuck(lambda: None, None)

    server = Server("s1", app)
    with pytest.raises(OSError, match="stuck"):
        serve(sticky_wsgi.Dispatcher(backend(server)))
    assert len(server.in_flight) == 0


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(list(ITEMS), id="list"),
        pytest.param([WHOLE], id="list of one"),
        pytest.param(tuple(ITEMS), id="tuple"),
        pytest.param(FileWrapper(io.BytesIO(WHOLE)), id="file_wrapper"),
    ],
)
def test_a_list_tuple_or_file_wrapper_is_returned_as_the_same_object(body):
    def app(environ, start_response):
        start_response("200 OK", PLAIN)
        return body

    server = Server("s1", app)
    given = sticky_wsgi.Dispatcher(backend(server))
    environ: WSGIEnvironment = {"wsgi.file_wrapper": FileWrapper}
    setup_testing_defaults(environ)
    assert given(environ, lambda *_: lambda data: None) is body
    assert len(server.in_flight) == 0  # with these bodies the request ends when the app returns


def test_a_generator_is_in_flight_until_it_is_closed():
    server = Server("s1", as_generator)
    environ: WSGIEnvironment = {}
    setup_testing_defaults(environ)
    body = sticky_wsgi.Dispatcher(backend(server))(environ, lambda *_: lambda data: None)
    assert len(server.in_flight) == 1
    assert b"".join(body) == WHOLE
    assert len(server.in_flight) == 1
    body.close()  # type: ignore[attr-defined]
    assert len(server.in_flight) == 0


def test_each_attempt_has_an_environ_of_its_own():
    seen: list[WSGIEnvironment] = []

    def app(environ, start_response):
        seen.append(dict(environ))
        environ["SCRIPT_NAME"], environ["PATH_INFO"], environ["mine"] = "/cart", "", True
        del environ["QUERY_STRING"]
        if len(seen) == 1:
            raise ServerFailure(Failure.REFUSED)
        return as_list(environ, start_response)

    response = serve(sticky_wsgi.Dispatcher(backend(Server("s1", app), Server("s2", app))))
    first, second = seen
    assert first == second
    assert (response.environ["PATH_INFO"], response.environ["QUERY_STRING"]) == ("/", "")
    assert "mine" not in response.environ
    assert sticky_wsgi.decision(response.environ).attempts in [("s1", "s2"), ("s2", "s1")]


def test_a_body_whose_server_fails_at_the_first_item_is_closed_before_the_next_one_is_tried():
    bodies: list[Body] = []

    def app(environ, start_response):
        def begin() -> object:
            if len(bodies) == 1:
                raise ServerFailure(Failure.REFUSED)
            assert bodies[0].closed == 1
            return start_response("200 OK", PLAIN)

        bodies.append(Body(begin, None))
        return bodies[-1]

    servers = Server("s1", app), Server("s2", app)
    response = serve(validator(sticky_wsgi.Dispatcher(backend(*servers))))
    assert (response.body, len(response.marks)) == (WHOLE, 1)
    assert [body.closed for body in bodies] == [1, 1]
    assert [len(server.in_flight) for server in servers] == [0, 0]


class Thing:
    """An object in a request, to which a test has a weak reference."""


@pytest.fixture
def without_collector():
    """Disable the garbage collector, so that an object in a reference cycle is not released."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("app", [as_list, as_generator, as_file], ids=name_of)
def test_an_environ_is_released_with_its_request(app):
    dispatcher = sticky_wsgi.Dispatcher(backend(Server("s1", app)))
    response = RecordedResponse(environ={"thing": Thing()})
    thing = weakref.ref(response.environ["thing"])
    assert serve(dispatcher, response=response).body == WHOLE
    decision = sticky_wsgi.decision(response.environ)
    del response
    assert thing() is None
    assert decision.server == "s1"  # the decision may be kept


# -- ASGI

#: the tests below run on each of these; a test of several loops runs one after the other
LOOPS = ("asyncio", "trio")


@pytest.fixture
def tasks():
    """Return a function that returns the tasks that run now. A test calls it at its begin and at its end."""
    return lambda: {task.id for task in anyio.get_running_tasks()}


def http_scope(path: str = "/", **more: object) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"test")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        **more,
    }


class Wire:
    """The `receive` and `send` of a server for one request, and the messages that were sent."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.sent: list[Message] = []
        self.came = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive(self) -> Message:
        if self.came:
            return self.came.pop()
        await anyio.sleep_forever()
        raise AssertionError("sleep_forever has returned")

    async def send(self, message: Message) -> None:
        await anyio.lowlevel.checkpoint()
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def marks(self) -> list[bytes]:
        return [value for name, value in self.sent[0]["headers"] if name == b"set-cookie"]


async def send_request(app, path: str = "/", **more: object) -> Wire:
    wire = Wire(http_scope(path, **more))
    await app(wire.scope, wire.receive, wire.send)
    return wire


async def hello(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


@pytest.mark.anyio
async def test_each_attempt_has_a_scope_of_its_own():
    seen: list[Message] = []

    async def app(scope, receive, send):
        seen.append({**scope, "headers": list(scope["headers"]), "extensions": dict(scope["extensions"])})
        scope["mine"] = scope["path"] = "mine"
        scope["extensions"]["mine"] = {}
        scope["headers"].append((b"mine", b""))
        if len(seen) == 1:
            raise ServerFailure(Failure.REFUSED)
        await hello(scope, receive, send)

    dispatcher = sticky_asgi.Dispatcher(backend(Server("s1", app), Server("s2", app)))
    wire = await send_request(dispatcher, extensions={"tls": {}})
    first, second = seen
    assert first == second
    for scope in (first, wire.scope):
        assert (scope["path"], scope["extensions"]) == ("/", {"tls": {}})
        assert scope["headers"] == [(b"host", b"test")]
        assert "mine" not in scope


@pytest.mark.anyio
async def test_changes_of_an_app_to_the_state_of_its_request_are_visible_to_the_app_around_it():
    async def app(scope, receive, send):
        scope["state"]["user"] = "bob"
        await hello(scope, receive, send)

    wire = await send_request(sticky_asgi.Dispatcher(backend(Server("s1", app))), state={"pool": 1})
    assert wire.scope["state"] == {"pool": 1, "user": "bob"}  # as with Starlette's Mount


@pytest.mark.anyio
@pytest.mark.parametrize("heads", [0, 1], ids=["before the head", "in the middle of the body"])
async def test_a_request_that_is_cancelled_leaves_nothing(heads, tasks):
    reached = anyio.Event()
    released: list[str] = []

    async def app(scope, receive, send):
        try:
            if heads:
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"half", "more_body": True})
            reached.set()
            await anyio.sleep_forever()
        finally:
            released.append("app")

    before = tasks()
    server = Server("s1", app)
    dispatcher = sticky_asgi.Dispatcher(backend(server))
    async with anyio.create_task_group() as requests:
        requests.start_soon(send_request, dispatcher)
        await reached.wait()
        assert len(server.in_flight) == 1
        requests.cancel_scope.cancel()
    assert released == ["app"]
    assert len(server.in_flight) == 0
    assert tasks() == before


def test_a_task_of_asyncio_that_is_cancelled_leaves_nothing():
    reached = asyncio.Event()

    async def app(scope, receive, send):
        reached.set()
        await asyncio.Event().wait()

    server = Server("s1", app)

    async def main() -> None:
        request = asyncio.create_task(send_request(sticky_asgi.Dispatcher(backend(server))))
        await reached.wait()
        assert len(server.in_flight) == 1
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert len(server.in_flight) == 0


@pytest.mark.anyio
@pytest.mark.parametrize("heads", [0, 1], ids=["before its head", "half way"])
async def test_an_exception_of_an_asgi_app_is_raised_unchanged(heads):
    async def app(scope, receive, send):
        if heads:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("broken")

    server = Server("s1", app)
    with pytest.raises(ValueError, match=r"^broken$"):
        await send_request(sticky_asgi.Dispatcher(backend(server)))
    assert len(server.in_flight) == 0


@pytest.mark.anyio
@pytest.mark.usefixtures("without_collector")
async def test_a_scope_is_released_with_its_request():
    dispatcher = sticky_asgi.Dispatcher(backend(Server("s1", hello)))
    wire = await send_request(dispatcher, thing=Thing())
    thing = weakref.ref(wire.scope["thing"])
    decision = sticky_asgi.decision(wire.scope)
    del wire
    assert thing() is None
    assert decision.server == "s1"


@pytest.mark.anyio
async def test_the_disconnect_of_a_client_reaches_the_app():
    received: list[Message] = []

    async def app(scope, receive, send):
        received.extend([await receive(), await receive()])

    wire = Wire(http_scope())
    wire.came = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"tea", "more_body": True}]
    await sticky_asgi.Dispatcher(backend(Server("s1", app)))(wire.scope, wire.receive, wire.send)
    assert [message["type"] for message in received] == ["http.request", "http.disconnect"]


def test_each_request_may_run_in_another_event_loop():
    """As with Starlette's TestClient without `with`; and loops of both kinds come and go in a test run."""
    servers = Server.replicas(lambda: hello, 3)
    middleware = sticky_asgi.StickyMiddleware(hello, backend=backend(*servers))

    async def send_requests(cookie: bytes) -> Wire:
        return await send_request(middleware, headers=[(b"cookie", cookie)] if cookie else [])

    mark = b""
    for loop in LOOPS * 3:
        wire = anyio.run(send_requests, mark, backend=loop)
        assert wire.body == b"hello"
        assert bool(wire.marks) is not bool(mark)
        mark = mark or wire.marks[0].partition(b";")[0]
    assert [len(server.in_flight) for server in servers] == [0, 0, 0]


async def run_lifespan(app, during=None, **more: object) -> list[str]:
    """Run the lifespan of `app` as a server does, and `during` between startup and shutdown. Return the messages that
    the app has sent.
    """
    kinds = iter(("startup", "shutdown"))
    sent: list[str] = []

    async def receive() -> Message:
        kind = next(kinds)
        if kind == "shutdown" and during is not None:
            await during()
        return {"type": f"lifespan.{kind}"}

    async def send(message: Message) -> None:
        kind = str(message["type"]).removeprefix("lifespan.")
        sent.append(f"{kind}: {message['message']}" if "message" in message else kind)

    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, **more}
    raised = ""
    with anyio.fail_after(DEADLINE):
        try:
            await app(scope, receive, send)
        except Exception as error:
            raised = str(error)
    # a failure is sent and then raised: servers read the message, Starlette's TestClient sees only the exception
    assert ("failed: " in sent[-1]) is bool(raised)
    assert sent[-1].endswith(raised)
    return sent


UP_AND_DOWN = ["startup.complete", "shutdown.complete"]


class LoggingApps:
    """Make apps that record their start and stop, and respond with their state."""

    def __init__(self, **fails: str) -> None:
        self.events: list[str] = []
        self.fails = fails  # the step at which an app fails: "factory", "startup" or "shutdown", by its name

    def app(self, name: str) -> Starlette:
        if self.fails.get(name) == "factory":
            raise OSError(f"{name} has no disk")

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[Mapping[str, object]]:
            if self.fails.get(name) == "startup":
                raise OSError(f"{name} has no database")
            self.events.append(f"{name} on")
            yield {"name": name, f"only {name}": True}
            self.events.append(f"{name} off")
            if self.fails.get(name) == "shutdown":
                raise OSError(f"{name} has lost its keys")

        async def state(request: Request) -> JSONResponse:
            return JSONResponse(request.scope["state"])

        return Starlette(routes=[Route("/{path:path}", state)], lifespan=lifespan)

    def replicas(self, *names: str) -> list[Server]:
        return [Server(name, factory=lambda name=name: self.app(name)) for name in names]  # type: ignore[misc]


@pytest.mark.anyio
async def test_every_replica_has_one_lifespan_in_order_and_a_state_of_its_own(tasks):
    apps = LoggingApps()
    middleware = sticky_asgi.StickyMiddleware(
        apps.app("app"), routes={"/cart": backend(*apps.replicas("r1", "r2", "r3"))}
    )
    given: Message = {}
    states: dict[str, Message] = {}
    before = tasks()

    async def send_requests() -> None:
        assert apps.events == ["app on", "r1 on", "r2 on", "r3 on"]
        assert given == {"name": "app", "only app": True}
        for _ in range(3):
            wire = await send_request(middleware, "/cart", state=dict(given))
            states[str(sticky_asgi.decision(wire.scope).server)] = json.loads(wire.body)

    assert await run_lifespan(middleware, send_requests, state=given) == UP_AND_DOWN
    assert apps.events[4:] == ["r3 off", "r2 off", "r1 off", "app off"]
    assert states == {name: {"name": name, f"only {name}": True, "only app": True} for name in ("r1", "r2", "r3")}
    assert tasks() == before


@pytest.mark.anyio
@pytest.mark.parametrize(
    "moment, reason",
    [("startup", "r2 has no database"), ("factory", "r2 has no disk")],
    ids=["lifespan", "factory"],
)
async def test_when_a_replica_fails_to_start_the_others_are_stopped_and_the_message_names_the_reason(
    moment, reason, tasks, caplog
):
    apps = LoggingApps(r2=moment)
    middleware = sticky_asgi.StickyMiddleware(
        apps.app("app"), routes={"/cart": backend(*apps.replicas("r1", "r2", "r3"))}
    )
    before = tasks()
    (message,) = await run_lifespan(middleware, state={})
    assert message.startswith("startup.failed: backend web: replica r2 failed to start: ")
    assert reason in message
    assert apps.events == ["app on", "r1 on", "r1 off", "app off"]
    assert tasks() == before
    assert caplog.messages == []  # the server logs it, so we do not

    apps.fails.clear()  # the database is back
    assert await run_lifespan(middleware, state={}) == UP_AND_DOWN
    assert apps.events[4:8] == ["app on", "r1 on", "r2 on", "r3 on"]


@pytest.mark.anyio
async def test_the_message_of_an_app_that_fails_to_start_is_forwarded_and_no_replica_starts():
    apps = LoggingApps(app="startup")
    middleware = sticky_asgi.StickyMiddleware(apps.app("app"), routes={"/cart": backend(*apps.replicas("r1"))})
    (message,) = await run_lifespan(middleware, state={})
    assert message.startswith("startup.failed: Traceback") and "app has no database" in message
    assert apps.events == []


@pytest.mark.anyio
async def test_when_a_replica_fails_to_stop_the_message_names_it_and_the_others_are_stopped(caplog):
    apps = LoggingApps(r2="shutdown")
    dispatcher = sticky_asgi.Dispatcher(backend(*apps.replicas("r1", "r2", "r3")))
    up, down = await run_lifespan(dispatcher, state={})
    assert up == "startup.complete"
    assert down.startswith("shutdown.failed: ") and "r2 has lost its keys" in down
    assert "backend web: replica r2" in down
    assert apps.events[3:] == ["r3 off", "r2 off", "r1 off"]
    (record,) = caplog.records
    assert (record.levelno, "backend web: replica r2" in record.getMessage()) == (logging.ERROR, True)


@pytest.mark.anyio
@pytest.mark.parametrize("manners", ["raises", "returns"])
async def test_an_app_without_lifespans_is_served(manners):
    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            if manners == "raises":
                raise KeyError("no lifespan here")
            return
        await hello(scope, receive, send)

    middleware = sticky_asgi.StickyMiddleware(app, routes={"/cart": backend(Server("s1", app))})

    async def send_requests() -> None:
        assert (await send_request(middleware)).body == (await send_request(middleware, "/cart")).body == b"hello"

    assert await run_lifespan(middleware, send_requests, state={}) == UP_AND_DOWN


@pytest.mark.anyio
async def test_nested_middlewares_of_one_backend_give_each_replica_one_lifespan():
    apps = LoggingApps()
    shared = backend(*apps.replicas("r1", "r2"), name="shared")
    own = backend(*apps.replicas("q1"), name="own")
    inner = sticky_asgi.StickyMiddleware(apps.app("app"), routes={"/cart": shared})
    outer = sticky_asgi.StickyMiddleware(inner, routes={"/basket": shared, "/shop": own})

    async def send_requests() -> None:
        assert sorted(apps.events) == ["app on", "q1 on", "r1 on", "r2 on"]

    assert await run_lifespan(outer, send_requests, state={}) == UP_AND_DOWN
    assert sorted(apps.events[4:]) == ["app off", "q1 off", "r1 off", "r2 off"]


@pytest.mark.anyio
async def test_an_app_behind_two_servers_has_one_lifespan_and_both_see_its_state():
    apps = LoggingApps()
    app = apps.app("app")
    dispatcher = sticky_asgi.Dispatcher(backend(Server("s1", app), Server("s2", app)))
    seen: dict[str, Message] = {}

    async def send_requests() -> None:
        for _ in range(2):
            wire = await send_request(dispatcher, state={})
            seen[str(sticky_asgi.decision(wire.scope).server)] = json.loads(wire.body)

    assert await run_lifespan(dispatcher, send_requests, state={}) == UP_AND_DOWN
    assert apps.events == ["app on", "app off"]
    assert seen == {name: {"name": "app", "only app": True} for name in ("s1", "s2")}


@pytest.mark.anyio
async def test_a_lifespan_that_is_cancelled_leaves_its_backend_to_the_next(tasks):
    apps = LoggingApps()
    dispatcher = sticky_asgi.Dispatcher(backend(*apps.replicas("r1", "r2")))
    before = tasks()
    async with anyio.create_task_group() as servers:

        async def cancelled() -> None:
            servers.cancel_scope.cancel()
            await anyio.lowlevel.checkpoint()

        await run_lifespan(dispatcher, cancelled, state={})
    assert tasks() == before

    apps.events.clear()
    assert await run_lifespan(dispatcher, state={}) == UP_AND_DOWN
    assert apps.events == ["r1 on", "r2 on", "r2 off", "r1 off"]


@pytest.mark.anyio
async def test_a_mounted_dispatcher_cancelled_at_its_start_leaves_its_backend_to_the_next():
    has_received = anyio.Event()
    came: list[str] = []

    async def blocks_at_first(scope, receive, send) -> None:
        came.append((await receive())["type"])
        if len(came) == 1:
            has_received.set()
            await anyio.sleep_forever()
        await send({"type": "lifespan.startup.complete"})
        came.append((await receive())["type"])
        await send({"type": "lifespan.shutdown.complete"})

    dispatcher = sticky_asgi.Dispatcher(backend(sticky_asgi.Server("r1", blocks_at_first)))

    async def begin() -> None:
        async with dispatcher.lifespan():
            raise AssertionError("the lifespan was not cancelled")

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(begin)
            await has_received.wait()
            tasks.cancel_scope.cancel()
        async with dispatcher.lifespan():
            pass
    assert came == ["lifespan.startup", "lifespan.startup", "lifespan.shutdown"]


@pytest.mark.anyio
async def test_a_lifespan_after_another_makes_new_replicas():
    apps = LoggingApps()
    dispatcher = sticky_asgi.Dispatcher(backend(*apps.replicas("r1")))
    marks: list[bytes] = []

    async def send_requests() -> None:
        cookie = [(b"cookie", mark.partition(b";")[0]) for mark in marks[-1:]]
        wire = await send_request(dispatcher, state={}, headers=cookie)
        marks.extend(wire.marks)

    for _ in range(2):
        assert await run_lifespan(dispatcher, send_requests, state={}) == UP_AND_DOWN
    assert apps.events == ["r1 on", "r1 off"] * 2
    assert len(set(marks)) == 2  # the first replica is stopped, and its client gets a new mark


def test_a_mounted_dispatcher_has_its_lifespans_from_the_app_around_it(caplog):
    apps = LoggingApps()
    dispatcher = sticky_asgi.Dispatcher(backend(*apps.replicas("r1", "r2")))
    app = Starlette(routes=[Mount("/cart", dispatcher)], lifespan=dispatcher.lifespan)
    with TestClient(app) as client:
        assert apps.events == ["r1 on", "r2 on"]
        assert client.get("/cart/").json()["name"] in ("r1", "r2")
    assert apps.events == ["r1 on", "r2 on", "r2 off", "r1 off"]
    assert caplog.records == []


def test_a_mounted_dispatcher_without_lifespans_serves_and_warns_once(caplog):
    apps = LoggingApps()
    dispatcher = sticky_asgi.Dispatcher(backend(Server("s1", hello)))
    client = TestClient(Starlette(routes=[Mount("/cart", dispatcher)]))
    assert [client.get("/cart/").text for _ in range(3)] == ["hello"] * 3
    (record,) = caplog.records
    assert "dispatcher.lifespan()" in record.getMessage()
    assert apps.events == []


@pytest.mark.anyio
async def test_a_mounted_dispatcher_whose_replica_fails_fails_the_app_around_it():
    apps = LoggingApps(r2="startup")
    dispatcher = sticky_asgi.Dispatcher(backend(*apps.replicas("r1", "r2")))
    failed = pytest.raises(RuntimeError, match="backend web: replica r2 failed to start")
    with failed, anyio.fail_after(DEADLINE):
        async with dispatcher.lifespan():
            pytest.fail("it came up")
    assert apps.events == ["r1 on", "r1 off"]


@pytest.mark.anyio
async def test_an_exception_in_the_lifespan_around_a_dispatcher_is_raised_unchanged():
    apps = LoggingApps()
    dispatcher = sticky_asgi.Dispatcher(backend(*apps.replicas("r1")))
    with pytest.raises(ZeroDivisionError):
        async with dispatcher.lifespan():
            raise ZeroDivisionError
    assert apps.events == ["r1 on", "r1 off"]


# -- with a real server

#: an app that cannot start, and parts of the output of its server
MISTAKES = {
    "a replica that fails to start": (
        "failing_replica:app",
        ["backend cart: replica r2 failed to start", "no database for the second one"],
    ),
    "a wrong configuration through add_middleware": (
        "wrong_routes:app",
        ["2 problems", "route 'cart' is no path", "route '/shop/' is no path"],
    ),
}


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn"])
@pytest.mark.parametrize("app, messages", MISTAKES.values(), ids=MISTAKES)
def test_a_server_does_not_start_and_prints_the_reason(server, app, messages, launch):
    served = launch(server, app)
    assert not served.comes_up()
    assert served.ends() != 0 or server == "hypercorn"  # its parent process ignores how a child ends
    assert [part for part in messages if part not in served.output] == []
    assert "rolled back" in served.output or app != "failing_replica:app"
