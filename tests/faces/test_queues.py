"""Who waits for a place at a server that has its `maxconn`, on ASGI (asyncio and trio) and on WSGI: tasks and threads
that are really there at the same time, in a hall that tells where each of them stands.

    backend = hall.backend(hall.server("s1"), hall.server("s2"))    # one place each
    first, second = hall.visit("s1"), hall.visit("s1")              # the one is inside, the other waits
    first.let_go()
    hall.until(lambda: second.inside == "s1")
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

PATIENCE = 300.0  # seconds for what takes milliseconds
PLAIN = Cookie("SERVERID", signed=False, nocache=False)


def until(condition: Callable[[], object]) -> None:
    """Wait for something that happens elsewhere."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)


class Killed(BaseException):
    """What ends a thread from outside, such as gevent's."""


class Visit(ABC):
    """A request on its way, as whoever stands in the hall sees it."""

    def __init__(self, hall: Hall, number: int) -> None:
        self.hall = hall
        self.number = number
        self.inside: str | None = None  # the server whose app has it
        self.been: list[str] = []  # all of them
        self.status = 0
        self.cookies: list[str] = []
        self.raised: BaseException | None = None
        self.over = threading.Event()
        #: the servers at which it fails
        self.fails: tuple[str, ...] = ()
        self.request: dict[str, Any] = {}

    @property
    def decision(self) -> Decision:
        found: Decision = self.request[self.hall.key]
        return found

    @property
    def transaction(self) -> Transaction[Any, Any] | None:
        """Its transaction while it waits for its next server."""
        return self.hall.waiting.get(id(self.request))

    @property
    def waits(self) -> bool:
        """Whether it is in a queue."""
        return self.inside is None and not self.over.is_set() and self.transaction is not None

    @property
    def stands(self) -> bool:
        """Whether it has come as far as it can by itself."""
        return self.over.is_set() or self.inside is not None or self.waits

    @property
    def server(self) -> str | None:
        """Who answered, once it is over."""
        assert self.over.is_set()
        return self.decision.server

    def enters(self, name: str) -> None:
        self.been.append(name)
        self.hall.count(name, 1)
        if name in self.fails:
            self.hall.count(name, -1)
            raise ServerFailure(Failure.REFUSED, name)
        self.inside = name

    def exits(self) -> None:
        assert self.inside is not None
        self.hall.count(self.inside, -1)
        self.inside = None

    def let_go(self) -> Visit:
        """Let the app that has it answer, and see the request to its end."""
        self.open()
        return self.ends()

    def ends(self) -> Visit:
        """See it to its end, which comes by itself."""
        assert self.over.wait(PATIENCE), "it does not end"
        return self

    @abstractmethod
    def open(self) -> None:
        """Let it go, without seeing to it."""

    @abstractmethod
    def leave(self) -> None:
        """The client goes away."""

    @abstractmethod
    def end(self) -> None:
        """Who serves it is ended from outside: a task is cancelled, a thread killed."""


