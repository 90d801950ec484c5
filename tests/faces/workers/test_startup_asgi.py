"""How workers start under an ASGI server, with and without a lifespan, and what stops them from it."""

import asyncio
import os
from typing import Any

import pytest
import trio

from sticky_asgi import ConfigError, StickyWorkers
from tests.faces.workers.asgi import (
    SECRET,
    CountingApp,
    FakeClient,
    respond,
)


def test_worker_without_peers_serves_and_sets_no_cookie(run):
    async def test(start):
        one = await start(name=None)
        client = await one.request()
        assert (client.body, client.cookies) == (b"1", [])
        assert one.backend is None
        assert "sticky" not in one.inner.scopes[0]

    run(test)


def test_workers_start_with_the_first_request_where_there_is_no_lifespan(folder):
    async def test():
        apps = [StickyWorkers(CountingApp(), name="group", directory=folder / "run", secret=SECRET) for _ in range(2)]
        first = await FakeClient().request(apps[0])
        again = await FakeClient(cookie=first.mark).request(apps[1])
        assert again.body == b"2"
        for app in apps:
            await app._drain()
            app._stop()

    asyncio.run(test())


def test_app_without_lifespan_support_is_served(run):
    async def plain(scope, receive, send):
        assert scope["type"] == "http"
        await respond(send, scope["path"].encode())

    async def test(start):
        one, other = await start(plain), await start(plain)
        mark = (await one.request()).mark
        assert (await other.request(path="/there", cookie=mark)).body == b"/there"

    run(test)


def test_config_error_is_raised_outside_of_a_server_and_reported_at_startup_inside():
    with pytest.raises(ConfigError, match="slots is the number of workers that keys are spread over"):
        StickyWorkers(CountingApp(), slots=3)

    async def test():
        app = StickyWorkers(CountingApp(), slots=3)
        sent = []

        async def startup():
            return {"type": "lifespan.startup"}

        async def send(message):
            sent.append(message)

        with pytest.raises(ConfigError):
            await app({"type": "lifespan", "asgi": {"version": "3.0"}}, startup, send)
        assert sent[0]["type"] == "lifespan.startup.failed"
        assert "slots is the number" in sent[0]["message"]
        with pytest.raises(ConfigError):
            await FakeClient().request(app)

    asyncio.run(test())


def test_trio_is_refused_with_a_reason(folder):
    app = StickyWorkers(CountingApp(), name="group", directory=folder / "run", secret=SECRET)

    async def test():
        with pytest.raises(ConfigError, match="needs asyncio"):
            await FakeClient().request(app)

    trio.run(test)


def test_directory_that_other_users_can_enter_is_refused(folder):
    (folder / "run").mkdir(mode=0o755)
    os.chmod(folder / "run", 0o755)
    app = StickyWorkers(CountingApp(), name="group", directory=folder / "run", secret=SECRET)

    async def test():
        with pytest.raises(ConfigError, match="only this user can enter"):
            await FakeClient().request(app)
        messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        sent: asyncio.Queue[Any] = asyncio.Queue()
        messages.put_nowait({"type": "lifespan.startup"})
        with pytest.raises(ConfigError, match="only this user can enter"):
            await app({"type": "lifespan", "asgi": {"version": "3.0"}}, messages.get, sent.put)
        failed = sent.get_nowait()
        assert (failed["type"], "only this user" in failed["message"]) == ("lifespan.startup.failed", True)

    asyncio.run(test())
