"""ServerStatus: whether bound clients may stay at a server, whether new ones are sent to it, and its limits."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.backend.backend import Backend
from sticky_core.errors import ConfigError
from sticky_core.health.agent import AgentCheck
from sticky_core.health.check import Check
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health


def app(environ: object, start_response: object) -> list[bytes]:
    return []


@pytest.mark.parametrize(
    "health, state, weight, usable, electable",
    [
        (Health.UP, AdminState.READY, 1, True, True),
        (Health.UP, AdminState.READY, 0, True, False),
        (Health.UP, AdminState.DRAIN, 1, True, False),
        (Health.UP, AdminState.DRAIN, 0, True, False),
        (Health.UP, AdminState.MAINT, 1, False, False),
        (Health.UP, AdminState.MAINT, 0, False, False),
        (Health.DOWN, AdminState.READY, 1, False, False),
        (Health.DOWN, AdminState.READY, 0, False, False),
        (Health.DOWN, AdminState.DRAIN, 1, False, False),
        (Health.DOWN, AdminState.DRAIN, 0, False, False),
        (Health.DOWN, AdminState.MAINT, 1, False, False),
        (Health.DOWN, AdminState.MAINT, 0, False, False),
    ],
)
@pytest.mark.parametrize("order", list(itertools.permutations("hsw")), ids="".join)
@pytest.mark.parametrize("in_a_backend", [True, False], ids=["in a backend", "alone"])
def test_bound_clients_stay_while_usable_and_new_ones_come_while_electable(
    health: Health,
    state: AdminState,
    weight: int,
    usable: bool,
    electable: bool,
    order: tuple[str, ...],
    in_a_backend: bool,
):
    server = Server("s1", app)
    if in_a_backend:
        Backend("web", [server])
    for change in order:
        if change == "h":
            server.health = health
        elif change == "s":
            server.state = state
        else:
            server.weight = weight
    assert (server.usable, server.electable) == (usable, electable)


@given(st.lists(st.sampled_from([Health.UP, Health.DOWN, AdminState.READY, AdminState.DRAIN, AdminState.MAINT, 0, 1])))
def test_last_change_of_each_kind_counts(changes: list[Health | AdminState | int]):
    server = Server("s1", app)
    Backend("web", [server])
    for change in changes:
        if isinstance(change, Health):
            server.health = change
        elif isinstance(change, AdminState):
            server.state = change
        else:
            server.weight = change
        assert server.usable is (server.health is Health.UP and server.state is not AdminState.MAINT)
        assert server.electable is (server.usable and server.state is AdminState.READY and server.weight > 0)


@pytest.mark.parametrize("state", ["ready", "drain", "maint"])
def test_state_may_be_assigned_as_text(state: str):
    server = Server("s1", app)
    server.state = state  # type: ignore[assignment]
    assert server.state is AdminState(state)


@pytest.mark.parametrize("state", ["READY", "down", "", None, 0])
def test_unknown_state_is_refused_and_changes_nothing(state: object):
    server = Server("s1", app)
    server.state = AdminState.DRAIN
    with pytest.raises(ConfigError, match="is none of ready, drain, maint"):
        server.state = state  # type: ignore[assignment]
    assert server.state is AdminState.DRAIN


@pytest.mark.parametrize("health", ["UP", "DOWN", "NOLB"])
def test_health_may_be_assigned_as_text(health: Any):
    backend = Backend("web", [server := Server("s1", app)])
    server.health = health
    assert server.health is Health(health)
    assert repr(backend) == f"<Backend web: s1 {health} 0/0>"


REFUSED: list[tuple[str, Any, Any, str]] = [
    # attribute, what it is before, what is refused, the message
    ("health", Health.NOLB, "down", "health 'down' is none of UP, DOWN, NOLB"),
    ("health", Health.NOLB, "", "health '' is none of"),
    ("health", Health.NOLB, None, "health None is none of"),
    ("health", Health.DOWN, False, "health False is none of"),
    ("health", Health.DOWN, AdminState.READY, "is none of"),
    ("state", AdminState.DRAIN, Health.UP, "is none of"),
    ("instance", "0190a", 7, "instance 7 can't be written in a cookie"),
    ("instance", "0190a", None, "instance None can't be written in a cookie"),
    ("instance", "0190a", "a@b", "instance 'a@b' can't be written in a cookie"),
    ("instance", "0190a", "a;b", "instance 'a;b' can't be written in a cookie"),
    ("maxconn", 3, "5", "maxconn '5' is not a number of requests"),
    ("maxconn", 3, None, "maxconn None is not a number of requests"),
    ("maxconn", 3, True, "maxconn True is not a number of requests"),
    ("maxconn", 3, -1, "maxconn -1 is below 0"),
    ("target", "http://10.0.0.1", "10.0.0.2", "is no URL"),
    ("target", "http://10.0.0.1", None, "neither a target"),
    ("target", "http://10.0.0.1", app, "only a URL can be moved"),
    ("target", "http://10.0.0.1", 80, "only a URL can be moved"),
]


@pytest.mark.parametrize("in_a_backend", [True, False], ids=["in a backend", "alone"])
@pytest.mark.parametrize("name, before, refused, message", REFUSED)
def test_value_that_cannot_be_assigned_is_refused_and_changes_nothing(
    name: str, before: Any, refused: Any, message: str, in_a_backend: bool
):
    server = Server("s1", "http://10.0.0.1", maxconn=3)
    others = [Server("s2", app)]
    if in_a_backend:
        backend = Backend("web", [server, *others])
        changes = backend.events()
    setattr(server, name, before)
    shown = repr(server), server.status, server.usable, server.electable, server.limit
    if in_a_backend:
        changes.take()
    with pytest.raises(ConfigError, match=message):
        setattr(server, name, refused)
    assert getattr(server, name) == before
    assert (repr(server), server.status, server.usable, server.electable, server.limit) == shown
    if in_a_backend:
        assert changes.take() == []
        backend.add(Server("s3", app))


def test_health_of_a_server_that_tracks_another_is_assigned_at_that_one():
    backend = Backend("web", [tracked := Server("s1", app), tracker := Server("s2", app, track="s1")])
    with pytest.raises(ConfigError, match="server s2: it tracks s1, so its health is that server's: assign it there"):
        tracker.health = Health.DOWN
    assert repr(backend) == "<Backend web: s1 UP 0/0, s2 UP 0/0>"
    tracked.health = Health.DOWN
    assert repr(backend) == "<Backend web: s1 DOWN 0/0, s2 DOWN 0/0>"


def test_maxconn_may_be_assigned_where_the_configuration_has_one():
    server = Server("s1", app, maxconn=3)
    Backend("web", [server])
    server.maxconn = 5
    assert (server.maxconn, server.limit, server.config.maxconn) == (5, 5, 3)
    server.maxconn = 0
    assert (server.maxconn, server.limit) == (0, 0)
    uncounted = Server("s2", app)
    with pytest.raises(ConfigError, match="its configuration has none: pass one with it"):
        uncounted.maxconn = 5
    assert uncounted.maxconn == 0


@pytest.mark.parametrize("weight", [0, 1, 256])
def test_weight_is_within_0_and_256(weight: int):
    server = Server("s1", app, weight=weight)
    assert server.weight == weight
    server.weight = 256 - weight
    assert server.weight == 256 - weight
    assert server.config.weight == weight, "what was asked stays what was asked"


@pytest.mark.parametrize("weight", [-1, 257, 100_000, 1.5, True, "5", None])
def test_weight_out_of_range_is_refused_when_configured_and_when_assigned(weight: Any):
    with pytest.raises(ConfigError, match=r"is not within 0\.\.256"):
        Server("s1", app, weight=weight)
    server = Server("s1", app, weight=7)
    with pytest.raises(ConfigError, match=r"is not within 0\.\.256"):
        server.weight = weight
    assert server.weight == 7


@pytest.mark.parametrize(
    "maxconn, in_flight, full",
    [(0, 0, False), (0, 100_000, False), (1, 0, False), (1, 1, True), (3, 2, False), (3, 3, True), (3, 4, True)],
)
def test_server_is_full_with_maxconn_requests_in_flight(maxconn: int, in_flight: int, full: bool):
    server = Server("s1", app, maxconn=maxconn)
    server.in_flight.extend([None] * in_flight)
    assert server.is_full is full


@pytest.mark.parametrize(
    "health, state, status",
    [
        (Health.UP, AdminState.READY, "UP"),
        (Health.NOLB, AdminState.READY, "NOLB"),
        (Health.DOWN, AdminState.READY, "DOWN"),
        (Health.UP, AdminState.DRAIN, "DRAIN"),
        (Health.NOLB, AdminState.DRAIN, "DRAIN"),
        (Health.DOWN, AdminState.DRAIN, "DOWN"),
        (Health.UP, AdminState.MAINT, "MAINT"),
        (Health.DOWN, AdminState.MAINT, "MAINT"),
    ],
)
def test_status_is_health_and_state_in_one_word(health: Health, state: AdminState, status: str):
    server = Server("s1", app)
    server.health = health
    server.state = state
    assert server.status == status
    server.removed = True
    assert server.status == "REMOVED"


@pytest.mark.parametrize(
    "health, state, reachable, electable",
    [
        (Health.DOWN, AdminState.READY, True, True),
        (Health.DOWN, AdminState.DRAIN, True, False),
        (Health.DOWN, AdminState.MAINT, False, False),
        (Health.NOLB, AdminState.READY, True, False),
    ],
)
def test_health_is_ignored_in_panic(health: Health, state: AdminState, reachable: bool, electable: bool):
    server = Server("s1", app)
    server.health = health
    server.state = state
    server.refresh_state(0.0, panic=True)
    assert (server.reachable, server.usable, server.electable) == (reachable, reachable, electable)


def test_total_includes_requests_in_flight():
    server = Server("s1", app)
    server.counters.cell[2] += 3
    server.in_flight.append(None)
    assert server.total == 4


@pytest.mark.parametrize(
    "change, checks, queries",
    [
        pytest.param(lambda server: None, True, True, id="up"),
        pytest.param(lambda server: setattr(server, "health", Health.DOWN), True, True, id="down"),
        pytest.param(lambda server: setattr(server, "state", AdminState.DRAIN), True, True, id="it drains"),
        pytest.param(lambda server: setattr(server, "state", AdminState.MAINT), False, True, id="maintenance"),
        pytest.param(lambda server: setattr(server, "target", None), False, False, id="no address"),
        pytest.param(lambda server: setattr(server, "target", "http://10.0.0.9:80"), True, True, id="another address"),
    ],
)
def test_server_is_checked_unless_in_maintenance_and_its_agent_is_queried_while_it_has_an_address(
    change: Any, checks: bool, queries: bool
):
    servers = Server.template("s", 1, "s.test:80", check=Check(), agent_check=AgentCheck(9000))
    (server,) = Backend("web", servers).servers
    server.target = "http://10.0.0.1:80"
    change(server)
    assert server.checking is not None and server.agent is not None
    assert (not server.pauses(server.checking), not server.pauses(server.agent)) == (checks, queries)


def test_check_that_was_replaced_is_not_run_any_more():
    server = Server("s1", "http://10.0.0.1:80", check=Check(), agent_check=AgentCheck(9000))
    web = Backend("web", [server])
    checking, agent = server.checking, server.agent
    assert checking is not None and agent is not None
    seen: list[tuple[object, bool]] = []
    checking.wake = lambda: seen.append((server.target, server.pauses(checking)))
    server.target = "http://10.0.0.2:80"
    assert server.pauses(checking) and server.pauses(agent)
    assert seen == [("http://10.0.0.1:80", False)], "woken before it could use the new address"
    now = server.checking
    assert now is not None and not server.pauses(now)
    web.apply(replace(web.config, servers=(replace(server.requested, check=Check(fall=1)),)))
    assert server.pauses(now)