class Hall(ABC):
    """One of the two packages with its servers, and many requests at the same time."""

    package: Any
    key: str

    def __init__(self) -> None:
        self.visits: list[Visit] = []
        self.backends: list[Backend] = []
        self.logged: list[Decision] = []
        #: the transactions that wait for their next server, by the identity of their request
        self.waiting: dict[int, Transaction[Any, Any]] = {}
        #: whether apps answer by themselves, without being let
        self.hurried = False
        #: whether apps send their head and a first piece before they wait
        self.streams = False
        self._lock = threading.Lock()
        self.crowd: dict[str, int] = {}
        self.largest_crowd: dict[str, int] = {}
        self._apps: dict[Backend, Callable[..., Any]] = {}

    @contextmanager
    def watches(self, transaction: Transaction[Any, Any], step: Step) -> Generator[None]:
        """Note that a transaction waits, if that is what its step says, until it does no longer."""
        number = id(transaction.raw_request)
        if not isinstance(step, Unavailable):
            self.waiting[number] = transaction
        try:
            yield
        finally:
            self.waiting.pop(number, None)

    def count(self, name: str, change: int) -> None:
        with self._lock:
            self.crowd[name] = self.crowd.get(name, 0) + change
            self.largest_crowd[name] = max(self.crowd[name], self.largest_crowd.get(name, 0))

    def server(self, name: str, maxconn: int = 1, **options: Any) -> Server:
        made: Server = self.package.Server(name, self._app(name), maxconn=maxconn, **options)
        return made

    def backend(self, *servers: Server, **options: Any) -> Backend:
        asked: dict[str, Any] = {"balance": RoundRobin(start=0), "persist": PLAIN, "log": self.logged.append}
        made: Backend = self.package.Backend("web", servers, **asked | options)
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
        """A request of a client that belongs to the server `of`, as soon as it stands somewhere; in another event loop
        than others, if `elsewhere`.
        """
        visit = self._begin(of, tuple(fails), elsewhere, kind)
        if wait:
            until(lambda: visit.stands)
        return visit

    def settle(self) -> None:
        """Let everybody go, and see that nobody has left anything behind."""
        until(self._emptied)
        for backend in self.backends:
            assert [len(server.in_flight) for server in backend.servers] == [0] * len(backend.servers)
            assert backend.qcur() == 0 and not any(map(backend.qcur, backend.servers))
        unasked = [visit.raised for visit in self.visits if visit.raised is not None]
        assert all(isinstance(error, Killed) for error in unasked), unasked

    def _emptied(self) -> bool:
        here = [visit for visit in self.visits if not visit.over.is_set()]
        inside = [visit for visit in here if visit.inside is not None]
        for visit in inside or here:
            visit.open() if inside else visit.leave()
        return not here

    @abstractmethod
    def close(self) -> None:
        """End what a failed test has left behind."""

    @abstractmethod
    def alone(self) -> int:
        """The status of a request for which no other thread or loop is needed, of an app that answers by itself."""

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

    def leave(self) -> None:
        self.portal.call(self.left.set)

    def end(self) -> None:
        self.raised = Killed()  # a task that is cancelled tells nobody
        self.task.cancel()


class AsgiHall(Hall):
    package = sticky_asgi
    key = "sticky"
    loop: Literal["asyncio", "trio"] = "asyncio"

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._portals: dict[bool, anyio.from_thread.BlockingPortal] = {}
        self._tasks: dict[bool, int] = {}  # how many there are of each while nobody is there

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
            until(lambda: portal.call(self._count_tasks) == self._tasks[elsewhere])  # noqa: B023 - within the turn

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
                if self.hurried:
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


class TrioHall(AsgiHall):
    loop = "trio"


# -- WSGI


class WsgiVisit(Visit):
    def __init__(self, hall: Hall, number: int) -> None:
        super().__init__(hall, number)
        self.gate, self.left, self.killed = threading.Event(), threading.Event(), threading.Event()

    def open(self) -> None:
        self.gate.set()

    def leave(self) -> None:
        self.left.set()

    def end(self) -> None:
        self.killed.set()

    def has_left(self) -> bool:
        if self.killed.is_set():
            raise Killed
        return self.left.is_set()


class WsgiHall(Hall):
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
                body.close()  # type: ignore[attr-defined]  # the validator's own has one
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
                if self.hurried:
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


HALLS: dict[str, type[Hall]] = {"asgi": AsgiHall, "asgi on trio": TrioHall, "wsgi": WsgiHall}


@pytest.fixture(params=HALLS)
def hall(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hall]:
    made: Hall = HALLS[request.param]()
    resolve_async, resolve = sticky_asgi.waits.resolve_wait, sticky_wsgi.waits.resolve_wait

    async def watched_async(transaction: Any, step: Step, body: Any) -> Server | None:
        with made.watches(transaction, step):
            return await resolve_async(transaction, step, body)

    def watched(transaction: Any, step: Step) -> Server | None:
        with made.watches(transaction, step):
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
        server.state = state  # type: ignore[assignment]  # a word will do


# -- who is next


def test_a_client_of_a_full_server_waits_there_and_is_served_when_its_turn_comes(hall: Hall) -> None:
    hall.backend(hall.server("s1"), hall.server("s2"))
    visits = [hall.visit("s1") for _ in range(4)]
    for number, (before, after) in enumerate(pairwise(visits), 1):
        assert before.inside == "s1"
        assert all(visit.waits for visit in visits[number:])
        before.let_go()
        until(lambda: after.inside)  # noqa: B023 - it is waited for within the turn
    visits[-1].let_go()
    for visit in visits:
        assert (visit.status, visit.server, visit.cookies) == (200, "s1", [])
        assert (visit.decision.claim, visit.decision.attempts) == (Claim.VALID, ("s1",))
    assert hall.largest_crowd == {"s1": 1}


