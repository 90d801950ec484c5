"""Failed requests may take down only a share of the servers (max_ejected)."""

import threading
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from sticky_core.backend.announcements import Announcements
from sticky_core.backend.backend import Backend
from sticky_core.backend.change_lock import ChangeLock
from sticky_core.backend.ejections import Ejections
from sticky_core.clock import ManualClock
from sticky_core.errors import ConfigError, Failure
from sticky_core.health.agent import AgentCheck, parse_reply
from sticky_core.health.check import Check
from sticky_core.server.config import ServerConfig
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health
from tests.core.backend.backends import FAIL, PASS, app, choose_names, make_backend, with_changed_server

#: one failed request takes the server down for ten seconds, and so does one failed check
ONCE: dict[str, Any] = {"max_fails": 1, "fail_timeout": 10}
CHECK = Check("/health", fall=1, rise=1)
LETTERS = {"UP": "U", "DOWN": "D", "MAINT": "M", "DRAIN": "R", "NOLB": "N"}


def failing(*names: str, **options: Any) -> list[Server]:
    """Return servers that one failed request takes down. A name that begins with b is that of a backup."""
    return [Server(name, app, backup=name.startswith("b"), **{**ONCE, **options}) for name in names]


def states(backend: Backend) -> str:
    return "".join(LETTERS[server.status] for server in backend.servers)


def fail(backend: Backend, name: str, times: int = 1) -> None:
    for _ in range(times):
        backend.monitor.record_request(backend[name], Failure.TIMEOUT, 0, 0.1)


def act(backend: Backend, clock: ManualClock, step: str) -> None:
    """`s1-` a request fails at s1, `s1+` one succeeds, `s1!` a check fails, `s1?` a check passes, `s1=maint` it is
    assigned a state or a health, `5s` time passes, `out:s1` and `in:s1` s1 is removed and added, `max:0.5` the limit.
    """
    name, is_assigned, state = step.partition("=")
    what, is_change, argument = step.partition(":")
    if is_assigned and state.isupper():
        backend[name].health = Health(state)
    elif is_assigned:
        backend[name].state = AdminState(state)
    elif is_change and what == "max":
        limit = None if argument == "none" else float(argument)
        assert backend.apply(replace(backend.config, max_ejected=limit)).is_in_force
    elif is_change and what == "out":
        backend.remove(argument)
    elif is_change:
        backend.add(*failing(argument))
    elif step.endswith("s"):
        clock.advance(float(step[:-1]))
        backend.monitor.run_due_timers()
    elif step[-1] in "!?":
        backend.monitor.record_check(backend[step[:-1]], FAIL if step[-1] == "!" else PASS)
    else:
        failure = Failure.TIMEOUT if step[-1] == "-" else None
        backend.monitor.record_request(backend[step[:-1]], failure, 200, 0.1)


def run(backend: Backend, clock: ManualClock, story: str) -> str:
    """Return the states of all servers after each step of `story`."""
    told = []
    for step in story.split():
        act(backend, clock, step)
        told.append(states(backend))
    return " ".join(told)


THREE, FOUR = "s1 s2 s3", "s1 s2 s3 s4"


