"""The decision about a WebSocket says which side has ended it, and with which code, before it is logged. ASGI only: on
WSGI, servers hand the socket of a WebSocket to the app.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from sticky_asgi import Backend, Check, Dispatcher, Server
from sticky_core.balance import First
from sticky_core.decision import ClosedBy, Decision
from sticky_core.errors import Failure, ServerFailure
from sticky_core.server.state import Health
from tests.faces.kept import assert_holds_no_request
from tests.faces.running import DEADLINE

Message = dict[str, Any]


class Broken(Exception):
    """An exception of an app."""


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[None]]], None]:
    """Run a test on each event loop."""

    def run(test: Callable[[], Awaitable[None]]) -> None:
        async def limited() -> None:
            with anyio.fail_after(DEADLINE):
                await test()

        anyio.run(limited, backend=request.param)

    return run


async def app(scope: Message, receive: Any, send: Any) -> None:
    """Accept a WebSocket, and do what its messages say."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        match message["text"]:
            case "close":
                await send({"type": "websocket.close", "code": 4001})
            case "close without a code":
                await send({"type": "websocket.close"})
            case "close and return":
                await send({"type": "websocket.close", "code": 4001})
                return
            case "return":
                return
            case "raise":
                raise Broken
            case "send":
                await send({"type": "websocket.send", "text": "news"})
            case "lose the server":
                raise ServerFailure(Failure.CLOSED)


class Client:
    """The client's end of a WebSocket. `is_gone`: whether `send` of the web server raises."""

    def __init__(self) -> None:
        self.accepted, self.ended = anyio.Event(), anyio.Event()
        self.to_app, self._from_client = anyio.create_memory_object_stream[Message](10)
        self.is_gone = False
        self.sent: list[Message] = []
        self.tell(type="websocket.connect")

    def tell(self, **message: Any) -> None:
        self.to_app.send_nowait(message)

    def say(self, text: str) -> None:
        self.tell(type="websocket.receive", text=text)

    async def run(self, asgi_app: Any, scope: Message | None = None) -> None:
        async def send(message: Message) -> None:
            if self.is_gone:
                raise OSError("the client has disconnected")
            self.sent.append(message)
            if message["type"] == "websocket.accept":
                self.accepted.set()

        whole = {"type": "websocket", "path": "/", "headers": [], "query_string": b"", "scheme": "ws", **(scope or {})}
        try:
            await asgi_app(whole, self._from_client.receive, send)
        except (Broken, ServerFailure, OSError):
            pass
        finally:
            self.to_app.close()
            self._from_client.close()
            self.ended.set()


def make_backend(target: Any = app, **options: Any) -> tuple[Backend, list[tuple[ClosedBy | None, int | None]]]:
    """Return a backend, and how its WebSockets have ended, as its log function has seen it."""
    ended: list[tuple[ClosedBy | None, int | None]] = []

    def log(decision: Decision) -> None:
        assert_holds_no_request(decision)
        ended.append((decision.closed_by, decision.close_code))

    return Backend("web", [Server("s1", target)], balance=First(), log=log, **options), ended


def disconnect(**more: Any) -> Callable[[Client], None]:
    return lambda client: client.tell(type="websocket.disconnect", **more)


def says(*texts: str) -> Callable[[Client], None]:
    def say(client: Client) -> None:
        for text in texts:
            client.say(text)
        if "return" not in texts[-1]:  # what a web server reports once it has sent a close
            client.tell(type="websocket.disconnect", code=4001, reason="")

    return say


ENDS = [
    pytest.param(disconnect(code=1000, reason=""), ClosedBy.CLIENT, 1000, id="client closes"),
    pytest.param(disconnect(code=4002, reason="bye"), ClosedBy.CLIENT, 4002, id="client closes with a code of its own"),
    pytest.param(disconnect(code=1005, reason=""), ClosedBy.CLIENT, 1005, id="client closes without a code"),
    pytest.param(disconnect(code=1006), ClosedBy.LOST_CLIENT, 1006, id="client is lost"),
    pytest.param(disconnect(code=1005), ClosedBy.LOST_CLIENT, 1006, id="client is lost, as uvicorn says it"),
    pytest.param(disconnect(), ClosedBy.LOST_CLIENT, 1006, id="client is lost, as granian says it"),
    pytest.param(disconnect(code=1012), ClosedBy.MIDDLEWARE, 1012, id="web server ends, as uvicorn says it"),
    pytest.param(disconnect(code=1012, reason=""), ClosedBy.CLIENT, 1012, id="client is a proxy that ends"),
    pytest.param(says("close"), ClosedBy.SERVER, 4001, id="app closes"),
    pytest.param(says("close without a code"), ClosedBy.SERVER, 1000, id="app closes without a code"),
    pytest.param(says("close and return"), ClosedBy.SERVER, 4001, id="app closes and returns"),
    pytest.param(says("return"), ClosedBy.SERVER, None, id="app returns"),
    pytest.param(says("raise"), ClosedBy.SERVER, None, id="app raises"),
    pytest.param(says("lose the server"), ClosedBy.LOST_SERVER, 1006, id="server is lost"),
]


@pytest.mark.parametrize("end, closed_by, code", ENDS)
def test_log_says_which_side_has_ended_a_websocket(run: Any, end: Any, closed_by: ClosedBy, code: int | None) -> None:
    async def test() -> None:
        backend, ended = make_backend()
        client = Client()
        async with anyio.create_task_group() as group:
            group.start_soon(client.run, Dispatcher(backend))
            await client.accepted.wait()
            end(client)
        assert ended == [(closed_by, code)]

    run(test)