def test_a_client_that_belongs_nowhere_goes_to_whoever_has_room_first_and_is_marked_there(hall: Hall) -> None:
    hall.backend(hall.server("s1"), hall.server("s2"))
    one, other = hall.visit(), hall.visit()
    assert (one.inside, other.inside) == ("s1", "s2")
    first, second = hall.visit(), hall.visit()
    assert first.waits and second.waits
    other.let_go()
    until(lambda: first.inside)
    one.let_go()
    until(lambda: second.inside)
    assert (first.inside, second.inside) == ("s2", "s1")
    assert first.let_go().cookies == ["SERVERID=s2; path=/"]
    assert second.let_go().cookies == ["SERVERID=s1; path=/"]


def test_who_came_first_is_first_whether_it_waits_for_one_or_for_anyone(hall: Hall) -> None:
    hall.backend(hall.server("s1"))
    served: list[Visit] = [hall.visit()]
    visits = [hall.visit(of) for of in (None, "s1", "s1", None, "s1")]
    for visit in visits:
        served[-1].let_go()
        until(lambda: any(each.inside for each in visits))
        served.append(next(each for each in visits if each.inside))
        assert served[-1] is visit


def test_a_place_is_taken_until_the_end_of_an_answer_and_not_its_beginning(hall: Hall) -> None:
    hall.streams = True
    hall.backend(hall.server("s1"))
    first = hall.visit()
    until(lambda: first.status == 200)
    second = hall.visit()
    assert second.waits
    first.let_go()
    until(lambda: second.inside)


def test_a_server_without_a_limit_has_room_for_all(hall: Hall) -> None:
    hall.backend(hall.server("s1"), hall.server("s2", maxconn=0))
    visits = [hall.visit("s2") for _ in range(5)] + [hall.visit() for _ in range(3)]
    assert [visit.inside for visit in visits] == ["s2"] * 5 + ["s1", "s2", "s2"]


def test_a_place_is_handed_on_from_one_thread_or_loop_to_another(hall: Hall) -> None:
    hall.backend(hall.server("s1"))
    visits = [hall.visit(elsewhere=bool(number % 2)) for number in range(4)]
    for before, after in pairwise(visits):
        before.let_go()
        until(lambda: after.inside)  # noqa: B023 - it is waited for within the turn


def test_a_client_whose_server_failed_waits_for_the_next_and_is_marked_there(hall: Hall) -> None:
    backend = hall.backend(hall.server("s1"), hall.server("s2"))
    busy = hall.visit("s2")
    moved = hall.visit("s1", fails=["s1"])
    assert moved.waits and moved.been == ["s1"]
    free = hall.visit("s1")
    assert free.inside == "s1", "the place that was left is nobody's who has tried it"
    busy.let_go()
    until(lambda: moved.inside)
    moved.let_go()
    assert (moved.status, moved.server, moved.cookies) == (200, "s2", ["SERVERID=s2; path=/"])
    assert (moved.decision.claim, moved.decision.reason) == (Claim.DOWN, Reason.FAILED)
    assert [backend["s1"].counters[total] for total in (Total.WREDIS, Total.WRETR, Total.ECON)] == [1, 0, 1]


@pytest.mark.parametrize("loops", [1, 2], ids=["in one loop", "in two"])
def test_two_hundred_at_once_are_never_more_than_there_are_places_and_all_are_served(hall: Hall, loops: int) -> None:
    servers = [hall.server("s1", maxconn=3), hall.server("s2", maxconn=2)]
    backend = hall.backend(*servers, timeouts=Timeouts(queue=2 * PATIENCE))
    inside = [hall.visit(elsewhere=number % loops == 1) for number in range(5)]
    of = [None, "s1", "s2", None, "s1"] * 39
    waiting = [hall.visit(belongs, wait=False, elsewhere=number % loops == 1) for number, belongs in enumerate(of)]
    until(lambda: all(visit.waits for visit in waiting))
    hall.hurried = True
    for visit in inside:
        visit.open()
    assert [visit.ends().status for visit in hall.visits] == [200] * 200
    assert hall.largest_crowd == {"s1": 3, "s2": 2}
    assert all(visit.server == belongs for visit, belongs in zip(waiting, of, strict=True) if belongs)
    assert sum(server.total for server in backend.servers) == len(hall.logged) == 200


