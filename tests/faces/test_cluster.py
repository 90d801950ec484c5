"""The test kit from the point of view of who writes tests with it: what a cluster of replicas shows, on both
faces, lazily and as a context manager, on asyncio and on trio.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import flask
import pytest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import WebSocketDenialResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

import sticky_asgi.testing
import sticky_wsgi.testing
from sticky_core.errors import ConfigError, Failure, ServerFailure
from sticky_core.persistence.claim import Claim, Mark, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.state import Health
from sticky_core.testing.cluster import Cluster

#: how long to wait for what comes at once, before it is called a failure
DEADLINE = 300.0

#: how Starlette's test client, and what it is made of, may tell that a WebSocket is no more
GONE = (anyio.ClosedResourceError, anyio.EndOfStream, WebSocketDisconnect)

T = TypeVar("T")


def aside(call: Callable[[], T]) -> Future[T]:
    """Calls on a thread of its own. One that hangs, because what is tested is broken, holds up nothing else."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it has not come true"
        threading.Event().wait(0.001)


@dataclass
class Shop:
    """The app under test. A replica has a cart in memory, a stream that does not end by itself, and an answer
    that waits for others; what happens in any replica is noted here.
    """

    #: how many replicas were made
    made: int = 0
    #: the number of the replica that can't be made
    broken: int = 0
    #: how many streams the app was told to end
    closed: int = 0
    #: where each request of the ASGI app was served
    loops: list[anyio.lowlevel.EventLoopToken] = field(default_factory=list)
    #: and by what: asyncio or trio
    libraries: set[str] = field(default_factory=set)
    #: a request to /late, /stuck or /silent has come
    arrived: threading.Event = field(default_factory=threading.Event)
    #: /late may answer, and so may /stuck, which holds up its event loop until then
    go_on: threading.Event = field(default_factory=threading.Event)
    #: lets requests to /together go when there are two
    two: threading.Barrier = field(default_factory=partial(threading.Barrier, 2, timeout=DEADLINE))

    def _begin(self) -> None:
        self.made += 1
        if self.made == self.broken:
            raise ValueError("no database")

    def _late(self) -> str:
        self.arrived.set()
        assert self.go_on.wait(DEADLINE)
        return "late"

    def _together(self) -> str:
        self.two.wait()
        return "together"

    def asgi(self) -> Starlette:
        self._begin()
        cart: list[str] = []

        async def show(request: Request) -> PlainTextResponse:
            self.loops.append(anyio.lowlevel.current_token())
            self.libraries.add(anyio.get_cancelled_exc_class().__module__.partition(".")[0])
            return PlainTextResponse(" ".join(cart))

        async def add(request: Request) -> PlainTextResponse:
            cart.append(request.path_params["item"])
            return await show(request)

        async def stream(request: Request) -> StreamingResponse:
            async def body() -> AsyncIterator[bytes]:
                try:
                    yield b"one"
                    await anyio.sleep_forever()
                finally:
                    self.closed += 1

            return StreamingResponse(body())

        async def chat(websocket: WebSocket) -> None:
            await websocket.accept()
            try:
                async for text in websocket.iter_text():
                    await websocket.send_text(f"{text}!")
            finally:
                self.closed += 1

        async def silent(request: Request) -> PlainTextResponse:
            self.arrived.set()
            await anyio.sleep_forever()
            raise AssertionError("unreachable")

        async def stuck(request: Request) -> PlainTextResponse:
            return PlainTextResponse(self._late())

        async def late(request: Request) -> PlainTextResponse:
            return PlainTextResponse(await run_in_threadpool(self._late))

        async def together(request: Request) -> PlainTextResponse:
            return PlainTextResponse(await run_in_threadpool(self._together))

        return Starlette(
            routes=[
                Route("/cart", show),
                Route("/cart/{item}", add, methods=["POST"]),
                Route("/stream", stream),
                Route("/silent", silent),
                Route("/stuck", stuck),
                Route("/late", late),
                Route("/together", together),
                WebSocketRoute("/chat", chat),
            ]
        )

    def wsgi(self) -> flask.Flask:
        self._begin()
        cart: list[str] = []
        app = flask.Flask(__name__)

        @app.get("/cart")
        def show() -> str:
            return " ".join(cart)

        @app.post("/cart/<item>")
        def add(item: str) -> str:
            cart.append(item)
            return show()

        @app.get("/stream")
        def stream() -> flask.Response:
            def body() -> Iterator[bytes]:
                try:
                    while True:
                        yield b"one"
                finally:
                    self.closed += 1

            return flask.Response(body())

        app.get("/late")(self._late)
        app.get("/together")(self._together)
        return app


@contextmanager
def asgi_stream(client: Any, path: str) -> Iterator[Iterator[bytes]]:
    with client.stream("GET", path) as answer:
        yield answer.iter_raw()


