"""Snapshot: each request keeps the one that it began with, whatever is changed meanwhile."""

import gc
import random
import threading
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace
from types import FunctionType, ModuleType
from typing import Any

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.backend.snapshot import Snapshot
from sticky_core.balance import LeastConn, RoundRobin, Source
from sticky_core.errors import Failure
from sticky_core.health.check import Check
from sticky_core.persistence.claim import Claim
from sticky_core.persistence.stick.config import Stick
from sticky_core.samples.request import src
from sticky_core.server.server import Server
from tests.core.backend.backends import (
    PLAIN,
    FakeTransaction,
    app,
    build_backend,
    serve,
    servers,
    ticket_of,
    url,
    urls,
    with_changed_server,
)
from tests.core.fakes import FakeRequest


@pytest.mark.parametrize(
    "made, options, rereads",
    [
        pytest.param(servers("s1"), {}, False, id="apps alone"),
        pytest.param(servers("s1"), {"retry_on": "none"}, False, id="apps, never again"),
        pytest.param(servers("s1"), {"retry_on": "503"}, True, id="apps with responses that are held back"),
        pytest.param(servers("s1"), {"retry_on": "empty-response"}, True, id="apps that may have read it"),
        pytest.param([Server("s1", app, maxconn=1)], {}, True, id="an app that may be full"),
        pytest.param([Server("s1", "http://10.0.0.1")], {}, True, id="a URL"),
        pytest.param([Server("s1", app), Server("s2", "http://10.0.0.1")], {}, True, id="a URL beside an app"),
    ],
)
def test_requests_may_need_replay_where_they_are_retried_or_wait(
    made: list[Server], options: dict[str, str], rereads: bool
):
    assert Backend("web", made, **options).snapshot.needs_replay is rereads  # type: ignore[arg-type]


def test_unchanged_balance_and_persistence_are_taken_over():
    web = build_backend(urls(1, 2, 3), persist=PLAIN)
    assert serve(web) == "s1"
    persistence = web.persistence
    web.apply(replace(web.config, retries=0))
    assert serve(web) == "s2", "it is still its turn"
    assert web.persistence is persistence


def test_request_keeps_the_snapshot_that_it_began_with():
    web = build_backend(urls(1, 2), retries=1)
    before = FakeTransaction(web, "SRV=s1")
    before.begin()
    web.apply(replace(web.config, retries=0, persist=()))
    after = FakeTransaction(web, "SRV=s1")
    after.begin()
    for request in (before, after):
        request.record_failure(Failure.REFUSED)
    assert before.persisted.claim is Claim.VALID and after.persisted.claim is Claim.NONE
    assert before.next_server() is web["s2"]
    assert after.next_server() is None


def test_retry_is_sent_to_no_server_outside_its_snapshot_and_to_no_removed_one():
    web = build_backend(urls(1, 2, 3))
    request = FakeTransaction(web, "SRV=s1")
    request.begin()
    request.record_failure(Failure.REFUSED)
    web.remove("s2")
    web.add(*urls(7, 8, 9))
    request.release(web["s1"], False)
    assert request.next_server() is web["s3"]


def test_waiting_request_is_granted_no_slot_outside_its_snapshot():
    web = build_backend(urls(1, maxconn=1))
    holding = FakeTransaction(web)
    holding.begin()
    waiting = FakeTransaction(web)
    assert waiting.begin() is None
    ticket = ticket_of(waiting)
    web.add(Server("s2", url(2), maxconn=1))
    assert ticket.granted is None
    holding.end()
    assert ticket.granted is web["s1"]


def test_request_that_began_uncounted_frees_its_slot_under_a_new_maxconn():
    web = build_backend(urls(1))
    early = FakeTransaction(web)
    early.begin()
    web.apply(with_changed_server(web.config, "s1", maxconn=1))
    waiting = FakeTransaction(web)
    assert waiting.begin() is None
    ticket = ticket_of(waiting)
    early.end()
    assert ticket.granted is web["s1"]


def test_waiting_requests_are_granted_slots_when_maxconn_is_removed():
    web = build_backend(urls(1, maxconn=1))
    FakeTransaction(web).begin()
    waiting = FakeTransaction(web)
    assert waiting.begin() is None
    ticket = ticket_of(waiting)
    web.apply(with_changed_server(web.config, "s1", maxconn=0))
    assert ticket.granted is web["s1"]


def test_new_algorithm_counts_requests_that_began_before():
    web = build_backend(urls(1, 2))
    busy = [FakeTransaction(web, "SRV=s1") for _ in range(3)]
    for request in busy:
        request.begin()
    web.apply(replace(web.config, balance=LeastConn()))
    assert {serve(web) for _ in range(4)} == {"s2"}
    for request in busy:
        request.end()
    assert {serve(web) for _ in range(4)} == {"s1", "s2"}


