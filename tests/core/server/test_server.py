"""Servers: what they are called, whether they may be used, what they show of themselves."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.backend.backend import Backend
from sticky_core.errors import ConfigError
from sticky_core.http.tls import TLS
from sticky_core.server.config import ServerConfig
from sticky_core.server.counters import Total
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health


def app(environ: object, start_response: object) -> list[bytes]:
    return []


def create_app():
    return app


# -- names


@pytest.mark.parametrize("name", ["s1", "web.1", "a-b_c", "10.0.0.1:8080", "S", "7"])
def test_a_name_is_made_of_haproxy_s_letters(name: str):
    assert Server(name, app).name == name


@pytest.mark.parametrize("name", ["", " ", "a b", "s1\n", "s/1", "s;1", "s|1", "s~1", "s@1", "é", "s\x00", "²"])
def test_other_names_are_refused(name: str):
    with pytest.raises(ConfigError, match="a name is made of letters"):
        Server(name, app)


@pytest.mark.parametrize(
    "server, cookie_id",
    [
        pytest.param(Server("s1", app), "s1", id="its name"),
        pytest.param(Server("s1", app, cookie="A"), "A", id="what it was given"),
        pytest.param(Server("s1", app, cookie=""), "", id="none, if it was given none"),
        pytest.param(Server("s1", app, backup=True), "", id="none for a backup"),
        pytest.param(Server("s1", app, backup=True, cookie="A"), "A", id="a backup's own"),
    ],
)
def test_marks_call_a_server_by(server: Server, cookie_id: str):
    assert server.config.cookie_id == cookie_id


@pytest.mark.parametrize("cookie", ["a b", "a;b", "a,b", 'a"b', "a\\b", "é", "a\n", " "])
def test_a_cookie_that_cannot_be_written_is_refused(cookie: str):
    with pytest.raises(ConfigError, match="can't be written in a cookie"):
        Server("s1", app, cookie=cookie)


def test_every_problem_is_told_at_once_each_with_the_server_s_name():
    with pytest.raises(ConfigError) as refused:
        Server("s 1", weight=300, cookie="a b")
    assert len(refused.value.problems) == 4
    assert all(problem.startswith("server s 1: ") for problem in refused.value.problems)
    for part in ("letters", "neither a target", "weight 300 is not within 0..256", "cookie 'a b'"):
        assert part in str(refused.value)


def test_an_upstream_is_not_stateless_here_because_it_has_no_life_here():
    with pytest.raises(ConfigError, match="stateless is for apps"):
        Server("s1", "http://10.0.0.1", stateless=True)


@pytest.mark.parametrize(
    "server, mortal",
    [
        pytest.param(Server("s1", app), True, id="an app"),
        pytest.param(Server("s1", factory=create_app), True, id="a factory"),
        pytest.param(Server("s1", app, stateless=True), False, id="an app that keeps nothing"),
        pytest.param(Server("s1", "http://10.0.0.1"), False, id="an upstream"),
    ],
)
def test_what_a_client_knows_of_it_ends_with_this_process_for(server: Server, mortal: bool):
    assert server.is_in_process is mortal


def test_a_configuration_is_a_value_and_a_server_is_not():
    config = ServerConfig(name="s1", target=app, weight=3)
    assert config == ServerConfig(name="s1", target=app, weight=3)
    assert Server.of(config).config is config
    assert Server.of(config) != Server.of(config)
    with pytest.raises(AttributeError):
        config.weight = 4  # type: ignore[misc]


# -- states: whether it may be used, and whether balance may choose it


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
def test_its_clients_may_stay_while_it_is_usable_and_new_ones_come_while_it_is_electable(
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
def test_only_the_last_of_each_change_counts(changes: list[Health | AdminState | int]):
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
def test_a_state_may_be_assigned_by_its_word(state: str):
    server = Server("s1", app)
    server.state = state  # type: ignore[assignment]
    assert server.state is AdminState(state)


@pytest.mark.parametrize("state", ["READY", "down", "", None, 0])
def test_another_word_is_refused_and_changes_nothing(state: object):
    server = Server("s1", app)
    server.state = AdminState.DRAIN
    with pytest.raises(ConfigError, match="is none of ready, drain, maint"):
        server.state = state  # type: ignore[assignment]
    assert server.state is AdminState.DRAIN


@pytest.mark.parametrize("weight", [0, 1, 256])
def test_a_weight_is_within_0_and_256(weight: int):
    server = Server("s1", app, weight=weight)
    assert server.weight == weight
    server.weight = 256 - weight
    assert server.weight == 256 - weight
    assert server.config.weight == weight, "what was asked stays what was asked"


@pytest.mark.parametrize("weight", [-1, 257, 100_000, 1.5, True, "5", None])
def test_a_weight_outside_is_refused_early_and_late(weight: Any):
    with pytest.raises(ConfigError, match=r"is not within 0\.\.256"):
        Server("s1", app, weight=weight)
    server = Server("s1", app, weight=7)
    with pytest.raises(ConfigError, match=r"is not within 0\.\.256"):
        server.weight = weight
    assert server.weight == 7


# -- how many it takes at once


@pytest.mark.parametrize(
    "options, problem",
    [
        pytest.param({"maxconn": -1}, "maxconn -1 is below 0", id="maxconn below 0"),
        pytest.param({"maxconn": 1.5}, "maxconn 1.5", id="a part of a request"),
        pytest.param({"maxconn": "5"}, "maxconn '5'", id="maxconn as a text"),
        pytest.param({"maxconn": None}, "maxconn None", id="no maxconn"),
        pytest.param({"maxconn": 1, "maxqueue": -1}, "maxqueue -1 is below 0", id="maxqueue below 0"),
        pytest.param({"maxconn": 1, "maxqueue": "5"}, "maxqueue '5'", id="maxqueue as a text"),
        pytest.param({"maxqueue": 5}, "maxqueue has no effect without maxconn", id="a queue for nothing"),
    ],
)
def test_a_number_of_requests_that_cannot_be_one_is_refused(options: dict[str, Any], problem: str):
    with pytest.raises(ConfigError) as refused:
        Server("s1", app, **options)
    (only,) = refused.value.problems
    assert only.startswith(f"server s1: {problem}")


@pytest.mark.parametrize(
    "maxconn, in_flight, full",
    [(0, 0, False), (0, 100_000, False), (1, 0, False), (1, 1, True), (3, 2, False), (3, 3, True), (3, 4, True)],
)
def test_it_is_full_with_as_many_requests_as_it_may_have(maxconn: int, in_flight: int, full: bool):
    server = Server("s1", app, maxconn=maxconn)
    server.in_flight.extend([None] * in_flight)
    assert server.is_full is full


@pytest.mark.parametrize(
    "options, problem",
    [
        pytest.param({"name": 5}, "server 5: name=5 is none: write a text", id="a number for a name"),
        pytest.param({"cookie": 5}, "cookie=5 is none: write what marks are to call it", id="a number for a cookie"),
        pytest.param({"check": "/health"}, "check='/health' is none: write check=Check('/health')", id="a path"),
        pytest.param({"check": True}, "check=True is none", id="a yes for a check"),
        pytest.param({"agent_check": 9000}, "agent_check=9000 is none: write agent_check=AgentCheck", id="a port"),
        pytest.param({"track": 5}, "track=5 is none: write the other server, or its name", id="a number to track"),
        pytest.param({"tls": True}, "tls=True is none: write tls=TLS", id="a yes for tls"),
        pytest.param({"max_fails": "3"}, "max_fails='3' is none", id="a text to count"),
        pytest.param({"pool_max_conn": "3"}, "pool_max_conn='3' is none", id="a text for a pool"),
    ],
)
def test_what_is_not_of_its_kind_is_told_with_what_to_write(options: dict[str, Any], problem: str):
    with pytest.raises(ConfigError) as refused:
        Server(**{"name": "s1", "target": "https://10.0.0.1", **options})
    (only,) = refused.value.problems
    assert problem in only


# -- what only a URL has


@pytest.mark.parametrize(
    "target, options, problem",
    [
        pytest.param(app, {"tls": TLS()}, "tls is for URLs: an app has no connections", id="tls to an app"),
        pytest.param(app, {"pool_max_conn": 5}, "pool_max_conn is for URLs", id="a pool for an app"),
        pytest.param(app, {"pool_max_conn": 0}, "pool_max_conn is for URLs", id="no pool for an app"),
        pytest.param(app, {"pool_purge_delay": "5s"}, "pool_purge_delay is for URLs", id="a delay for an app"),
        pytest.param("http://s1", {"tls": TLS()}, "tls has no effect on http://s1: write https://", id="tls to http"),
        pytest.param("unix:/s1", {"tls": TLS()}, "tls has no effect on unix:/s1", id="tls to a socket"),
        pytest.param("http://s1", {"pool_max_conn": -1}, "pool_max_conn -1 is below 0", id="a pool below 0"),
        pytest.param("http://s1", {"pool_purge_delay": 0}, "pool_purge_delay 0 is not above 0", id="no time at all"),
        pytest.param("http://s1", {"pool_purge_delay": -1}, "pool_purge_delay", id="a time before"),
        pytest.param("http://s1", {"pool_purge_delay": float("nan")}, "pool_purge_delay nan is not", id="no time"),
        pytest.param("http://s1", {"pool_purge_delay": "soon"}, "pool_purge_delay: 'soon'", id="a word for a time"),
    ],
)
def test_what_has_no_connections_or_no_effect_is_refused(target: Any, options: dict[str, Any], problem: str):
    with pytest.raises(ConfigError) as refused:
        Server("s1", target, **options)
    (only,) = refused.value.problems
    assert only.startswith(f"server s1: {problem}")


@pytest.mark.parametrize(
    "target, options",
    [
        ("https://s1", {"tls": TLS(verify=False)}),
        ("https://s1", {}),
        ("http://s1", {"pool_max_conn": 0}),
        ("unix:/s1", {"pool_max_conn": 1, "pool_purge_delay": "100ms"}),
        ("http://s1", {"maxconn": 1, "maxqueue": 1, "pool_purge_delay": 0.5}),
        (app, {"maxconn": 1, "maxqueue": 0}),
    ],
)
def test_what_was_asked_of_connections_is_kept_as_it_was_asked(target: Any, options: dict[str, Any]):
    config = Server("s1", target, **options).config
    assert {name: getattr(config, name) for name in options} == options


def test_everything_wrong_with_limits_and_connections_is_told_at_once():
    with pytest.raises(ConfigError) as refused:
        Server("s1", "http://s1", maxconn=-1, maxqueue=-2, tls=TLS(), pool_max_conn=-3, pool_purge_delay="soon")
    told = refused.value.problems
    assert len(told) == 5 and all(problem.startswith("server s1: ") for problem in told)
    for part in ("maxconn -1", "maxqueue -2", "tls has no effect", "pool_max_conn -3", "pool_purge_delay: 'soon'"):
        assert part in str(refused.value)
    with pytest.raises(ConfigError) as refused:
        Server("s1", app, tls=TLS(), pool_max_conn=-3, pool_purge_delay="soon")
    assert len(refused.value.problems) == 3, "an app has none of it, be it right or wrong"


# -- what it shows


@pytest.mark.parametrize(
    "health, state, in_flight, total, text",
    [
        (Health.UP, AdminState.READY, 0, 0, "<Server s1 UP 0/0>"),
        (Health.UP, AdminState.READY, 3, 100, "<Server s1 UP 3/100>"),
        (Health.UP, AdminState.DRAIN, 0, 100, "<Server s1 DRAIN 0/100>"),
        (Health.UP, AdminState.MAINT, 0, 0, "<Server s1 MAINT 0/0>"),
        (Health.DOWN, AdminState.READY, 0, 0, "<Server s1 DOWN 0/0>"),
        (Health.DOWN, AdminState.MAINT, 0, 0, "<Server s1 MAINT 0/0>"),
    ],
)
def test_its_repr_is_its_name_its_state_and_its_requests(
    health: Health, state: AdminState, in_flight: int, total: int, text: str
):
    server = Server("s1", app)
    server.health = health
    server.state = state
    server.in_flight.extend([None] * in_flight)
    server.counters.cell[Total.HRSP_2XX] += total - in_flight
    assert repr(server) == text


# -- where it belongs


def test_a_server_belongs_to_one_backend():
    server = Server("s1", app)
    Backend("web", [server])
    with pytest.raises(ConfigError, match="server s1: belongs to another backend already"):
        Backend("api", [server])


def test_a_backend_that_could_not_be_built_leaves_its_servers_free():
    free, taken = Server("s1", app), Server("s2", app)
    Backend("web", [taken])
    with pytest.raises(ConfigError, match="server s2"):
        Backend("api", [free, taken])
    assert Backend("api", [free]).servers == (free,)


# -- replicas


def test_replicas_are_named_by_number_and_share_the_factory():
    replicas = Server.replicas(create_app, 3)
    assert [replica.name for replica in replicas] == ["r1", "r2", "r3"]
    assert {replica.config.factory for replica in replicas} == {create_app}
    assert all(replica.is_in_process and replica.config.target is None for replica in replicas)
    assert [replica.name for replica in Server.replicas(create_app, 2, prefix="cart-")] == ["cart-1", "cart-2"]


def test_making_replicas_makes_no_app():
    def explode():
        raise AssertionError("an app is made in the process that serves, not before")

    Backend("web", Server.replicas(explode, 3))


@pytest.mark.parametrize("n", [0, -1])
def test_no_replicas_serve_nobody(n: int):
    with pytest.raises(ConfigError, match="can't serve anything"):
        Server.replicas(create_app, n)


def test_replicas_of_an_app_rather_than_a_factory_are_refused():
    with pytest.raises(ConfigError, match="pass it as the target"):
        Server.replicas(app, 3)  # type: ignore[arg-type] # what a caller without types may hand over
