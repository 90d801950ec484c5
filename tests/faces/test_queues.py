"""Requests that wait for a slot at a server that has reached its `maxconn`, on ASGI (asyncio and trio) and on WSGI:
tasks and threads that run at the same time, on a bench that shows which server or queue each request is in.

    backend = bench.backend(bench.server("s1"), bench.server("s2"))    # one slot each
    first, second = bench.visit("s1"), bench.visit("s1")              # the first is in its app, the second waits
    first.release()
    until(lambda: second.inside == "s1")
"""

from __future__ import annotations

import asyncio
import io
import os
import select
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any, Literal
from wsgiref.validate import validator

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest

import sticky_asgi
import sticky_asgi.middleware
import sticky_asgi.waits
import sticky_wsgi
import sticky_wsgi.middleware
import sticky_wsgi.waits
from sticky_core.backend.backend import Backend
from sticky_core.balance import Hash, RoundRobin
from sticky_core.decision import Decision
from sticky_core.errors import Failure, ServerFailure
from sticky_core.http.timeouts import Timeouts
from sticky_core.persistence.claim import Claim, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.counters import Total
from sticky_core.server.server import Server
from sticky_core.server.state import Health
from sticky_core.transaction.steps import Step, Unavailable
from sticky_core.transaction.transaction import Transaction
from tests.faces.kept import assert_holds_no_request

PATIENCE = 300.0  # seconds, for waits that take milliseconds
PLAIN = Cookie("SERVERID", signed=False, nocache=False)