@contextmanager
def wsgi_stream(client: Any, path: str) -> Iterator[Iterator[bytes]]:
    answer = client.get(path, buffered=False)
    try:
        yield iter(answer.response)
    finally:
        answer.close()


@dataclass(frozen=True)
class Way:
    """One way to use the kit."""

    kind: Callable[..., Cluster[Any]]
    create: Callable[[Shop], Callable[[], Any]]
    #: the items of an answer, as they come
    stream: Callable[[Any, str], AbstractContextManager[Iterator[bytes]]]
    #: whether it is used as a context manager
    begun: bool
    options: dict[str, Any] = field(default_factory=dict)


def _asgi(begun: bool, backend: str) -> Way:
    options = {"anyio_backend": backend}
    return Way(sticky_asgi.testing.Cluster, lambda shop: shop.asgi, asgi_stream, begun, options)


def _wsgi(begun: bool) -> Way:
    return Way(sticky_wsgi.testing.Cluster, lambda shop: shop.wsgi, wsgi_stream, begun)


WAYS = {
    "asgi": _asgi(False, "asyncio"),
    "asgi begun": _asgi(True, "asyncio"),
    "asgi on trio": _asgi(False, "trio"),
    "asgi on trio, begun": _asgi(True, "trio"),
    "wsgi": _wsgi(False),
    "wsgi begun": _wsgi(True),
}
ASGI = [name for name in WAYS if name.startswith("asgi")]
BEGUN = [name for name, way in WAYS.items() if way.begun]
LAZY = [name for name, way in WAYS.items() if not way.begun]
ASGI_BEGUN = [name for name in ASGI if WAYS[name].begun]
ASGI_LAZY = [name for name in ASGI if not WAYS[name].begun]


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


@pytest.fixture
def start(way: Way, shop: Shop) -> Iterator[Callable[..., Cluster[Any]]]:
    """Makes clusters of shops, which end with the test."""
    with ExitStack() as stack:

        def made(replicas: int = 3, **options: Any) -> Cluster[Any]:
            cluster = way.kind(way.create(shop), replicas, **way.options, **options)
            return stack.enter_context(cluster) if way.begun else cluster

        yield made


@pytest.fixture
def cluster(start: Callable[..., Cluster[Any]]) -> Cluster[Any]:
    """Three replicas, as they come."""
    return start()


def in_flight(cluster: Cluster[Any]) -> list[int]:
    return [len(server.in_flight) for server in cluster.backend.servers]


def letters(cluster: Cluster[Any]) -> str:
    """What became of the last request's claim and mark, as HAProxy logs it."""
    return cluster.decisions[-1].claim.value + cluster.decisions[-1].mark.value


# -- who goes where


def test_a_client_stays_where_it_was_served_first(cluster):
    client = cluster.client()
    for item in ("tea", "milk", "sugar"):
        client.post(f"/cart/{item}")
    assert client.get("/cart").text == "tea milk sugar"
    assert [decision.server for decision in cluster.decisions] == ["r1"] * 4
    assert [decision.mark for decision in cluster.decisions] == [Mark.INSERTED] + [Mark.NONE] * 3


def test_clients_begin_at_one_replica_after_the_other(cluster):
    clients = [cluster.client() for _ in range(7)]
    for client in clients:
        client.get("/cart")
    assert [cluster.server_of(client) for client in clients] == ["r1", "r2", "r3", "r1", "r2", "r3", "r1"]


def test_there_are_as_many_replicas_as_asked_for_each_made_once(start, shop):
    cluster = start(5)
    for _ in range(12):
        cluster.client().get("/cart")
    assert [server.name for server in cluster.backend.servers] == ["r1", "r2", "r3", "r4", "r5"]
    assert shop.made == 5


def test_each_client_has_a_cookie_jar_of_its_own(cluster):
    first, second = cluster.client(), cluster.client()
    first.post("/cart/tea")
    second.post("/cart/milk")
    assert [decision.reason for decision in cluster.decisions] == [Reason.NO_COOKIE] * 2
    assert (first.get("/cart").text, second.get("/cart").text) == ("tea", "milk")


def test_server_of_is_where_the_client_was_last(cluster):
    client = cluster.client()
    client.get("/cart")
    assert cluster.server_of(client) == "r1"
    cluster.kill("r1")
    client.get("/cart")
    assert cluster.server_of(client) == "r2"


def test_server_of_asks_a_client_that_was_not_served_to_make_a_request_first(cluster):
    with pytest.raises(LookupError, match="not served yet: let it make a request first"):
        cluster.server_of(cluster.client())


def test_server_of_is_where_the_client_was_before_when_nobody_can_serve_it_now(cluster):
    client = cluster.client()
    client.get("/cart")
    for name in ("r1", "r2", "r3"):
        cluster.kill(name)
    assert client.get("/cart").status_code == 503
    assert cluster.server_of(client) == "r1"


