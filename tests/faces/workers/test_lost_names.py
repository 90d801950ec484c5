"""StickyWorkers inside of other middleware: what that adds does not reach the worker that serves a request, and is
named once.
"""

import asyncio
from typing import Any

import pytest

from tests.faces.workers.asgi import SECRET, CountingApp, RunningWorker
from tests.faces.workers.wsgi import RecordingApp

ADDED_TO_SCOPE = {
    "a session": ({"session": {}}, "session"),
    "a user": ({"user": object(), "auth": object()}, "auth, user"),
    "an entry of the state": ({"state": {"tenant": object()}}, "state['tenant']"),
    "a number of more than 64 bits": ({"number": 1 << 64}, "number"),
    "an entry of the state under a number": ({"state": {7: "seven"}}, "state[7]"),
    "a state that is no dict": ({"state": (1, 2)}, "state"),
}


@pytest.mark.parametrize("added, named", ADDED_TO_SCOPE.values(), ids=ADDED_TO_SCOPE)
def test_what_middleware_adds_to_the_scope_is_named_at_the_first_forwarded_request(run, caplog, added, named):
    async def test(start):
        one, other = await start(), await start()
        mark = (await one.request(**added)).mark
        await one.request(cookie=mark, **added)
        assert "middleware around" not in caplog.text
        for _ in range(2):
            await other.request(cookie=mark, **added)
        assert caplog.text.count(f"has put {named} into the scope") == 1
        assert caplog.text.count("middleware around") == 1
        assert "app = StickyWorkers(app)" in caplog.text
        assert not added.keys() & one.inner.scopes[-1].keys() - {"state"}
        assert one.inner.scopes[-1]["state"] == {"memory": one.inner}

    run(test)


def test_text_and_numbers_that_middleware_adds_are_forwarded(run, caplog):
    async def test(start):
        one, other = await start(), await start()
        mark = (await one.request()).mark
        added = {"tenant": "a", "trace": b"1", "attempt": -(1 << 63), "share": 0.5, "is_admin": False, "user": None}
        await other.request(cookie=mark, **added, state={"memory": other.inner, "request_id": "77", "other": None})
        seen = one.inner.scopes[-1]
        assert {name: seen[name] for name in added} == added
        assert seen["state"] == {"memory": one.inner, "request_id": "77", "other": None}
        assert "middleware around" not in caplog.text

    run(test)


def test_state_of_the_lifespan_is_not_taken_for_a_middlewares_unless_that_has_replaced_it(run, caplog):
    async def test(start):
        one, other = await start(), await start()
        mark = (await one.request()).mark
        await other.request(cookie=mark, state={"memory": other.inner}, extensions={})
        assert "middleware around" not in caplog.text
        await other.request(cookie=mark, state={"memory": object()})
        assert "has put state['memory'] into" in caplog.text

    run(test)


def test_what_an_app_around_it_puts_into_every_scope_is_there_in_forwarded_requests(folder, caplog):
    class Around:
        """Puts itself into each scope, as Starlette does."""

        def __init__(self, inner):
            self.inner = inner

        async def __call__(self, scope, receive, send):
            scope["app"] = self
            await self.inner(scope, receive, send)

    async def test():
        one, other = (RunningWorker(CountingApp(), name="group", directory=folder, secret=SECRET) for _ in range(2))
        for worker in (one, other):
            around: Any = Around(worker.app)
            worker.app = around
            await worker.start()
        try:
            mark = (await one.request()).mark
            await other.request(cookie=mark)
            assert one.inner.scopes[-1]["app"] is one.app
            assert "middleware around" not in caplog.text
        finally:
            await one.stop()
            await other.stop()

    asyncio.run(test())


def test_objects_that_middleware_adds_to_the_environ_are_named_at_the_first_forwarded_request(pair, caplog):
    app = RecordingApp()
    front, owner, cookie = pair(app)
    added = {
        "beaker.session": {},
        "number": 1 << 64,
        "user": "text is forwarded",
        "wsgi.file_wrapper": list,
        "gunicorn.socket": None,
    }
    owner.request(**cookie, **added)
    assert "middleware around" not in caplog.text
    for _ in range(2):
        front.request(**cookie, **added)
    assert caplog.text.count("has put beaker.session, number into the environ") == 1
    assert caplog.text.count("middleware around") == 1
    assert "app.wsgi_app = StickyWorkers(app.wsgi_app)" in caplog.text
    assert "beaker.session" not in app.seen[-1] and app.seen[-1]["user"] == "text is forwarded"


def test_websocket_that_wsgi_cannot_forward_is_reported_once(pair, caplog):
    front, owner, cookie = pair(RecordingApp())
    handshake = {"HTTP_UPGRADE": "WebSocket", "HTTP_CONNECTION": "Upgrade", "gunicorn.socket": object()}
    owner.request(**cookie, **handshake)  # the app there has the socket
    front.request(**cookie, HTTP_UPGRADE="h2c")
    assert "WebSocket" not in caplog.text
    for _ in range(2):
        front.request(**cookie, **handshake)
    assert caplog.text.count("SocketIO(app, allow_upgrades=False)") == 1
