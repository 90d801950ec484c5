"""What the ASGI specification requires of middleware between a server and an app, in process, on asyncio and trio."""

import asyncio
import weakref

import anyio
import pytest
from starlette.types import Message

import sticky_asgi
from sticky_asgi import Failure, Server, ServerFailure
from tests.conformance.contract import LOOPS, AsgiExchange, Referent, backend, hello, http_scope, request

pytestmark = pytest.mark.usefixtures("no_open_resources")


@pytest.mark.anyio
async def test_each_attempt_has_its_own_scope():
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
    exchange = await request(dispatcher, extensions={"tls": {}})
    first, second = seen
    assert first == second
    for scope in (first, exchange.scope):
        assert (scope["path"], scope["extensions"]) == ("/", {"tls": {}})
        assert scope["headers"] == [(b"host", b"test")]
        assert "mine" not in scope


@pytest.mark.anyio
async def test_state_that_an_app_sets_is_visible_outside():
    async def app(scope, receive, send):
        scope["state"]["user"] = "bob"
        await hello(scope, receive, send)

    exchange = await request(sticky_asgi.Dispatcher(backend(Server("s1", app))), state={"pool": 1})
    assert exchange.scope["state"] == {"pool": 1, "user": "bob"}  # as with Starlette's Mount


@pytest.mark.anyio
@pytest.mark.parametrize("heads", [0, 1], ids=["before the head", "in the middle of the body"])
async def test_cancelled_request_leaves_nothing(heads, tasks):
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
        requests.start_soon(request, dispatcher)
        await reached.wait()
        assert len(server.in_flight) == 1
        requests.cancel_scope.cancel()
    assert released == ["app"]
    assert len(server.in_flight) == 0
    assert tasks() == before


def test_cancelled_asyncio_task_leaves_nothing():
    reached = asyncio.Event()

    async def app(scope, receive, send):
        reached.set()
        await asyncio.Event().wait()

    server = Server("s1", app)

    async def main() -> None:
        task = asyncio.create_task(request(sticky_asgi.Dispatcher(backend(server))))
        await reached.wait()
        assert len(server.in_flight) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert len(server.in_flight) == 0


@pytest.mark.anyio
@pytest.mark.parametrize("heads", [0, 1], ids=["before its head", "half way"])
async def test_exception_of_an_app_is_raised_unchanged(heads):
    async def app(scope, receive, send):
        if heads:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("broken")

    server = Server("s1", app)
    with pytest.raises(ValueError, match=r"^broken$"):
        await request(sticky_asgi.Dispatcher(backend(server)))
    assert len(server.in_flight) == 0


@pytest.mark.anyio
@pytest.mark.usefixtures("without_garbage_collector")
async def test_scope_is_released_with_its_request():
    dispatcher = sticky_asgi.Dispatcher(backend(Server("s1", hello)))
    exchange = await request(dispatcher, referent=Referent())
    referent = weakref.ref(exchange.scope["referent"])
    decision = sticky_asgi.decision(exchange.scope)
    del exchange
    assert referent() is None
    assert decision.server == "s1"


@pytest.mark.anyio
async def test_disconnect_of_a_client_reaches_the_app():
    received: list[Message] = []

    async def app(scope, receive, send):
        received.extend([await receive(), await receive()])

    exchange = AsgiExchange(http_scope())
    exchange.incoming = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"tea", "more_body": True}]
    await sticky_asgi.Dispatcher(backend(Server("s1", app)))(exchange.scope, exchange.receive, exchange.send)
    assert [message["type"] for message in received] == ["http.request", "http.disconnect"]


def test_each_request_may_have_its_own_event_loop():
    """As with Starlette's TestClient without `with`; a test run may use loops of both kinds."""
    servers = Server.replicas(lambda: hello, 3)
    middleware = sticky_asgi.StickyMiddleware(hello, backend=backend(*servers))

    async def send_requests(cookie: bytes) -> AsgiExchange:
        return await request(middleware, headers=[(b"cookie", cookie)] if cookie else [])

    mark = b""
    for loop in LOOPS * 3:
        exchange = anyio.run(send_requests, mark, backend=loop)
        assert exchange.body == b"hello"
        assert bool(exchange.marks) is not bool(mark)
        mark = mark or exchange.marks[0].partition(b";")[0]
    assert [len(server.in_flight) for server in servers] == [0, 0, 0]
