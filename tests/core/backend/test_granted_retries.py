"""The budget of retries: its share, its minimum, and what is given back. `test_budgeted_retry.py` has requests."""

import logging
import threading

import pytest

from sticky_core.backend.granted_retries import LOG_INTERVAL, GrantedRetries, RetryGrant
from sticky_core.backend.retries import RetryBudget
from sticky_core.clock import ManualClock
from sticky_core.errors import ConfigError

DENIED, BY_RATE, BY_SHARE = RetryGrant.DENIED, RetryGrant.BY_RATE, RetryGrant.BY_SHARE


@pytest.mark.parametrize(
    "options, problem",
    [
        pytest.param({"share": -0.1}, "share -0.1 is not a share", id="a share below 0"),
        pytest.param({"share": 20}, "share 20 is not a share: write 0.2 for a fifth", id="percent"),
        pytest.param({"share": float("nan")}, "share nan is not a share", id="a share that is no number"),
        pytest.param({"share": "20%"}, "share '20%' is not a share", id="a text"),
        pytest.param({"share": True}, "share True is not a share", id="a truth"),
        pytest.param({"per_second": -1}, "per_second -1 is no number of retries", id="less than none a second"),
        pytest.param({"per_second": float("inf")}, "per_second inf is no number", id="endless retries"),
        pytest.param({"per_second": None}, "per_second None is no number", id="no minimum"),
        pytest.param({"share": 0, "per_second": 0}, "write retries=0 for that", id="nothing"),
    ],
)
def test_budget_that_cannot_work_is_refused(options, problem):
    with pytest.raises(ConfigError) as refused:
        RetryBudget(**options)
    assert f"retry_budget: {problem}" in str(refused.value) or problem in str(refused.value)


def test_number_stands_for_a_budget_with_that_share():
    assert RetryBudget.of(0.3) == RetryBudget(share=0.3, per_second=10)
    assert RetryBudget.of(None) is None


def granted(retries: GrantedRetries, budget: RetryBudget, requests: int, times: int) -> list[RetryGrant]:
    """Ask for the first retry of so many requests."""
    return [retries.acquire(budget, lambda: requests, False) for _ in range(times)]


@pytest.mark.parametrize(
    "share, requests, allowed",
    [
        (0.2, 50, 10),
        (0.2, 49, 9),
        (0.2, 5, 1),
        (0.2, 4, 0),
        (1, 3, 3),
        (0.001, 50, 0),
    ],
)
def test_share_of_the_requests_in_flight_may_be_retries(share, requests, allowed):
    retries = GrantedRetries("web", ManualClock())
    grants = granted(retries, RetryBudget(share, per_second=0), requests, 60)
    assert grants == [BY_SHARE] * allowed + [DENIED] * (60 - allowed)
    assert (retries.in_flight, retries.denied) == (allowed, 60 - allowed)


@pytest.mark.parametrize(
    "per_second, seconds, allowed",
    [
        pytest.param(10, 0, 10, id="those of a second come at once"),
        pytest.param(10, 0.5, 15, id="half a second later half as many"),
        pytest.param(10, 60, 20, id="those of a minute are not saved"),
        pytest.param(0.5, 0, 1, id="one in two seconds"),
        pytest.param(0.5, 1.75, 1, id="not before they are over"),
        pytest.param(0.5, 2, 2, id="and then the next"),
    ],
)
def test_some_retries_a_second_are_always_allowed(per_second, seconds, allowed):
    clock = ManualClock()
    retries, budget = GrantedRetries("web", clock), RetryBudget(share=0, per_second=per_second)
    grants = granted(retries, budget, 1, 40)
    clock.advance(seconds)
    grants += granted(retries, budget, 1, 40)
    assert grants.count(BY_RATE) == allowed
    assert grants.count(DENIED) == 80 - allowed


def test_requests_are_not_counted_while_the_minimum_is_not_used_up():
    retries = GrantedRetries("web", ManualClock())

    def count_requests() -> int:
        raise AssertionError("this looks at every server")

    assert retries.acquire(RetryBudget(per_second=1), count_requests, False) is BY_RATE


