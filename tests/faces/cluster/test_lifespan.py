"""The start and the end of a cluster and of its replicas, as a context manager and lazily."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tests.faces.cluster.shop import (
    ASGI,
    ASGI_LAZY,
    ASGI_STARTED,
    DEADLINE,
    LAZY,
    STARTED,
    in_flight,
    in_thread,
    wait_until,
)


@pytest.mark.parametrize("variant", STARTED, indirect=True)
def test_context_manager_makes_all_replicas_at_once(cluster, shop):
    assert shop.made == 3


@pytest.mark.parametrize("variant", LAZY, indirect=True)
def test_without_a_context_manager_replicas_are_made_at_the_first_request(cluster, shop):
    client = cluster.client()
    assert shop.made == 0
    client.get("/cart")
    assert shop.made == 3


def error_of(cluster: Any) -> BaseException | None:
    """Enter and leave the cluster's context; return the exception, if any."""

    def enter_and_exit() -> None:
        with cluster:
            pass

    return in_thread(enter_and_exit).exception(DEADLINE)


@pytest.mark.parametrize("variant", STARTED, indirect=True)
def test_replica_that_fails_to_start_fails_the_with_statement(variant, shop):
    shop.broken = 2
    error = error_of(variant.cluster(variant.create(shop), **variant.options))
    assert "r2" in str(error) and "no database" in str(error)


@pytest.mark.parametrize("variant", LAZY, indirect=True)
def test_lazily_a_replica_that_fails_to_start_is_down_and_the_others_serve(cluster, shop, caplog):
    shop.broken = 2
    clients = [cluster.client() for _ in range(4)]
    assert [client.get("/cart").status_code for client in clients] == [200] * 4
    assert [cluster.server_of(client) for client in clients] == ["r1", "r3", "r1", "r3"]
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert errors == ["backend cluster: replica r2 failed to start and is DOWN"]


def test_no_threads_are_left_when_a_cluster_has_ended(variant, shop):
    before = threading.enumerate()
    with ExitStack() as stack:
        cluster = variant.cluster(variant.create(shop), **variant.options)
        if variant.started:
            stack.enter_context(cluster)
        clients = [cluster.client(), cluster.client()]
        for client in clients:
            client.get("/cart")
        cluster.restart("r1")
        clients[0].get("/cart")
    wait_until(lambda: threading.enumerate() == before)
    assert in_flight(cluster) == [0, 0, 0]


@pytest.mark.parametrize("variant", STARTED, indirect=True)
def test_cluster_that_has_ended_can_start_again_with_empty_memories(variant, shop):
    cluster: Any = variant.cluster(variant.create(shop), 1, **variant.options)
    with cluster:
        cluster.client().post("/cart/tea")
    with cluster:
        assert cluster.client().post("/cart/tea").text == "tea"
    assert cluster.client().get("/cart").text == "", "after the context, replicas are made lazily"
    assert shop.made == 3


@dataclass
class LifespanRecorder:
    """Makes replicas of an ASGI app, and records their lifespans."""

    started: list[int] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    #: the number of the replica that fails to start, and of the one that fails to end
    fails_to_start: int = 0
    fails_to_end: int = 0

    def create(self) -> Starlette:
        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[dict[str, int]]:
            number = len(self.started) + 1
            self.started.append(number)
            if number == self.fails_to_start:
                raise ValueError("no database")
            yield {"number": number}
            self.ended.append(number)
            if number == self.fails_to_end:
                raise ValueError("can't disconnect")

        async def number(request: Request) -> PlainTextResponse:
            return PlainTextResponse(str(getattr(request.state, "number", "none")))

        return Starlette(routes=[Route("/", number)], lifespan=lifespan)


@pytest.fixture
def lifespans() -> LifespanRecorder:
    return LifespanRecorder()


@pytest.mark.parametrize("variant", ASGI_STARTED, indirect=True)
def test_lifespan_runs_once_per_replica_and_its_state_is_in_the_requests(variant, lifespans):
    with variant.cluster(lifespans.create, **variant.options) as cluster:
        assert (lifespans.started, lifespans.ended) == ([1, 2, 3], [])
        clients = [cluster.client() for _ in range(3)]
        for _ in range(2):
            assert [client.get("/").text for client in clients] == ["1", "2", "3"]
        assert (lifespans.started, lifespans.ended) == ([1, 2, 3], [])
    assert lifespans.ended == [3, 2, 1]


@pytest.mark.parametrize("variant", ASGI_STARTED, indirect=True)
def test_restart_ends_one_lifespan_and_starts_another(variant, lifespans):
    with variant.cluster(lifespans.create, 2, **variant.options) as cluster:
        clients = [cluster.client(), cluster.client()]
        assert [client.get("/").text for client in clients] == ["1", "2"]
        cluster.restart("r1")
        assert (lifespans.started, lifespans.ended) == ([1, 2, 3], [1])
        assert clients[1].get("/").text == "2"
        cluster.maint("r2")
        assert clients[0].get("/").text == "3"
    assert lifespans.ended == [1, 3, 2]


@pytest.mark.parametrize("variant", ASGI_STARTED, indirect=True)
def test_kill_does_not_end_the_lifespan(variant, lifespans):
    with variant.cluster(lifespans.create, **variant.options) as cluster:
        cluster.kill("r1")
        assert lifespans.ended == []


@pytest.mark.parametrize("variant", ASGI_STARTED, indirect=True)
def test_lifespan_that_fails_to_start_fails_the_with_statement_and_the_others_end(variant, lifespans):
    lifespans.fails_to_start = 3
    error = error_of(variant.cluster(lifespans.create, **variant.options))
    assert "r3" in str(error) and "no database" in str(error)
    assert (lifespans.started, lifespans.ended) == ([1, 2, 3], [2, 1])


@pytest.mark.parametrize("variant", ASGI_STARTED, indirect=True)
def test_lifespan_that_fails_to_end_fails_the_with_statement(variant, lifespans):
    lifespans.fails_to_end = 2
    error = error_of(variant.cluster(lifespans.create, **variant.options))
    assert "can't disconnect" in str(error)
    assert lifespans.ended == [3, 2, 1]


@pytest.mark.parametrize("variant", ASGI_LAZY, indirect=True)
def test_lazily_no_lifespan_runs(variant, lifespans):
    cluster = variant.cluster(lifespans.create, **variant.options)
    client = cluster.client()
    assert client.get("/").text == "none"
    cluster.restart("r1")
    assert client.get("/").text == "none"
    assert (lifespans.started, lifespans.ended) == ([], [])


@pytest.mark.parametrize("variant", ASGI_STARTED, indirect=True)
def test_context_manager_runs_all_clients_on_one_event_loop(variant, shop):
    cluster: Any = variant.cluster(variant.create(shop), **variant.options)
    early = cluster.client()
    with cluster:
        for client in (early, cluster.client(), cluster.client()):
            client.get("/cart")
    assert len(shop.loops) == 3
    assert all(loop == shop.loops[0] for loop in shop.loops), "clients made before the start included"


@pytest.mark.parametrize("variant", ASGI, indirect=True)
def test_replicas_run_on_the_given_library(cluster, variant, shop):
    cluster.client().get("/cart")
    assert shop.libraries == {variant.options["anyio_backend"]}


@pytest.mark.parametrize("variant", ASGI_LAZY, indirect=True)
def test_lazily_each_request_has_an_event_loop_of_its_own(cluster, shop):
    client = cluster.client()
    client.get("/cart")
    client.get("/cart")
    assert shop.loops[0] != shop.loops[1]