def test_a_client_of_another_cluster_is_told_so(start):
    here, there = start(), start()
    client = there.client()
    client.get("/cart")
    for ask in (here.server_of, here.assert_sticky):
        with pytest.raises(LookupError, match=r"not one of this cluster's: make it with cluster\.client\(\)"):
            ask(client)


def test_two_clients_at_once_do_not_meet(cluster):
    clients = [cluster.client(), cluster.client()]

    def visit(client: Any, item: str) -> str:
        answers = [client.get("/together"), client.post(f"/cart/{item}"), client.get("/cart")]
        return " ".join(answer.text for answer in answers)

    visits = [aside(partial(visit, *each)) for each in zip(clients, ("tea", "milk"), strict=True)]
    said = [visit.result(DEADLINE) for visit in visits]
    assert said == ["together tea tea", "together milk milk"]
    for client in clients:
        cluster.assert_sticky(client)
    assert {cluster.server_of(client) for client in clients} == {"r1", "r2"}
    assert in_flight(cluster) == [0, 0, 0]


# -- kill, revive, restart


VISITS: dict[str, Callable[[Any], Any]] = {
    "GET": lambda client: client.get("/cart"),
    "POST": lambda client: client.post("/cart/milk"),
}


@pytest.mark.parametrize("method", VISITS)
def test_a_client_of_a_killed_replica_is_redispatched_and_told_so(cluster, method):
    client = cluster.client()
    client.post("/cart/tea")
    cluster.kill("r1")
    answer = VISITS[method](client)
    assert (answer.status_code, answer.text) == (200, "" if method == "GET" else "milk"), "a cart of its own"
    assert answer.headers["set-cookie"].startswith("SERVERID=r2@")
    decision = cluster.decisions[-1]
    assert decision.attempts == ("r1", "r2")
    assert decision.failures == (Failure.REFUSED,)
    assert (decision.claim, decision.reason, decision.claimed) == (Claim.DOWN, Reason.FAILED, "r1")
    assert decision.mark is Mark.INSERTED
    client.get("/cart")
    assert cluster.decisions[-1].attempts == ("r2",), "from here on it knows"


def test_nobody_has_checked_a_replica_that_was_killed_a_moment_ago(cluster):
    cluster.client().get("/cart")
    cluster.kill("r1")
    cluster.client().get("/cart")
    assert cluster.backend["r1"].health is Health.UP


def test_a_replica_may_be_killed_before_anybody_has_come(cluster):
    cluster.kill("r1")
    client = cluster.client()
    assert client.get("/cart").status_code == 200
    assert cluster.decisions[-1].attempts == ("r1", "r2")
    assert cluster.decisions[-1].claim is Claim.NONE


def test_a_killed_replica_refuses_as_often_as_it_is_asked(start):
    cluster = start(2)
    cluster.kill("r1")
    for _ in range(4):
        cluster.client().get("/cart")
    assert {cluster.decisions[-1].server for _ in range(4)} == {"r2"}
    assert cluster.backend["r1"].total > 1


def test_a_revived_replica_has_its_memory_and_its_clients_are_welcome_again(cluster):
    client = cluster.client()
    client.post("/cart/tea")
    cluster.kill("r1")
    cluster.revive("r1")
    answer = client.post("/cart/milk")
    assert answer.text == "tea milk"
    assert "set-cookie" not in answer.headers
    assert letters(cluster) == "VN"


def test_who_was_redispatched_stays_where_it_is_when_its_replica_is_revived(cluster):
    client = cluster.client()
    client.post("/cart/tea")
    cluster.kill("r1")
    client.post("/cart/milk")
    cluster.revive("r1")
    assert client.get("/cart").text == "milk"
    assert letters(cluster) == "VN"


def test_a_restarted_replica_is_another_life_with_an_empty_memory(start, shop):
    cluster = start(1)
    client = cluster.client()
    client.post("/cart/tea")
    cluster.restart("r1")
    assert shop.made == 2
    answer = client.post("/cart/milk")
    assert answer.text == "milk"
    assert answer.headers["set-cookie"].startswith("SERVERID=r1@")
    decision = cluster.decisions[-1]
    assert (decision.claim, decision.reason, decision.attempts) == (
        Claim.INVALID,
        Reason.OTHER_INSTANCE,
        ("r1",),
    )
    assert client.post("/cart/sugar").text == "milk sugar"
    assert letters(cluster) == "VN"


def test_a_restart_leaves_the_other_replicas_alone(cluster):
    clients = [cluster.client() for _ in range(3)]
    for client in clients:
        client.post("/cart/tea")
    cluster.restart("r1")
    assert [client.get("/cart").text for client in clients[1:]] == ["tea", "tea"]
    assert letters(cluster) == "VN"


def test_a_killed_replica_may_be_restarted(start):
    cluster = start(1)
    cluster.kill("r1")
    cluster.restart("r1")
    assert cluster.client().get("/cart").status_code == 200


