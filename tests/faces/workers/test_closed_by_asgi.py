"""Which side has ended a WebSocket that workers hand over: for the log of the worker that has accepted it, and for the
app in the worker that serves it.
"""

import asyncio

import pytest

from sticky_core.decision import ClosedBy, Decision
from tests.faces.workers.asgi import CountingApp, open_websocket, respond


class Broken(Exception):
    """An exception of the app."""


class EndingApp(CountingApp):
    """Ends a WebSocket as its first message says, and keeps the decision as it sees it."""

    async def serve(self, scope, receive, send):
        if scope["type"] == "http":
            return await respond(send)
        self.decision = scope["sticky"]
        self.has_ended = asyncio.Event()
        await receive()
        await send({"type": "websocket.accept", "headers": []})
        while (message := await receive())["type"] == "websocket.receive":
            match message["text"]:
                case "close":
                    return await send({"type": "websocket.close", "code": 4000})
                case "return":
                    return
                case "raise":
                    raise Broken
        self.has_ended.set()


def end_of(decision):
    return decision.closed_by, decision.close_code


ENDS = [
    pytest.param(
        {"type": "websocket.disconnect", "code": 1001, "reason": ""}, ClosedBy.CLIENT, 1001, id="client closes"
    ),
    pytest.param({"type": "websocket.disconnect", "code": 1006}, ClosedBy.LOST_CLIENT, 1006, id="client is lost"),
    pytest.param({"type": "websocket.disconnect", "code": 1012}, ClosedBy.MIDDLEWARE, 1012, id="web server ends"),
    pytest.param({"type": "websocket.receive", "text": "close"}, ClosedBy.SERVER, 4000, id="app closes"),
    pytest.param({"type": "websocket.receive", "text": "return"}, ClosedBy.SERVER, None, id="app returns"),
    pytest.param({"type": "websocket.receive", "text": "raise"}, ClosedBy.SERVER, None, id="app raises"),
]


@pytest.mark.parametrize("is_handed_over", [False, True], ids=["served here", "handed over"])
@pytest.mark.parametrize("message, closed_by, code", ENDS)
def test_log_and_app_see_which_side_has_ended_a_websocket(run, is_handed_over, message, closed_by, code):
    async def test(start):
        logged: list[Decision] = []
        app = EndingApp()
        one = await start(app)
        other = await start(log=logged.append) if is_handed_over else one
        if not is_handed_over:
            one.app.workers.log = logged.append
        client, requesting = await open_websocket(one, other)
        logged.clear()  # of the request before it
        client.messages.put_nowait(message)
        await asyncio.wait([requesting])
        assert (requesting.exception() is not None) is (message.get("text") == "raise")
        assert [end_of(each) for each in logged] == [(closed_by, code)]
        assert end_of(app.decision) == (closed_by, code)

    run(test)


def test_worker_that_stops_is_the_middleware(run):
    async def test(start):
        logged: list[Decision] = []
        app = EndingApp()
        one, other = await start(app), await start(log=logged.append)
        client, requesting = await open_websocket(one, other)
        await one.stop()
        one.stop = lambda: asyncio.sleep(0)
        await requesting
        assert client.sent[-1]["code"] == 1012
        assert [end_of(each) for each in logged] == [(ClosedBy.MIDDLEWARE, 1012)]
        assert end_of(app.decision) == (ClosedBy.MIDDLEWARE, 1012)

    run(test)


def test_worker_that_dies_is_a_lost_server(run):
    async def test(start):
        logged: list[Decision] = []
        app = EndingApp()
        one, other = await start(app), await start(log=logged.append)
        _, requesting = await open_websocket(one, other)
        await one.kill()
        await asyncio.wait([requesting])
        assert requesting.exception() is not None
        assert [end_of(each) for each in logged] == [(ClosedBy.LOST_SERVER, 1006)]

    run(test)


def test_worker_with_the_client_that_dies_has_lost_it(run):
    async def test(start):
        app = EndingApp()
        one, other = await start(app), await start()
        _, requesting = await open_websocket(one, other)
        requesting.cancel()
        await asyncio.wait([requesting])
        await app.has_ended.wait()
        assert end_of(app.decision) == (ClosedBy.LOST_CLIENT, 1006)

    run(test)
