"""Lifespans of ASGI apps and replicas: starts and ends in order, failures, cancellation, mounted dispatchers."""

import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route, Router
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message

import sticky_asgi
from sticky_asgi import Server
from tests.conformance.contract import DEADLINE, backend, hello, request
from tests.conformance.servers import SECRET

pytestmark = pytest.mark.usefixtures("no_open_resources")


async def run_lifespan(app, during=None, **more: object) -> list[str]:
    """Run the lifespan of `app` as a server does, and `during` between start and end. Return what the app reported."""
    phases = iter(("startup", "shutdown"))
    response: list[str] = []

    async def receive() -> Message:
        kind = next(phases)
        if kind == "shutdown" and during is not None:
            await during()
        return {"type": f"lifespan.{kind}"}

    async def send(message: Message) -> None:
        kind = str(message["type"]).removeprefix("lifespan.")
        response.append(f"{kind}: {message['message']}" if "message" in message else kind)

    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, **more}
    raised = ""
    with anyio.fail_after(DEADLINE):
        try:
            await app(scope, receive, send)
        except Exception as error:
            raised = str(error)
    # a failure is sent and then raised: servers read the message, Starlette's TestClient sees only the exception
    assert ("failed: " in response[-1]) is bool(raised)
    assert response[-1].endswith(raised)
    return response


UP_AND_DOWN = ["startup.complete", "shutdown.complete"]


class LifespanApps:
    """Makes apps that record their starts and ends, and respond with their state."""

    def __init__(self, **failures: str) -> None:
        self.events: list[str] = []
        self.failures = failures  # by the name of an app, where it fails: "factory", "startup" or "shutdown"

    def app(self, name: str) -> Starlette:
        if self.failures.get(name) == "factory":
            raise OSError(f"{name} has no disk")

        async def state(request: Request) -> JSONResponse:
            return JSONResponse(request.scope["state"])

        return Starlette(routes=[Route("/{path:path}", state)], lifespan=self.lifespan(name))

    def lifespan(self, name: str) -> Callable[[object], AbstractAsyncContextManager[Mapping[str, object]]]:
        @asynccontextmanager
        async def lifespan(app: object) -> AsyncIterator[Mapping[str, object]]:
            if self.failures.get(name) == "startup":
                raise OSError(f"{name} has no database")
            self.events.append(f"{name} started")
            yield {"name": name, f"only {name}": True}
            self.events.append(f"{name} ended")
            if self.failures.get(name) == "shutdown":
                raise OSError(f"{name} has lost its keys")

        return lifespan

    def replicas(self, *names: str) -> list[Server]:
        return [Server(name, factory=lambda name=name: self.app(name)) for name in names]  # type: ignore[misc]


@pytest.mark.anyio
async def test_every_replica_has_one_lifespan_in_order_and_its_own_state(tasks):
    apps = LifespanApps()
    middleware = sticky_asgi.StickyMiddleware(
        apps.app("app"), routes={"/cart": backend(*apps.replicas("r1", "r2", "r3"))}
    )
    state: Message = {}
    states: dict[str, Message] = {}
    before = tasks()

    async def send_requests() -> None:
        assert apps.events == ["app started", "r1 started", "r2 started", "r3 started"]
        assert state == {"name": "app", "only app": True}
        for _ in range(3):
            exchange = await request(middleware, "/cart", state=dict(state))
            states[str(sticky_asgi.decision(exchange.scope).server)] = json.loads(exchange.body)

    assert await run_lifespan(middleware, send_requests, state=state) == UP_AND_DOWN
    assert apps.events[4:] == ["r3 ended", "r2 ended", "r1 ended", "app ended"]
    assert states == {name: {"name": name, f"only {name}": True, "only app": True} for name in ("r1", "r2", "r3")}
    assert tasks() == before


@pytest.mark.anyio
@pytest.mark.parametrize(
    "moment, reason",
    [("startup", "r2 has no database"), ("factory", "r2 has no disk")],
    ids=["lifespan", "factory"],
)
async def test_replica_that_fails_to_start_ends_the_others_with_a_message(moment, reason, tasks, caplog):
    apps = LifespanApps(r2=moment)
    middleware = sticky_asgi.StickyMiddleware(
        apps.app("app"), routes={"/cart": backend(*apps.replicas("r1", "r2", "r3"))}
    )
    before = tasks()
    (response,) = await run_lifespan(middleware, state={})
    assert response.startswith("startup.failed: backend web: replica r2 failed to start: ")
    assert reason in response
    assert apps.events == ["app started", "r1 started", "r1 ended", "app ended"]
    assert tasks() == before
    assert caplog.messages == []  # the server logs it

    apps.failures.clear()  # the database works again
    assert await run_lifespan(middleware, state={}) == UP_AND_DOWN
    assert apps.events[4:8] == ["app started", "r1 started", "r2 started", "r3 started"]


