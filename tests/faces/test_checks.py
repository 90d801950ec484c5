"""Health checks run on both faces: replicas are checked by calling them, in parallel, from the first request or the
lifespan until the end.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import pytest

from sticky_core.clock import ManualClock
from sticky_core.errors import ConfigError, Failure, ServerFailure
from sticky_core.health.check import Check, CheckResult
from sticky_core.health.runtime import CheckRuntime
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState
from tests.counting import count_calls
from tests.faces.running import DEADLINE, running, until

if TYPE_CHECKING:
    from tests.faces.conftest import Face

OFTEN: dict[str, Any] = {"inter": 0.03, "fall": 2, "rise": 2}
PLAIN = Cookie("SERVERID", signed=False, nocache=False)


def result(server: Server) -> CheckResult:
    """Return the result of the latest check."""
    assert server.checking is not None
    return server.checking.result


def check_count(face: Face, name: str) -> int:
    """Return how many check requests a replica has received."""
    return sum(request.path == "/health" for request in face.apps[name].seen)


def test_replicas_are_checked_by_calling_them(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), check=Check("/health", **OFTEN))
    assert check_count(face, "s1") == 0, "no checks before the start"
    with running(face, backend):
        until(lambda: check_count(face, "s1") > 2 and check_count(face, "s2") > 2)
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
    times = check_count(face, "s1"), check_count(face, "s2")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("check")]
    time.sleep(0.1)
    assert (check_count(face, "s1"), check_count(face, "s2")) == times, "no checks after the end"
    assert backend.checks_are_free


def test_check_does_not_count_as_a_request(face: Face) -> None:
    backend = face.backend(face.server("s1"), check=Check("/health", method="HEAD", **OFTEN))
    with running(face, backend):
        before = backend["s1"].total
        until(lambda: check_count(face, "s1") > 2)
        assert backend["s1"].total == before
        assert {request.method for request in face.apps["s1"].seen if request.path == "/health"} == {"HEAD"}


def test_hanging_server_does_not_delay_checks_of_others(face: Face) -> None:
    hung, released = threading.Event(), threading.Event()

    def probe(server: Server) -> bool:
        if server.name == "s1":
            hung.set()
            released.wait(DEADLINE)
        else:
            probed.append(server.name)
        return True

    probed: list[str] = []
    backend = face.backend(face.server("s1"), face.server("s2"), check=Check(probe=probe, timeout=0.1, **OFTEN))
    try:
        with running(face, backend):
            until(hung.is_set)
            until(lambda: backend["s1"].status == "DOWN")
            assert "Layer7 timeout" in str(result(backend["s1"]))
            before = len(probed)
            until(lambda: len(probed) > before + 3)
            assert backend["s2"].status == "UP"
            released.set()
            until(lambda: backend["s1"].status == "UP")
    finally:
        released.set()


def test_several_hanging_servers_do_not_delay_checks_of_others(face: Face) -> None:
    hanging = {f"s{number}": threading.Event() for number in range(1, 6)}
    released = threading.Event()
    probed: list[str] = []

    def probe(server: Server) -> bool:
        if server.name in hanging:
            hanging[server.name].set()
            released.wait(DEADLINE)
        probed.append(server.name)
        return True

    servers = [face.server(name) for name in (*hanging, "good")]
    backend = face.backend(*servers, check=Check(probe=probe, timeout=0.1, **OFTEN))
    try:
        with running(face, backend):
            until(lambda: all(event.is_set() for event in hanging.values()), "each server is probed")
            until(lambda: all(backend[name].status == "DOWN" for name in hanging), "each has timed out often enough")
            before = len(probed)
            until(lambda: len(probed) > before + 10)
            assert set(probed) == {"good"} and backend["good"].status == "UP"
            if face.name == "wsgi":
                running_threads = [each for each in threading.enumerate() if each.name.startswith("checks of")]
                assert len(running_threads) < 20, "at most one for each probe and each timeout, and some that wait"
            released.set()
            until(lambda: all(backend[name].status == "UP" for name in hanging))
    finally:
        released.set()


def test_check_that_is_woken_begins_at_once_though_another_hangs(face: Face) -> None:
    hung, released = threading.Event(), threading.Event()
    probed: list[str] = []

    def probe(server: Server) -> bool:
        probed.append(server.name)
        if server.name == "s1":
            hung.set()
            released.wait(DEADLINE)
        return True

    check = Check(probe=probe, inter=DEADLINE)
    servers = face.server("s1"), face.server("s2", check=Check(probe=probe, inter=4 * DEADLINE))
    backend = face.backend(*servers, check=check)
    try:
        with running(face, backend):
            until(hung.is_set)
            for number in range(1, 4):
                backend["s2"].state = AdminState.MAINT
                backend["s2"].state = AdminState.READY
                until(lambda number=number: probed.count("s2") == number)  # type: ignore[misc]
                until(lambda: result(backend["s2"]).status.name == "L7OK")
            released.set()
    finally:
        released.set()


@pytest.mark.parametrize("face", ["wsgi"], indirect=True)
def test_result_of_a_probe_that_ends_after_the_checks_is_not_recorded(face: Face) -> None:
    started, released = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def probe(server: Server) -> bool:
        threads.append(threading.current_thread())
        started.set()
        released.wait(DEADLINE)
        return False

    backend = face.backend(face.server("s1"), check=Check(probe=probe, inter=DEADLINE))
    try:
        with running(face, backend):
            until(started.is_set)
        assert [each for each in threading.enumerate() if each.name.startswith("checks of")] == threads
    finally:
        released.set()
    threads[0].join(DEADLINE)
    assert len(threads) == 1 and result(backend["s1"]).status.name == "INI"


def test_server_that_was_removed_is_kept_by_nothing_if_there_are_no_checks(face: Face) -> None:
    backend = face.backend(face.server("s1"))
    with running(face, backend) as run:
        run.apply(lambda: backend.add(face.server("s2")))
        reference = weakref.ref(backend["s2"])
        assert run.apply(lambda: backend.remove("s2")).retired.wait(DEADLINE)
        gc.collect()
        assert reference() is None


@pytest.mark.parametrize("face", ["asgi"], indirect=True)
def test_probe_can_be_a_coroutine_function(face: Face) -> None:
    healthy = True

    async def probe(server: Server) -> bool:
        await asyncio.sleep(0)
        return healthy

    backend = face.backend(face.server("s1"), check=Check(probe=probe, **OFTEN))
    with running(face, backend):
        until(lambda: result(backend["s1"]).status.name == "L7OK")
        healthy = False
        until(lambda: backend["s1"].status == "DOWN")


def test_decorated_coroutine_function_is_awaited_on_asgi_and_fails_the_check_on_wsgi(face: Face) -> None:
    healthy = True

    async def probe(server: Server) -> bool:
        return healthy

    @functools.wraps(probe)
    def decorated(*args: Any) -> Any:
        return probe(*args)

    backend = face.backend(face.server("s1"), check=Check(probe=decorated, **OFTEN))
    with running(face, backend):
        if face.name == "asgi":
            until(lambda: result(backend["s1"]).status.name == "L7OK")
            healthy = False
            until(lambda: backend["s1"].status == "DOWN")
        else:
            until(lambda: "the probe is a coroutine function" in str(result(backend["s1"])))


@pytest.mark.parametrize("face", ["wsgi"], indirect=True)
def test_probe_that_is_a_coroutine_function_is_refused_on_wsgi(face: Face) -> None:
    async def probe(server: Server) -> bool:
        return True

    of_one = face.server("s1", check=Check(probe=probe))
    with pytest.raises(ConfigError, match=r"backend web: server s1: check: probe .* which WSGI can't await"):
        face.dispatcher(face.backend(of_one))
    with pytest.raises(ConfigError, match=r"backend web: check: probe .* which WSGI can't await"):
        face.dispatcher(face.backend(face.server("s1"), check=Check(probe=probe)))
    backend = face.backend(face.server("s1"))
    face.dispatcher(backend)
    with pytest.raises(ConfigError, match="pass a plain function"):
        backend.apply(replace(backend.config, check=Check(probe=probe)))


@pytest.mark.parametrize("face", ["asgi"], indirect=True)
def test_replicas_and_urls_are_checked_on_trio(face: Face) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        made: Server = face.package.Server("s2", url, check=Check(**OFTEN))
        backend = face.backend(face.server("s1"), made, check=Check("/health", **OFTEN))
        with running(face, backend, "trio"):
            until(lambda: check_count(face, "s1") > 2)
            until(lambda: result(made).status.name == "L4OK")
            listener.close()
            until(lambda: made.status == "DOWN")
            assert "Connection refused" in str(result(made))


@pytest.mark.parametrize("face", ["asgi"], indirect=True)
@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_without_a_lifespan_checks_start_with_the_first_request(face: Face, library: str) -> None:
    backend = face.backend(face.server("s1"), check=Check("/health", **OFTEN))
    dispatcher = face.dispatcher(backend)

    async def request_and_wait() -> None:
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b"", "extensions": {}}
        await dispatcher(scope, receive, send)
        assert sent[0]["status"] == 200
        with anyio.fail_after(DEADLINE):
            while check_count(face, "s1") < 3:  # noqa: ASYNC110 - the app that counts sets no event
                await anyio.sleep(0.01)

    for _ in range(2):  # another event loop owns the checks when the first has ended
        before = check_count(face, "s1")
        anyio.run(request_and_wait, backend=library)
        assert check_count(face, "s1") >= before and backend.checks_are_free
        face.apps["s1"].seen.clear()


@pytest.fixture
def origin() -> Iterator[int]:
    """The port of a server, in a thread of its own, that responds 200 and closes the connection."""

    class Origin(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Origin)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("face", ["asgi"], indirect=True)
def test_check_makes_at_most_twice_the_calls_of_a_connection_and_a_request(face: Face, origin: int) -> None:
    async def ask(times: int) -> None:
        for _ in range(times):
            reader, writer = await asyncio.open_connection("127.0.0.1", origin)
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            await reader.read()
            writer.close()

    async def check(times: int) -> None:
        server = Server("s1", f"http://127.0.0.1:{origin}")
        backend = face.backend(server, check=Check("/", inter=DEADLINE))
        record, done = backend.monitor.record_check, asyncio.Event()
        results: list[CheckResult] = []

        def count(server: Server, result: CheckResult, checking: CheckRuntime | None = None) -> None:
            results.append(result)
            record(server, result, checking)
            assert checking is not None
            checking.expedite(backend.clock.monotonic() + 0.002)
            if len(results) == times:
                done.set()

        backend.monitor.record_check = count  # type: ignore[method-assign]
        dispatcher: Any = face.dispatcher(backend)
        async with dispatcher.lifespan():
            await done.wait()
        assert {result.status.name for result in results} == {"L7OK"}

    def calls(work: Callable[[int], Coroutine[Any, Any, None]], times: int) -> int:
        with asyncio.Runner() as runner:
            return count_calls(lambda: runner.run(work(times)))

    calls(check, 1)  # imports what it needs
    asked, checked = (calls(work, 60) - calls(work, 10) for work in (ask, check))
    assert checked < 2 * asked


@pytest.mark.parametrize("face", ["wsgi"], indirect=True)
def test_thread_that_has_probed_takes_further_probes(face: Face) -> None:
    threads: list[threading.Thread] = []

    def probe(server: Server) -> bool:
        threads.append(threading.current_thread())
        return True

    backend = face.backend(face.server("s1"), check=Check(probe=probe, **OFTEN))
    with running(face, backend):
        until(lambda: len(threads) > 20)
    assert len(set(threads)) < 10
    assert not any(thread.is_alive() for thread in threads)


def test_server_in_maintenance_is_not_checked(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), check=Check("/health", **OFTEN))
    with running(face, backend):
        until(lambda: check_count(face, "s1") > 1)
        backend["s1"].state = AdminState.MAINT
        until(lambda: check_count(face, "s2") > check_count(face, "s1") + 5)
        backend["s1"].state = AdminState.READY
        before = check_count(face, "s1")
        until(lambda: check_count(face, "s1") > before + 1)


def test_results_of_requests_are_recorded_for_checks_that_observe_them(face: Face) -> None:
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


def test_failed_requests_are_counted_for_max_fails(face: Face) -> None:
    backend = face.backend(face.server("s1", max_fails=2), face.server("s2"), persist=PLAIN)
    get = face.client(backend)
    face.apps["s1"].raises = ServerFailure(Failure.REFUSED)
    assert [get(cookie="SERVERID=s1").server for _ in range(2)] == ["s2", "s2"]
    assert backend["s1"].status == "DOWN"
    assert get(cookie="SERVERID=s1").decision.attempts == ("s2",)


def test_share_of_failed_requests_takes_a_server_down(face: Face) -> None:
    clock = ManualClock()
    limits: dict[str, Any] = {"fail_rate": 0.5, "fail_volume": 4, "fail_timeout": 10}
    servers = face.server("s1", **limits), face.server("s2"), face.server("s3", max_fails=1)
    backend = face.backend(*servers, persist=PLAIN, retry_on="conn-failure 503", clock=clock)
    get = face.client(backend)
    s1, story = face.apps["s1"], []
    for s1.status in (200, 200, 503, 404, 503, 503):  # the third failure is half of the requests: three of six
        get(cookie="SERVERID=s1")
        story.append(backend["s1"].status)
    assert story == ["UP"] * 5 + ["DOWN"]
    assert get(cookie="SERVERID=s1").decision.attempts[0] != "s1"
    clock.advance(10)
    s1.status = 200
    assert get(cookie="SERVERID=s1").server == "s1" and backend["s1"].status == "UP"
    s1.raises = ServerFailure(Failure.REFUSED)
    for status in ("UP", "UP", "DOWN"):  # counted anew: one has succeeded, and three of four fail
        assert get(cookie="SERVERID=s1").server != "s1"
        assert backend["s1"].status == status


def test_failed_requests_take_down_no_more_than_max_ejected(face: Face, caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    servers = [face.server(name, max_fails=2, fail_timeout=10) for name in ("s1", "s2", "s3")]
    backend = face.backend(*servers, persist=PLAIN, max_ejected=0.5, clock=clock)
    get = face.client(backend)
    for name in ("s1", "s2"):
        face.apps[name].raises = ServerFailure(Failure.REFUSED)
        for _ in range(2):
            assert get(cookie=f"SERVERID={name}").server != name
    assert [server.status for server in backend.servers] == ["DOWN", "UP", "UP"]
    assert [get(cookie="SERVERID=s2").decision.attempts for _ in range(5)] == [("s2", "s3")] * 5
    (line,) = [line for line in caplog.messages if "is not taken down" in line]
    assert line.endswith("allows 1 of 3 servers to be down for failed requests, and 1 are. Reason to take it down: "
                         "2 requests failed.")  # fmt: skip
    clock.advance(10)
    face.apps["s1"].raises = None
    assert get(cookie="SERVERID=s1").server == "s1"
    assert get(cookie="SERVERID=s2").decision.attempts[0] == "s2"
    assert [server.status for server in backend.servers] == ["UP", "DOWN", "UP"], "its failures have gone on counting"
    backend["s1"].state = backend["s3"].state = AdminState.MAINT
    assert backend["s2"].status == "UP", "it is the only server that is left, so it may not be down"


def test_observed_requests_take_down_no_more_than_max_ejected(face: Face) -> None:
    check = Check("/health", observe="layer7", error_limit=2, on_error="mark-down", inter=60)
    backend = face.backend(face.server("s1"), face.server("s2"), persist=PLAIN, check=check, max_ejected=0.5)
    dispatcher: Any = face.dispatcher(backend)
    get = face.client(dispatcher)
    for name in ("s1", "s2"):
        face.apps[name].status = 500
        for _ in range(4):
            get(cookie=f"SERVERID={name}")
    assert [(server.status, server.is_ejected) for server in backend.servers] == [("DOWN", True), ("UP", False)]
    assert get(cookie="SERVERID=s1").server == "s2"
    if face.name == "wsgi":
        dispatcher.replicas.stop()


def test_forked_child_starts_checks_of_its_own(face: Face) -> None:
    if face.name == "asgi":
        pytest.skip("an event loop does not survive a fork")
    backend = face.backend(face.server("s1"), check=Check("/health", **OFTEN))
    with running(face, backend) as run:
        until(lambda: check_count(face, "s1") > 1)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:  # pragma: no cover - another process
            code = 1
            try:
                assert not [thread for thread in threading.enumerate() if thread.name.startswith("check")]
                before = check_count(face, "s1")
                time.sleep(0.1)
                assert check_count(face, "s1") == before, "no checks before its first request"
                checking = backend["s1"].checking
                assert checking is not None and checking.wake is None, "the parent's check is not woken"
                run.get()
                until(lambda: check_count(face, "s1") > before + 2)
                assert [thread for thread in threading.enumerate() if thread.name.startswith("checks")]
                code = 0
            finally:
                os._exit(code)
        os.close(read)
        os.close(write)
        assert os.waitpid(child, 0)[1] == 0


def test_drained_and_events_can_be_awaited(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"))
    if face.name == "wsgi":
        events = backend.events()
        backend["s1"].drain()
        assert backend.drained("s1").wait(DEADLINE)
        assert [next(events).after for _ in range(2)] == ["DRAIN", "DRAINED"]
        return

    async def drain_and_listen() -> list[str]:
        events = backend.events()
        changes: list[str] = []

        async def listen() -> None:
            async for change in events:
                changes.append(change.after)  # noqa: PERF401 - one by one, as they arrive

        listener = asyncio.create_task(listen())
        await asyncio.sleep(0)
        await asyncio.to_thread(backend["s1"].drain)
        async with asyncio.timeout(DEADLINE):
            await backend.drained("s1")
        await asyncio.to_thread(events.close)
        await asyncio.wait_for(listener, DEADLINE)
        return changes

    assert asyncio.run(drain_and_listen()) == ["DRAIN", "DRAINED"]