def test_a_replica_that_cannot_be_made_again_stays_killed(start, shop):
    cluster = start(2)
    clients = [cluster.client(), cluster.client()]
    clients[0].post("/cart/tea")
    clients[1].post("/cart/milk")
    shop.broken = 3
    with pytest.raises((ValueError, RuntimeError), match="no database"):
        cluster.restart("r1")
    assert clients[0].get("/cart").text == "milk"
    assert cluster.decisions[-1].attempts == ("r1", "r2")
    assert repr(cluster).endswith(", killed: r1>")


def test_where_all_are_killed_a_client_is_told_to_come_again(cluster):
    client = cluster.client()
    client.get("/cart")
    for name in ("r1", "r2", "r3"):
        cluster.kill(name)
    answer = client.post("/cart/tea")
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert "set-cookie" not in answer.headers
    decision = cluster.decisions[-1]
    assert decision.server is None
    assert sorted(decision.attempts) == ["r1", "r2", "r3"]
    cluster.revive("r1")
    assert client.post("/cart/tea").text == "tea"
    assert letters(cluster) == "VN", "its mark was not taken from it"


# -- drain, maint, ready


def test_a_replica_that_drains_keeps_its_clients_and_takes_no_new_ones(cluster):
    client = cluster.client()
    client.post("/cart/tea")
    cluster.drain("r1")
    assert client.get("/cart").text == "tea"
    others = [cluster.client() for _ in range(4)]
    for other in others:
        other.get("/cart")
    assert {cluster.server_of(other) for other in others} == {"r2", "r3"}


def test_a_replica_in_maintenance_has_nobody_until_it_is_ready(cluster):
    clients = [cluster.client() for _ in range(3)]
    for client in clients:
        client.post("/cart/tea")
    cluster.maint("r1")
    clients[0].get("/cart")
    decision = cluster.decisions[-1]
    assert (decision.claim, decision.reason, decision.claimed) == (Claim.DOWN, Reason.MAINT, "r1")
    assert (decision.mark, "r1" in decision.attempts) == (Mark.INSERTED, False)
    cluster.ready("r1")
    newcomers = [cluster.client() for _ in range(3)]
    for newcomer in newcomers:
        newcomer.get("/cart")
    (at_r1,) = [newcomer for newcomer in newcomers if cluster.server_of(newcomer) == "r1"]
    assert at_r1.get("/cart").text == "tea", "maintenance is not a restart"


# -- what the cluster is given


@pytest.mark.parametrize(
    "seconds, claim, mark, cart",
    [(30, Claim.VALID, Mark.NONE, "tea"), (3601, Claim.EXPIRED, Mark.INSERTED, "")],
    ids=["in time", "too late"],
)
def test_time_passes_when_it_is_told_to(start, seconds, claim, mark, cart):
    cluster = start(persist=Cookie("SERVERID", secret="sixteen bytes at least", maxidle="1h"))
    client = cluster.client()
    client.post("/cart/tea")
    cluster.clock.advance(seconds)
    assert client.get("/cart").text == cart
    assert (cluster.decisions[-1].claim, cluster.decisions[-1].mark) == (claim, mark)


def test_who_was_too_late_may_begin_again(start):
    cluster = start(persist=Cookie("SERVERID", secret="sixteen bytes at least", maxidle="1h"))
    client = cluster.client()
    client.get("/cart")
    cluster.clock.advance(3601)
    client.post("/cart/milk")
    cluster.clock.advance(3599)
    assert client.get("/cart").text == "milk"
    assert cluster.decisions[-1].claim is Claim.VALID


def test_without_persistence_an_app_shows_that_it_does_not_survive_several_replicas(start):
    cluster = start(persist=None)
    client = cluster.client()
    assert "set-cookie" not in client.post("/cart/tea").headers
    assert client.get("/cart").text == ""
    assert cluster.decisions[-1].reason is Reason.NO_PERSISTENCE
    with pytest.raises(AssertionError, match="did not stay on one replica"):
        cluster.assert_sticky(client)


def test_a_client_may_be_rather_sent_away_than_to_another_replica(start):
    cluster = start(unavailable="fail")
    client = cluster.client()
    client.post("/cart/tea")
    cluster.kill("r1")
    answer = client.get("/cart")
    assert (answer.status_code, "set-cookie" in answer.headers) == (503, False)
    assert cluster.decisions[-1].attempts == ("r1",)
    assert cluster.client().get("/cart").status_code == 200, "who belongs nowhere yet is served"
    cluster.revive("r1")
    assert client.get("/cart").text == "tea"


def test_retries_are_as_many_as_asked_for(start):
    cluster = start(retries=1)
    for name in ("r1", "r2"):
        cluster.kill(name)
    assert cluster.client().get("/cart").status_code == 503
    assert cluster.decisions[-1].attempts == ("r1", "r2")


