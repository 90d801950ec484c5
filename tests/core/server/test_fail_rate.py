"""The share of failed requests takes a server down for a while (fail_rate, fail_volume)."""

from typing import Any

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.clock import ManualClock
from sticky_core.errors import Failure
from sticky_core.server.config import ServerConfig
from sticky_core.server.fail_rate import FailRate
from sticky_core.server.max_fails import MaxFails
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health
from tests.core.backend.backends import app, make_backend, with_changed_server

HALF: dict[str, Any] = {"fail_rate": 0.5, "fail_volume": 10, "fail_timeout": 10}


def run(backend: Backend, clock: ManualClock, story: str, name: str = "s1") -> str:
    """Let requests end at a server as `story` tells: `+` succeeded, `-` failed, `.` a second passes. Return its status
    after each of them, in one letter: Up or Down.
    """
    letters = ""
    for each in story:
        if each == ".":
            clock.advance(1)
            backend.monitor.run_due_timers()
        else:
            backend.monitor.record_request(backend[name], Failure.TIMEOUT if each == "-" else None, 200, 0.1)
        letters += backend[name].status[0]
    return letters


@pytest.mark.parametrize(
    "options, story, told",
    [
        pytest.param({}, "---------" + "-", "UUUUUUUUU" + "D", id="only the volume was missing"),
        pytest.param({}, "+++++----" + "-", "UUUUUUUUU" + "D", id="exactly the share"),
        pytest.param({}, "++++++----" + "+-" + "+-", "U" * 14, id="never the share"),
        pytest.param(
            {}, "++++++---" + "-" + "--", "UUUUUUUUU" + "U" + "UD", id="the share is reached after the volume"
        ),
        pytest.param({}, "-----++++" + "++++" + "-", "U" * 14, id="a request that succeeds takes no server down"),
        pytest.param({}, "-----+++++" + "-", "U" * 10 + "D", id="the next failed one does"),
        pytest.param({"fail_rate": 1}, "+" + "-" * 12, "U" * 13, id="all have to fail, and one has not"),
        pytest.param({"fail_rate": 1.0}, "-" * 10, "U" * 9 + "D", id="all have failed"),
        pytest.param({"fail_volume": 1}, "+-", "UD", id="a volume of one"),
        pytest.param({"fail_volume": None}, "-" * 20, "U" * 19 + "D", id="20 by default"),
        pytest.param({"fail_rate": 0.1, "fail_volume": 30}, "+" * 27 + "---", "U" * 29 + "D", id="a share of ten"),
        pytest.param(
            {"fail_rate": 0.01}, "+" * 98 + "--", "U" * 98 + "DD", id="a hundredth, rounded up to one request"
        ),
        # the window has halves of five seconds
        pytest.param({}, "-----....-----", "U" * 13 + "D", id="within one half"),
        pytest.param({}, "-----.....-----", "U" * 14 + "D", id="within two"),
        pytest.param({}, "-----.........-----", "U" * 18 + "D", id="at the very end of the second"),
        pytest.param({}, "-----..........-----", "U" * 20, id="the first half is forgotten after fail_timeout"),
        pytest.param({}, "-----.....+.....+.....-----", "U" * 27, id="the second half becomes the first"),
        pytest.param({}, "-----.....+.....-----", "U" * 21, id="what was in the half before the last does not count"),
        pytest.param({}, "----" + "." * 60 + "----", "U" * 68, id="nothing happens for long"),
        pytest.param({}, "++++++++++" + "." * 10 + "-" * 10, "U" * 29 + "D", id="successes are forgotten as well"),
        pytest.param({"fail_timeout": 20}, "-----..............-----", "U" * 23 + "D", id="a longer window"),
        pytest.param({"fail_timeout": "2s"}, "-----..-----", "U" * 12, id="a shorter one"),
        # down for fail_timeout, and then it counts anew
        pytest.param({}, "-" * 10 + "." * 10 + "-" * 10, "U" * 9 + "D" * 10 + "U" * 10 + "D", id="down, up, and down"),
        pytest.param({}, "-" * 10 + "---.---" + "." * 9 + "-", "U" * 9 + "D" * 16 + "UU", id="not counted while down"),
        # beside max_fails
        pytest.param({"max_fails": 3}, "++++++---", "UUUUUUUUD", id="the number is reached first"),
        pytest.param({"max_fails": 30}, "+++++-----", "UUUUUUUUUD", id="the share is reached first"),
        pytest.param({"max_fails": 1}, "-" + "." * 10 + "-", "D" * 10 + "U" + "D", id="on probation one is enough"),
    ],
)
def test_share_takes_a_server_down(options: dict[str, Any], story: str, told: str):
    backend, clock = make_backend(Server("s1", app, **{**HALF, **options}), Server("s2", app))
    assert run(backend, clock, story) == told


def test_reason_tells_how_many_have_failed(caplog: pytest.LogCaptureFixture):
    backend, clock = make_backend(Server("s1", app, **HALF), Server("s2", app))
    run(backend, clock, "++++------")
    assert "Server web/s1 is DOWN, reason: 6 of 10 requests failed." in caplog.text


def test_statuses_of_retry_on_are_failures_as_for_max_fails():
    backend, _ = make_backend(Server("s1", app, **HALF), Server("s2", app), retry_on="503")
    for status in (503, 500, 404, 503, 200) * 2 + (503,):
        assert backend["s1"].status == "UP"
        backend.monitor.record_request(backend["s1"], None, status, 0.1)
    assert backend["s1"].max_fails.rate is not None
    assert backend["s1"].max_fails.rate.counts == (5, 11)
    backend.monitor.record_request(backend["s1"], None, 503, 0.1)
    assert backend["s1"].status == "DOWN"