@pytest.mark.parametrize(
    "then, code",
    [
        pytest.param(disconnect(code=1001, reason=""), 1001, id="the app reads on"),
        pytest.param(None, None, id="the app ends with the exception"),
    ],
)
@pytest.mark.parametrize("sent", ["websocket.send", "websocket.close"])
def test_client_that_is_gone_when_the_app_sends_has_ended_it(run: Any, then: Any, code: int | None, sent: str) -> None:
    async def only_sends(scope: Message, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        try:
            await send({"type": sent, "text": "news"})
        except OSError:
            if then is None:
                raise
            await receive()

    async def test() -> None:
        backend, ended = make_backend(only_sends)
        client = Client()
        async with anyio.create_task_group() as group:
            group.start_soon(client.run, Dispatcher(backend))
            await client.accepted.wait()
            client.is_gone = True
            client.say("go")
            if then is not None:
                then(client)
        assert ended == [(ClosedBy.CLIENT, code)]

    run(test)


def test_deadline_of_a_drain_is_the_middleware(run: Any) -> None:
    async def test() -> None:
        backend, ended = make_backend()
        client = Client()
        async with anyio.create_task_group() as group:
            group.start_soon(client.run, Dispatcher(backend))
            await client.accepted.wait()
            backend["s1"].drain(deadline=0, spread=0)
        assert ended == [(ClosedBy.MIDDLEWARE, 1012)]

    run(test)


def test_sessions_that_are_shut_down_are_ended_by_the_middleware(run: Any) -> None:
    async def test() -> None:
        backend, ended = make_backend(
            check=Check(probe=lambda server: None, inter="1h", on_marked_down="shutdown-sessions")
        )
        client = Client()
        async with anyio.create_task_group() as group:
            group.start_soon(client.run, Dispatcher(backend))
            await client.accepted.wait()
            backend["s1"].health = Health.DOWN
        assert ended == [(ClosedBy.MIDDLEWARE, None)]

    run(test)


def test_cancellation_by_the_web_server_is_the_middleware(run: Any) -> None:
    async def test() -> None:
        backend, ended = make_backend()
        client = Client()
        async with anyio.create_task_group() as group:
            group.start_soon(client.run, Dispatcher(backend))
            await client.accepted.wait()
            group.cancel_scope.cancel()
        assert ended == [(ClosedBy.MIDDLEWARE, None)]

    run(test)


async def denies(scope: Message, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.close", "code": 4003})


async def denies_with_a_response(scope: Message, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
    await send({"type": "websocket.http.response.body", "body": b""})


async def waits(scope: Message, receive: Any, send: Any) -> None:
    await receive()
    await receive()


async def returns(scope: Message, receive: Any, send: Any) -> None: ...


async def raises(scope: Message, receive: Any, send: Any) -> None:
    raise Broken


@pytest.mark.parametrize("target", [denies, denies_with_a_response, waits, returns, raises])
def test_handshake_that_is_not_accepted_has_no_end(run: Any, target: Any) -> None:
    async def test() -> None:
        backend, ended = make_backend(target)
        client = Client()
        client.tell(type="websocket.disconnect", code=1006)
        await client.run(Dispatcher(backend))
        assert ended == [(None, None)]

    run(test)


def test_client_that_is_gone_at_the_accept_has_no_end(run: Any) -> None:
    async def test() -> None:
        backend, ended = make_backend()
        client = Client()
        client.is_gone = True
        await client.run(Dispatcher(backend))
        assert ended == [(None, None)]

    run(test)


def test_it_is_none_while_the_websocket_is_open_and_known_when_the_app_ends(run: Any) -> None:
    seen: list[ClosedBy | None] = []

    async def looks(scope: Message, receive: Any, send: Any) -> None:
        decision: Decision = scope["sticky"]
        await receive()
        await send({"type": "websocket.accept"})
        seen.append(decision.closed_by)
        await receive()
        seen.append(decision.closed_by)

    async def test() -> None:
        backend, _ = make_backend(looks)
        client = Client()
        client.tell(type="websocket.disconnect", code=1001, reason="")
        await client.run(Dispatcher(backend))

    run(test)
    assert seen == [None, ClosedBy.CLIENT]


@pytest.mark.parametrize(
    "end, outer_end, inner_end",
    [
        pytest.param(
            disconnect(code=1001, reason=""), (ClosedBy.CLIENT, 1001), (ClosedBy.CLIENT, 1001), id="client closes"
        ),
        pytest.param(says("close"), (ClosedBy.SERVER, 4001), (ClosedBy.SERVER, 4001), id="app closes"),
        pytest.param("outer", (ClosedBy.MIDDLEWARE, 1012), (ClosedBy.MIDDLEWARE, 1012), id="outer server drains"),
        pytest.param("inner", (ClosedBy.SERVER, 1012), (ClosedBy.MIDDLEWARE, 1012), id="inner server drains"),
    ],
)
def test_each_of_nested_middlewares_says_which_side_it_was(run: Any, end: Any, outer_end: Any, inner_end: Any) -> None:
    async def test() -> None:
        inner, inner_ended = make_backend()
        outer, outer_ended = make_backend(Dispatcher(inner))
        client = Client()
        async with anyio.create_task_group() as group:
            group.start_soon(client.run, Dispatcher(outer))
            await client.accepted.wait()
            if callable(end):
                end(client)
            else:
                {"outer": outer, "inner": inner}[end]["s1"].drain(deadline=0, spread=0)
        assert (outer_ended, inner_ended) == ([outer_end], [inner_end])

    run(test)


def test_http_requests_have_no_end(run: Any) -> None:
    async def serve(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def test() -> None:
        backend, ended = make_backend(serve)
        await Client().run(Dispatcher(backend), {"type": "http", "method": "GET", "scheme": "http"})
        assert ended == [(None, None)]

    run(test)