@pytest.mark.parametrize(
    "names, limit, story, told",
    [
        # the share, rounded down
        pytest.param(THREE, None, "s1- s2- s3-", "DUU DDU DDD", id="no limit"),
        pytest.param(THREE, 0.5, "s1- s2- s3-", "DUU DUU DUU", id="half of three is one"),
        pytest.param(FOUR, 0.5, "s1- s2- s3- s4-", "DUUU DDUU DDUU DDUU", id="half of four"),
        pytest.param("s1 s2", 0.5, "s2- s1-", "UD UD", id="half of two"),
        pytest.param("s1 s2", 0.4, "s1- s2-", "UU UU", id="less than one of two is none"),
        pytest.param(THREE, 0, "s1- s2- s3-", "UUU UUU UUU", id="none"),
        pytest.param(THREE, 1, "s1- s2- s3-", "DUU DDU DDD", id="all"),
        pytest.param(THREE, 1 / 3, "s1- s2-", "DUU DUU", id="a third of three"),
        pytest.param(THREE, 0.99, "s1- s2- s3-", "DUU DDU DDU", id="all but one"),
        # as soon as it is allowed, at the next failed request
        pytest.param(THREE, 0.5, "s1- s2- 10s s2- s1-", "DUU DUU UUU UDU UDU", id="another one is back"),
        pytest.param(THREE, 0.5, "s1- s2- s1=UP s2+ s2-", "DUU DUU UUU UUU UDU", id="an operator sets it up"),
        pytest.param(THREE, 0.5, "s1- s1- 9s s1- 1s", "DUU DUU DUU DUU UUU", id="not counted while it is down"),
        # active checks and operators take any number of servers down or out, which are not counted then
        pytest.param(THREE, 0.5, "s1- s2! s3!", "DUU DDU UDD", id="checks are not limited"),
        pytest.param(THREE, 0, "s1! s2! s3!", "DUU DDU DDD", id="checks are not limited, with no share"),
        pytest.param(THREE, 0.5, "s1- s2=DOWN s3=DOWN", "DUU DDU UDD", id="an operator is not limited"),
        pytest.param(THREE, 0.5, "s1- s2=maint s3=maint", "DUU DMU UMM", id="one left: it is not ejected"),
        pytest.param(FOUR, 0.5, "s1! s2- s3-", "DUUU DDUU DDUU", id="one is down by its check: half of three"),
        pytest.param(THREE, 0.5, "s1! s2! s3-", "DUU DDU DDU", id="the last one that is up"),
        pytest.param(FOUR, 0.5, "s1=DOWN s2- s3-", "DUUU DDUU DDUU", id="one is set down"),
        pytest.param(FOUR, 0.5, "s1=maint s2- s3-", "MUUU MDUU MDUU", id="one is in maintenance"),
        pytest.param("s1 s2", 0.5, "s1=drain s1- s2-", "RU DU DU", id="one that drains is a server"),
        # an ejected server that a check finds down is counted no more
        pytest.param(FOUR, 0.5, "s1- s2- s1! s3-", "DUUU DDUU DDUU DDUU", id="half of the other three"),
        pytest.param(FOUR, 0.5, "s1- s1! s2- s2! s3-", "DUUU DUUU DDUU DDUU DDDU", id="half of the other two"),
        pytest.param(FOUR, 0.5, "s1- s1! 10s s1? s2- s3-", "DUUU DUUU DUUU UUUU UDUU UDDU", id="until it is up"),
        pytest.param(FOUR, 0.5, "s1- s1! s2- s1?", "DUUU DUUU DDUU DDUU", id="its check passes, fail_timeout goes on"),
        # fewer may be down than are: those that have been down longest are up again
        pytest.param(FOUR, 0.5, "s1- s2- s3=maint", "DUUU DDUU UDMU", id="maintenance of another"),
        pytest.param(FOUR, 0.5, "s2- s1- s3=DOWN", "UDUU DDUU DUDU", id="another is set down"),
        pytest.param(FOUR, 0.5, "s1- s2- s3!", "DUUU DDUU UDDU", id="the check of another fails"),
        pytest.param(FOUR, 0.5, "s1- s2- s3! s3? s1-", "DUUU DDUU UDDU UDUU DDUU", id="and passes again"),
        pytest.param(FOUR, 0.5, "s1- s2- out:s4", "DUUU DDUU UDU", id="another is removed"),
        pytest.param(FOUR, 0.5, "s1- s2- out:s1 s3-", "DUUU DDUU DUU DUU", id="one of them is removed"),
        pytest.param(FOUR, 0.5, "s1- s2- max:0.25", "DUUU DDUU UDUU", id="the limit is lowered"),
        pytest.param(FOUR, 0.5, "s1- s2- max:0 s3-", "DUUU DDUU UUUU UUUU", id="the limit is none"),
        pytest.param(FOUR, None, "s1- s2- s3- max:0.5", "DUUU DDUU DDDU UDDU", id="there is a limit now"),
        pytest.param(FOUR, 0.25, "s1- s2- max:0.5 s2-", "DUUU DUUU DUUU DDUU", id="the limit is raised"),
        pytest.param(FOUR, 0.25, "s1- max:none s2- s3-", "DUUU DUUU DDUU DDDU", id="there is no limit any more"),
        pytest.param(FOUR, 0.25, "max:none s1- s2- max:0.25 s3-", "UUUU DUUU DDUU UDUU UDUU", id="none for a while"),
        pytest.param("s1 s2", 0.5, "s1- s2- in:s3 in:s4 s2-", "DU DU DUU DUUU DDUU", id="servers are added"),
        # maintenance of an ejected server
        pytest.param(THREE, 0.5, "s1- s1=maint s2- s1=ready", "DUU MUU MDU UDU", id="it is up after maintenance"),
        pytest.param(THREE, 0.5, "s1- s1=drain s2- 10s", "DUU DUU DUU RUU", id="it drains while it is down"),
        # backups are counted among themselves
        pytest.param("s1 s2 b1 b2", 0.5, "s1- s2- b1- b2-", "DUUU DUUU DUDU DUDU", id="half of two backups"),
        pytest.param("s1 s2 b1", 0.5, "b1- s1- s2-", "UUU DUU DUU", id="the only backup"),
        pytest.param("s1 b1 b2", 0.5, "s1- b1- b2-", "UUU UDU UDU", id="the only server that is no backup"),
    ],
)
def test_failed_requests_take_down_a_share_of_the_servers(names: str, limit: float | None, story: str, told: str):
    backend, clock = make_backend(*failing(*names.split()), max_ejected=limit, check=CHECK)
    assert run(backend, clock, story) == told