# -- queues that are full


def test_where_enough_wait_a_client_goes_elsewhere_and_is_told_so(hall: Hall) -> None:
    hall.backend(hall.server("s1", maxqueue=1), hall.server("s2"))
    inside, waiting, moved = (hall.visit("s1") for _ in range(3))
    assert (inside.inside, waiting.waits, moved.inside) == ("s1", True, "s2")
    moved.let_go()
    assert (moved.status, moved.server, moved.cookies) == (200, "s2", ["SERVERID=s2; path=/"])
    assert (moved.decision.claim, moved.decision.reason) == (Claim.DOWN, Reason.FULL)


def test_where_that_is_full_too_it_waits_for_anyone_and_is_told_who_it_was(hall: Hall) -> None:
    hall.backend(hall.server("s1", maxqueue=1), hall.server("s2"))
    visits = [hall.visit(of) for of in ("s1", "s2", "s1", "s1")]
    _, on_s2, _, moved = visits
    assert moved.waits
    on_s2.let_go()
    until(lambda: moved.inside)
    moved.let_go()
    assert (moved.status, moved.server, moved.cookies) == (200, "s2", ["SERVERID=s2; path=/"])
    assert (moved.decision.claim, moved.decision.reason) == (Claim.DOWN, Reason.FULL)


def test_whoever_waits_for_anyone_may_come_to_its_own_server_and_is_told_nothing(hall: Hall) -> None:
    hall.backend(hall.server("s1", maxqueue=1), hall.server("s2"))
    inside, _, own, late = (hall.visit(of) for of in ("s1", "s2", "s1", "s1"))
    assert late.waits
    inside.let_go()
    until(lambda: own.inside)
    own.let_go()
    until(lambda: late.inside)
    late.let_go()
    assert (late.server, late.cookies, late.decision.claim) == ("s1", [], Claim.VALID)


@pytest.mark.parametrize(
    "options", [{"redispatch": False}, {"unavailable": "fail"}], ids=["no redispatch", "rather fails"]
)
def test_where_enough_wait_and_it_may_not_go_elsewhere_a_client_is_sent_away(
    hall: Hall, options: dict[str, Any]
) -> None:
    hall.backend(hall.server("s1", maxqueue=1), hall.server("s2"), **options)
    hall.visit("s1"), hall.visit("s1")
    away = hall.visit("s1")
    assert away.over.is_set()
    assert (away.status, away.server, away.cookies, away.been) == (503, None, [], [])


def test_where_enough_wait_for_anyone_a_client_is_sent_away(hall: Hall) -> None:
    hall.backend(hall.server("s1", maxqueue=2))
    visits = [hall.visit() for _ in range(4)]
    assert [visit.waits for visit in visits] == [False, True, True, False]
    assert (visits[3].status, visits[3].server) == (503, None)


# -- waits that end without a place


@pytest.mark.parametrize("of", [None, "s1"], ids=["for anyone", "for its own"])
def test_a_wait_in_vain_ends_with_503(hall: Hall, of: str | None) -> None:
    hall.backend(hall.server("s1"), timeouts=Timeouts(queue="10ms"))
    inside = hall.visit()
    away = hall.visit(of).ends()
    assert (away.status, away.server, away.cookies, away.been) == (503, None, [], [])
    assert inside.let_go().status == 200
    assert hall.visit(of).inside == "s1", "nothing of it is left"


def test_unless_told_otherwise_it_waits_as_long_as_for_a_connection(hall: Hall) -> None:
    hall.backend(hall.server("s1"), timeouts=Timeouts(connect="10ms"))
    hall.visit()
    assert hall.visit().ends().status == 503