@pytest.mark.anyio
async def test_failing_start_of_the_app_is_reported_unchanged_and_no_replica_starts():
    apps = LifespanApps(app="startup")
    middleware = sticky_asgi.StickyMiddleware(apps.app("app"), routes={"/cart": backend(*apps.replicas("r1"))})
    (response,) = await run_lifespan(middleware, state={})
    assert response.startswith("startup.failed: Traceback") and "app has no database" in response
    assert apps.events == []


@pytest.mark.anyio
async def test_replica_that_fails_to_end_is_reported_and_the_others_end_nevertheless(caplog):
    apps = LifespanApps(r2="shutdown")
    dispatcher = sticky_asgi.Dispatcher(backend(*apps.replicas("r1", "r2", "r3")))
    up, down = await run_lifespan(dispatcher, state={})
    assert up == "startup.complete"
    assert down.startswith("shutdown.failed: ") and "r2 has lost its keys" in down
    assert "backend web: replica r2" in down
    assert apps.events[3:] == ["r3 ended", "r2 ended", "r1 ended"]
    (record,) = caplog.records
    assert (record.levelno, "backend web: replica r2" in record.getMessage()) == (logging.ERROR, True)


@pytest.mark.anyio
@pytest.mark.parametrize("reaction", ["raises", "returns"])
async def test_app_without_lifespan_support_is_served(reaction):
    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            if reaction == "raises":
                raise KeyError("no lifespan here")
            return
        await hello(scope, receive, send)

    middleware = sticky_asgi.StickyMiddleware(app, routes={"/cart": backend(Server("s1", app))})

    async def send_requests() -> None:
        assert (await request(middleware)).body == (await request(middleware, "/cart")).body == b"hello"

    assert await run_lifespan(middleware, send_requests, state={}) == UP_AND_DOWN


class NeedsKey:
    def __init__(self, app: ASGIApp, key: str) -> None:
        raise AssertionError("unreachable")


def with_a_forgotten_argument() -> ASGIApp:
    return Starlette(middleware=[Middleware(NeedsKey)])  # type: ignore[arg-type]  # the mistake


def that_raises(error: Exception, received: bool) -> Callable[[], ASGIApp]:
    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            if received:
                await receive()
            raise error
        await hello(scope, receive, send)

    return lambda: app


#: apps that raise in their lifespan without having sent anything, and what they raise
BROKEN = {
    "a middleware lacks an argument": (with_a_forgotten_argument, TypeError, "missing 1 required positional argument"),
    "raises": (that_raises(OSError("no database"), False), OSError, "no database"),
    "raises after lifespan.startup": (that_raises(OSError("no database"), True), OSError, "no database"),
    "an assertion fails after lifespan.startup": (that_raises(AssertionError(), True), AssertionError, ""),
    "an assertion with a message fails": (that_raises(AssertionError("no key"), False), AssertionError, "no key"),
    "a setting is missing": (that_raises(KeyError("DATABASE"), False), KeyError, "DATABASE"),
}

#: what is around the app, and how the log names the app then; empty: only the server logs
AROUND: dict[str, tuple[Callable[[Callable[[], ASGIApp], LifespanApps], ASGIApp], str]] = {
    "StickyWorkers": (lambda create, apps: sticky_asgi.StickyWorkers(create()), ""),
    "StickyWorkers with peers": (
        lambda create, apps: sticky_asgi.StickyWorkers(create(), name="broken", secret=SECRET),
        "the app failed to start: ",
    ),
    "StickyMiddleware": (
        lambda create, apps: sticky_asgi.StickyMiddleware(create(), routes={"/cart": backend(*apps.replicas("r1"))}),
        "the app failed to start: ",
    ),
    "the route of a StickyMiddleware": (
        lambda create, apps: sticky_asgi.StickyMiddleware(
            apps.app("r1"), routes={"/cart": backend(Server("r2", factory=create))}
        ),
        "backend web: replica r2 failed to start: ",
    ),
    "Dispatcher": (
        lambda create, apps: sticky_asgi.Dispatcher(
            backend(*apps.replicas("r1"), Server("r2", factory=create), *apps.replicas("r3"))
        ),
        "backend web: replica r2 failed to start: ",
    ),
}