@pytest.mark.parametrize(
    "options, story, told",
    [
        pytest.param({"max_fails": 3}, "s2- s2- s2- s2-", "DUU DUU DUU DUU", id="it stays up"),
        pytest.param({"max_fails": 3}, "s2- s2- s2- s1=UP s2-", "DUU DUU DUU UUU UDU", id="max_fails"),
        pytest.param({"max_fails": 3}, "s2- s2- s1=UP s2-", "DUU DUU UUU UDU", id="its failures go on counting"),
        pytest.param(
            {"max_fails": 3, "fail_timeout": 5},
            "s2- s2- s2- 5.5s s2+ s1=UP s2-",
            "DUU DUU DUU DUU DUU UUU UUU",
            id="unless it has recovered meanwhile",
        ),
        pytest.param(
            {"max_fails": 0, "fail_rate": 0.5, "fail_volume": 2},
            "s2+ s2- s2- s1=UP s2+ s2-",
            "DUU DUU DUU UUU UUU UDU",
            id="fail_rate",
        ),
        pytest.param(
            {"max_fails": 0, "fail_rate": 0.5, "fail_volume": 2},
            "s2- s2- s2+ s2+ s2+ s2+ s1=UP s2-",
            "DUU DUU DUU DUU DUU DUU UUU UUU",
            id="fail_rate that is not reached any more",
        ),
    ],
)
def test_server_that_stays_up_goes_on_counting(options: dict[str, Any], story: str, told: str):
    servers = [*failing("s1"), Server("s2", app, **{**ONCE, **options}), *failing("s3")]
    backend, clock = make_backend(*servers, max_ejected=0.5)
    fail(backend, "s1")
    assert run(backend, clock, story) == told