@pytest.mark.parametrize("state", ["down", "maint"])
def test_who_waits_for_a_server_that_goes_out_goes_elsewhere_and_is_told_so(hall: Hall, state: str) -> None:
    backend = hall.backend(hall.server("s1"), hall.server("s2", maxconn=2))
    inside, *waiting = (hall.visit("s1") for _ in range(4))
    assert all(visit.waits for visit in waiting)
    put(backend["s1"], state)
    until(lambda: sum(visit.inside == "s2" for visit in waiting) == 2)
    assert inside.inside == "s1", "who is there may stay"
    last = next(visit for visit in waiting if visit.inside is None)  # who of them looks up first is anybody's guess
    until(lambda: last.waits)
    next(visit for visit in waiting if visit.inside).let_go()
    until(lambda: last.inside)
    hall.settle()
    for visit in waiting:
        assert (visit.status, visit.server, visit.cookies) == (200, "s2", ["SERVERID=s2; path=/"])
        assert (visit.decision.claim, visit.decision.reason) == (Claim.DOWN, Reason.DOWN)


def test_without_redispatch_who_waits_for_a_server_that_goes_down_waits_until_it_is_back(hall: Hall) -> None:
    backend = hall.backend(hall.server("s1"), hall.server("s2"), redispatch=False)
    inside, waiting = hall.visit("s1"), hall.visit("s1")
    put(backend["s1"], "down")
    inside.let_go()
    assert waiting.waits
    put(backend["s1"], "up")
    until(lambda: waiting.inside)
    assert waiting.let_go().server == "s1"


def test_without_redispatch_who_waits_for_a_server_in_maintenance_goes_elsewhere_all_the_same(hall: Hall) -> None:
    backend = hall.backend(hall.server("s1"), hall.server("s2"), redispatch=False)
    _, waiting = hall.visit("s1"), hall.visit("s1")
    put(backend["s1"], "maint")
    until(lambda: waiting.inside)
    assert waiting.let_go().cookies == ["SERVERID=s2; path=/"]


@pytest.mark.parametrize("state", ["down", "maint"])
def test_who_would_rather_be_sent_away_than_elsewhere_is_sent_away(hall: Hall, state: str) -> None:
    backend = hall.backend(hall.server("s1"), hall.server("s2"), unavailable="fail")
    _, waiting = hall.visit("s1"), hall.visit("s1")
    put(backend["s1"], state)
    waiting.ends()
    assert (waiting.status, waiting.server, waiting.been, waiting.cookies) == (503, None, [], [])


@pytest.mark.parametrize("of", [None, "s1"], ids=["for anyone", "for its own"])
def test_when_nobody_is_left_to_wait_for_it_ends_with_503(hall: Hall, of: str | None) -> None:
    backend = hall.backend(hall.server("s1"), hall.server("s2"))
    hall.visit("s1"), hall.visit("s2")
    waiting = hall.visit(of)
    put(backend["s2"], "down")
    assert waiting.waits
    put(backend["s1"], "down")
    assert waiting.ends().status == 503


def test_a_server_that_drains_serves_those_who_wait_for_it(hall: Hall) -> None:
    backend = hall.backend(hall.server("s1"), hall.server("s2"))
    inside, waiting = hall.visit("s1"), hall.visit("s1")
    put(backend["s1"], "drain")
    inside.let_go()
    until(lambda: waiting.inside)
    assert waiting.let_go().server == "s1"


def test_a_server_that_is_back_takes_those_who_wait_for_anyone(hall: Hall) -> None:
    backend = hall.backend(hall.server("s1"), hall.server("s2", maxconn=2))
    put(backend["s2"], "maint")
    _, *waiting = (hall.visit() for _ in range(4))
    assert all(visit.waits for visit in waiting)
    put(backend["s2"], "ready")
    until(lambda: waiting[0].inside and waiting[1].inside)
    assert [visit.inside for visit in waiting] == ["s2", "s2", None]


# -- those who leave


@pytest.mark.parametrize("way", ["the client leaves", "it is ended"])
@pytest.mark.parametrize("of", [None, "s1"], ids=["for anyone", "for its own"])
def test_a_waiter_that_leaves_gives_its_place_in_the_queue_to_the_next(hall: Hall, of: str | None, way: str) -> None:
    hall.backend(hall.server("s1"))
    inside, leaving, staying = hall.visit(of), hall.visit(of), hall.visit(of)
    if way == "it is ended":
        leaving.end()
    else:
        leaving.leave()
    leaving.ends()
    assert leaving.been == [] and leaving.decision.server is None
    assert hall.logged == [leaving.decision], "whoever wants to know is told, once"
    assert staying.waits
    inside.let_go()
    until(lambda: staying.inside)
    assert hall.largest_crowd == {"s1": 1}