def test_chance_is_seeded(start):
    def run(seed: int) -> list[tuple[str, str]]:
        cluster = start(balance="random", seed=seed)
        clients = [cluster.client() for _ in range(12)]
        marks = [client.get("/cart").headers["set-cookie"] for client in clients]
        return list(zip(map(cluster.server_of, clients), marks, strict=True))

    first = run(1)
    assert run(1) == first, "to the last character of a cookie"
    assert [server for server, _ in run(2)] != [server for server, _ in first]


@pytest.mark.parametrize("replicas", [0, -1])
def test_no_replicas_are_no_cluster(start, replicas):
    with pytest.raises(ConfigError):
        start(replicas)


def test_an_app_handed_over_for_a_factory_is_told_apart(start, way, shop):
    app = way.create(shop)()
    with pytest.raises(ConfigError, match="rather than a factory"):
        way.kind(app, **way.options)


@pytest.mark.parametrize("act", ["kill", "revive", "restart", "drain", "maint", "ready"])
def test_a_wrong_name_is_told_the_right_ones(start, act):
    cluster = start(2)
    with pytest.raises(LookupError, match="no replica 'r9': the replicas are r1, r2"):
        getattr(cluster, act)("r9")


# -- what the cluster tells


def test_decisions_are_in_the_order_in_which_requests_end(cluster, shop):
    first, second = cluster.client(), cluster.client()
    late = aside(lambda: first.get("/late"))
    try:
        assert shop.arrived.wait(DEADLINE)
        assert in_flight(cluster) == [1, 0, 0]
        second.get("/cart")
        assert [decision.server for decision in cluster.decisions] == ["r2"]
    finally:
        shop.go_on.set()
    assert late.result(DEADLINE).text == "late"
    assert [decision.server for decision in cluster.decisions] == ["r2", "r1"]
    assert in_flight(cluster) == [0, 0, 0]


def test_a_client_that_stayed_is_sticky(cluster):
    clients = [cluster.client(), cluster.client()]
    for client in clients * 2:
        client.get("/cart")
    for client in clients:
        cluster.assert_sticky(client)


def test_a_client_that_moved_tells_its_story(cluster):
    client = cluster.client()
    client.post("/cart/tea")
    client.get("/cart")
    cluster.kill("r1")
    client.get("/cart")
    with pytest.raises(AssertionError) as failed:
        cluster.assert_sticky(client)
    assert str(failed.value).splitlines() == [
        "the client did not stay on one replica:",
        "  1. POST /cart/tea: r1 (no cookie; balance chose r1; status 200)",
        "  2. GET /cart: r1 (r1: server is usable; status 200)",
        "  3. GET /cart: r2 (r1: server did not respond; balance chose r2; status 200)",
    ]


def test_a_client_that_was_turned_away_was_not_at_home_either(start):
    cluster = start(unavailable="fail")
    client = cluster.client()
    client.get("/cart")
    cluster.kill("r1")
    client.get("/cart")
    with pytest.raises(AssertionError, match=r"2\. GET /cart: no server \(.*; status 503\)"):
        cluster.assert_sticky(client)


def test_a_client_that_was_always_turned_away_is_nobody_s(start):
    cluster = start(1)
    cluster.kill("r1")
    client = cluster.client()
    for _ in range(2):
        client.get("/cart")
    with pytest.raises(AssertionError, match="no server"):
        cluster.assert_sticky(client)


@pytest.mark.parametrize("requests", [0, 1])
def test_fewer_than_two_requests_are_no_proof(cluster, requests):
    client = cluster.client()
    for _ in range(requests):
        client.get("/cart")
    with pytest.raises(AssertionError, match="let it make two at least"):
        cluster.assert_sticky(client)


def test_a_repr_shows_what_is_going_on(cluster):
    cluster.client().get("/cart")
    cluster.drain("r2")
    assert repr(cluster) == "<Cluster of <Backend cluster: r1 UP 0/1, r2 DRAIN 0/0, r3 UP 0/0>>"
    cluster.kill("r3")
    cluster.kill("r1")
    assert repr(cluster) == ("<Cluster of <Backend cluster: r1 UP 0/1, r2 DRAIN 0/0, r3 UP 0/0>, killed: r1, r3>")


def test_a_cluster_has_the_name_it_is_given(start):
    assert "<Backend shop: " in repr(start(name="shop"))


# -- begin and end


@pytest.mark.parametrize("way", BEGUN, indirect=True)
def test_begun_means_that_all_replicas_are_made_at_once(cluster, shop):
    assert shop.made == 3


@pytest.mark.parametrize("way", LAZY, indirect=True)
def test_otherwise_they_are_made_when_the_first_request_comes(cluster, shop):
    client = cluster.client()
    assert shop.made == 0
    client.get("/cart")
    assert shop.made == 3


def outcome_of(cluster: Any) -> BaseException | None:
    """What comes out of its with statement."""

    def begin_and_end() -> None:
        with cluster:
            pass

    return aside(begin_and_end).exception(DEADLINE)


