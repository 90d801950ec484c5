"""Monitor: checks, agents, requests and panic change the states of servers."""

from typing import Any

import pytest

from sticky_core.errors import Failure
from sticky_core.health.agent import parse_reply
from sticky_core.health.check import Check, CheckResult, CheckStatus
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health
from tests.core.backend.backends import FAIL, PASS, app, build_backend, choose_names, make_backend, serve, urls


def test_checks_take_a_server_down_and_up():
    backend, _ = make_backend(Server("s1", app), Server("s2", app), check=Check("/"))
    story = []
    for result in (PASS, FAIL, FAIL, FAIL, PASS, PASS):
        backend.monitor.record_check(backend["s1"], result)
        story.append(backend["s1"].status)
    assert story == ["UP", "UP", "UP", "DOWN", "DOWN", "UP"]
    assert backend["s2"].status == "UP"


def test_checks_during_maintenance_change_nothing():
    backend, _ = make_backend(Server("s1", app), check=Check("/"))
    backend["s1"].state = AdminState.MAINT
    for _ in range(3):
        backend.monitor.record_check(backend["s1"], FAIL)
    assert backend["s1"].status == "MAINT"
    backend["s1"].state = AdminState.READY
    assert backend["s1"].status == "UP"


def test_stopping_server_gets_no_new_clients():
    backend, _ = make_backend(Server("s1", app), Server("s2", app), check=Check("/", disable_on_404=True))
    backend.monitor.record_check(backend["s1"], CheckResult(CheckStatus.L7OKC, 404))
    assert (backend["s1"].status, backend["s1"].usable, backend["s1"].electable) == ("NOLB", True, False)
    assert choose_names(backend, 2) == ["s2", "s2"]


@pytest.mark.parametrize(
    "line, status, weight, maxconn",
    [
        (b"down", "DOWN", 10, 8),
        (b"up", "UP", 10, 8),
        (b"drain", "DRAIN", 10, 8),
        (b"maint", "MAINT", 10, 8),
        (b"50%", "UP", 5, 8),
        (b"weight:7 maxconn:3", "UP", 7, 3),
        (b"splendid", "UP", 10, 8),
    ],
)
def test_agent_reply_sets_status_weight_and_maxconn(line: bytes, status: str, weight: int, maxconn: int):
    from sticky_core.health.agent import AgentCheck

    server = Server("s1", "http://127.0.0.1:1", weight=10, maxconn=8, agent_check=AgentCheck(9000))
    backend, _ = make_backend(server)
    backend.monitor.on_agent_reply(server, parse_reply(line))
    assert (server.status, server.weight, server.limit) == (status, weight, maxconn)
    backend.monitor.on_agent_reply(server, parse_reply(b"ready up"))
    assert server.status == "UP"


@pytest.mark.parametrize("observe, failure, down", [
    ("layer4", Failure.REFUSED, True),
    ("layer4", Failure.CLOSED, False),
    ("layer7", Failure.REFUSED, True),
    ("layer7", Failure.CLOSED, True),
])  # fmt: skip
def test_observed_failures_take_a_server_down(observe: Any, failure: Failure, down: bool):
    backend, _ = make_backend(Server("s1", app), check=Check("/", observe=observe, error_limit=2, on_error="mark-down"))
    for _ in range(2):
        backend.monitor.record_request(backend["s1"], failure, 0, 0.1)
    assert (backend["s1"].status == "DOWN") is down


@pytest.mark.parametrize(
    "status, down", [(200, False), (404, False), (500, True), (501, False), (503, True), (505, False)]
)
def test_observed_statuses_take_a_server_down(status: int, down: bool):
    backend, _ = make_backend(
        Server("s1", app), check=Check("/", observe="layer7", error_limit=2, on_error="mark-down")
    )
    for _ in range(2):
        backend.monitor.record_request(backend["s1"], None, status, 0.1)
    assert (backend["s1"].status == "DOWN") is down


def test_no_server_is_chosen_if_none_is_up():
    backend, _ = make_backend(Server("s1", app), Server("s2", app))
    for server in backend.servers:
        server.health = Health.DOWN
    assert choose_names(backend, 1) == ["-"]


def test_panic_uses_all_servers_but_those_in_maintenance():
    backend, _ = make_backend(Server("s1", app), Server("s2", app), Server("s3", app), on_empty="panic")
    backend["s3"].state = AdminState.MAINT
    for name in ("s1", "s2"):
        backend[name].health = Health.DOWN
    assert backend.monitor.panics and sorted(choose_names(backend, 2)) == ["s1", "s2"]
    assert backend["s1"].status == "DOWN"
    backend["s2"].health = Health.UP
    assert not backend.monitor.panics and choose_names(backend, 2) == ["s2", "s2"]


@pytest.mark.parametrize("down, panics", [(1, False), (2, False), (3, True)])
def test_panic_begins_below_its_threshold(down: int, panics: bool):
    servers = [Server(f"s{n}", app) for n in range(4)]
    backend, _ = make_backend(*servers, on_empty="panic", panic_threshold=0.5)
    for server in servers[:down]:
        server.health = Health.DOWN
    assert backend.monitor.panics is panics


def test_backup_is_used_before_panic():
    backend, _ = make_backend(Server("s1", app), Server("sorry", app, backup=True), on_empty="panic")
    backend["s1"].health = Health.DOWN
    assert choose_names(backend, 1) == ["sorry"] and not backend.monitor.panics


def test_panic_begins_when_the_last_server_that_is_up_is_removed():
    web = build_backend(urls(1, 2), on_empty="panic")
    web["s1"].health = Health.DOWN
    assert not web.monitor.panics
    web.remove("s2")
    assert web.monitor.panics and serve(web) == "s1"
    web.add(*urls(3))
    assert not web.monitor.panics and serve(web, "SRV=s1") == "s3"
