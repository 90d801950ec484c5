"""Health as a state machine: results come, time is handed in, and the server is up or down as HAProxy's tables say."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.errors import ConfigError
from sticky_core.health.agent import AgentCheck, parse_reply
from sticky_core.health.check import Check, CheckResult, CheckStatus, probe_result
from sticky_core.health.runtime import CheckRuntime, stagger_first_checks

PASS, FAIL = CheckResult(CheckStatus.L7OK, 200), CheckResult(CheckStatus.L7STS, 503, "Service Unavailable")
LETTERS = {"+": PASS, "-": FAIL, "c": CheckResult(CheckStatus.L7OKC, 404), "?": CheckResult(CheckStatus.UNK)}


def at_work(**options: Any) -> CheckRuntime:
    return CheckRuntime(Check("/", **options), random.Random(1))


# -- rise and fall


@pytest.mark.parametrize(
    "options, results, story",
    [
        pytest.param({}, "", "UP 1/3", id="believed to be up, and one failure takes it down"),
        pytest.param({}, "-", "DOWN 0/2", id="the first failure is enough"),
        pytest.param({}, "+", "UP 3/3", id="the first success makes it well"),
        pytest.param({}, "+-", "UP 2/3", id="one failure of three"),
        pytest.param({}, "+--", "UP 1/3", id="two failures of three"),
        pytest.param({}, "+---", "DOWN 0/2", id="three failures in a row"),
        pytest.param({}, "+--+--", "UP 1/3", id="a success makes up for the failures before it"),
        pytest.param({}, "+---+", "DOWN 1/2", id="one success of two"),
        pytest.param({}, "+---++", "UP 3/3", id="two successes in a row"),
        pytest.param({}, "+---+-+", "DOWN 1/2", id="a failure makes up for the success before it"),
        pytest.param({}, "-----", "DOWN 0/2", id="down is down"),
        pytest.param({}, "+?", "UP 3/3", id="what says nothing changes nothing"),
        pytest.param({"rise": 1, "fall": 1}, "+-", "DOWN 0/1", id="a hair trigger, down"),
        pytest.param({"rise": 1, "fall": 1}, "-+", "UP 1/1", id="a hair trigger, up"),
        pytest.param({"rise": 3, "fall": 2}, "+-", "UP 1/2", id="its own fall"),
        pytest.param({"rise": 3, "fall": 2}, "+--++", "DOWN 2/3", id="its own rise"),
        pytest.param({"init_state": "down"}, "", "DOWN 1/2", id="believed to be down"),
        pytest.param({"init_state": "down"}, "+", "UP 3/3", id="down, and one success brings it up"),
        pytest.param({"init_state": "fully-up"}, "--", "UP 1/3", id="fully up takes all failures"),
        pytest.param({"init_state": "fully-down"}, "+", "DOWN 1/2", id="fully down takes all successes"),
    ],
)
def test_health(options: dict[str, Any], results: str, story: str):
    checking = at_work(**options)
    for letter in results:
        checking.record_check(LETTERS[letter], 0.0)
    assert f"{'UP' if checking.is_up else 'DOWN'} {checking.summary}" == story


@given(st.integers(1, 5), st.integers(1, 5), st.text("+-?", max_size=40))
def test_health_stays_within_its_bounds_and_is_never_between_down_and_up(rise: int, fall: int, results: str):
    checking = at_work(rise=rise, fall=fall)
    for letter in results:
        was_up = checking.is_up
        checking.record_check(LETTERS[letter], 0.0)
        assert 0 <= checking.health <= rise + fall - 1
        assert not (was_up and not checking.is_up) or checking.health == 0
        assert not (checking.is_up and not was_up) or checking.health == rise + fall - 1


def test_a_server_that_answers_404_keeps_its_clients_only():
    checking = at_work(disable_on_404=True)
    assert checking.judge(404, (), b"").status is CheckStatus.L7OKC
    checking.record_check(checking.judge(404, (), b""), 0.0)
    assert (checking.is_up, checking.is_stopping) == (True, True)
    checking.record_check(PASS, 0.0)
    assert (checking.is_up, checking.is_stopping) == (True, False)


def test_one_that_is_down_and_answers_404_stays_down():
    checking = at_work(disable_on_404=True, init_state="fully-down")
    assert checking.judge(404, (), b"").status is CheckStatus.L7STS


# -- when


@pytest.mark.parametrize(
    "results, delay",
    [("+", 10.0), ("+-", 1.0), ("+--", 1.0), ("+---", 5.0), ("+---+", 1.0), ("+---++", 10.0), ("?", 1.0)],
    ids=["well", "failing", "nearly down", "down", "coming back", "back", "not known yet"],
)
def test_the_next_check_comes_sooner_while_health_changes(results: str, delay: float):
    checking = at_work(inter=10, fastinter=1, downinter=5)
    for letter in results:
        checking.record_check(LETTERS[letter], 100.0)
    assert checking.delay(100.0) == delay
    assert checking.delay(100.25) == delay - 0.25
    assert checking.delay(200.0) == 0


@pytest.mark.parametrize("results", ["+", "+-", "+---"])
def test_without_other_words_inter_is_for_all(results: str):
    checking = at_work(inter="500ms")
    for letter in results:
        checking.record_check(LETTERS[letter], 1.0)
    assert checking.delay(1.0) == 0.5


def test_intervals_vary_as_far_as_they_may():
    checking = at_work(spread=50)
    delays = []
    for _ in range(200):
        checking.record_check(PASS, 0.0)
        delays.append(checking.delay(0.0))
    assert 1.0 <= min(delays) < 1.2 and 2.8 < max(delays) <= 3.0


def test_first_checks_come_one_by_one_within_the_shortest_interval_of_a_second_or_more():
    checks = [at_work(inter=inter) for inter in (4, 2, 0.5, 8)]
    stagger_first_checks(checks)
    assert [check.delay(10.0) for check in checks] == [0.0, 0.5, 1.0, 6.0]


def test_who_comes_back_from_maintenance_is_well_until_the_next_check_which_is_due_at_once():
    checking = at_work()
    rung: list[bool] = []
    for letter in "+---":
        checking.record_check(LETTERS[letter], 0.0)
    checking.wake = lambda: rung.append(True)
    checking.reset()
    assert (checking.is_up, checking.summary, checking.delay(0.0), rung) == (True, "1/3", 0.0, [True])


# -- what clients see counts as well


@pytest.mark.parametrize(
    "on_error, story, next_failure",
    [
        ("fastinter", "UP 3/3", "UP 2/3"),
        ("fail-check", "UP 2/3", "UP 1/3"),
        ("sudden-death", "UP 1/3", "DOWN 0/2"),
        ("mark-down", "DOWN 0/2", "DOWN 0/2"),
    ],
)
def test_so_many_failures_in_a_row(on_error: Any, story: str, next_failure: str):
    checking = at_work(inter=10, fastinter=1, observe="layer7", error_limit=3, on_error=on_error)
    checking.record_check(PASS, 0.0)
    told = [checking.record_request(False, "closed", 1.0) for _ in range(3)]
    assert told == [False, False, True]
    shown = lambda: f"{'UP' if checking.is_up else 'DOWN'} {checking.summary}"  # noqa: E731
    assert shown() == story
    assert checking.delay(1.0) == 1.0, "whatever it means, the next check comes soon"
    checking.record_check(FAIL, 2.0)
    assert shown() == next_failure


def test_one_that_turns_out_well_makes_up_for_the_failures_before_it():
    checking = at_work(observe="layer7", error_limit=2)
    assert [checking.record_request(well, "", 0.0) for well in (False, True, False)] == [False, False, False]
    assert not checking.is_error_free


# -- in words


def test_a_result_is_told_as_in_haproxy_s_log():
    assert str(CheckResult(CheckStatus.L7STS, 503, "Service Unavailable", 0.0031)) == (
        'Layer7 wrong status, code: 503, info: "Service Unavailable", check duration: 3ms'
    )


@pytest.mark.parametrize("answer, status", [(True, "L7OK"), (None, "L7OK"), (False, "L7RSP"), (FAIL, "L7STS")])
def test_what_a_probe_says(answer: object, status: str):
    assert probe_result(answer).status is CheckStatus[status]


# -- what can't work


@pytest.mark.parametrize(
    "make, problem",
    [
        (lambda: Check(expect="status 200"), "expect has no effect without a path"),
        (lambda: Check(method="HEAD"), "method has no effect without a path"),
        (lambda: Check(disable_on_404=True), "disable_on_404 has no effect without a path"),
        (lambda: Check("/", error_limit=3), "error_limit has no effect without observe"),
        (lambda: Check("/", on_error="mark-down"), "on_error has no effect without observe"),
        (lambda: Check("health"), "path 'health' is none"),
        (lambda: Check("/a b"), "path '/a b' is none"),
        (lambda: Check("/", probe=bool), "has both a path and a probe"),
        (lambda: Check(probe=bool, port=80), "port has no effect with a probe"),
        (lambda: Check("/", inter=0), "inter 0 is not above 0"),
        (lambda: Check("/", fastinter="soon"), "fastinter: 'soon' is not a duration"),
        (lambda: Check("/", rise=0), "rise 0 is not a whole number from 1 on"),
        (lambda: Check("/", spread=60), "spread 60 is not within 0..50"),
        (lambda: Check("/", port=0), "port 0 is not within"),
        (lambda: Check("/", observe="layer5"), "observe 'layer5' is none of layer4, layer7"),  # type: ignore[arg-type]
        (lambda: Check("/", expect="status 20"), "'20' is neither a status nor a range"),
        (lambda: Check("/", headers={"a b": "c"}), "header 'a b'"),
        (lambda: AgentCheck(0), "port 0 is not within"),
    ],
)
def test_what_cannot_work_is_refused(make: Callable[[], object], problem: str):
    with pytest.raises(ConfigError) as refused:
        make()
    (only,) = refused.value.problems
    assert problem in only


def test_every_problem_is_told_at_once():
    with pytest.raises(ConfigError) as refused:
        Check(inter=0, rise=0, fall=True, expect="nothing", on_error="never")  # type: ignore[arg-type]
    assert len(refused.value.problems) == 7


# -- agents


@pytest.mark.parametrize(
    "line, told",
    [
        (b"up\n", {"up": True}),
        (b"down #out of memory\n", {"up": False}),
        (b"FAIL", {"up": False}),
        (b"stopped", {"up": False}),
        (b"ready, up 75%\r\n", {"admin": "ready", "up": True, "percent": 75}),
        (b"drain", {"admin": "drain"}),
        (b"maint", {"admin": "maint"}),
        (b"weight:5 maxconn:30", {"weight": 5, "maxconn": 30}),
        (b"weight:50%", {"percent": 50}),
        (b"splendid", {}),
        (b"up splendid", {}),
    ],
)
def test_what_an_agent_says(line: bytes, told: dict[str, object]):
    heard = parse_reply(line)
    shown = {name: getattr(heard, name) for name in ("up", "admin", "weight", "percent", "maxconn")}
    assert {name: value for name, value in shown.items() if value is not None} == told
    assert (heard.result.status is CheckStatus.L7RSP) is (b"splendid" in line)


def test_an_agent_says_why():
    assert parse_reply(b"down #out of memory\n").result == CheckResult(CheckStatus.L7STS, info="out of memory")