@pytest.mark.parametrize("way", BEGUN, indirect=True)
def test_a_replica_that_cannot_be_made_fails_the_with_statement(way, shop):
    shop.broken = 2
    error = outcome_of(way.kind(way.create(shop), **way.options))
    assert "r2" in str(error) and "no database" in str(error)


@pytest.mark.parametrize("way", LAZY, indirect=True)
def test_lazily_a_replica_that_cannot_be_made_is_down_and_the_others_serve(cluster, shop, caplog):
    shop.broken = 2
    clients = [cluster.client() for _ in range(4)]
    assert [client.get("/cart").status_code for client in clients] == [200] * 4
    assert [cluster.server_of(client) for client in clients] == ["r1", "r3", "r1", "r3"]
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert errors == ["backend cluster: replica r2 failed to start and is DOWN"]


def test_nothing_is_left_when_a_cluster_has_ended(way, shop):
    before = threading.enumerate()
    with ExitStack() as stack:
        cluster = way.kind(way.create(shop), **way.options)
        if way.begun:
            stack.enter_context(cluster)
        clients = [cluster.client(), cluster.client()]
        for client in clients:
            client.get("/cart")
        cluster.restart("r1")
        clients[0].get("/cart")
    wait_until(lambda: threading.enumerate() == before)
    assert in_flight(cluster) == [0, 0, 0]


@pytest.mark.parametrize("way", BEGUN, indirect=True)
def test_a_cluster_that_has_ended_may_begin_anew_with_empty_memories(way, shop):
    cluster: Any = way.kind(way.create(shop), 1, **way.options)
    with cluster:
        cluster.client().post("/cart/tea")
    with cluster:
        assert cluster.client().post("/cart/tea").text == "tea"
    assert cluster.client().get("/cart").text == "", "lazily, who comes now"
    assert shop.made == 3


@dataclass
class Lived:
    """What became of the lifespans of an ASGI app."""

    began: list[int] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    #: the number of the replica that fails to start, and of the one that fails to end
    stillborn: int = 0
    restless: int = 0

    def create(self) -> Starlette:
        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[dict[str, int]]:
            number = len(self.began) + 1
            self.began.append(number)
            if number == self.stillborn:
                raise ValueError("no database")
            yield {"number": number}
            self.ended.append(number)
            if number == self.restless:
                raise ValueError("can't let go")

        async def number(request: Request) -> PlainTextResponse:
            return PlainTextResponse(str(getattr(request.state, "number", "none")))

        return Starlette(routes=[Route("/", number)], lifespan=lifespan)


@pytest.fixture
def lived() -> Lived:
    return Lived()


@pytest.mark.parametrize("way", ASGI_BEGUN, indirect=True)
def test_lifespans_run_once_per_replica_and_their_state_reaches_its_requests(way, lived):
    with way.kind(lived.create, **way.options) as cluster:
        assert (lived.began, lived.ended) == ([1, 2, 3], [])
        clients = [cluster.client() for _ in range(3)]
        for _ in range(2):
            assert [client.get("/").text for client in clients] == ["1", "2", "3"]
        assert (lived.began, lived.ended) == ([1, 2, 3], [])
    assert lived.ended == [3, 2, 1]


@pytest.mark.parametrize("way", ASGI_BEGUN, indirect=True)
def test_a_restart_ends_one_lifespan_and_begins_another(way, lived):
    with way.kind(lived.create, 2, **way.options) as cluster:
        clients = [cluster.client(), cluster.client()]
        assert [client.get("/").text for client in clients] == ["1", "2"]
        cluster.restart("r1")
        assert (lived.began, lived.ended) == ([1, 2, 3], [1])
        assert clients[1].get("/").text == "2"
        cluster.maint("r2")
        assert clients[0].get("/").text == "3"
    assert lived.ended == [1, 3, 2]


@pytest.mark.parametrize("way", ASGI_BEGUN, indirect=True)
def test_who_is_killed_does_not_end_in_good_order(way, lived):
    with way.kind(lived.create, **way.options) as cluster:
        cluster.kill("r1")
        assert lived.ended == []


@pytest.mark.parametrize("way", ASGI_BEGUN, indirect=True)
def test_a_lifespan_that_fails_to_start_fails_the_with_statement_and_the_others_end(way, lived):
    lived.stillborn = 3
    error = outcome_of(way.kind(lived.create, **way.options))
    assert "r3" in str(error) and "no database" in str(error)
    assert (lived.began, lived.ended) == ([1, 2, 3], [2, 1])


@pytest.mark.parametrize("way", ASGI_BEGUN, indirect=True)
def test_a_lifespan_that_fails_to_end_fails_the_with_statement(way, lived):
    lived.restless = 2
    error = outcome_of(way.kind(lived.create, **way.options))
    assert "can't let go" in str(error)
    assert lived.ended == [3, 2, 1]