@pytest.mark.parametrize(
    "on_error, triggers, told",
    [
        # how often `error_limit` requests fail until the next of them would take the server down, and `summary` then
        pytest.param("fail-check", 2, "1/3", id="fail-check"),
        pytest.param("sudden-death", 1, "1/3", id="sudden-death"),
        pytest.param("mark-down", 0, "1/3", id="mark-down"),
        pytest.param("fastinter", 9, "3/3", id="fastinter"),
    ],
)
def test_observed_requests_are_limited_and_a_failed_check_is_not(
    on_error: Any, triggers: int, told: str, caplog: pytest.LogCaptureFixture
):
    check = Check("/health", observe="layer7", error_limit=2, on_error=on_error, inter=60, fastinter=1)
    backend, clock = make_backend(*failing("s1", "s2"), Server("s3", app), max_ejected=0.4, check=check)
    server = backend["s3"]
    for each in backend.servers:
        backend.monitor.record_check(each, PASS)
    fail(backend, "s1")
    assert states(backend) == "DUU"
    fail(backend, "s3", 2 * triggers)
    assert not [line for line in caplog.messages if "not taken down" in line]
    fail(backend, "s3", 20)
    assert states(backend) == "DUU" and server.checking is not None and server.checking.summary == told
    assert server.checking.delay(clock.monotonic()) == 1, "it is checked after fastinter"
    if on_error == "fastinter":
        return
    (line,) = [line for line in caplog.messages if "not taken down" in line]
    assert "Detected 2 consecutive errors" in line
    backend["s1"].health = Health.UP
    fail(backend, "s3")
    assert states(backend) == "UUD" and server.is_ejected, (
        "no other is down, so the next request that fails takes it down"
    )
    backend.monitor.record_check(server, FAIL)
    assert states(backend) == "UUD" and not server.is_ejected, "its check has found it down as well"
    fail(backend, "s1")
    assert states(backend) == "UUD", "0.4 of two is none"


@pytest.mark.parametrize("on_error", ["fail-check", "sudden-death", "mark-down"])
def test_failed_check_after_requests_that_were_refused_takes_the_server_down(on_error: Any):
    check = Check("/health", observe="layer7", error_limit=1, on_error=on_error)
    backend, _ = make_backend(Server("s1", app), Server("s2", app), max_ejected=0, check=check)
    fail(backend, "s1", 10)
    assert states(backend) == "UU"
    backend.monitor.record_check(backend["s1"], FAIL)
    assert states(backend) == "DU" and not backend["s1"].is_ejected


def test_success_undoes_the_failures_of_an_observed_server_that_stays_up():
    check = Check("/health", observe="layer7", error_limit=3, on_error="mark-down")
    backend, clock = make_backend(Server("s1", app), Server("s2", app), max_ejected=0, check=check)
    run(backend, clock, "s1- s1- s1- s1- s1+ max:1")
    assert run(backend, clock, "s1- s1- s1-") == "UU UU DU"


@pytest.mark.parametrize("limit, told", [(None, "D"), (0.5, "U"), (0.99, "U"), (1, "D")])
def test_only_server_is_observed(limit: float | None, told: str):
    check = Check("/health", observe="layer7", error_limit=1, on_error="mark-down")
    backend, clock = make_backend(Server("s1", app), max_ejected=limit, check=check)
    assert run(backend, clock, "s1-") == told


@pytest.mark.parametrize(
    "story, told",
    [
        pytest.param("s1- s2- s1! s1? s1?", "DUUU DDUU DDUU DDUU UDUU", id="its checks bring it up"),
        pytest.param("s1- s1? s1? s2- s3-", "DUUU DUUU UUUU UDUU UDDU", id="it is up again, and others may be down"),
        pytest.param("s1- s1? s2- s3=maint", "DUUU DUUU DDUU UDMU", id="it is set up as others have gone"),
        pytest.param("s1- s2- s3=maint s1!", "DUUU DDUU UDMU DDMU", id="and the next failed check takes it down"),
        pytest.param("s1- s1=maint s1=ready s2- s3-", "DUUU MUUU UUUU UDUU UDDU", id="maintenance"),
        pytest.param("s1- s1=DOWN s2- s3-", "DUUU DUUU DDUU DDUU", id="an operator takes it down"),
    ],
)
def test_server_ejected_by_an_observing_check(story: str, told: str):
    check = Check("/health", observe="layer7", error_limit=1, on_error="mark-down", rise=2)
    servers = [Server(name, app) for name in FOUR.split()]
    backend, clock = make_backend(*servers, max_ejected=0.5, check=check)
    assert run(backend, clock, story) == told


