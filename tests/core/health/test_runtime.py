"""Health as a state machine: results are recorded, time is an argument, and the server is up or down as in HAProxy."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.health.check import Check, CheckResult, CheckStatus
from sticky_core.health.runtime import CheckRuntime, stagger_first_checks

PASS, FAIL = CheckResult(CheckStatus.L7OK, 200), CheckResult(CheckStatus.L7STS, 503, "Service Unavailable")
LETTERS = {"+": PASS, "-": FAIL, "c": CheckResult(CheckStatus.L7OKC, 404), "?": CheckResult(CheckStatus.UNK)}


def runtime_of(**options: Any) -> CheckRuntime:
    return CheckRuntime(Check("/", **options), random.Random(1))


def story_of(check: CheckRuntime) -> str:
    return f"{'UP' if check.is_up else 'DOWN'} {check.summary}"


# -- rise and fall


@pytest.mark.parametrize(
    "options, results, story",
    [
        pytest.param({}, "", "UP 1/3", id="assumed up, and one failure takes it down"),
        pytest.param({}, "-", "DOWN 0/2", id="the first failure is enough"),
        pytest.param({}, "+", "UP 3/3", id="the first success brings full health"),
        pytest.param({}, "+-", "UP 2/3", id="one failure of three"),
        pytest.param({}, "+--", "UP 1/3", id="two failures of three"),
        pytest.param({}, "+---", "DOWN 0/2", id="three failures in a row"),
        pytest.param({}, "+--+--", "UP 1/3", id="a success undoes the failures before it"),
        pytest.param({}, "+---+", "DOWN 1/2", id="one success of two"),
        pytest.param({}, "+---++", "UP 3/3", id="two successes in a row"),
        pytest.param({}, "+---+-+", "DOWN 1/2", id="a failure undoes the success before it"),
        pytest.param({}, "-----", "DOWN 0/2", id="down is down"),
        pytest.param({}, "+?", "UP 3/3", id="an unknown result changes nothing"),
        pytest.param({"rise": 1, "fall": 1}, "+-", "DOWN 0/1", id="rise 1 fall 1, down"),
        pytest.param({"rise": 1, "fall": 1}, "-+", "UP 1/1", id="rise 1 fall 1, up"),
        pytest.param({"rise": 3, "fall": 2}, "+-", "UP 1/2", id="its own fall"),
        pytest.param({"rise": 3, "fall": 2}, "+--++", "DOWN 2/3", id="its own rise"),
        pytest.param({"init_state": "down"}, "", "DOWN 1/2", id="assumed down"),
        pytest.param({"init_state": "down"}, "+", "UP 3/3", id="down, and one success brings it up"),
        pytest.param({"init_state": "fully-up"}, "--", "UP 1/3", id="fully up needs all failures"),
        pytest.param({"init_state": "fully-down"}, "+", "DOWN 1/2", id="fully down needs all successes"),
    ],
)
def test_health_after_a_sequence_of_results(options: dict[str, Any], results: str, story: str):
    check = runtime_of(**options)
    for letter in results:
        check.record_check(LETTERS[letter], 0.0)
    assert f"{'UP' if check.is_up else 'DOWN'} {check.summary}" == story


@given(st.integers(1, 5), st.integers(1, 5), st.text("+-?", max_size=40))
def test_health_stays_within_its_bounds_and_is_never_between_down_and_up(rise: int, fall: int, results: str):
    check = runtime_of(rise=rise, fall=fall)
    for letter in results:
        was_up = check.is_up
        check.record_check(LETTERS[letter], 0.0)
        assert 0 <= check.health <= rise + fall - 1
        assert not (was_up and not check.is_up) or check.health == 0
        assert not (check.is_up and not was_up) or check.health == rise + fall - 1


def test_a_server_that_responds_404_keeps_its_clients_and_gets_no_new_ones():
    check = runtime_of(disable_on_404=True)
    assert check.judge(404, (), b"").status is CheckStatus.L7OKC
    check.record_check(check.judge(404, (), b""), 0.0)
    assert (check.is_up, check.is_stopping) == (True, True)
    check.record_check(PASS, 0.0)
    assert (check.is_up, check.is_stopping) == (True, False)


def test_a_server_that_is_down_and_responds_404_stays_down():
    check = runtime_of(disable_on_404=True, init_state="fully-down")
    assert check.judge(404, (), b"").status is CheckStatus.L7STS


# -- when


@pytest.mark.parametrize(
    "results, delay",
    [("+", 10.0), ("+-", 1.0), ("+--", 1.0), ("+---", 5.0), ("+---+", 1.0), ("+---++", 10.0), ("?", 1.0)],
    ids=["healthy", "failing", "nearly down", "down", "coming back", "back", "unknown"],
)
def test_the_next_check_comes_sooner_while_health_changes(results: str, delay: float):
    check = runtime_of(inter=10, fastinter=1, downinter=5)
    for letter in results:
        check.record_check(LETTERS[letter], 100.0)
    assert check.delay(100.0) == delay
    assert check.delay(100.25) == delay - 0.25
    assert check.delay(200.0) == 0


@pytest.mark.parametrize("results", ["+", "+-", "+---"])
def test_inter_is_the_interval_in_every_state_by_default(results: str):
    check = runtime_of(inter="500ms")
    for letter in results:
        check.record_check(LETTERS[letter], 1.0)
    assert check.delay(1.0) == 0.5


def test_intervals_vary_within_spread():
    check = runtime_of(spread=50)
    delays = []
    for _ in range(200):
        check.record_check(PASS, 0.0)
        delays.append(check.delay(0.0))
    assert 1.0 <= min(delays) < 1.2 and 2.8 < max(delays) <= 3.0


def test_first_checks_come_one_by_one_within_the_shortest_interval_of_a_second_or_more():
    checks = [runtime_of(inter=inter) for inter in (4, 2, 0.5, 8)]
    stagger_first_checks(checks)
    assert [check.delay(10.0) for check in checks] == [0.0, 0.5, 1.0, 6.0]


@pytest.mark.parametrize(
    "options, connect, longest",
    [
        pytest.param({}, None, 2.0, id="a check without a connection ends within the interval"),
        pytest.param({"timeout": 7}, None, 7.0, id="or after its timeout"),
        pytest.param({}, 5.0, 2.0, id="one over a connection ends within the interval"),
        pytest.param({"timeout": 7}, 5.0, 9.0, id="or after the time to connect, and its timeout"),
        pytest.param({"timeout": 7}, 0.5, 7.5, id="the backend's timeout to connect counts if it is less"),
    ],
)
def test_longest_duration_of_a_check(options: dict[str, Any], connect: float | None, longest: float):
    assert runtime_of(**options).longest(connect) == longest


def test_check_has_run_after_its_first_result_also_in_what_follows_it():
    check = runtime_of()
    assert not check.has_run and not check.restarted().has_run
    check.record_check(FAIL, 0.0)
    assert check.has_run and check.restarted().has_run
    other = runtime_of(fall=5)
    other.inherit_from(check)
    assert other.has_run


@pytest.mark.parametrize(
    "startup, results, before, after",
    [
        ("wait", "+", "UP 3/3", "UP 1/3"),
        ("wait", "+-", "UP 2/3", "UP 1/3"),
        ("wait", "-+", "DOWN 1/2", "DOWN 1/2"),
        ("proceed", "+", "UP 3/3", "UP 3/3"),
    ],
)
def test_after_an_end_one_failure_takes_a_server_down_if_the_start_waits_for_it(
    startup: Any, results: str, before: str, after: str
):
    check = runtime_of(startup=startup)
    for letter in results:
        check.record_check(LETTERS[letter], 0.0)
    assert story_of(check) == before
    check.forget_run()
    assert (story_of(check), check.has_run) == (after, False)


def test_a_server_back_from_maintenance_is_up_until_the_next_check_which_is_due_at_once():
    check = runtime_of()
    woken: list[bool] = []
    for letter in "+---":
        check.record_check(LETTERS[letter], 0.0)
    check.wake = lambda: woken.append(True)
    check.reset()
    assert (check.is_up, check.summary, check.delay(0.0), woken) == (True, "1/3", 0.0, [True])


# -- requests of clients count as well (observe)


@pytest.mark.parametrize(
    "on_error, story, next_failure",
    [
        ("fastinter", "UP 3/3", "UP 2/3"),
        ("fail-check", "UP 2/3", "UP 1/3"),
        ("sudden-death", "UP 1/3", "DOWN 0/2"),
        ("mark-down", "DOWN 0/2", "DOWN 0/2"),
    ],
)
def test_error_limit_failures_in_a_row_trigger_on_error(on_error: Any, story: str, next_failure: str):
    check = runtime_of(inter=10, fastinter=1, observe="layer7", error_limit=3, on_error=on_error)
    check.record_check(PASS, 0.0)
    triggered = [check.record_request(False, "closed", 1.0) for _ in range(3)]
    assert triggered == [False, False, True]
    state = lambda: f"{'UP' if check.is_up else 'DOWN'} {check.summary}"  # noqa: E731
    assert state() == story
    assert check.delay(1.0) == 1.0, "whatever on_error is, the next check is due after fastinter"
    check.record_check(FAIL, 2.0)
    assert state() == next_failure


def test_a_request_that_succeeds_undoes_the_failures_before_it():
    check = runtime_of(observe="layer7", error_limit=2)
    assert [check.record_request(well, "", 0.0) for well in (False, True, False)] == [False, False, False]
    assert not check.is_error_free
