"""The start waits for the first checks where they say so (`Check.startup`), and callers wait for `Backend.checked`: in
threads, and on event loops.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest

from sticky_core.backend import first_checks
from sticky_core.health.check import Check
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState
from tests.architecture.imports import ROOT
from tests.faces.running import DEADLINE, running, until

if TYPE_CHECKING:
    from sticky_core.backend.backend import Backend
    from tests.faces.conftest import Face, RecordedResponse

LIBRARIES = pytest.mark.parametrize("library", ["asyncio", "trio"])
ONLY_ASGI = pytest.mark.parametrize("face", ["asgi"], indirect=True)
ONLY_WSGI = pytest.mark.parametrize("face", ["wsgi"], indirect=True)


class Gate:
    """A probe that records the servers that it is called with, and holds some of them until it is opened."""

    def __init__(self, *held: str) -> None:
        self.called: list[str] = []
        self._held = held
        self._opened = threading.Event()

    def __call__(self, server: Server) -> bool:
        self.called.append(server.name)
        if server.name in self._held:
            self._opened.wait(DEADLINE)
        return True

    def open(self) -> None:
        self._opened.set()


@contextmanager
def gate(*held: str) -> Iterator[Gate]:
    made = Gate(*held)
    try:
        yield made
    finally:
        made.open()


def waiting(probe: Any, **options: Any) -> Check:
    """Return a check that the start waits for. There is one only: the next is due after the test."""
    return Check(probe=probe, startup="wait", **({"inter": DEADLINE} | options))


@contextmanager
def without_lifespan(face: Face, backend: Backend) -> Iterator[Callable[..., RecordedResponse]]:
    """A client of a dispatcher that no lifespan has started: on WSGI, the usual one."""
    dispatcher: Any = face.dispatcher(backend)
    yield face.client(dispatcher)
    dispatcher.replicas.stop()


# -- requests wait, where no lifespan has waited


def test_first_request_goes_to_no_server_that_its_first_check_has_taken_down(face: Face) -> None:
    backend = face.backend(face.server("s1", status=503), face.server("s2"), check=Check("/health", startup="wait"))
    with without_lifespan(face, backend) as get:
        response = get()
    assert (response.status, response.server, response.decision.attempts) == (200, "s2", ("s2",))
    assert face.apps["s1"].seen[0].path == "/health" and len(face.apps["s1"].seen) == 1


def test_requests_proceed_by_default_whatever_the_checks_will_find(face: Face) -> None:
    with gate("s1") as probe:
        backend = face.backend(face.server("s1"), check=Check(probe=probe, inter=DEADLINE))
        with without_lifespan(face, backend) as get:
            assert get().server == "s1"
            assert not backend.checked.reached
            probe.open()


def test_all_first_requests_wait_until_each_server_is_checked(face: Face) -> None:
    responses: list[RecordedResponse] = []
    with gate("s2") as probe:
        backend = face.backend(face.server("s1"), face.server("s2"), check=waiting(probe))
        with without_lifespan(face, backend) as get:
            threads = [threading.Thread(target=lambda: responses.append(get())) for _ in range(3)]
            for thread in threads:
                thread.start()
            until(lambda: sorted(probe.called) == ["s1", "s2"], "checks of both servers at once")
            until(lambda: backend["s1"].checking is not None and backend["s1"].checking.has_run)
            assert responses == [] and not face.apps["s1"].seen and not face.apps["s2"].seen
            probe.open()
            for thread in threads:
                thread.join(DEADLINE)
            assert [response.status for response in responses] == [200, 200, 200]
            assert backend.checked.reached
            get()
    assert sorted(probe.called) == ["s1", "s2"]


def test_check_that_hangs_ends_the_wait_by_its_timeout(face: Face) -> None:
    with gate("s1") as probe:
        backend = face.backend(face.server("s1"), face.server("s2"), check=waiting(probe, timeout=0.2))
        with without_lifespan(face, backend) as get:
            assert get().decision.attempts == ("s2",)
            assert backend["s1"].status == "DOWN" and backend.checked.reached
            probe.open()


def test_only_servers_whose_check_says_so_are_waited_for(face: Face) -> None:
    with gate("s2") as probe:
        others = face.server("s2", check=Check(probe=probe, inter=DEADLINE)), face.server("s3", check=False)
        backend = face.backend(face.server("s1"), *others, check=waiting(probe))
        with without_lifespan(face, backend) as get:
            assert get().status == 200
            assert probe.called[0] == "s1" and not backend.checked.reached
            probe.open()


def test_server_in_maintenance_is_not_waited_for(face: Face) -> None:
    with gate("s1") as probe:
        backend = face.backend(face.server("s1"), face.server("s2"), check=waiting(probe))
        backend["s1"].state = AdminState.MAINT
        with without_lifespan(face, backend) as get:
            assert get().server == "s2"
            assert probe.called == ["s2"]


def test_maintenance_ends_the_wait(face: Face) -> None:
    responses: list[RecordedResponse] = []
    with gate("s1") as probe:
        backend = face.backend(face.server("s1"), face.server("s2"), check=waiting(probe))
        with without_lifespan(face, backend) as get:
            thread = threading.Thread(target=lambda: responses.append(get()))
            thread.start()
            until(lambda: "s1" in probe.called)
            assert responses == []
            backend["s1"].state = AdminState.MAINT
            thread.join(DEADLINE)
            assert [response.server for response in responses] == ["s2"]
            probe.open()


def test_replica_that_failed_to_start_is_checked_and_not_waited_for_any_longer(face: Face) -> None:
    def broken() -> object:
        raise OSError("no disk")

    backend = face.backend(
        face.package.Server("s1", factory=broken), face.server("s2"), check=Check("/health", startup="wait")
    )
    with without_lifespan(face, backend) as get:
        assert get().decision.attempts == ("s2",)


def test_wait_without_any_result_ends_with_a_warning(
    face: Face, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(first_checks, "GRACE", 0.0)
    with gate() as probe:
        backend = face.backend(face.server("s1"), check=waiting(probe, timeout=0.1))
        monkeypatch.setattr(backend.monitor, "record_check", lambda *_: None)
        with without_lifespan(face, backend) as get, caplog.at_level(logging.WARNING):
            assert [get().status for _ in range(3)] == [200] * 3
    warnings = [message for message in caplog.messages if "first check" in message]
    assert warnings == ["backend web: no result of the first check of s1 after 0.1 s: requests are served without it"]


@ONLY_WSGI
def test_first_request_after_a_stop_waits_anew(face: Face) -> None:
    results = iter([True, False])
    backend = face.backend(face.server("s1"), check=waiting(lambda server: next(results)))
    for status in (200, 503):
        with without_lifespan(face, backend) as get:
            assert get().status == status, "one failure takes it down, although it was up"


# -- a lifespan waits


@ONLY_ASGI
@LIBRARIES
def test_startup_completes_after_the_lifespans_of_replicas_and_their_first_checks(face: Face, library: str) -> None:
    story: list[str] = []

    class App:
        def __init__(self, name: str) -> None:
            self._name = name

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                await receive()
                story.append(f"{self._name} starts")
                await send({"type": "lifespan.startup.complete"})
                await receive()
                story.append(f"{self._name} ends")
                await send({"type": "lifespan.shutdown.complete"})
            else:
                story.append(f"{self._name} is checked")
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b""})

    backend = face.backend(
        *(face.package.Server(name, App(name)) for name in ("s1", "s2")), check=waiting(None, path="/health")
    )
    dispatcher: Any = face.dispatcher(backend)

    async def run() -> None:
        async with dispatcher.lifespan():
            story.append("complete")

    anyio.run(run, backend=library)
    assert story[:2] == ["s1 starts", "s2 starts"] and sorted(story[2:4]) == ["s1 is checked", "s2 is checked"]
    assert story[4:] == ["complete", "s2 ends", "s1 ends"]


@ONLY_ASGI
@LIBRARIES
def test_startup_waits_for_the_checks_of_all_backends_side_by_side(face: Face, library: str) -> None:
    started: list[str] = []

    async def probe(server: Server) -> bool:
        started.append(server.name)
        while len(started) < 2:  # noqa: ASYNC110 - it ends only beside the other one
            await anyio.sleep(0.001)
        return server.name == "s2"

    backends = [face.backend(face.server(name), name=name, check=waiting(probe)) for name in ("s1", "s2")]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("it has no lifespan")

    middleware = face.middleware(app, {f"/{each.name}": each for each in backends})

    async def during() -> None:
        assert [each.servers[0].status for each in backends] == ["DOWN", "UP"]
        assert all(each.checked.reached for each in backends)

    assert anyio.run(run_lifespan, middleware, during, backend=library) == ["startup.complete", "shutdown.complete"]


async def run_lifespan(app: Any, during: Any = None) -> list[str]:
    """Run a lifespan as servers do. Return what the app reported."""
    sent: list[str] = []
    phases = iter(["startup", "shutdown"])

    async def receive() -> dict[str, Any]:
        phase = next(phases)
        if phase == "shutdown" and during is not None:
            await during()
        return {"type": f"lifespan.{phase}"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(str(message["type"]).removeprefix("lifespan."))

    try:
        with anyio.fail_after(DEADLINE):
            await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    except RuntimeError:
        sent.append("raised")
    return sent


@ONLY_ASGI
@LIBRARIES
def test_cancelled_startup_leaves_nothing_and_can_be_repeated(face: Face, library: str) -> None:
    calls: list[str] = []
    ended: list[str] = []

    async def probe(server: Server) -> bool:
        calls.append(server.name)
        if len(calls) == 1:
            cancel()
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(server.name)
        return True

    backend = face.backend(face.server("s1"), check=waiting(probe))
    dispatcher: Any = face.dispatcher(backend)
    scope: anyio.CancelScope

    def cancel() -> None:
        scope.cancel()

    async def run() -> None:
        nonlocal scope
        before = {task.id for task in anyio.get_running_tasks()}
        with anyio.CancelScope() as scope:
            async with dispatcher.lifespan():
                raise AssertionError("unreachable")
        assert {task.id for task in anyio.get_running_tasks()} == before
        assert ended == ["s1"] and backend.checks_are_free
        async with dispatcher.lifespan():
            assert backend.checked.reached and calls == ["s1", "s1"]

    anyio.run(run, backend=library)


@ONLY_ASGI
@LIBRARIES
def test_replica_of_another_backend_that_fails_to_start_ends_the_checks(face: Face, library: str) -> None:
    async def probe(server: Server) -> bool:
        await anyio.sleep_forever()
        return True

    def broken() -> object:
        raise OSError("no disk")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("it has no lifespan")

    checked = face.backend(face.server("s1"), name="checked", check=waiting(probe))
    other = face.backend(face.package.Server("s2", factory=broken), name="other")
    middleware = face.middleware(app, {"/checked": checked, "/other": other})

    async def run() -> None:
        before = {task.id for task in anyio.get_running_tasks()}
        assert await run_lifespan(middleware) == ["startup.failed", "raised"]
        assert {task.id for task in anyio.get_running_tasks()} == before
        assert checked.checks_are_free

    anyio.run(run, backend=library)


@ONLY_ASGI
def test_second_lifespan_waits_for_checks_of_its_own(face: Face) -> None:
    results = iter([True, False])

    async def probe(server: Server) -> bool:
        return next(results)

    backend = face.backend(face.server("s1"), check=waiting(probe))
    dispatcher: Any = face.dispatcher(backend)

    async def run() -> None:
        for status in ("UP", "DOWN"):
            async with dispatcher.lifespan():
                assert (backend["s1"].status, backend.checked.reached) == (status, True)
            assert not backend.checked.reached

    anyio.run(run)


@ONLY_ASGI
@LIBRARIES
def test_request_that_is_cancelled_while_it_waits_lets_the_next_one_wait(face: Face, library: str) -> None:
    called: list[str] = []
    may_end: anyio.Event

    async def probe(server: Server) -> bool:
        called.append(server.name)
        await may_end.wait()
        return True

    backend = face.backend(face.server("s1"), check=waiting(probe))
    dispatcher = face.dispatcher(backend)
    sent: list[int] = []

    async def send(message: dict[str, Any]) -> None:
        if "status" in message:
            sent.append(message["status"])

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    def scope() -> dict[str, Any]:
        return {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b"", "extensions": {}}

    async def run() -> None:
        nonlocal may_end
        may_end = anyio.Event()
        with anyio.fail_after(DEADLINE):
            async with anyio.create_task_group() as group:
                group.start_soon(dispatcher, scope(), receive, send)
                while not called:  # noqa: ASYNC110 - a request in another task calls it
                    await anyio.sleep(0.001)
                group.cancel_scope.cancel()
            assert sent == [] and not face.apps["s1"].seen
            may_end.set()
            await dispatcher(scope(), receive, send)
        assert sent == [200] and called == ["s1"]
        assert backend.monitor.first_checks.startup._callbacks == []

    anyio.run(run, backend=library)


# -- `Backend.checked`


def test_checked_is_waited_for_in_threads_and_on_several_event_loops(face: Face) -> None:
    reached: list[str] = []

    async def on_event_loop() -> None:
        await backend.checked
        reached.append("awaited")

    def in_thread() -> None:
        assert backend.checked.wait(DEADLINE)
        reached.append("waited")

    with gate("s1", "s2") as probe:
        backend = face.backend(
            face.server("s1"), face.server("s2"), check=Check(probe=probe, inter=DEADLINE, startup="proceed")
        )
        threads = [threading.Thread(target=in_thread, daemon=True) for _ in range(2)]
        threads += [
            threading.Thread(target=anyio.run, args=(on_event_loop,), kwargs={"backend": library}, daemon=True)
            for library in ("asyncio", "asyncio", "trio")
        ]
        for thread in threads:
            thread.start()
        with running(face, backend):
            until(lambda: "s1" in probe.called)
            assert reached == []
            backend["s2"].state = AdminState.MAINT  # its first check is due only after the interval
            probe.open()
            for thread in threads:
                thread.join(DEADLINE)
            assert sorted(reached) == ["awaited"] * 3 + ["waited"] * 2


def test_servers_that_are_added_serve_at_once_and_are_waited_for_by_checked(face: Face) -> None:
    with gate("s2") as probe:
        backend = face.backend(face.server("s1"), check=waiting(probe))
        with running(face, backend) as run:
            before = backend.checked
            assert before.reached
            run.apply(lambda: backend.add(face.server("s2")))
            now = backend.checked
            assert before.reached and not now.reached
            assert {run.get().server for _ in range(2)} == {"s1", "s2"}
            until(lambda: probe.called == ["s1", "s2"])
            probe.open()
            assert now.wait(DEADLINE)


_AWAITED_FIRST = """
import sys, threading, anyio
from sticky_asgi import Backend, Check, Server

web = Backend("web", [Server("s1", "http://127.0.0.1:1")], check=Check())
result = web["s1"].checking.judge(200, [], b"")

async def run():
    async with anyio.create_task_group() as group:
        group.start_soon(record)
        await web.checked

async def record():
    web.monitor.record_check(web["s1"], result)

anyio.run(run, backend=sys.argv[1])
print(web.checked)
"""


@ONLY_ASGI
@LIBRARIES
def test_checked_is_awaited_before_there_is_any_middleware(face: Face, library: str) -> None:
    command = [sys.executable, "-c", _AWAITED_FIRST, library]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert (run.returncode, run.stdout, run.stderr) == (0, "<Milestone: reached>\n", "")