def test_ejected_server_stays_ejected_with_another_check_and_another_address():
    observing = Check("/health", observe="layer7", error_limit=1, on_error="mark-down")
    servers = [Server(f"s{n}", f"http://10.0.0.{n}") for n in range(1, 5)]
    backend, clock = make_backend(*servers, max_ejected=0.5, check=observing)
    assert run(backend, clock, "s1- s2-") == "DUUU DDUU"
    backend.apply(replace(backend.config, check=replace(observing, inter=5)))
    backend["s1"].target = "http://10.0.0.9"
    assert [server.is_ejected for server in backend.servers] == [True, True, False, False]
    assert run(backend, clock, "s3-") == "DDUU"


def test_agent_is_not_limited_and_what_it_takes_down_is_not_counted():
    agent = AgentCheck(9000)
    servers = [Server(f"s{n}", f"http://10.0.0.{n}", agent_check=agent, **ONCE) for n in range(1, 5)]
    backend, clock = make_backend(*servers, max_ejected=0.5)
    assert run(backend, clock, "s1- s2-") == "DUUU DDUU"
    backend.monitor.on_agent_reply(backend["s1"], parse_reply(b"down"))
    assert states(backend) == "DDUU" and not backend["s1"].is_ejected
    assert run(backend, clock, "s3-") == "DDUU", "half of the three others is one"
    backend.monitor.on_agent_reply(backend["s3"], parse_reply(b"down"))
    assert states(backend) == "DDDU" and run(backend, clock, "s4-") == "DDDU"
    backend.monitor.on_agent_reply(backend["s4"], parse_reply(b"down"))
    assert states(backend) == "DUDD", "the last one: half of one is none"


def test_agent_that_sets_an_ejected_server_up_may_make_one_too_many():
    servers = [Server(f"s{n}", f"http://10.0.0.{n}", agent_check=AgentCheck(9000), **ONCE) for n in range(1, 4)]
    backend, clock = make_backend(*servers, max_ejected=0.5)
    run(backend, clock, "s1-")
    backend.monitor.on_agent_reply(backend["s1"], parse_reply(b"down"))
    assert run(backend, clock, "s2-") == "DDU"
    backend.monitor.on_agent_reply(backend["s1"], parse_reply(b"up"))
    assert states(backend) == "DUU", "one of three may be down; s2 has been ejected longer without a break"


def test_server_without_an_address_is_no_server():
    made = [*Server.template("web", 3, "http://name.local:80", **ONCE), *failing("s1", "s2")]
    backend, clock = make_backend(*made, max_ejected=0.5)
    assert run(backend, clock, "s1- s2-") == "MMMDU MMMDU"


# -- panic


@pytest.mark.parametrize("on_empty", ["fail", "panic"])
def test_last_server_that_goes_makes_way_for_an_ejected_one_at_once(on_empty: str, caplog: pytest.LogCaptureFixture):
    backend, clock = make_backend(*failing("s1", "s2"), max_ejected=0.5, on_empty=on_empty)
    assert run(backend, clock, "s1- s2=maint") == "DU UM"
    assert choose_names(backend, 2) == ["s1", "s1"]
    assert not [line for line in caplog.messages if line.startswith("backend")], "it was never without a server"


def test_panic_uses_ejected_servers_and_changes_no_limit():
    servers = failing("s1", "s2", "s3", "s4")
    backend, clock = make_backend(*servers, max_ejected=0.5, on_empty="panic", panic_threshold=0.6)
    assert run(backend, clock, "s1- s2-") == "DUUU DDUU"
    assert backend.monitor.panics and sorted(choose_names(backend, 4)) == FOUR.split()
    assert run(backend, clock, "s3- s1- s1+") == "DDUU DDUU DDUU"
    assert run(backend, clock, "10s s3-") == "UUUU UUDU" and not backend.monitor.panics


def test_limit_keeps_failed_requests_from_causing_panic():
    servers = failing("s1", "s2", "s3", "s4")
    backend, clock = make_backend(*servers, max_ejected=0.5, on_empty="panic", panic_threshold=0.5)
    run(backend, clock, "s1- s2- s3- s4-")
    assert not backend.monitor.panics
    run(backend, clock, "s3=DOWN")
    assert states(backend) == "UDDU" and not backend.monitor.panics, "of the three others, one may be down"


