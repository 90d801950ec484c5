"""Name resolution starts with a dispatcher, ends with it, and has one owner."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

import sticky_wsgi
from sticky_core.dns.resolvers import Query, Resolvers
from sticky_core.health.check import Check
from sticky_core.server.server import Server
from tests.faces.discovery.dispatchers import (
    NAME,
    A,
    B,
    FakeResolver,
    Origins,
    addresses,
    resolving_threads,
    running,
    template,
)
from tests.faces.running import DEADLINE, until

if TYPE_CHECKING:
    from tests.faces.conftest import Face


@pytest.mark.parametrize("lifespan", [True, False], ids=["lifespan", "first request"])
def test_first_request_finds_resolved_servers(face: Face, origins: Origins, lifespan: bool) -> None:
    resolver = FakeResolver(A, B)
    backend = face.backend(*template(origins, resolver))
    dispatched = face.dispatcher(backend)
    assert dispatched is not None and resolver.queries == [], "nothing is resolved before the start"
    with running(face, backend, lifespan=lifespan, warm=False) as run:
        assert {run.address(), run.address()} == {A, B}
        assert addresses(backend) == [A, B, None]
        assert [server.status for server in backend.servers] == ["UP", "UP", "MAINT"]
        assert resolver.queries[0] == Query(NAME, False, "ipv4", 0.5)


@pytest.mark.parametrize("lifespan", [True, False], ids=["lifespan", "first request"])
def test_first_request_waits_for_the_addresses_and_then_for_the_checks_of_the_servers_that_have_one(
    face: Face, origins: Origins, lifespan: bool
) -> None:
    probed: list[str] = []

    def probe(server: Server) -> bool:
        probed.append(server.name)
        return server.name == "web2"

    servers = Server.template(
        "web",
        3,
        f"{NAME}:{origins.port}",
        resolvers=Resolvers(resolver=FakeResolver(A, B), timeout_retry=DEADLINE),
        check=Check(probe=probe, startup="wait", inter=DEADLINE),
    )
    backend = face.backend(*servers)
    with running(face, backend, lifespan=lifespan, warm=False) as run:
        assert run.address() == B
        assert [server.status for server in backend.servers] == ["DOWN", "UP", "MAINT"]
        assert sorted(probed) == ["web1", "web2"] and backend.checked.reached
        if face.name == "asgi" and not lifespan:
            run.portal.call(run.dispatcher.replicas.checks.stop)


def test_requests_wait_for_addresses_no_longer_than_the_timeout_of_a_query(face: Face, origins: Origins) -> None:
    resolver = FakeResolver(A)
    resolver.may_answer.clear()
    backend = face.backend(*template(origins, resolver, timeout_retry=0.05))
    try:
        with running(face, backend, warm=False) as run:
            assert run.get().status == 503
            resolver.may_answer.set()
            until(lambda: backend["web1"].usable)
            assert run.address() == A
            assert resolver.max_parallel == 1, "a slow query is awaited: there is no second one beside it"
    finally:
        resolver.may_answer.set()


def test_resolution_ends_with_the_dispatcher(face: Face, origins: Origins) -> None:
    resolver = FakeResolver(A)
    backend = face.backend(*template(origins, resolver))
    with running(face, backend) as run:
        run.get()
        until(lambda: len(resolver.queries) > 2)
    assert resolving_threads() == []
    times = len(resolver.queries)
    time.sleep(0.1)
    assert len(resolver.queries) == times


def test_dispatcher_that_starts_again_resolves_again_and_keeps_the_addresses(face: Face, origins: Origins) -> None:
    resolver = FakeResolver(A, B)
    backend = face.backend(*template(origins, resolver))
    for _ in range(2):
        with running(face, backend) as run:
            before = len(resolver.queries)
            assert run.address() in (A, B)
            until(lambda: len(resolver.queries) > before)  # noqa: B023 - hosts before the next turn
    assert addresses(backend) == [A, B, None]


def test_forked_child_resolves_by_itself_from_its_first_request(face: Face, origins: Origins) -> None:
    if face.name == "asgi":
        pytest.skip("an event loop does not survive a fork")
    resolver = FakeResolver(A)
    backend = face.backend(*template(origins, resolver))
    with running(face, backend) as run:
        run.get()
        child = os.fork()
        if child == 0:  # pragma: no cover - another process
            code = 1
            try:
                assert resolving_threads() == []
                before = len(resolver.queries)
                run.get()
                until(lambda: len(resolver.queries) > before + 1)
                assert len(resolving_threads()) == 1
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0


def test_of_two_faces_in_front_of_one_backend_one_resolves(face: Face, origins: Origins) -> None:
    resolver = FakeResolver(A)
    backend = face.backend(*template(origins, resolver))
    with running(face, backend) as run:
        assert run.address() == A
        other = sticky_wsgi.Dispatcher(backend)
        other.replicas.get_ready()
        assert len(resolving_threads()) == (1 if face.name == "wsgi" else 0)