def test_on_asgi_nobody_is_answered_who_has_left(hall: Hall) -> None:
    hall.backend(hall.server("s1"))
    hall.visit()
    leaving = hall.visit()
    leaving.leave()
    leaving.ends()
    assert leaving.status == (0 if isinstance(hall, AsgiHall) else 503), "a WSGI app must answer"


def test_many_that_come_and_leave_at_random_leave_nothing_behind(hall: Hall) -> None:
    hall.backend(hall.server("s1", maxconn=2), hall.server("s2"), timeouts=Timeouts(queue=PATIENCE))
    visits = [hall.visit((None, "s1", "s2")[number % 3]) for number in range(30)]
    for number, visit in enumerate(visits):
        if not visit.waits:
            continue
        if number % 4 == 1:
            visit.leave()
        elif number % 4 == 2:
            visit.end()
    for visit in visits:
        if visit.inside:
            visit.let_go()
    hall.settle()
    served = [visit for visit in visits if visit.been]
    assert all(visit.status == 200 for visit in served) and len(served) >= 15
    assert hall.largest_crowd["s1"] <= 2 and hall.largest_crowd["s2"] <= 1


@pytest.mark.parametrize("hall", ["asgi", "asgi on trio"], indirect=True)
@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "stays"])
def test_a_websocket_waits_as_well(hall: Hall, leaves: bool) -> None:
    hall.backend(hall.server("s1"))
    inside, waiting = hall.visit(), hall.visit(kind="websocket")
    assert waiting.waits
    if leaves:
        waiting.leave()
        assert waiting.ends().been == []
        return
    inside.let_go()
    until(lambda: waiting.inside)
    assert waiting.let_go().status == 101


@pytest.mark.parametrize("hall", ["asgi"], indirect=True)
def test_who_has_waited_is_no_longer_looked_after(hall: Hall) -> None:
    """Whoever has it now begins to, if it wants to hear of its client."""
    hall.backend(hall.server("s1"))
    inside, waiting = hall.visit(), hall.visit()
    assert waiting.transaction is not None
    body: Any = waiting.transaction.replayable_body
    until(lambda: body.watched)
    inside.let_go()
    until(lambda: waiting.inside)
    assert not body.watched


@pytest.mark.parametrize("hall", ["asgi"], indirect=True)
def test_a_waiter_whose_event_loop_has_ended_can_not_be_woken(hall: Hall) -> None:
    """The next in the queue is woken instead (`Backend` knows that of any waiter)."""
    loop = asyncio.new_event_loop()

    async def waker() -> Callable[[], bool]:
        return sticky_asgi.messages.waker(anyio.Event())

    wake = loop.run_until_complete(waker())
    assert wake() is True
    loop.close()
    assert wake() is False


@pytest.mark.parametrize("hall", ["asgi on trio"], indirect=True)
def test_nor_one_whose_trio_has_ended(hall: Hall) -> None:
    async def waker() -> Callable[[], bool]:
        return sticky_asgi.messages.waker(anyio.Event())

    assert anyio.run(waker, backend="trio")() is False


# -- balance and places


@pytest.mark.parametrize("balance", ["roundrobin", "leastconn", "first", "static-rr", "random"])
def test_new_clients_are_spread_over_all_places_before_anybody_waits(hall: Hall, balance: str) -> None:
    hall.backend(hall.server("s1", maxconn=2), hall.server("s2"), hall.server("s3", maxconn=3), balance=balance)
    visits = [hall.visit() for _ in range(8)]
    if balance == "random":  # as in HAProxy: whom it draws and finds full is not drawn again
        assert hall.crowd.keys() <= {"s1", "s2", "s3"}
        return
    assert hall.crowd == {"s1": 2, "s2": 1, "s3": 3}
    assert [visit.waits for visit in visits] == [False] * 6 + [True] * 2