@pytest.mark.parametrize("way", ASGI_LAZY, indirect=True)
def test_lazily_no_lifespan_runs(way, lived):
    cluster = way.kind(lived.create, **way.options)
    client = cluster.client()
    assert client.get("/").text == "none"
    cluster.restart("r1")
    assert client.get("/").text == "none"
    assert (lived.began, lived.ended) == ([], [])


@pytest.mark.parametrize("way", ASGI_BEGUN, indirect=True)
def test_begun_all_clients_are_on_one_event_loop(way, shop):
    cluster: Any = way.kind(way.create(shop), **way.options)
    early = cluster.client()
    with cluster:
        for client in (early, cluster.client(), cluster.client()):
            client.get("/cart")
    assert len(shop.loops) == 3
    assert all(loop == shop.loops[0] for loop in shop.loops), "those made before it was begun as well"


@pytest.mark.parametrize("way", ASGI, indirect=True)
def test_replicas_run_on_the_library_that_is_asked_for(cluster, way, shop):
    cluster.client().get("/cart")
    assert shop.libraries == {way.options["anyio_backend"]}


@pytest.mark.parametrize("way", ASGI_LAZY, indirect=True)
def test_lazily_each_request_has_an_event_loop_of_its_own(cluster, shop):
    client = cluster.client()
    client.get("/cart")
    client.get("/cart")
    assert shop.loops[0] != shop.loops[1]


# -- open streams


def killed(cluster: Cluster[Any]) -> None:
    cluster.kill("r1")


def killed_and_revived(cluster: Cluster[Any]) -> None:
    cluster.kill("r1")
    cluster.revive("r1")


def restarted(cluster: Cluster[Any]) -> None:
    cluster.restart("r1")


@pytest.mark.parametrize("end", [killed, killed_and_revived, restarted])
def test_a_stream_ends_with_its_replica(cluster, way, shop, end):
    def read() -> None:
        with way.stream(cluster.client(), "/stream") as items:
            assert next(items) == b"one"
            assert in_flight(cluster) == [1, 0, 0]
            end(cluster)
            next(items)

    with pytest.raises(ServerFailure, match="r1"):
        aside(read).result(DEADLINE)
    assert in_flight(cluster) == [0, 0, 0]
    assert shop.closed == 1
    assert cluster.decisions[-1].server == "r1"
    assert cluster.decisions[-1].failures == (Failure.TRUNCATED,)


def test_a_stream_that_another_thread_reads_ends_with_its_replica(cluster, way, shop):
    client, reading = cluster.client(), threading.Event()

    def read() -> None:
        with way.stream(client, "/stream") as items:
            for _ in items:
                reading.set()

    reader = aside(read)
    assert reading.wait(DEADLINE)
    cluster.kill("r1")
    with pytest.raises(ServerFailure, match="r1"):
        reader.result(DEADLINE)
    assert in_flight(cluster) == [0, 0, 0]
    assert shop.closed == 1


def test_streams_of_other_replicas_go_on(cluster, way, shop):
    client, other = cluster.client(), cluster.client()
    client.get("/cart")
    with way.stream(other, "/stream") as items:
        assert next(items) == b"one"
        cluster.kill("r1")
        cluster.maint("r2")
        assert in_flight(cluster) == [0, 1, 0]
        assert shop.closed == 0
    assert in_flight(cluster) == [0, 0, 0]
    assert cluster.decisions[-1].failures == (), "the client left, nobody failed"


def test_what_is_cut_short_says_so(cluster, way):
    def read() -> None:
        with way.stream(cluster.client(), "/stream") as items:
            next(items)
            cluster.kill("r1")
            next(items)

    with pytest.raises(ServerFailure, match=Failure.TRUNCATED.text):
        aside(read).result(DEADLINE)


@pytest.mark.parametrize("way", ASGI_BEGUN, indirect=True)
def test_what_is_still_open_when_a_cluster_ends_ends_with_it(way, shop):
    cluster: Any = way.kind(way.create(shop), **way.options)
    reading = threading.Event()

    def read() -> None:
        with suppress(ServerFailure), way.stream(client, "/stream") as items:
            for _ in items:
                reading.set()

    cluster.__enter__()
    client = cluster.client()
    reader = aside(read)
    assert reading.wait(DEADLINE)
    aside(lambda: cluster.__exit__(None, None, None)).result(DEADLINE)
    reader.result(DEADLINE)
    assert in_flight(cluster) == [0, 0, 0]
    assert shop.closed == 1


@pytest.mark.parametrize("way", ASGI_LAZY, indirect=True)
def test_what_ends_by_itself_while_its_replica_is_being_killed_is_nobody_s_trouble(start, way, shop):
    cluster = start(1)
    first, second = cluster.client(), cluster.client()
    reading, leave = threading.Event(), threading.Event()

    def read() -> None:
        with way.stream(second, "/stream") as items:
            next(items)
            reading.set()
            assert leave.wait(DEADLINE)

    stuck = aside(lambda: first.get("/stuck"))
    assert shop.arrived.wait(DEADLINE)
    reader = aside(read)
    try:
        assert reading.wait(DEADLINE)
        killer = aside(lambda: cluster.kill("r1"))  # waits for the event loop of the first
        wait_until(lambda: "killed: r1" in repr(cluster))
        leave.set()
        reader.result(DEADLINE)  # the event loop of the second is no more
    finally:
        shop.go_on.set()
    killer.result(DEADLINE)
    stuck.exception(DEADLINE)
    assert in_flight(cluster) == [0]