# -- tracked servers


def test_servers_of_the_same_backend_that_track_an_ejected_one_are_ejected_with_it():
    servers = [*failing("s1", "s2"), Server("t1", app, track="s1"), Server("t2", app, track="s2")]
    backend, clock = make_backend(*servers, max_ejected=0.5)
    assert run(backend, clock, "s1- s2- 10s s2-") == "DUDU DUDU UUUU UDUD"


def test_servers_that_track_it_have_to_be_allowed_as_well(caplog: pytest.LogCaptureFixture):
    servers = [*failing("s1", "s2", "s3"), Server("t1", app, track="s1")]
    backend, clock = make_backend(*servers, max_ejected=0.25)
    assert run(backend, clock, "s1- s2-") == "UUUU UDUU"
    assert "max_ejected=0.25 allows 1 of 4 servers to be down for failed requests, and 0 are" in caplog.text


def test_servers_that_are_up_again_as_others_have_gone_bring_their_trackers_up():
    servers = [*failing("s1", "s2", "s3", "s4"), Server("t1", app, track="s1"), Server("t2", app, track="s2")]
    web, clock = make_backend(*servers, max_ejected=0.7)
    other = Backend("other", [Server("t1", app, track="web/s1"), Server("t2", app)])
    assert run(web, clock, "s1- s2-") == "DUUUDU DDUUDD"
    assert other["t1"].status == "DOWN"
    act(web, clock, "s3=maint")
    assert states(web) == "UDMUUD" and other["t1"].status == "UP"


def test_server_that_tracks_one_of_another_backend_is_limited_there_and_counted_here():
    there, clock = make_backend(*failing("s1", "s2"), max_ejected=0.5)
    here = Backend("here", [*failing("h1", "h2", "h3"), Server("t1", app, track="web/s1")], max_ejected=0.25)
    act(there, clock, "s1-")
    assert states(here) == "UUUD" and here["t1"].is_ejected
    fail(here, "h1")
    assert states(here) == "UUUD", "one of four is down for failed requests"
    act(there, clock, "s1=UP")
    fail(here, "h1")
    assert states(here) == "DUUU"
    act(there, clock, "s1-")
    assert states(here) == "UUUD", "h1 is up again, as it is here that there are too many"


def test_server_in_maintenance_that_tracks_it_is_not_counted():
    servers = [*failing("s1", "s2", "s3"), Server("t1", app, track="s1")]
    backend, clock = make_backend(*servers, max_ejected=0.34)
    assert run(backend, clock, "t1=maint s1- t1=ready") == "UUUM DUUM UUUU", "two of four are more than a third"


def test_server_in_maintenance_that_tracks_one_of_too_many_stands_for_none_of_them():
    servers = [*failing("s1", "s2", "s3"), Server("t1", app, track="s1")]
    backend, clock = make_backend(*servers, max_ejected=1.0)
    assert run(backend, clock, "t1=maint s1- s2- s3- max:0.34") == "UUUM DUUM DDUM DDDM UUDM"


# -- changes


@pytest.mark.parametrize("options", [{}, {"check": Check("/", observe="layer7", error_limit=1, on_error="mark-down")}])
def test_limit_that_is_set_late_sets_those_up_that_have_been_down_longest(options: dict[str, Any]):
    names = ("s1", "s2", "s3", "s4")
    servers = [Server(name, app) for name in names] if options else failing(*names)
    backend, clock = make_backend(*servers, **options)
    assert run(backend, clock, "s4- 1s s2- 1s s1- 1s s3- max:0.5") == "UUUD UUUD UDUD UDUD DDUD DDUD DDDD DUDU"


def test_backup_that_becomes_a_server_is_counted_with_the_servers():
    backend, clock = make_backend(*failing("s1", "s2", "s3", "b1", "b2"), max_ejected=0.5)
    assert run(backend, clock, "b1-") == "UUUDU"
    assert backend.apply(with_changed_server(backend.config, "b1", backup=False)).is_in_force
    assert run(backend, clock, "s1- s2- b2-") == "DUUDU DUUDU DUUDU"