async def startup() -> Message:
    return {"type": "lifespan.startup"}


async def never_sent(message: Message) -> None:
    pytest.fail(f"{message} was sent")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "where, what",
    [
        *((where, "a middleware lacks an argument") for where in AROUND),
        *(("Dispatcher", what) for what in list(BROKEN)[1:]),
    ],
)
async def test_app_that_raises_in_its_lifespan_is_not_reported_as_started(where, what, caplog, tasks):
    around, log = AROUND[where]
    create, kind, text = BROKEN[what]
    apps = LifespanApps()
    app = around(create, apps)
    before = tasks()
    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
    with pytest.raises(kind, match=text or None) as raised, anyio.fail_after(DEADLINE):
        await app(scope, startup, never_sent)  # as without us: `--lifespan on` ends the server then, `auto` serves
    assert apps.events in ([], ["r1 started", "r1 ended"])  # rolled back
    assert tasks() == before
    if log:
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert record.getMessage().startswith(f"{log}{kind.__name__}") and text in record.getMessage()
        assert not log.startswith("backend") or log in "".join(raised.value.__notes__)
    else:
        assert caplog.records == []


@pytest.mark.parametrize("around, log", AROUND.values(), ids=AROUND)
def test_client_of_starlette_raises_what_the_app_raises_in_its_lifespan(around, log):
    app = around(with_a_forgotten_argument, LifespanApps())
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'key'"), TestClient(app):
        pytest.fail("it has started")


def test_app_around_that_announces_that_it_fails_raises_its_own_exception():
    apps = LifespanApps(app="startup")
    middleware = sticky_asgi.StickyMiddleware(apps.app("app"), routes={"/cart": backend(*apps.replicas("r1"))})
    with pytest.raises(OSError, match=r"^app has no database$"), TestClient(middleware):
        pytest.fail("it has started")


@pytest.mark.anyio
async def test_replicas_are_served_after_a_lifespan_that_has_failed(caplog):
    create, _, _ = BROKEN["raises"]
    dispatcher = sticky_asgi.Dispatcher(backend(Server("r1", factory=create), Server("r2", factory=create)))
    with pytest.raises(OSError, match="no database"):
        await dispatcher({"type": "lifespan", "asgi": {"version": "3.0"}}, startup, never_sent)
    assert [(await request(dispatcher)).body for _ in range(2)] == [b"hello", b"hello"]
    assert len(caplog.records) == 1  # the reason, and not that requests came before any lifespan


@pytest.mark.anyio
async def test_server_that_raises_in_its_lifespan_is_not_added():
    apps = LifespanApps()
    shop = backend(*apps.replicas("r1"))
    dispatcher = sticky_asgi.Dispatcher(shop)

    async def add() -> None:
        with pytest.raises(RuntimeError, match="backend web: replica r2 failed to start: TypeError") as raised:
            await shop.add(Server("r2", factory=with_a_forgotten_argument))
        assert isinstance(raised.value.__cause__, TypeError)
        assert [server.name for server in shop.servers] == ["r1"]

    assert await run_lifespan(dispatcher, add, state={}) == UP_AND_DOWN


async def asserts_http(scope, receive, send):
    assert scope["type"] == "http"


async def is_not_implemented(scope, receive, send):
    raise NotImplementedError(scope["type"])


async def refuses_as_django(scope, receive, send):
    raise ValueError(f"Django can only handle ASGI/HTTP connections, not {scope['type']}.")


async def refuses_as_asgiref(scope, receive, send):
    raise ValueError("WSGI wrapper received a non-HTTP scope")


async def reads_the_path(scope, receive, send):
    scope["path"].startswith("/")


async def responds_to_everything(scope, receive, send):
    await hello(scope, receive, send)
    scope["path"].startswith("/")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "app",
    [
        asserts_http,
        is_not_implemented,
        refuses_as_django,
        refuses_as_asgiref,
        reads_the_path,
        responds_to_everything,
    ],
)
async def test_app_that_refuses_the_scope_of_a_lifespan_has_none_and_others_keep_theirs(app, caplog):
    caplog.set_level(logging.INFO)
    apps = LifespanApps()
    dispatcher = sticky_asgi.Dispatcher(backend(*apps.replicas("r1"), Server("bare", app)))
    assert await run_lifespan(dispatcher, state={}) == UP_AND_DOWN
    assert apps.events == ["r1 started", "r1 ended"]
    assert "backend web: replica bare has no lifespan, and is served without one: " in caplog.text


