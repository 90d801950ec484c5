"""Checks at work on both faces: replicas are asked by calling them, in parallel, from the first request or the lifespan
on, and not beyond the end.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import pytest

from sticky_core.errors import Failure, ServerFailure
from sticky_core.health.check import Check, CheckResult
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState

if TYPE_CHECKING:
    from tests.faces.conftest import Face

DEADLINE = 300.0
OFTEN: dict[str, Any] = {"inter": 0.03, "fall": 2, "rise": 2}
PLAIN = Cookie("SERVERID", signed=False, nocache=False)


def until(condition: Callable[[], object], what: str = "what was waited for") -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.005)


class Running:
    """A dispatcher at work: one event loop, or the threads of this process."""

    def __init__(self, face: Face, dispatcher: Any, portal: Any) -> None:
        self.face = face
        self.dispatcher = dispatcher
        self.portal = portal

    def get(self, **options: Any) -> Any:
        """An answer, by the same loop in which the checks run."""
        client = self.face.client(self.dispatcher)
        if self.portal is None:
            return client(**options)
        run = asyncio.run
        asyncio.run = self.portal_run  # type: ignore[assignment]
        try:
            return client(**options)
        finally:
            asyncio.run = run

    def portal_run(self, coroutine: Any) -> Any:
        async def await_it() -> Any:
            return await coroutine

        return self.portal.call(await_it)


@contextmanager
def running(face: Face, backend: Any, library: str = "asyncio") -> Iterator[Running]:
    dispatcher: Any = face.dispatcher(backend)
    with ExitStack() as stack:
        portal = None
        if face.name == "asgi":
            portal = stack.enter_context(anyio.from_thread.start_blocking_portal(library))
            stack.enter_context(portal.wrap_async_context_manager(dispatcher.lifespan()))
        else:
            stack.callback(dispatcher.replicas.stop)
        run = Running(face, dispatcher, portal)
        if face.name == "wsgi":
            run.get()
        yield run


def result(server: Server) -> CheckResult:
    """How its latest check turned out."""
    assert server.checking is not None
    return server.checking.result


def asked(face: Face, name: str) -> int:
    """How often a replica was asked for its health."""
    return sum(seen.path == "/health" for seen in face.apps[name].seen)


def test_replicas_are_asked_by_calling_them(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), check=Check("/health", **OFTEN))
    assert asked(face, "s1") == 0, "not before there is anybody to ask for"
    with running(face, backend):
        until(lambda: asked(face, "s1") > 2 and asked(face, "s2") > 2)
        face.apps["s1"].status = 503
        until(lambda: backend["s1"].status == "DOWN")
        assert "503" in str(result(backend["s1"]))
        face.apps["s1"].status = 200
        until(lambda: backend["s1"].status == "UP")
        face.apps["s2"].raises = RuntimeError("out of order")
        until(lambda: backend["s2"].status == "DOWN")
        assert "RuntimeError: out of order" in str(result(backend["s2"]))
        face.apps["s2"].raises = ServerFailure(Failure.REFUSED)
        until(lambda: "Layer4 connection problem" in str(result(backend["s2"])))
    times = asked(face, "s1"), asked(face, "s2")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("check")]
    time.sleep(0.1)
    assert (asked(face, "s1"), asked(face, "s2")) == times, "none survives the end"
    assert backend.checks_are_free


def test_a_check_is_no_request(face: Face) -> None:
    backend = face.backend(face.server("s1"), check=Check("/health", method="HEAD", **OFTEN))
    with running(face, backend):
        before = backend["s1"].total
        until(lambda: asked(face, "s1") > 2)
        assert backend["s1"].total == before
        assert {seen.method for seen in face.apps["s1"].seen if seen.path == "/health"} == {"HEAD"}


def test_a_server_that_hangs_delays_no_other(face: Face) -> None:
    hung, over = threading.Event(), threading.Event()

    def probe(server: Server) -> bool:
        if server.name == "s1":
            hung.set()
            over.wait(DEADLINE)
        else:
            beats.append(server.name)
        return True

    beats: list[str] = []
    backend = face.backend(face.server("s1"), face.server("s2"), check=Check(probe=probe, timeout=0.1, **OFTEN))
    try:
        with running(face, backend):
            until(hung.is_set)
            until(lambda: backend["s1"].status == "DOWN")
            assert "Layer7 timeout" in str(result(backend["s1"]))
            before = len(beats)
            until(lambda: len(beats) > before + 3)
            assert backend["s2"].status == "UP"
            over.set()
            until(lambda: backend["s1"].status == "UP")
    finally:
        over.set()


@pytest.mark.parametrize("face", ["asgi"], indirect=True)
def test_a_probe_may_be_a_coroutine_function(face: Face) -> None:
    well = True

    async def probe(server: Server) -> bool:
        await asyncio.sleep(0)
        return well

    backend = face.backend(face.server("s1"), check=Check(probe=probe, **OFTEN))
    with running(face, backend):
        until(lambda: result(backend["s1"]).status.name == "L7OK")
        well = False
        until(lambda: backend["s1"].status == "DOWN")


@pytest.mark.parametrize("face", ["asgi"], indirect=True)
def test_replicas_and_urls_are_checked_on_trio_as_well(face: Face) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        made: Server = face.package.Server("s2", url, check=Check(**OFTEN))
        backend = face.backend(face.server("s1"), made, check=Check("/health", **OFTEN))
        with running(face, backend, "trio"):
            until(lambda: asked(face, "s1") > 2)
            until(lambda: result(made).status.name == "L4OK")
            listener.close()
            until(lambda: made.status == "DOWN")
            assert "Connection refused" in str(result(made))


@pytest.mark.parametrize("face", ["asgi"], indirect=True)
@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_without_a_lifespan_checks_begin_with_the_first_request(face: Face, library: str) -> None:
    backend = face.backend(face.server("s1"), check=Check("/health", **OFTEN))
    dispatcher = face.dispatcher(backend)

    async def story() -> None:
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b"", "extensions": {}}
        await dispatcher(scope, receive, send)
        assert sent[0]["status"] == 200
        with anyio.fail_after(DEADLINE):
            while asked(face, "s1") < 3:  # noqa: ASYNC110 - another task counts, and rings no bell
                await anyio.sleep(0.01)

    for _ in range(2):  # another event loop takes over when the first has ended
        before = asked(face, "s1")
        anyio.run(story, backend=library)
        assert asked(face, "s1") >= before and backend.checks_are_free
        face.apps["s1"].seen.clear()


def test_in_maintenance_nobody_asks(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), check=Check("/health", **OFTEN))
    with running(face, backend):
        until(lambda: asked(face, "s1") > 1)
        backend["s1"].state = AdminState.MAINT
        until(lambda: asked(face, "s2") > asked(face, "s1") + 5)
        backend["s1"].state = AdminState.READY
        before = asked(face, "s1")
        until(lambda: asked(face, "s1") > before + 1)


def test_what_clients_meet_is_reported_where_it_is_of_interest(face: Face) -> None:
    check = Check("/health", observe="layer7", error_limit=2, on_error="mark-down", inter=60)
    backend = face.backend(face.server("s1"), face.server("s2"), persist=PLAIN, check=check)
    dispatcher: Any = face.dispatcher(backend)
    get = face.client(dispatcher)
    face.apps["s1"].status = 500
    assert get(cookie="SERVERID=s1").status == 500
    face.apps["s1"].status = 501
    get(cookie="SERVERID=s1")
    face.apps["s1"].raises = RuntimeError("out of order")
    get.outcome(cookie="SERVERID=s1")
    assert backend["s1"].status == "UP"
    get.outcome(cookie="SERVERID=s1")
    assert backend["s1"].status == "DOWN"
    assert get(cookie="SERVERID=s1").server == "s2"
    if face.name == "wsgi":
        dispatcher.replicas.stop()


def test_nginx_s_failures_are_counted(face: Face) -> None:
    backend = face.backend(face.server("s1", max_fails=2), face.server("s2"), persist=PLAIN)
    get = face.client(backend)
    face.apps["s1"].raises = ServerFailure(Failure.REFUSED)
    assert [get(cookie="SERVERID=s1").server for _ in range(2)] == ["s2", "s2"]
    assert backend["s1"].status == "DOWN"
    assert get(cookie="SERVERID=s1").decision.attempts == ("s2",)


def test_a_forked_child_begins_checks_of_its_own(face: Face) -> None:
    if face.name == "asgi":
        pytest.skip("an event loop does not survive a fork")
    backend = face.backend(face.server("s1"), check=Check("/health", **OFTEN))
    with running(face, backend) as run:
        until(lambda: asked(face, "s1") > 1)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:  # pragma: no cover - another process
            code = 1
            try:
                assert not [thread for thread in threading.enumerate() if thread.name.startswith("check")]
                before = asked(face, "s1")
                time.sleep(0.1)
                assert asked(face, "s1") == before, "not before its first request"
                run.get()
                until(lambda: asked(face, "s1") > before + 2)
                threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("checks")]
                assert len(threads) == 1
                code = 0
            finally:
                os._exit(code)
        os.close(read)
        os.close(write)
        assert os.waitpid(child, 0)[1] == 0


def test_who_waits_for_a_drain_and_for_changes_is_told(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"))
    if face.name == "wsgi":
        events = backend.events()
        backend["s1"].drain()
        assert backend.drained("s1").wait(DEADLINE)
        assert [next(events).after for _ in range(2)] == ["DRAIN", "DRAINED"]
        return

    async def story() -> list[str]:
        events = backend.events()
        seen: list[str] = []

        async def listen() -> None:
            async for change in events:
                seen.append(change.after)  # noqa: PERF401 - one by one, as they come

        listening = asyncio.create_task(listen())
        await asyncio.sleep(0)
        await asyncio.to_thread(backend["s1"].drain)
        async with asyncio.timeout(DEADLINE):
            await backend.drained("s1")
        await asyncio.to_thread(events.close)
        await asyncio.wait_for(listening, DEADLINE)
        return seen

    assert asyncio.run(story()) == ["DRAIN", "DRAINED"]