def test_replaced_server_is_up_and_another_may_be_down():
    def another_app(environ: object, start_response: object) -> list[bytes]:
        return []

    backend, clock = make_backend(*failing("s1", "s2", "s3"), max_ejected=0.5)
    run(backend, clock, "s1- s2-")
    backend.apply(with_changed_server(backend.config, "s1", target=another_app))
    assert run(backend, clock, "s2-") == "UDU"


def test_requests_of_a_server_that_was_removed_count_nowhere():
    backend, clock = make_backend(*failing("s1", "s2", "s3", "s4"), max_ejected=0.25)
    gone = backend["s1"]
    backend.remove("s1")
    backend.monitor.record_request(gone, Failure.TIMEOUT, 0, 0.1)
    assert run(backend, clock, "s2-") == "UUU", "a quarter of three is none"


def test_plan_and_summary_name_the_limit():
    backend, _ = make_backend(*failing("s1", "s2"), max_ejected=0.5)
    changed = replace(backend.config, max_ejected=0)
    assert "max_ejected" in str(backend.plan(changed))
    assert backend.apply(changed).summary == "changed options: max_ejected"


# -- log and events


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [line for line in caplog.messages if "not taken down" in line]
    caplog.clear()
    return lines


def test_refusal_is_logged_once_until_something_changes(caplog: pytest.LogCaptureFixture):
    backend, clock = make_backend(*failing("s1", "s2", "s3"), max_ejected=0.5)
    run(backend, clock, "s1- s2- s2- s2-")
    (line,) = refusals(caplog)
    assert line == (
        "Server web/s2 is not taken down: max_ejected=0.5 allows 1 of 3 servers to be down for failed requests, and 1 "
        "are. Reason to take it down: 1 requests failed."
    )
    run(backend, clock, "s3- s3-")
    assert [line.split()[1] for line in refusals(caplog)] == ["web/s3"], "each server once"
    run(backend, clock, "10s s2- s3-")
    assert [line.split()[1] for line in refusals(caplog)] == [], "s2 is down, and s3 goes on like that"
    run(backend, clock, "10s s1- s2-")
    assert [line.split()[1] for line in refusals(caplog)] == ["web/s2"], "it was down in between"


def test_refusal_that_goes_on_is_not_logged_again_and_one_after_a_quiet_minute_is(caplog: pytest.LogCaptureFixture):
    backend, clock = make_backend(*failing("s1", "s2"), max_ejected=0)
    for _ in range(20):
        run(backend, clock, "s1- 59s")
    assert len(refusals(caplog)) == 1
    run(backend, clock, "2s s1- s1-")
    assert len(refusals(caplog)) == 1
    run(backend, clock, "max:0.1 s1- s1-")
    (line,) = refusals(caplog)
    assert "max_ejected=0.1 allows 0 of 2 servers" in line
    run(backend, clock, "s1=maint s1=ready s1-")
    assert len(refusals(caplog)) == 1


def test_refusal_of_a_backup_tells_of_backups(caplog: pytest.LogCaptureFixture):
    backend, clock = make_backend(*failing("s1", "b1"), max_ejected=0.5)
    run(backend, clock, "b1-")
    (line,) = refusals(caplog)
    assert "allows 0 of 1 backups to be down" in line