def until(condition: Callable[[], object]) -> None:
    """Wait until `condition` returns true. Another thread changes its result."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the condition is still false"
        time.sleep(0.001)


class Killed(BaseException):
    """Ends a thread from outside, as gevent does."""


class Visit(ABC):
    """A request, and its state in the bench."""

    def __init__(self, bench: Bench, number: int) -> None:
        self.bench = bench
        self.number = number
        self.inside: str | None = None  # the server with the app that handles it now
        self.tried: list[str] = []  # all servers that have received it
        self.status = 0
        self.cookies: list[str] = []
        self.raised: BaseException | None = None
        self.over = threading.Event()
        #: the servers at which it fails
        self.fails: tuple[str, ...] = ()
        self.request: dict[str, Any] = {}

    @property
    def decision(self) -> Decision:
        found: Decision = self.request[self.bench.key]
        return found

    @property
    def transaction(self) -> Transaction[Any, Any] | None:
        """The transaction while it waits for its next server."""
        return self.bench.waiting.get(id(self.request))

    @property
    def waits(self) -> bool:
        """Whether the request is in a queue."""
        return self.inside is None and not self.over.is_set() and self.transaction is not None

    @property
    def is_placed(self) -> bool:
        """Whether the request is in an app, in a queue, or over."""
        return self.over.is_set() or self.inside is not None or self.waits

    @property
    def server(self) -> str | None:
        """The server that responded, once it is over."""
        assert self.over.is_set()
        return self.decision.server

    def enters(self, name: str) -> None:
        self.tried.append(name)
        self.bench.count(name, 1)
        if name in self.fails:
            self.bench.count(name, -1)
            raise ServerFailure(Failure.REFUSED, name)
        self.inside = name

    def exits(self) -> None:
        assert self.inside is not None
        self.bench.count(self.inside, -1)
        self.inside = None

    def release(self) -> Visit:
        """Release the app that handles the request, and wait for the end of the request."""
        self.open()
        return self.ends()

    def ends(self) -> Visit:
        """Wait for the end of the request, without releasing its app."""
        assert self.over.wait(PATIENCE), "it does not end"
        return self

    @abstractmethod
    def open(self) -> None:
        """Release the app, without waiting for the end of the request."""

    @abstractmethod
    def disconnect(self) -> None:
        """Disconnect the client."""

    @abstractmethod
    def end(self) -> None:
        """Cancel the task, or kill the thread, that serves the request."""


class Bench(ABC):
    """The servers and backends of one of the two packages, and the requests that are sent to them."""

    package: Any
    key: str

    def __init__(self) -> None:
        self.visits: list[Visit] = []
        self.backends: list[Backend] = []
        self.logged: list[Decision] = []
        #: the transactions that wait for their next server, by the identity of their request
        self.waiting: dict[int, Transaction[Any, Any]] = {}
        #: whether apps respond at once, without `release`
        self.responds_at_once = False
        #: whether apps send their head and a first piece before they wait
        self.streams = False
        self._lock = threading.Lock()
        self.in_apps: dict[str, int] = {}
        self.largest_in_apps: dict[str, int] = {}
        self._apps: dict[Backend, Callable[..., Any]] = {}

    @contextmanager
    def recorded_wait(self, transaction: Transaction[Any, Any], step: Step) -> Generator[None]:
        """Record a transaction as waiting while its step is a wait."""
        number = id(transaction.raw_request)
        if not isinstance(step, Unavailable):
            self.waiting[number] = transaction
        try:
            yield
        finally:
            self.waiting.pop(number, None)

    def count(self, name: str, change: int) -> None:
        with self._lock:
            self.in_apps[name] = self.in_apps.get(name, 0) + change
            self.largest_in_apps[name] = max(self.in_apps[name], self.largest_in_apps.get(name, 0))

    def server(self, name: str, maxconn: int = 1, **options: Any) -> Server:
        made: Server = self.package.Server(name, self._app(name), maxconn=maxconn, **options)
        return made

    def backend(self, *servers: Server, **options: Any) -> Backend:
        defaults: dict[str, Any] = {"balance": RoundRobin(start=0), "persist": PLAIN, "log": self.logged.append}
        made: Backend = self.package.Backend("web", servers, **defaults | options)
        self.backends.append(made)
        self._apps[made] = self.package.Dispatcher(made)
        return made

    @property
    def dispatcher(self) -> Callable[..., Any]:
        return self._apps[self.backends[-1]]

    def visit(
        self,
        of: str | None = None,
        *,
        wait: bool = True,
        fails: Sequence[str] = (),
        elsewhere: bool = False,
        kind: str = "http",
    ) -> Visit:
        """Begin a request of a client that belongs to the server `of`, and wait until it is in an app, in a queue, or
        over. `elsewhere`: in another event loop than the others.
        """
        visit = self._begin(of, tuple(fails), elsewhere, kind)
        if wait:
            until(lambda: visit.is_placed)
        return visit

    def settle(self) -> None:
        """Release all requests, and check that no slot and no place in a queue is held."""
        until(self._emptied)
        for backend in self.backends:
            assert [len(server.in_flight) for server in backend.servers] == [0] * len(backend.servers)
            assert backend.qcur() == 0 and not any(map(backend.qcur, backend.servers))
        errors = [visit.raised for visit in self.visits if visit.raised is not None]
        assert all(isinstance(error, Killed) for error in errors), errors

    def _emptied(self) -> bool:
        here = [visit for visit in self.visits if not visit.over.is_set()]
        inside = [visit for visit in here if visit.inside is not None]
        for visit in inside or here:
            visit.open() if inside else visit.disconnect()
        return not here

    @abstractmethod
    def close(self) -> None:
        """End the tasks or threads that a failed test has left behind."""

    @abstractmethod
    def alone(self) -> int:
        """Return the status of a request that needs no other thread or loop, at an app that responds at once."""

    @abstractmethod
    def _begin(self, of: str | None, fails: tuple[str, ...], elsewhere: bool = False, kind: str = "http") -> Visit: ...

    @abstractmethod
    def _app(self, name: str) -> Callable[..., Any]: ...


# -- ASGI


class AsgiVisit(Visit):
    portal: anyio.from_thread.BlockingPortal
    task: Future[None]
    gate: anyio.Event
    left: anyio.Event

    def open(self) -> None:
        self.portal.call(self.gate.set)

    def disconnect(self) -> None:
        self.portal.call(self.left.set)

    def end(self) -> None:
        self.raised = Killed()  # a cancelled task does not set it
        self.task.cancel()


class AsgiBench(Bench):
    package = sticky_asgi
    key = "sticky"
    loop: Literal["asyncio", "trio"] = "asyncio"

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._portals: dict[bool, anyio.from_thread.BlockingPortal] = {}
        self._tasks: dict[bool, int] = {}  # the number of tasks without requests, by `elsewhere`

    def _portal(self, elsewhere: bool) -> anyio.from_thread.BlockingPortal:
        if elsewhere not in self._portals:
            portal = self._stack.enter_context(anyio.from_thread.start_blocking_portal(self.loop))
            self._portals[elsewhere] = portal
            self._tasks[elsewhere] = portal.call(self._count_tasks)
        return self._portals[elsewhere]

    @staticmethod
    async def _count_tasks() -> int:
        return len(anyio.get_running_tasks())

    def settle(self) -> None:
        super().settle()
        for elsewhere, portal in self._portals.items():
            until(lambda: portal.call(self._count_tasks) == self._tasks[elsewhere])  # noqa: B023 - called within this iteration

    def close(self) -> None:
        for visit in self.visits:
            if not visit.over.is_set():
                visit.end()
        self._stack.close()

    def _begin(self, of: str | None, fails: tuple[str, ...], elsewhere: bool = False, kind: str = "http") -> AsgiVisit:
        visit = AsgiVisit(self, len(self.visits))
        visit.fails = fails
        self.visits.append(visit)
        visit.request = self._scope(visit.number, of, kind)
        visit.portal = self._portal(elsewhere)
        visit.task = visit.portal.start_task_soon(self._serve, visit, self.dispatcher)
        return visit

    @staticmethod
    def _scope(number: int, of: str | None, kind: str) -> dict[str, Any]:
        headers = [(b"host", b"shop.example"), (b"x-visit", b"%d" % number)]
        if of is not None:
            headers.append((b"cookie", f"SERVERID={of}".encode()))
        return {
            "type": kind,
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            **({"method": "GET"} if kind == "http" else {"subprotocols": []}),
            "scheme": "http" if kind == "http" else "ws",
            "path": "/",
            "raw_path": b"/",
            "root_path": "",
            "query_string": b"",
            "headers": headers,
            "client": ("192.0.2.1", 50000),
            "server": ("shop.example", 80),
            "extensions": {},
        }

    async def _serve(self, visit: AsgiVisit, dispatcher: Callable[..., Any]) -> None:
        visit.gate, visit.left = anyio.Event(), anyio.Event()
        kind = visit.request["type"]
        sent = [{"type": "http.request", "body": b"", "more_body": False}]
        if kind == "websocket":
            sent = [{"type": "websocket.connect"}]

        async def receive() -> dict[str, Any]:
            if sent:
                return sent.pop()
            await visit.left.wait()
            return {"type": f"{kind}.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] in ("http.response.start", "websocket.accept", "websocket.close"):
                assert not visit.status, "a second head"
                visit.status = message.get("status", 101 if message["type"] == "websocket.accept" else 403)
                headers = message.get("headers", ())
                visit.cookies = [value.decode() for name, value in headers if name == b"set-cookie"]

        try:
            await dispatcher(visit.request, receive, send)
        except Exception as error:
            visit.raised = error
        finally:
            visit.over.set()

    def _app(self, name: str) -> Callable[..., Any]:
        async def app(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
            number = next(int(value) for key, value in scope["headers"] if key == b"x-visit")
            visit = self.visits[number]
            assert isinstance(visit, AsgiVisit)
            visit.enters(name)
            head = {"type": "http.response.start", "status": 200, "headers": []}
            if scope["type"] == "websocket":
                await receive()
                head = {"type": "websocket.accept"}
            try:
                if self.streams:
                    await send(head)
                    await send({"type": "http.response.body", "body": b"first", "more_body": True})
                if self.responds_at_once:
                    await anyio.lowlevel.checkpoint()
                else:
                    await visit.gate.wait()
            finally:
                visit.exits()
            if not self.streams:
                await send(head)
            if scope["type"] == "http":
                await send({"type": "http.response.body", "body": name.encode()})

        return app

    def alone(self) -> int:
        visit = AsgiVisit(self, len(self.visits))
        self.visits.append(visit)
        visit.request = self._scope(visit.number, None, "http")
        anyio.run(self._serve, visit, self.dispatcher, backend=self.loop)
        return visit.status


class TrioBench(AsgiBench):
    loop = "trio"


# -- WSGI


class WsgiVisit(Visit):
    def __init__(self, bench: Bench, number: int) -> None:
        super().__init__(bench, number)
        self.gate, self.left, self.killed = threading.Event(), threading.Event(), threading.Event()

    def open(self) -> None:
        self.gate.set()

    def disconnect(self) -> None:
        self.left.set()

    def end(self) -> None:
        self.killed.set()

    def has_left(self) -> bool:
        if self.killed.is_set():
            raise Killed
        return self.left.is_set()


class WsgiBench(Bench):
    package = sticky_wsgi
    key = "sticky.decision"

    def close(self) -> None:
        for visit in self.visits:
            visit.end()
            visit.open()

    def _begin(self, of: str | None, fails: tuple[str, ...], elsewhere: bool = False, kind: str = "http") -> WsgiVisit:
        visit = self._visit(of)
        visit.fails = fails
        threading.Thread(target=self._serve, args=(visit, self.dispatcher), daemon=True).start()
        return visit

    def _visit(self, of: str | None) -> WsgiVisit:
        visit = WsgiVisit(self, len(self.visits))
        self.visits.append(visit)
        visit.request = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": "/",
            "QUERY_STRING": "",
            "SERVER_NAME": "shop.example",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "192.0.2.1",
            "HTTP_X_VISIT": str(visit.number),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "waitress.client_disconnected": visit.has_left,
        }
        if of is not None:
            visit.request["HTTP_COOKIE"] = f"SERVERID={of}"
        return visit

    def _serve(self, visit: WsgiVisit, dispatcher: Callable[..., Any]) -> None:
        def start_response(
            status: str, headers: list[tuple[str, str]], exc_info: Any = None
        ) -> Callable[[bytes], None]:
            assert not visit.status, "a second head"
            visit.status = int(status[:3])
            visit.cookies = [value for name, value in headers if name.lower() == "set-cookie"]
            return lambda data: None

        try:
            body = validator(dispatcher)(visit.request, start_response)
            try:
                for _ in body:
                    pass
            finally:
                body.close()  # type: ignore[attr-defined]  # the iterable of the validator has one
        except BaseException as error:
            visit.raised = error
        finally:
            visit.over.set()

    def _app(self, name: str) -> Callable[..., Any]:
        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            visit = self.visits[int(environ["HTTP_X_VISIT"])]
            assert isinstance(visit, WsgiVisit)
            visit.enters(name)
            if self.streams:
                start_response("200 OK", [("Content-Type", "text/plain")])
                return self._streamed(visit)
            try:
                if self.responds_at_once:
                    time.sleep(0)
                else:
                    assert visit.gate.wait(PATIENCE)
            finally:
                visit.exits()
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [name.encode()]

        return app

    @staticmethod
    def _streamed(visit: WsgiVisit) -> Iterator[bytes]:
        yield b"first"
        assert visit.gate.wait(PATIENCE)
        visit.exits()
        yield b"last"

    def alone(self) -> int:
        visit = self._visit(None)
        self._serve(visit, self.dispatcher)
        return visit.status


BENCHES: dict[str, type[Bench]] = {"asgi": AsgiBench, "asgi on trio": TrioBench, "wsgi": WsgiBench}


@pytest.fixture(params=BENCHES)
def bench(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made: Bench = BENCHES[request.param]()
    resolve_async, resolve = sticky_asgi.waits.resolve_wait, sticky_wsgi.waits.resolve_wait

    async def watched_async(transaction: Any, step: Step, body: Any) -> Server | None:
        with made.recorded_wait(transaction, step):
            return await resolve_async(transaction, step, body)

    def watched(transaction: Any, step: Step) -> Server | None:
        with made.recorded_wait(transaction, step):
            return resolve(transaction, step)

    monkeypatch.setattr(sticky_asgi.middleware, "resolve_wait", watched_async)
    monkeypatch.setattr(sticky_wsgi.middleware, "resolve_wait", watched)
    try:
        yield made
        made.settle()
    finally:
        made.close()


def put(server: Server, state: str) -> None:
    if state in ("down", "up"):
        server.health = Health.DOWN if state == "down" else Health.UP
    else:
        server.state = state  # type: ignore[assignment]  # a str is accepted


# -- which request is next


def test_a_client_of_a_full_server_waits_for_it_and_gets_a_slot_in_order(bench: Bench) -> None:
    bench.backend(bench.server("s1"), bench.server("s2"))
    visits = [bench.visit("s1") for _ in range(4)]
    for number, (before, after) in enumerate(pairwise(visits), 1):
        assert before.inside == "s1"
        assert all(visit.waits for visit in visits[number:])
        before.release()
        until(lambda: after.inside)  # noqa: B023 - called within this iteration
    visits[-1].release()
    for visit in visits:
        assert (visit.status, visit.server, visit.cookies) == (200, "s1", [])
        assert (visit.decision.claim, visit.decision.attempts) == (Claim.VALID, ("s1",))
    assert bench.largest_in_apps == {"s1": 1}


def test_a_new_client_gets_the_first_free_slot_and_a_mark_of_that_server(bench: Bench) -> None:
    bench.backend(bench.server("s1"), bench.server("s2"))
    one, other = bench.visit(), bench.visit()
    assert (one.inside, other.inside) == ("s1", "s2")
    first, second = bench.visit(), bench.visit()
    assert first.waits and second.waits
    other.release()
    until(lambda: first.inside)
    one.release()
    until(lambda: second.inside)
    assert (first.inside, second.inside) == ("s2", "s1")
    assert first.release().cookies == ["SERVERID=s2; path=/"]
    assert second.release().cookies == ["SERVERID=s1; path=/"]


def test_the_longest_wait_is_next_whether_for_one_server_or_for_any(bench: Bench) -> None:
    bench.backend(bench.server("s1"))
    served: list[Visit] = [bench.visit()]
    visits = [bench.visit(of) for of in (None, "s1", "s1", None, "s1")]
    for visit in visits:
        served[-1].release()
        until(lambda: any(each.inside for each in visits))
        served.append(next(each for each in visits if each.inside))
        assert served[-1] is visit


def test_a_slot_is_held_until_the_end_of_a_response_and_not_its_beginning(bench: Bench) -> None:
    bench.streams = True
    bench.backend(bench.server("s1"))
    first = bench.visit()
    until(lambda: first.status == 200)
    second = bench.visit()
    assert second.waits
    first.release()
    until(lambda: second.inside)


def test_a_server_without_a_limit_takes_all_requests(bench: Bench) -> None:
    bench.backend(bench.server("s1"), bench.server("s2", maxconn=0))
    visits = [bench.visit("s2") for _ in range(5)] + [bench.visit() for _ in range(3)]
    assert [visit.inside for visit in visits] == ["s2"] * 5 + ["s1", "s2", "s2"]


def test_a_slot_passes_from_one_thread_or_loop_to_another(bench: Bench) -> None:
    bench.backend(bench.server("s1"))
    visits = [bench.visit(elsewhere=bool(number % 2)) for number in range(4)]
    for before, after in pairwise(visits):
        before.release()
        until(lambda: after.inside)  # noqa: B023 - called within this iteration


def test_a_client_of_a_failed_server_waits_for_the_next_and_gets_its_mark(bench: Bench) -> None:
    backend = bench.backend(bench.server("s1"), bench.server("s2"))
    busy = bench.visit("s2")
    moved = bench.visit("s1", fails=["s1"])
    assert moved.waits and moved.tried == ["s1"]
    free = bench.visit("s1")
    assert free.inside == "s1", "the released slot goes to a request that has not tried the server"
    busy.release()
    until(lambda: moved.inside)
    moved.release()
    assert (moved.status, moved.server, moved.cookies) == (200, "s2", ["SERVERID=s2; path=/"])
    assert (moved.decision.claim, moved.decision.reason) == (Claim.DOWN, Reason.FAILED)
    assert [backend["s1"].counters[total] for total in (Total.WREDIS, Total.WRETR, Total.ECON)] == [1, 0, 1]


@pytest.mark.parametrize("loops", [1, 2], ids=["in one loop", "in two"])
def test_two_hundred_at_once_never_exceed_the_slots_and_all_are_served(bench: Bench, loops: int) -> None:
    servers = [bench.server("s1", maxconn=3), bench.server("s2", maxconn=2)]
    backend = bench.backend(*servers, timeouts=Timeouts(queue=2 * PATIENCE))
    inside = [bench.visit(elsewhere=number % loops == 1) for number in range(5)]
    of = [None, "s1", "s2", None, "s1"] * 39
    waiting = [bench.visit(belongs, wait=False, elsewhere=number % loops == 1) for number, belongs in enumerate(of)]
    until(lambda: all(visit.waits for visit in waiting))
    bench.responds_at_once = True
    for visit in inside:
        visit.open()
    assert [visit.ends().status for visit in bench.visits] == [200] * 200
    assert bench.largest_in_apps == {"s1": 3, "s2": 2}
    assert all(visit.server == belongs for visit, belongs in zip(waiting, of, strict=True) if belongs)
    assert sum(server.total for server in backend.servers) == len(bench.logged) == 200


# -- queues that are full


def test_with_a_full_queue_a_client_gets_another_server_and_its_mark(bench: Bench) -> None:
    bench.backend(bench.server("s1", maxqueue=1), bench.server("s2"))
    inside, waiting, moved = (bench.visit("s1") for _ in range(3))
    assert (inside.inside, waiting.waits, moved.inside) == ("s1", True, "s2")
    moved.release()
    assert (moved.status, moved.server, moved.cookies) == (200, "s2", ["SERVERID=s2; path=/"])
    assert (moved.decision.claim, moved.decision.reason) == (Claim.DOWN, Reason.FULL)


def test_if_the_other_server_is_full_too_a_client_waits_for_any_and_gets_the_mark_of_that(bench: Bench) -> None:
    bench.backend(bench.server("s1", maxqueue=1), bench.server("s2"))
    visits = [bench.visit(of) for of in ("s1", "s2", "s1", "s1")]
    _, on_s2, _, moved = visits
    assert moved.waits
    on_s2.release()
    until(lambda: moved.inside)
    moved.release()
    assert (moved.status, moved.server, moved.cookies) == (200, "s2", ["SERVERID=s2; path=/"])
    assert (moved.decision.claim, moved.decision.reason) == (Claim.DOWN, Reason.FULL)


def test_a_request_that_waits_for_any_server_may_get_its_own_and_no_new_mark(bench: Bench) -> None:
    bench.backend(bench.server("s1", maxqueue=1), bench.server("s2"))
    inside, _, own, late = (bench.visit(of) for of in ("s1", "s2", "s1", "s1"))
    assert late.waits
    inside.release()
    until(lambda: own.inside)
    own.release()
    until(lambda: late.inside)
    late.release()
    assert (late.server, late.cookies, late.decision.claim) == ("s1", [], Claim.VALID)


@pytest.mark.parametrize(
    "options", [{"redispatch": False}, {"unavailable": "fail"}], ids=["no redispatch", "unavailable=fail"]
)
def test_with_a_full_queue_and_no_redispatch_a_client_gets_503(bench: Bench, options: dict[str, Any]) -> None:
    bench.backend(bench.server("s1", maxqueue=1), bench.server("s2"), **options)
    bench.visit("s1"), bench.visit("s1")
    away = bench.visit("s1")
    assert away.over.is_set()
    assert (away.status, away.server, away.cookies, away.tried) == (503, None, [], [])


def test_with_full_queues_a_client_gets_503(bench: Bench) -> None:
    bench.backend(bench.server("s1", maxqueue=2))
    visits = [bench.visit() for _ in range(4)]
    assert [visit.waits for visit in visits] == [False, True, True, False]
    assert (visits[3].status, visits[3].server) == (503, None)


# -- waits that end without a slot


@pytest.mark.parametrize("of", [None, "s1"], ids=["for any server", "for its own"])
def test_a_wait_without_a_slot_ends_with_503(bench: Bench, of: str | None) -> None:
    bench.backend(bench.server("s1"), timeouts=Timeouts(queue="10ms"))
    inside = bench.visit()
    away = bench.visit(of).ends()
    assert (away.status, away.server, away.cookies, away.tried) == (503, None, [], [])
    assert inside.release().status == 200
    assert bench.visit(of).inside == "s1", "the wait holds no slot and no place in the queue"


def test_by_default_the_queue_timeout_is_the_connect_timeout(bench: Bench) -> None:
    bench.backend(bench.server("s1"), timeouts=Timeouts(connect="10ms"))
    bench.visit()
    assert bench.visit().ends().status == 503


@pytest.mark.parametrize("state", ["down", "maint"])
def test_a_request_that_waits_for_a_server_that_goes_down_gets_another_and_its_mark(bench: Bench, state: str) -> None:
    backend = bench.backend(bench.server("s1"), bench.server("s2", maxconn=2))
    inside, *waiting = (bench.visit("s1") for _ in range(4))
    assert all(visit.waits for visit in waiting)
    put(backend["s1"], state)
    until(lambda: sum(visit.inside == "s2" for visit in waiting) == 2)
    assert inside.inside == "s1", "a request in flight may stay"
    last = next(visit for visit in waiting if visit.inside is None)  # which of them is woken first is not determined
    until(lambda: last.waits)
    next(visit for visit in waiting if visit.inside).release()
    until(lambda: last.inside)
    bench.settle()
    for visit in waiting:
        assert (visit.status, visit.server, visit.cookies) == (200, "s2", ["SERVERID=s2; path=/"])
        assert (visit.decision.claim, visit.decision.reason) == (Claim.DOWN, Reason.DOWN)


def test_without_redispatch_a_request_waits_until_a_server_that_is_down_is_back(bench: Bench) -> None:
    backend = bench.backend(bench.server("s1"), bench.server("s2"), redispatch=False)
    inside, waiting = bench.visit("s1"), bench.visit("s1")
    put(backend["s1"], "down")
    inside.release()
    assert waiting.waits
    put(backend["s1"], "up")
    until(lambda: waiting.inside)
    assert waiting.release().server == "s1"


def test_without_redispatch_a_request_that_waits_for_a_server_in_maintenance_still_gets_another(bench: Bench) -> None:
    backend = bench.backend(bench.server("s1"), bench.server("s2"), redispatch=False)
    _, waiting = bench.visit("s1"), bench.visit("s1")
    put(backend["s1"], "maint")
    until(lambda: waiting.inside)
    assert waiting.release().cookies == ["SERVERID=s2; path=/"]


@pytest.mark.parametrize("state", ["down", "maint"])
def test_with_unavailable_fail_a_waiting_request_gets_503(bench: Bench, state: str) -> None:
    backend = bench.backend(bench.server("s1"), bench.server("s2"), unavailable="fail")
    _, waiting = bench.visit("s1"), bench.visit("s1")
    put(backend["s1"], state)
    waiting.ends()
    assert (waiting.status, waiting.server, waiting.tried, waiting.cookies) == (503, None, [], [])


@pytest.mark.parametrize("of", [None, "s1"], ids=["for any server", "for its own"])
def test_a_wait_ends_with_503_when_no_server_is_left(bench: Bench, of: str | None) -> None:
    backend = bench.backend(bench.server("s1"), bench.server("s2"))
    bench.visit("s1"), bench.visit("s2")
    waiting = bench.visit(of)
    put(backend["s2"], "down")
    assert waiting.waits
    put(backend["s1"], "down")
    assert waiting.ends().status == 503


def test_a_draining_server_serves_the_requests_that_wait_for_it(bench: Bench) -> None:
    backend = bench.backend(bench.server("s1"), bench.server("s2"))
    inside, waiting = bench.visit("s1"), bench.visit("s1")
    put(backend["s1"], "drain")
    inside.release()
    until(lambda: waiting.inside)
    assert waiting.release().server == "s1"


def test_a_server_that_is_back_takes_requests_that_wait_for_any_server(bench: Bench) -> None:
    backend = bench.backend(bench.server("s1"), bench.server("s2", maxconn=2))
    put(backend["s2"], "maint")
    _, *waiting = (bench.visit() for _ in range(4))
    assert all(visit.waits for visit in waiting)
    put(backend["s2"], "ready")
    until(lambda: waiting[0].inside and waiting[1].inside)
    assert [visit.inside for visit in waiting] == ["s2", "s2", None]


# -- clients that disconnect


@pytest.mark.parametrize("way", ["the client disconnects", "the task or thread is ended"])
@pytest.mark.parametrize("of", [None, "s1"], ids=["for any server", "for its own"])
def test_after_a_request_leaves_the_queue_the_next_gets_the_slot(bench: Bench, of: str | None, way: str) -> None:
    bench.backend(bench.server("s1"))
    inside, leaving, staying = bench.visit(of), bench.visit(of), bench.visit(of)
    if way == "the task or thread is ended":
        leaving.end()
    else:
        leaving.disconnect()
    leaving.ends()
    assert leaving.tried == [] and leaving.decision.server is None
    assert bench.logged == [leaving.decision], "the decision is logged once"
    assert staying.waits
    inside.release()
    until(lambda: staying.inside)
    assert bench.largest_in_apps == {"s1": 1}


def test_on_asgi_a_disconnected_client_gets_no_response(bench: Bench) -> None:
    bench.backend(bench.server("s1"))
    bench.visit()
    leaving = bench.visit()
    leaving.disconnect()
    leaving.ends()
    assert leaving.status == (0 if isinstance(bench, AsgiBench) else 503), "a WSGI app must send a response"


def test_many_random_requests_and_disconnects_leave_nothing_behind(bench: Bench) -> None:
    bench.backend(bench.server("s1", maxconn=2), bench.server("s2"), timeouts=Timeouts(queue=PATIENCE))
    visits = [bench.visit((None, "s1", "s2")[number % 3]) for number in range(30)]
    for number, visit in enumerate(visits):
        if not visit.waits:
            continue
        if number % 4 == 1:
            visit.disconnect()
        elif number % 4 == 2:
            visit.end()
    for visit in visits:
        if visit.inside:
            visit.release()
    bench.settle()
    served = [visit for visit in visits if visit.tried]
    assert all(visit.status == 200 for visit in served) and len(served) >= 15
    assert bench.largest_in_apps["s1"] <= 2 and bench.largest_in_apps["s2"] <= 1


@pytest.mark.parametrize("bench", ["asgi", "asgi on trio"], indirect=True)
@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "stays"])
def test_a_websocket_waits_for_a_slot(bench: Bench, leaves: bool) -> None:
    bench.backend(bench.server("s1"))
    inside, waiting = bench.visit(), bench.visit(kind="websocket")
    assert waiting.waits
    if leaves:
        waiting.disconnect()
        assert waiting.ends().tried == []
        return
    inside.release()
    until(lambda: waiting.inside)
    assert waiting.release().status == 101


@pytest.mark.parametrize("bench", ["asgi"], indirect=True)
def test_a_client_is_not_watched_after_its_wait(bench: Bench) -> None:
    """Check that only the app receives a disconnect of the client after the wait."""
    bench.backend(bench.server("s1"))
    inside, waiting = bench.visit(), bench.visit()
    assert waiting.transaction is not None
    body: Any = waiting.transaction.replayable_body
    until(lambda: body.watched)
    inside.release()
    until(lambda: waiting.inside)
    assert not body.watched


@pytest.mark.parametrize("bench", ["asgi"], indirect=True)
def test_a_waiter_of_a_closed_event_loop_cannot_be_woken(bench: Bench) -> None:
    """Check that `wake` returns False, for which `Backend` wakes the next waiter in the queue instead."""
    loop = asyncio.new_event_loop()

    async def waker() -> Callable[[], bool]:
        return sticky_asgi.messages.waker(anyio.Event())

    wake = loop.run_until_complete(waker())
    assert wake() is True
    loop.close()
    assert wake() is False


@pytest.mark.parametrize("bench", ["asgi on trio"], indirect=True)
def test_a_waiter_of_an_ended_trio_run_cannot_be_woken(bench: Bench) -> None:
    async def waker() -> Callable[[], bool]:
        return sticky_asgi.messages.waker(anyio.Event())

    assert anyio.run(waker, backend="trio")() is False


# -- balance and slots


@pytest.mark.parametrize("balance", ["roundrobin", "leastconn", "first", "static-rr", "random"])
def test_new_clients_get_all_slots_before_one_waits(bench: Bench, balance: str) -> None:
    bench.backend(bench.server("s1", maxconn=2), bench.server("s2"), bench.server("s3", maxconn=3), balance=balance)
    visits = [bench.visit() for _ in range(8)]
    if balance == "random":  # as in HAProxy: a server that is drawn and full is not drawn again
        assert bench.in_apps.keys() <= {"s1", "s2", "s3"}
        return
    assert bench.in_apps == {"s1": 2, "s2": 1, "s3": 3}
    assert [visit.waits for visit in visits] == [False] * 6 + [True] * 2


def test_balance_first_fills_one_server_after_the_other(bench: Bench) -> None:
    bench.backend(bench.server("s1", maxconn=2), bench.server("s2", maxconn=2), balance="first")
    visits = [bench.visit() for _ in range(5)]
    assert [visit.inside for visit in visits] == ["s1", "s1", "s2", "s2", None]
    visits[1].release()
    until(lambda: visits[4].inside)
    assert visits[4].inside == "s1"
    visits[2].release()
    assert bench.visit().inside == "s2"


class Always:
    """A sample that is the same in every request."""

    def __call__(self, request: object) -> str:
        return "the key"


@pytest.mark.parametrize(
    "affinity, maxqueue, places",
    [
        pytest.param("always", 0, ["own", "waits", "waits"], id="always: waits there"),
        pytest.param("maxqueue", 1, ["own", "waits", "other"], id="maxqueue: waits there, unless the queue is full"),
        pytest.param("maxqueue", 0, ["own", "waits", "waits"], id="maxqueue without a limit: waits there"),
        pytest.param("maxconn", 0, ["own", "other", "waits"], id="maxconn: gets another server"),
    ],
)
def test_hash_preserve_affinity_decides_the_server_if_that_of_the_hash_is_full(
    bench: Bench, affinity: Any, maxqueue: int, places: list[str]
) -> None:
    servers = [bench.server("s1", maxqueue=maxqueue), bench.server("s2", maxqueue=maxqueue)]
    bench.backend(*servers, balance=Hash(Always(), hash_preserve_affinity=affinity), persist=())
    visits = [bench.visit() for _ in range(3)]
    own = visits[0].inside
    assert own is not None
    assert ["waits" if visit.waits else "own" if visit.inside == own else "other" for visit in visits] == places
    visits[0].release()
    waiting = visits[places.index("waits")]
    until(lambda: waiting.inside)
    assert waiting.inside == own


def test_a_backup_gets_no_request_that_can_wait_for_another_server(bench: Bench) -> None:
    backend = bench.backend(bench.server("s1"), bench.server("sorry", maxconn=0, backup=True))
    inside, waiting = bench.visit(), bench.visit()
    assert waiting.waits
    put(backend["s1"], "down")
    until(lambda: waiting.inside)
    assert waiting.inside == "sorry", "it gets a request that has no other server to wait for"
    assert inside.release().status == 200


def test_a_draining_server_gets_no_request_that_can_wait_for_another_server(bench: Bench) -> None:
    backend = bench.backend(bench.server("s1"), bench.server("s2", maxconn=0))
    put(backend["s2"], "drain")
    bench.visit()
    waiting = bench.visit()
    assert waiting.waits
    put(backend["s1"], "maint")
    until(lambda: waiting.inside)
    assert waiting.inside == "s2", "it gets a request that has no other server to wait for"


# -- a forked child


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_a_child_has_slots_and_a_queue_of_its_own(bench: Bench) -> None:
    backend = bench.backend(bench.server("s1"), timeouts=Timeouts(queue=PATIENCE))
    inside, waiting = bench.visit(), bench.visit()

    def work() -> str:
        bench.responds_at_once = True
        return f"{bench.alone()} {len(backend['s1'].in_flight)} {backend.qcur()}"

    assert _in_child(work) == "200 0 0"
    inside.release()
    until(lambda: waiting.inside)


def _in_child(work: Callable[[], str]) -> str:
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # from 3.12 on, for a fork with threads, which is tested here
        pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, work().encode())
        except BaseException as error:
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        if not select.select([reader], [], [], PATIENCE)[0]:
            os.kill(pid, 9)
            raise AssertionError("the child hangs")
        return os.read(reader, 65536).decode()
    finally:
        os.close(reader)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("ends", ["the client leaves the queue", "the task or thread is ended in the queue"])
def test_kept_decision_of_an_aborted_request_holds_nothing_of_it(bench: Bench, ends: str) -> None:
    bench.backend(bench.server("s1"))
    inside, waiting = bench.visit("s1"), bench.visit("s1")
    if ends == "the client leaves the queue":
        waiting.disconnect()
    else:
        waiting.end()
    waiting.ends()
    inside.release()
    assert len(bench.logged) == 2
    for decision in bench.logged:
        assert_holds_no_request(decision)
