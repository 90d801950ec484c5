"""Groups of workers in this process: `run` starts them over ASGI on one event loop, `worker` and `pair` over WSGI."""

import asyncio
import tempfile
import threading
from pathlib import Path

import pytest

import sticky_wsgi
from sticky_wsgi.workers.gunicorn import Heartbeat
from tests.faces.workers import asgi, groups, wsgi


@pytest.fixture(autouse=True)
def _one_app(monkeypatch):
    """The workers of a test are in one process, each with an app object of its own: they stand for one app."""
    for face in ("asgi", "wsgi"):
        monkeypatch.setattr(f"sticky_{face}.workers.middleware.app_identity", lambda app: "main:app")


@pytest.fixture
def folder():
    """Where the workers of a group find each other: a path that is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="sticky-") as path:
        yield Path(path)


@pytest.fixture
def run(folder):
    """Runs a test with `start`, which starts one more worker of a group over ASGI; all are stopped after it."""

    def run(test, **options):
        async def main():
            workers = []

            async def start(app=None, **more):
                settings = {"name": "group", "directory": folder / "run", "secret": asgi.SECRET, **options, **more}
                worker = asgi.RunningWorker(app if app is not None else asgi.CountingApp(), **settings)
                workers.append(await worker.start())
                return worker

            try:
                async with asyncio.timeout(asgi.DEADLINE):
                    await test(start)
            finally:
                for worker in workers:
                    await worker.stop()

        asyncio.run(main())

    return run


@pytest.fixture
def worker(folder):
    """Starts one more worker of a group over WSGI, around an app; all are stopped after the test."""
    started = []

    def start(app, threads=4, **options):
        sticky = sticky_wsgi.StickyWorkers(
            app, name="group", directory=folder, secret=wsgi.SECRET, threads=threads, **options
        )
        sticky.start()
        started.append(sticky)
        return wsgi.FakeServer(sticky)

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def pair(worker):
    """Two workers of the same app, and the cookie header of a client that belongs to the second."""

    def start(app, **options):
        front, owner = worker(app, **options), worker(app, **options)
        owner.request()
        return front, owner, {"HTTP_COOKIE": owner.cookie}

    return start


@pytest.fixture
def beats(monkeypatch):
    """Takes the heartbeats of the workers over WSGI that start from now on, in the thread of the test."""
    beats = wsgi.Beats()
    monkeypatch.setattr(Heartbeat, "of_server", lambda settings=None: Heartbeat(wsgi.SeenRule(1000), beats))
    monkeypatch.setattr(wsgi.SeenRule, "seen", [])
    return beats


@pytest.fixture(params=["asgi", "wsgi"])
def start(request, folder):
    """Starts one more worker of a group (`groups.GroupWorker`), over each face in turn; all are stopped after the
    test.
    """
    started: list[groups.GroupWorker] = []
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def start(serve=None, **options):
        settings = {"name": "group", "directory": folder / "run", "secret": asgi.SECRET, **options}
        worker = (
            groups.AsgiWorker(loop, serve, settings) if request.param == "asgi" else groups.WsgiWorker(serve, settings)
        )
        started.append(worker)
        return worker

    yield start
    try:
        for worker in started:
            worker.stop()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