def test_server_that_is_set_up_again_is_announced_with_the_reason(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    backend, clock = make_backend(*failing("s1", "s2", "s3", "s4"), max_ejected=0.5)
    run(backend, clock, "s1- s2-")
    events = backend.events()
    run(backend, clock, "s4=maint")
    assert [(change.server, change.after) for change in events.take()] == [("s4", "MAINT"), ("s1", "UP")]
    assert "Server web/s1 is UP, reason: max_ejected=0.5 allows 1 of 3 to be down." in caplog.text
    assert sorted(set(choose_names(backend, 4))) == ["s1", "s3"]
    assert backend.monitor.next_deadline == clock.monotonic() + 10, "that of s2"


# -- configuration


@pytest.mark.parametrize(
    "limit, problem",
    [
        pytest.param(50, "max_ejected 50 is not a share: write 0.5 for half of the servers", id="percent"),
        pytest.param(-0.1, "max_ejected -0.1 is not a share", id="below 0"),
        pytest.param(True, "max_ejected True is not a share", id="a yes"),
        pytest.param(float("nan"), "max_ejected nan is not a share", id="no number"),
        pytest.param("50%", "max_ejected='50%' has the wrong type: write 0.5", id="a text"),
    ],
)
def test_limit_that_is_no_share_is_refused(limit: Any, problem: str):
    with pytest.raises(ConfigError) as refused:
        make_backend(*failing("s1", "s2"), max_ejected=limit)
    (only,) = refused.value.problems
    assert problem in only


@pytest.mark.parametrize(
    "server, check, has_effect",
    [
        pytest.param({}, None, False, id="nothing"),
        pytest.param({}, Check("/health"), False, id="a check that observes nothing"),
        pytest.param({}, Check("/health", observe="layer4"), True, id="a check that observes"),
        pytest.param({}, Check("/health", observe="layer7", on_error="fastinter"), False, id="it only checks sooner"),
        pytest.param({"check": False}, Check("/health", observe="layer4"), False, id="a server without that check"),
        pytest.param({"max_fails": 1}, None, True, id="max_fails"),
        pytest.param({"fail_rate": 0.5}, None, True, id="fail_rate"),
    ],
)
def test_limit_without_effect_is_refused(server: dict[str, Any], check: Check | None, has_effect: bool):
    servers = [Server("s1", app, **server), Server("s2", app, **server)]
    if has_effect:
        make_backend(*servers, check=check, max_ejected=0.5)
        return
    with pytest.raises(ConfigError, match=r"max_ejected has no effect, as no failed request takes a server down") as no:
        make_backend(*servers, check=check, max_ejected=0.5)
    assert len(no.value.problems) == 1


def test_change_that_leaves_the_limit_without_effect_is_refused():
    backend, _ = make_backend(*failing("s1"), Server("s2", app), max_ejected=0.5)
    with pytest.raises(ConfigError, match="max_ejected has no effect"):
        backend.remove("s1")
    assert states(backend) == "UU"


# -- counting


def counted(limit: float, servers: Iterable[Server]) -> Ejections:
    ejections = Ejections("web", Announcements("web", ChangeLock()))
    ejections.limit_to(limit)
    for server in servers:
        ejections.update(server)
    return ejections


@pytest.mark.parametrize(
    "limit, count, allowed", [(0.29, 100, 29), (0.1, 10, 1), (0.1, 9, 0), (0.7, 10, 7), (1 / 3, 3, 1), (1, 7, 7)]
)
def test_share_is_rounded_down_and_not_by_what_floats_lack(limit: float, count: int, allowed: int):
    servers = [Server.of(ServerConfig(name=f"s{n}", target=app, **ONCE)) for n in range(count)]
    assert counted(limit, servers).allowed(False) == (allowed, count)


def test_number_of_operations_does_not_depend_on_the_number_of_servers():
    ejections = counted(0.5, failing(*(f"s{n}" for n in range(1000))))
    one = failing("s1000")[0]
    ejections.update(one)
    assert ejections.allows(one) and ejections.surplus() == []
    ejections.forget(one)
    assert ejections.allowed(False) == (500, 1000)


def test_threads_that_report_at_once_take_down_no_more_than_allowed():
    backend, _ = make_backend(*failing(*(f"s{n}" for n in range(16))), max_ejected=0.5)
    most: list[int] = []
    begin = threading.Barrier(4)

    def report(first: int) -> None:
        begin.wait()
        for number in range(160):
            fail(backend, f"s{(first + 5 * number) % 16}")
            most.append(sum(server.is_ejected for server in backend.servers))

    threads = [threading.Thread(target=report, args=(4 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 8 and states(backend).count("D") == 8