def test_concurrent_requests_and_changes_leave_no_request_in_flight():
    web = build_backend(urls(1, 2, 3), balance=LeastConn())
    stop = threading.Event()
    wrong: list[object] = []

    def visit(cookie: str, home: str | None) -> None:
        while not stop.is_set():
            try:
                server = serve(web, cookie)
                if server is None or (home is not None and server != home):
                    wrong.append((cookie, server))
            except Exception as error:
                wrong.append(error)

    visitors = [threading.Thread(target=visit, args=each) for each in (("SRV=s1", "s1"), ("SRV=s2", "s2"), ("", None))]
    for visitor in visitors:
        visitor.start()
    for number in range(60):
        web.add(Server(f"x{number}", url(number % 200), maxconn=number % 3))
        web.apply(replace(web.config, balance=(LeastConn(), RoundRobin(), Source())[number % 3]))
        change = web.remove(f"x{number}")
    stop.set()
    for visitor in visitors:
        visitor.join()
    assert wrong == []
    assert change.retired.wait(300)
    assert [len(server.in_flight) for server in web.servers] == [0, 0, 0]


def values_of(snapshot: Snapshot) -> dict[str, object]:
    return {field.name: getattr(snapshot, field.name) for field in fields(snapshot)}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda web: web.add(*urls(9)), id="a server is added"),
        pytest.param(lambda web: web.remove("s2"), id="a server is removed"),
        pytest.param(lambda web: web.apply(with_changed_server(web.config, "s1", maxconn=1)), id="maxconn is set"),
        pytest.param(lambda web: web.apply(replace(web.config, balance=LeastConn())), id="balance is another one"),
        pytest.param(lambda web: web.apply(replace(web.config, persist=(), retries=0)), id="nothing persists"),
        pytest.param(lambda web: web.apply(replace(web.config, check=Check("/"))), id="servers are checked"),
    ],
)
def test_snapshot_is_not_changed_by_a_swap(change: Callable[[Backend], Any]):
    web = build_backend(urls(1, 2, 3))
    request = FakeTransaction(web, "SRV=s2")
    request.begin()
    snapshot = web.snapshot
    before = values_of(snapshot)
    assert change(web).is_in_force and web.snapshot is not snapshot
    assert values_of(snapshot) == before
    request.end()
    assert values_of(snapshot) == before
    assert not web["s1"].in_flight


def test_snapshot_is_frozen():
    with pytest.raises(FrozenInstanceError):
        build_backend(urls(1)).snapshot.counts_requests = True  # type: ignore[misc]


@pytest.mark.parametrize("balance", ["roundrobin", "leastconn", "source"])
def test_snapshot_holds_no_reference_to_its_backend(balance: str):
    """Servers are live objects that belong to the backend, so what they refer to is not searched."""
    web = build_backend(urls(1, 2), balance=balance, persist=[PLAIN, Stick.on(src)], rng=random.Random(1))
    web.apply(replace(web.config, retries=1))
    parts = {id(part) for part in (web, web.placement, web.monitor, web.reconfigure)}
    seen: set[int] = set()
    waiting: list[object] = [web.snapshot]
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, Server | type | ModuleType | FunctionType):
            continue
        seen.add(id(each))
        assert id(each) not in parts, f"{type(each).__name__} is referred to"
        waiting += gc.get_referents(each)
    assert len(seen) > 100, "else nothing was searched"


def test_requests_are_counted_at_a_removed_server_with_requests_in_flight():
    web = build_backend(urls(1, 2))
    s1, s2 = web.servers
    request = FakeTransaction(web, "SRV=s2")
    request.begin()
    assert not s2.counts_requests
    change = web.remove("s2")
    assert s2.counts_requests and not s1.counts_requests and not web.snapshot.counts_requests
    request.end()
    assert change.retired.reached


class ForbiddenLock:
    def __enter__(self) -> None:
        raise AssertionError("the lock is acquired")

    def __exit__(self, *exc_info: object) -> None: ...


def test_bound_requests_acquire_no_lock_while_a_removed_server_has_requests_in_flight(monkeypatch: pytest.MonkeyPatch):
    web = build_backend(urls(1, 2))
    long_request = FakeTransaction(web, "SRV=s2")
    long_request.begin()
    change = web.remove("s2")
    with monkeypatch.context() as patch:
        patch.setattr(web.placement, "lock", ForbiddenLock())
        assert [serve(web, "SRV=s1") for _ in range(2)] == ["s1", "s1"]
    assert not change.retired.reached
    long_request.end()
    assert change.retired.reached


@pytest.mark.parametrize("balance", ["roundrobin", "leastconn", "source", "random"])
def test_request_of_an_earlier_snapshot_is_sent_to_no_server_that_was_added_though_balance_goes_on(balance: str):
    web = build_backend(urls(1, 2, 3, 4), balance=balance, rng=random.Random(1))
    before = web.snapshot
    request = FakeTransaction(web, "SRV=s1")
    request.begin()
    request.record_failure(Failure.REFUSED)
    web.remove("s2")
    web.add(*urls(7))
    assert web.snapshot.balancing is before.balancing
    request.release(web["s1"], False)
    seen = {web.placement.choose(before, FakeRequest(), ()) for _ in range(60)}
    assert seen <= {web["s1"], web["s3"], web["s4"]}
    assert request.next_server() in (web["s3"], web["s4"])
    assert web["s7"] in {web.placement.choose(web.snapshot, FakeRequest(), before.servers) for _ in range(4)}