def test_health_assigned_by_hand_begins_anew():
    backend, clock = make_backend(Server("s1", app, **HALF), Server("s2", app))
    assert run(backend, clock, "-" * 10).endswith("D")
    backend["s1"].health = Health.UP
    assert run(backend, clock, "-" * 10) == "U" * 9 + "D"


def test_backup_has_a_share_even_if_only_one_server_is_no_backup():
    backend, clock = make_backend(Server("s1", app, **HALF), Server("b1", app, backup=True, **HALF))
    assert run(backend, clock, "-" * 12) == "U" * 12
    assert run(backend, clock, "-" * 10, "b1") == "U" * 9 + "D"
    backend["s1"].state = "drain"
    assert backend.snapshot.observes


def test_successes_are_counted_only_where_there_is_a_share():
    backend, _ = make_backend(Server("s1", app, **HALF), Server("s2", app, max_fails=3), Server("s3", app))
    assert [server.is_error_free for server in backend.servers] == [False, True, True]
    for server in backend.servers:
        backend.monitor.record_request(server, None, 200, 0.1)
    assert [server.max_fails.rate and server.max_fails.rate.counts for server in backend.servers] == [
        (0, 1),
        None,
        None,
    ]


@pytest.mark.parametrize("state", ["ready", "drain", "maint"])
@pytest.mark.parametrize("on_empty", ["fail", "panic"])
def test_successes_are_counted_while_the_server_is_up(state: Any, on_empty: str):
    backend, clock = make_backend(Server("s1", app, **HALF), Server("s2", app), on_empty=on_empty, retry_on="503")
    server, rate = backend["s1"], backend["s1"].max_fails.rate
    server.state = state
    run(backend, clock, "+++")
    assert rate is not None and rate.counts == ((0, 0) if state == "maint" else (0, 3))
    server.state, backend["s2"].state = AdminState.READY, AdminState.MAINT
    server.health = Health.DOWN
    before = rate.counts
    assert backend.monitor.panics is (on_empty == "panic")
    run(backend, clock, "+++---")
    assert rate.counts == before, "in panic it gets requests, but they do not count"


def test_template_servers_have_a_share():
    made = Server.template("web", 2, "http://name.local:80", **HALF)
    assert [(each.max_fails.rate and each.max_fails.rate.rate) for each in made] == [0.5, 0.5]


@pytest.mark.parametrize(
    "changes, counted",
    [
        pytest.param({"fail_rate": 0.9}, (4, 8), id="another share"),
        pytest.param({"fail_volume": 5}, (4, 8), id="another volume"),
        pytest.param({"weight": 3}, (4, 8), id="another weight"),
        pytest.param({"max_fails": 7}, (4, 8), id="a number beside it"),
        pytest.param({"fail_timeout": 20}, (0, 0), id="another window"),
        pytest.param({"fail_rate": None, "fail_volume": None, "fail_timeout": None}, None, id="no share any more"),
    ],
)
def test_what_was_counted_stays_unless_the_window_changes(changes: dict[str, Any], counted: tuple[int, int] | None):
    backend, clock = make_backend(Server("s1", app, **HALF), Server("s2", app, **HALF))
    run(backend, clock, "++-+-+--")
    assert backend.apply(with_changed_server(backend.config, "s1", **changes)).is_in_force
    rate = backend["s1"].max_fails.rate
    assert (rate and rate.counts) == counted
    other = backend["s2"].max_fails.rate
    assert other is not None and other.counts == (0, 0)
    if rate is not None:
        config = backend["s1"].config
        assert (rate.rate, rate.volume) == (config.fail_rate, config.fail_volume)


def test_share_that_is_lowered_counts_at_the_next_failed_request():
    backend, clock = make_backend(Server("s1", app, **HALF), Server("s2", app))
    run(backend, clock, "++++++++--")
    backend.apply(with_changed_server(backend.config, "s1", fail_rate=0.2))
    assert run(backend, clock, "+-") == "UD"


def test_server_that_is_down_stays_down_until_its_time_is_over_whatever_is_changed():
    backend, clock = make_backend(Server("s1", app, **HALF), Server("s2", app))
    run(backend, clock, "-" * 10)
    backend.apply(with_changed_server(backend.config, "s1", fail_rate=None, fail_volume=None, fail_timeout=None))
    assert run(backend, clock, "." * 10) == "D" * 9 + "U"


def test_share_takes_constant_memory():
    rate = FailRate(0.5, 20, 10)
    fields = set(FailRate.__slots__)
    for number in range(100_000):
        rate.record(number % 3 == 0, number / 1000)
    assert all(isinstance(getattr(rate, field), int | float) for field in fields)
    failed, requests = rate.counts
    assert 5_000 <= requests <= 10_000 and not rate.is_reached
    assert abs(failed / requests - 1 / 3) < 0.001


@pytest.mark.parametrize("now", [0.0, 5.0, 1e9, -3.0])
def test_window_begins_at_the_first_request(now: float):
    fails = MaxFails(ServerConfig(name="s1", target=app, fail_rate=1, fail_volume=3))
    assert [fails.record_failure(now + each) for each in (0, 9.9, 9.9)] == ["", "", "3 of 3 requests failed"]
