"""WebSockets that are open on a server past the deadline of its drain are closed, and only then it has drained. ASGI
only: over WSGI there are none.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import pytest

from sticky_asgi import Backend, Dispatcher, Server
from sticky_core.balance import First
from sticky_core.server.counters import Total
from sticky_core.server.state import AdminState
from tests.faces.running import DEADLINE

CLOSE = {"type": "websocket.close", "code": 1012, "reason": "server has drained"}
DISCONNECT = {"type": "websocket.disconnect", "code": 1012, "reason": "server has drained"}


class ShareRng:
    """Random numbers as given; then 0.5."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = list(numbers)

    def random(self) -> float:
        return self.numbers.pop(0) if self.numbers else 0.5

    def randrange(self, stop: int, /) -> int:
        return 0

    def getrandbits(self, k: int, /) -> int:
        return 0


class Websocket:
    """The client's end of a WebSocket, and what the app has received."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []  # to the client
        self.seen: list[dict[str, Any]] = []  # by the app
        self.failure: BaseException | None = None
        self.accepted, self.closed, self.ended = anyio.Event(), anyio.Event(), anyio.Event()
        self.to_app, self._from_client = anyio.create_memory_object_stream[dict[str, Any]](10)
        self.to_app.send_nowait({"type": "websocket.connect"})

    async def run(self, dispatcher: Any) -> None:
        async def send(message: dict[str, Any]) -> None:
            self.sent.append(message)
            if message["type"] == "websocket.accept":
                self.accepted.set()
            elif message["type"] == "websocket.close":
                self.closed.set()

        scope = {"type": "websocket", "path": "/", "headers": [], "query_string": b"", "scheme": "ws", "test": self}
        try:
            await dispatcher(scope, self._from_client.receive, send)
        except Exception as error:
            self.failure = error
        finally:
            self.to_app.close()
            self._from_client.close()
            self.ended.set()


async def echo(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "websocket", "it has no lifespan"
    seen = scope["test"].seen
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        seen.append(await receive())
        if seen[-1]["type"] == "websocket.disconnect":
            return
        await send({"type": "websocket.send", "text": seen[-1]["text"]})


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[None]]], None]:
    """Run a test on each event loop."""

    def run(test: Callable[[], Awaitable[None]]) -> None:
        async def limited() -> None:
            with anyio.fail_after(DEADLINE):
                await test()

        anyio.run(limited, backend=request.param)

    return run


def make_backend(app: Any = echo, **options: Any) -> Backend:
    return Backend("web", [Server("s1", app), Server("s2", echo)], balance=First(), **options)


async def open_websockets(group: Any, backend: Backend, count: int) -> list[Websocket]:
    dispatcher = Dispatcher(backend)
    made = [Websocket() for _ in range(count)]
    for each in made:
        group.start_soon(each.run, dispatcher)
        await each.accepted.wait()
    return made


async def first_closed(made: Sequence[Websocket]) -> Websocket:
    """Wait until one of these is closed, and return it."""
    closed: list[Websocket] = []

    async def wait(websocket: Websocket) -> None:
        await websocket.closed.wait()
        closed.append(websocket)
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for each in made:
            group.start_soon(wait, each)
    return closed[0]


def test_websockets_are_closed_with_1012_at_the_deadline_and_then_the_server_has_drained(run: Any) -> None:
    async def test() -> None:
        backend = make_backend()
        server = backend["s1"]
        async with anyio.create_task_group() as group:
            made = await open_websockets(group, backend, 3)
            made[0].to_app.send_nowait({"type": "websocket.receive", "text": "hi"})
            server.drain(deadline=0, spread=0)
            assert not backend.drained("s1").wait(0)
            for each in made:
                await each.ended.wait()
                assert (each.sent[-1], each.seen[-1], each.failure) == (CLOSE, DISCONNECT, None)
            await backend.drained("s1")
        assert (len(server.in_flight), server.counters[Total.CLI_ABRT], server.counters[Total.ERESP]) == (0, 0, 0)

    run(test)


def test_websockets_are_closed_over_the_spread(run: Any) -> None:
    async def test() -> None:
        backend = make_backend(rng=ShareRng(0.0, 0.9))
        async with anyio.create_task_group() as group:
            made = await open_websockets(group, backend, 2)
            backend["s1"].drain(deadline=0, spread="10h")
            first = await first_closed(made)
            await first.ended.wait()
            (second,) = [each for each in made if each is not first]
            assert [each["type"] for each in second.sent] == ["websocket.accept"]
            assert not backend.drained("s1").wait(0), "the other one is open, past the deadline"
            second.to_app.send_nowait({"type": "websocket.disconnect", "code": 1000})
            await second.ended.wait()
            await backend.drained("s1")

    run(test)


@pytest.mark.parametrize("undo", [AdminState.READY, AdminState.MAINT, "drain without a deadline"])
def test_websocket_stays_if_the_drain_ends_before_it_is_closed(run: Any, undo: Any) -> None:
    async def test() -> None:
        backend = make_backend(rng=ShareRng(0.9, 0.0))
        server = backend["s1"]
        async with anyio.create_task_group() as group:
            (websocket,) = await open_websockets(group, backend, 1)
            server.drain(deadline=0, spread="10h")
            await anyio.wait_all_tasks_blocked()
            if isinstance(undo, AdminState):
                server.state = undo
            else:
                server.drain(deadline=None)
            await anyio.wait_all_tasks_blocked()
            websocket.to_app.send_nowait({"type": "websocket.receive", "text": "still here"})
            await anyio.wait_all_tasks_blocked()
            assert websocket.sent[-1] == {"type": "websocket.send", "text": "still here"}
            server.drain(deadline="10h")  # a deadline that is changed counts at once
            server.drain(deadline=0, spread=0)
            await websocket.ended.wait()
            assert websocket.sent[-1] == CLOSE

    run(test)


def test_websocket_that_no_other_server_can_take_stays_open_past_the_deadline(run: Any) -> None:
    async def test() -> None:
        backend = make_backend()
        for server in backend.servers:
            server.drain(deadline=0, spread=0)
        async with anyio.create_task_group() as group:
            (websocket,) = await open_websockets(group, backend, 1)
            await anyio.wait_all_tasks_blocked()
            assert [each["type"] for each in websocket.sent] == ["websocket.accept"]
            websocket.to_app.send_nowait({"type": "websocket.disconnect", "code": 1000})

    run(test)


def test_websockets_of_a_removed_server_are_closed_so_that_it_can_end(run: Any) -> None:
    async def test() -> None:
        backend = make_backend(rng=ShareRng(0.0))
        async with anyio.create_task_group() as group:
            (websocket,) = await open_websockets(group, backend, 1)
            change = backend.remove("s1")
            await websocket.ended.wait()
            assert websocket.sent[-1] == CLOSE
            await change.retired

    run(test)


def test_app_that_sends_after_the_close_gets_an_oserror(run: Any) -> None:
    async def test() -> None:
        closed = anyio.Event()
        failures: list[BaseException] = []

        async def only_sends(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "websocket.accept"})
            await closed.wait()
            try:
                await send({"type": "websocket.send", "text": "news"})
            except OSError as error:
                failures.append(error)
            await send({"type": "websocket.close"})

        backend = make_backend(only_sends)
        async with anyio.create_task_group() as group:
            (websocket,) = await open_websockets(group, backend, 1)
            backend["s1"].drain(deadline=0, spread=0)
            await websocket.closed.wait()
            closed.set()
            await websocket.ended.wait()
        assert (len(failures), websocket.sent[-1]) == (1, CLOSE)

    run(test)


def test_ended_websocket_is_freed_though_its_server_drains_later(run: Any) -> None:
    async def test() -> None:
        backend = make_backend()
        async with anyio.create_task_group() as group:
            (websocket,) = await open_websockets(group, backend, 1)
            websocket.to_app.send_nowait({"type": "websocket.disconnect", "code": 1000})
            await websocket.ended.wait()
        reference = weakref.ref(websocket)
        del websocket
        gc.collect()
        assert reference() is None
        backend["s1"].drain(deadline=0)
        assert backend.drained("s1").wait(0)

    run(test)