def test_first_fills_one_after_the_other(hall: Hall) -> None:
    hall.backend(hall.server("s1", maxconn=2), hall.server("s2", maxconn=2), balance="first")
    visits = [hall.visit() for _ in range(5)]
    assert [visit.inside for visit in visits] == ["s1", "s1", "s2", "s2", None]
    visits[1].let_go()
    until(lambda: visits[4].inside)
    assert visits[4].inside == "s1"
    visits[2].let_go()
    assert hall.visit().inside == "s2"


class Always:
    """A sample that is the same in every request."""

    def __call__(self, request: object) -> str:
        return "the key"


@pytest.mark.parametrize(
    "affinity, maxqueue, stands",
    [
        pytest.param("always", 0, ["own", "waits", "waits"], id="always: waits there"),
        pytest.param("maxqueue", 1, ["own", "waits", "other"], id="maxqueue: waits there, as long as there is room"),
        pytest.param("maxqueue", 0, ["own", "waits", "waits"], id="maxqueue without a limit: waits there"),
        pytest.param("maxconn", 0, ["own", "other", "waits"], id="maxconn: goes elsewhere"),
    ],
)
def test_how_far_a_hash_insists_on_a_server_that_is_full(
    hall: Hall, affinity: Any, maxqueue: int, stands: list[str]
) -> None:
    servers = [hall.server("s1", maxqueue=maxqueue), hall.server("s2", maxqueue=maxqueue)]
    hall.backend(*servers, balance=Hash(Always(), hash_preserve_affinity=affinity), persist=())
    visits = [hall.visit() for _ in range(3)]
    own = visits[0].inside
    assert own is not None
    assert ["waits" if visit.waits else "own" if visit.inside == own else "other" for visit in visits] == stands
    visits[0].let_go()
    waiting = visits[stands.index("waits")]
    until(lambda: waiting.inside)
    assert waiting.inside == own


def test_a_backup_is_not_for_those_who_only_have_to_wait(hall: Hall) -> None:
    backend = hall.backend(hall.server("s1"), hall.server("sorry", maxconn=0, backup=True))
    inside, waiting = hall.visit(), hall.visit()
    assert waiting.waits
    put(backend["s1"], "down")
    until(lambda: waiting.inside)
    assert waiting.inside == "sorry", "but for those who have nobody to wait for"
    assert inside.let_go().status == 200


def test_a_server_that_drains_is_not_for_those_who_only_have_to_wait(hall: Hall) -> None:
    backend = hall.backend(hall.server("s1"), hall.server("s2", maxconn=0))
    put(backend["s2"], "drain")
    hall.visit()
    waiting = hall.visit()
    assert waiting.waits
    put(backend["s1"], "maint")
    until(lambda: waiting.inside)
    assert waiting.inside == "s2", "but for those who have nobody to wait for"


# -- a forked child


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nobody forks here")
def test_a_child_has_the_places_and_the_queue_to_itself(hall: Hall) -> None:
    backend = hall.backend(hall.server("s1"), timeouts=Timeouts(queue=PATIENCE))
    inside, waiting = hall.visit(), hall.visit()

    def work() -> str:
        hall.hurried = True
        return f"{hall.alone()} {len(backend['s1'].in_flight)} {backend.qcur()}"

    assert _in_child(work) == "200 0 0"
    inside.let_go()
    until(lambda: waiting.inside)


def _in_child(work: Callable[[], str]) -> str:
    said, says = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on, of a fork beside threads: that is the point
        pid = os.fork()
    if pid == 0:
        try:
            os.write(says, work().encode())
        except BaseException as error:
            os.write(says, repr(error).encode())
        finally:
            os._exit(0)
    os.close(says)
    try:
        if not select.select([said], [], [], PATIENCE)[0]:
            os.kill(pid, 9)
            raise AssertionError("the child hangs")
        return os.read(said, 65536).decode()
    finally:
        os.close(said)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("ends", ["the client leaves the queue", "the task or thread is ended in the queue"])
def test_kept_decision_of_an_aborted_request_holds_nothing_of_it(hall: Hall, ends: str) -> None:
    hall.backend(hall.server("s1"))
    inside, waiting = hall.visit("s1"), hall.visit("s1")
    if ends == "the client leaves the queue":
        waiting.leave()
    else:
        waiting.end()
    waiting.ends()
    inside.let_go()
    assert len(hall.logged) == 2
    for decision in hall.logged:
        assert_holds_no_request(decision)