@pytest.mark.parametrize(
    "mode, wrapped",
    [
        ("on", "Dispatcher"),
        ("auto", "StickyWorkers with peers"),
        *(
            pytest.param(mode, wrapped, marks=pytest.mark.long)
            for mode in ("on", "auto")
            for wrapped in ("nothing", "StickyWorkers", "StickyWorkers with peers", "StickyMiddleware", "Dispatcher")
        ),
    ],
)
def test_server_does_with_an_app_that_raises_in_its_lifespan_what_it_does_without_us(mode, wrapped, launch):
    served = launch("uvicorn", "--lifespan", mode, "broken_lifespan:app", variables={"WRAPPED": wrapped})
    if mode == "on":
        assert not served.comes_up()
        assert served.ends() == 3
        assert "Traceback" in served.output and "Application startup failed. Exiting." in served.output
    else:
        assert served.comes_up()
        assert "ASGI 'lifespan' protocol appears unsupported." in served.output
        assert served.client().request("/").status == 500
    assert "missing 1 required positional argument: 'key'" in served.output
    assert "requests came before any lifespan" not in served.output


@pytest.mark.anyio
async def test_nested_middlewares_of_one_backend_start_each_replica_once():
    apps = LifespanApps()
    shared = backend(*apps.replicas("r1", "r2"), name="shared")
    own = backend(*apps.replicas("q1"), name="own")
    inner = sticky_asgi.StickyMiddleware(apps.app("app"), routes={"/cart": shared})
    outer = sticky_asgi.StickyMiddleware(inner, routes={"/basket": shared, "/shop": own})

    async def send_requests() -> None:
        assert sorted(apps.events) == ["app started", "q1 started", "r1 started", "r2 started"]

    assert await run_lifespan(outer, send_requests, state={}) == UP_AND_DOWN
    assert sorted(apps.events[4:]) == ["app ended", "q1 ended", "r1 ended", "r2 ended"]


@pytest.mark.anyio
async def test_app_of_two_servers_has_one_lifespan_and_both_see_its_state():
    apps = LifespanApps()
    app = apps.app("app")
    dispatcher = sticky_asgi.Dispatcher(backend(Server("s1", app), Server("s2", app)))
    seen: dict[str, Message] = {}

    async def send_requests() -> None:
        for _ in range(2):
            exchange = await request(dispatcher, state={})
            seen[str(sticky_asgi.decision(exchange.scope).server)] = json.loads(exchange.body)

    assert await run_lifespan(dispatcher, send_requests, state={}) == UP_AND_DOWN
    assert apps.events == ["app started", "app ended"]
    assert seen == {name: {"name": "app", "only app": True} for name in ("s1", "s2")}


@pytest.mark.anyio
async def test_backend_can_start_again_after_a_cancelled_lifespan(tasks):
    apps = LifespanApps()
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
    assert apps.events == ["r1 started", "r2 started", "r2 ended", "r1 ended"]


@pytest.mark.anyio
async def test_backend_can_start_again_after_a_cancelled_start_of_a_mounted_dispatcher():
    started = anyio.Event()
    types: list[str] = []

    async def blocks_at_its_first_start(scope, receive, send) -> None:
        types.append((await receive())["type"])
        if len(types) == 1:
            started.set()
            await anyio.sleep_forever()
        await send({"type": "lifespan.startup.complete"})
        types.append((await receive())["type"])
        await send({"type": "lifespan.shutdown.complete"})

    dispatcher = sticky_asgi.Dispatcher(backend(sticky_asgi.Server("r1", blocks_at_its_first_start)))

    async def start() -> None:
        async with dispatcher.lifespan():
            raise AssertionError("unreachable")

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start)
            await started.wait()
            tasks.cancel_scope.cancel()
        async with dispatcher.lifespan():
            pass
    assert types == ["lifespan.startup", "lifespan.startup", "lifespan.shutdown"]


@pytest.mark.anyio
async def test_second_lifespan_makes_new_replicas():
    apps = LifespanApps()
    dispatcher = sticky_asgi.Dispatcher(backend(*apps.replicas("r1")))
    marks: list[bytes] = []

    async def send_requests() -> None:
        cookie = [(b"cookie", mark.partition(b";")[0]) for mark in marks[-1:]]
        exchange = await request(dispatcher, state={}, headers=cookie)
        marks.extend(exchange.marks)

    for _ in range(2):
        assert await run_lifespan(dispatcher, send_requests, state={}) == UP_AND_DOWN
    assert apps.events == ["r1 started", "r1 ended"] * 2
    assert len(set(marks)) == 2  # the memory of the first is lost, and its client gets a new mark