def test_grants_of_the_minimum_belong_to_the_share():
    """The minimum is a minimum, and nothing on top of the share."""
    retries, budget = GrantedRetries("web", ManualClock()), RetryBudget(share=0.2, per_second=5)
    assert granted(retries, budget, 50, 20) == [BY_RATE] * 5 + [BY_SHARE] * 5 + [DENIED] * 10


def test_request_is_one_retry_in_flight_however_often_it_is_retried():
    retries, budget = GrantedRetries("web", ManualClock()), RetryBudget(share=0.2, per_second=0)
    assert retries.acquire(budget, lambda: 5, False) is BY_SHARE
    assert [retries.acquire(budget, lambda: 5, True) for _ in range(3)] == [BY_SHARE] * 3
    assert retries.in_flight == 1
    assert retries.acquire(budget, lambda: 4, True) is DENIED, "fewer requests are in flight by now"


def test_retry_that_has_ended_lets_another_begin():
    retries, budget = GrantedRetries("web", ManualClock()), RetryBudget(share=0.2, per_second=0)
    assert granted(retries, budget, 5, 2) == [BY_SHARE, DENIED]
    retries.release()
    assert granted(retries, budget, 5, 1) == [BY_SHARE]


@pytest.mark.parametrize("budget", [RetryBudget(0, 1), RetryBudget(0.2, 0)], ids=["per_second", "share"])
def test_grant_that_was_cancelled_is_free_again(budget):
    retries = GrantedRetries("web", ManualClock())
    for _ in range(3):
        (grant,) = granted(retries, budget, 5, 1)
        assert grant is not DENIED
        retries.cancel(grant, False)
    assert retries.in_flight == 0


def test_requests_in_a_pause_are_in_flight():
    retries, budget = GrantedRetries("web", ManualClock()), RetryBudget(share=1, per_second=0)
    for _ in range(3):
        assert granted(retries, budget, 1, 1) == [BY_SHARE]
        retries.count_pause(1)
    for _ in range(3):
        retries.count_pause(-1)
    assert granted(retries, budget, 3, 1) == [DENIED]


def test_denials_are_logged_when_they_begin(caplog):
    clock = ManualClock()
    retries, budget = GrantedRetries("web", clock), RetryBudget(share=0.2, per_second=0)
    with caplog.at_level(logging.WARNING, "sticky_sessions"):
        granted(retries, budget, 5, 50)
        for _ in range(5):
            clock.advance(LOG_INTERVAL - 1)
            granted(retries, budget, 5, 1)
        (line,) = caplog.messages
        assert line.startswith("backend web: retry_budget denies retries: 1 of 5 requests in flight are retries.")
        clock.advance(LOG_INTERVAL)
        granted(retries, budget, 5, 3)
        assert len(caplog.messages) == 2, "they have begun again"
    assert retries.denied == 49 + 5 + 3


def test_threads_get_no_more_than_the_budget_and_give_all_back():
    retries, budget = GrantedRetries("web", ManualClock()), RetryBudget(share=0.25, per_second=0)
    start = threading.Barrier(8)
    most: list[int] = []

    def run() -> None:
        start.wait()
        for _ in range(500):
            if retries.acquire(budget, lambda: 16, False) is not DENIED:
                most.append(retries.in_flight)
                retries.release()

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) <= 4
    assert retries.in_flight == 0
    assert len(most) + retries.denied == 8 * 500


def test_forked_child_has_no_retries_of_its_parent():
    retries, budget = GrantedRetries("web", ManualClock()), RetryBudget(share=0.2, per_second=0)
    assert granted(retries, budget, 5, 2) == [BY_SHARE, DENIED]
    retries.count_pause(1)
    with retries._lock:
        retries.after_fork()
        assert granted(retries, budget, 5, 2) == [BY_SHARE, DENIED]