@pytest.mark.parametrize("way", ASGI, indirect=True)
def test_a_request_that_is_being_served_when_its_replica_is_killed_may_have_been_executed(cluster, shop):
    client = cluster.client()
    visit = aside(lambda: client.get("/silent"))
    assert shop.arrived.wait(DEADLINE)
    cluster.kill("r1")
    assert visit.result(DEADLINE).status_code == 502
    assert cluster.decisions[-1].attempts == ("r1",)
    assert cluster.decisions[-1].failures == (Failure.CLOSED,)
    assert in_flight(cluster) == [0, 0, 0]


@pytest.mark.parametrize("way", ASGI, indirect=True)
def test_a_websocket_ends_with_its_replica(cluster, shop):
    client = cluster.client()
    with suppress(ServerFailure), client.websocket_connect("/chat") as chat:
        chat.send_text("hello")
        assert chat.receive_text() == "hello!"
        assert cluster.server_of(client) == "r1"
        cluster.kill("r1")
        wait_until(lambda: in_flight(cluster) == [0, 0, 0])
        with pytest.raises(GONE):
            chat.receive_text()
    assert shop.closed == 1
    assert cluster.decisions[-1].failures == (Failure.TRUNCATED,)


@pytest.mark.parametrize("way", ASGI, indirect=True)
def test_a_websocket_that_another_thread_waits_on_ends_with_its_replica(cluster, shop):
    client, waiting = cluster.client(), threading.Event()

    def wait() -> None:
        with suppress(ServerFailure), client.websocket_connect("/chat") as chat:
            waiting.set()
            with pytest.raises(GONE):
                chat.receive_text()

    waiter = aside(wait)
    assert waiting.wait(DEADLINE)
    cluster.kill("r1")
    waiter.result(DEADLINE)
    assert in_flight(cluster) == [0, 0, 0]
    assert shop.closed == 1


@pytest.mark.parametrize("way", ASGI, indirect=True)
def test_a_websocket_of_a_killed_replica_s_client_is_redispatched_and_told_so(cluster):
    client = cluster.client()
    client.get("/cart")
    cluster.kill("r1")
    with client.websocket_connect("/chat") as chat:
        chat.send_text("hello")
        assert chat.receive_text() == "hello!"
        told = dict(chat.extra_headers or ())
    assert told[b"set-cookie"].startswith(b"SERVERID=r2@")
    assert cluster.decisions[-1].attempts == ("r1", "r2")
    with pytest.raises(AssertionError, match="WebSocket /chat: r2"):
        cluster.assert_sticky(client)


@pytest.mark.parametrize("way", ASGI, indirect=True)
def test_where_all_are_killed_a_websocket_is_denied(start):
    cluster = start(1)
    cluster.kill("r1")
    with (
        pytest.raises(WebSocketDenialResponse) as denied,
        cluster.client().websocket_connect("/chat"),
    ):
        pass
    assert denied.value.status_code == 503
    assert "retry-after" in denied.value.headers


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_test_on_the_same_event_loop_may_kill_as_well(shop, backend):
    cluster = sticky_asgi.testing.Cluster(shop.asgi)
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/stream",
        "query_string": b"",
        "headers": [],
    }
    failed: list[ServerFailure] = []

    async def visit(streaming: anyio.Event) -> None:
        async def send(message: Any) -> None:
            if message.get("body"):
                streaming.set()

        try:
            await cluster.app(scope, anyio.sleep_forever, send)  # type: ignore[arg-type]  # nothing comes
        except ServerFailure as error:
            failed.append(error)

    async def main() -> None:
        streaming = anyio.Event()
        with anyio.fail_after(DEADLINE):
            async with anyio.create_task_group() as group:
                group.start_soon(visit, streaming)
                await streaming.wait()
                assert in_flight(cluster) == [1, 0, 0]
                cluster.kill("r1")

    anyio.run(main, backend=backend)
    assert [error.server for error in failed] == ["r1"]
    assert in_flight(cluster) == [0, 0, 0]
    assert shop.closed == 1


@pytest.mark.parametrize("way", ["wsgi", "wsgi begun"], indirect=True)
def test_an_answer_that_is_read_as_a_whole_is_over_when_it_is_there(cluster):
    client = cluster.client()
    client.get("/cart")
    assert len(cluster.decisions) == 1
    assert in_flight(cluster) == [0, 0, 0]
    cluster.kill("r1")
    assert client.get("/cart", buffered=False).status_code == 200