def test_mounted_dispatcher_uses_the_lifespan_of_the_outer_app(caplog):
    apps = LifespanApps()
    dispatcher = sticky_asgi.Dispatcher(backend(*apps.replicas("r1", "r2")))
    app = Starlette(routes=[Mount("/cart", dispatcher)], lifespan=dispatcher.lifespan)
    with TestClient(app) as client:
        assert apps.events == ["r1 started", "r2 started"]
        assert client.get("/cart/").json()["name"] in ("r1", "r2")
    assert apps.events == ["r1 started", "r2 started", "r2 ended", "r1 ended"]
    assert caplog.records == []


def test_mounted_dispatcher_without_a_lifespan_serves_and_warns_once(caplog):
    apps = LifespanApps()
    dispatcher = sticky_asgi.Dispatcher(backend(Server("s1", hello)))
    client = TestClient(Starlette(routes=[Mount("/cart", dispatcher)]))
    assert [client.get("/cart/").text for _ in range(3)] == ["hello"] * 3
    (record,) = caplog.records
    assert "dispatcher.lifespan()" in record.getMessage()
    assert apps.events == []


def fastapi_with_routers() -> ASGIApp:
    app = FastAPI()
    for path in ("/cart", "/shop"):
        router = APIRouter(prefix=path)
        router.add_api_route("/", lambda: "hello")
        app.include_router(router)
    return app


def fastapi_with_a_handler() -> ASGIApp:
    app = FastAPI()
    app.router.on_startup.append(lambda: None)
    return app


def fastapi_with_a_router_that_has_a_lifespan() -> ASGIApp:
    app = FastAPI()
    router = APIRouter(lifespan=LifespanApps().lifespan("router"))
    app.include_router(router)
    return app


@pytest.mark.parametrize(
    "create, warns",
    [
        pytest.param(Starlette, False, id="Starlette"),
        pytest.param(FastAPI, False, id="FastAPI"),
        pytest.param(fastapi_with_routers, False, id="FastAPI with routers"),
        pytest.param(lambda: Router([]), False, id="router of Starlette"),
        pytest.param(lambda: LifespanApps().app("app"), True, id="Starlette with a lifespan"),
        pytest.param(lambda: FastAPI(lifespan=LifespanApps().lifespan("app")), True, id="FastAPI with a lifespan"),
        pytest.param(fastapi_with_a_handler, True, id="FastAPI with a handler of its start"),
        pytest.param(fastapi_with_a_router_that_has_a_lifespan, True, id="FastAPI with a router that has a lifespan"),
        pytest.param(lambda: hello, True, id="an app that does not show whether it has one"),
    ],
)
def test_missing_lifespan_is_warned_about_only_where_a_replica_may_have_one(create, warns, caplog):
    TestClient(sticky_asgi.Dispatcher(backend(Server("s1", factory=create), Server("s2", factory=create)))).get("/")
    assert [("requests came before any lifespan" in message) for message in caplog.messages] == [True] * warns


@pytest.mark.anyio
async def test_failing_replica_of_a_mounted_dispatcher_fails_the_outer_app():
    apps = LifespanApps(r2="startup")
    dispatcher = sticky_asgi.Dispatcher(backend(*apps.replicas("r1", "r2")))
    failed = pytest.raises(RuntimeError, match="backend web: replica r2 failed to start")
    with failed, anyio.fail_after(DEADLINE):
        async with dispatcher.lifespan():
            pytest.fail("it came up")
    assert apps.events == ["r1 started", "r1 ended"]


@pytest.mark.anyio
async def test_exception_of_the_outer_app_is_raised_from_the_lifespan_unchanged():
    apps = LifespanApps()
    dispatcher = sticky_asgi.Dispatcher(backend(*apps.replicas("r1")))
    with pytest.raises(ZeroDivisionError):
        async with dispatcher.lifespan():
            raise ZeroDivisionError
    assert apps.events == ["r1 started", "r1 ended"]


#: an app that cannot start, and the messages for its operator
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
def test_server_that_cannot_start_prints_the_reason(server, app, messages, launch):
    served = launch(server, app)
    assert not served.comes_up()
    assert served.ends() != 0 or server == "hypercorn"  # its parent process ignores the exit code
    assert [part for part in messages if part not in served.output] == []
    assert "rolled back" in served.output or app != "failing_replica:app"
