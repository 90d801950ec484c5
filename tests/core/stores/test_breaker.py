"""The circuit breaker of a store: when it allows commands, and what it logs."""

import logging
import random

import pytest

from sticky_core.stores.breaker import FIRST_PAUSE, LONGEST_PAUSE, Backoff, Breaker, State

PROBE_TIMEOUT = 0.5


class LongestPauses:
    """Chance that makes every pause as long as it may be, or nearly."""

    def random(self):
        return 1.0

    def randrange(self, stop):
        return stop - 1

    def getrandbits(self, k):
        return 2**k - 1


@pytest.fixture
def breaker():
    return Breaker("redis://cache", "going on", PROBE_TIMEOUT, LongestPauses())


def test_commands_are_allowed_until_the_first_failure(breaker):
    assert [breaker.allows(now) for now in (0.0, 0.0, 7.0)] == [True] * 3
    breaker.record_failure(7.0, "refused")
    assert not breaker.allows(7.0)
    assert (breaker.state, breaker.failures, breaker.openings, breaker.last_error) == (State.OPEN, 1, 1, "refused")


def test_after_the_pause_one_caller_is_allowed_and_the_others_do_not_wait_for_it(breaker):
    breaker.record_failure(0.0, "refused")
    assert breaker.delay(0.02) == pytest.approx(FIRST_PAUSE - 0.02)
    assert [
        breaker.allows(FIRST_PAUSE),
        breaker.allows(FIRST_PAUSE),
        breaker.allows(FIRST_PAUSE + PROBE_TIMEOUT / 2),
    ] == [
        True,
        False,
        False,
    ]
    assert breaker.state is State.HALF_OPEN


def test_another_caller_is_allowed_if_the_first_never_records_a_result(breaker):
    breaker.record_failure(0.0, "refused")
    assert breaker.allows(FIRST_PAUSE)
    assert breaker.allows(FIRST_PAUSE + PROBE_TIMEOUT)


def test_success_of_one_caller_allows_all(breaker):
    breaker.record_failure(0.0, "refused")
    assert breaker.allows(1.0)
    breaker.record_success(1.1)
    assert (breaker.state, breaker.delay(1.1)) == (State.CLOSED, 0.0)
    assert [breaker.allows(1.1), breaker.allows(1.1)] == [True, True]


def test_pauses_double_up_to_the_longest(breaker):
    now = 0.0
    pauses = []
    for _ in range(9):
        breaker.record_failure(now, "refused")
        pauses.append(breaker.delay(now))
        now += pauses[-1]
        assert breaker.allows(now)
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0])


def test_failures_of_commands_sent_before_it_opened_are_counted_and_make_no_pause_longer(breaker):
    for _ in range(64):
        breaker.record_failure(0.0, "no answer")
    assert (breaker.failures, breaker.openings, breaker.delay(0.0)) == (64, 1, FIRST_PAUSE)


def test_store_that_comes_and_goes_is_queried_as_seldom_as_one_that_stays_away(breaker):
    breaker.record_failure(0.0, "refused")
    breaker.record_success(1.0)
    breaker.record_failure(1.5, "refused")
    assert breaker.delay(1.5) == pytest.approx(2 * FIRST_PAUSE)
    breaker.record_success(2.0)
    breaker.record_failure(2.0 + LONGEST_PAUSE + 0.1, "refused")  # it had been well for long enough
    assert breaker.delay(2.0 + LONGEST_PAUSE + 0.1) == pytest.approx(FIRST_PAUSE)


def test_chance_makes_pauses_shorter_by_half_at_most():
    pauses = [Backoff(random.Random(seed)).next_pause() for seed in range(200)]
    assert FIRST_PAUSE / 2 <= min(pauses) < 0.6 * FIRST_PAUSE
    assert 0.9 * FIRST_PAUSE < max(pauses) <= FIRST_PAUSE


def test_each_change_is_logged_once(breaker, caplog):
    caplog.set_level(logging.WARNING, "sticky_sessions")
    for now in (0.0, 0.0, 0.0):
        breaker.record_failure(now, "connection refused")
    assert breaker.allows(0.1)
    breaker.record_failure(0.1, "connection refused")
    assert breaker.allows(0.4)
    breaker.record_success(0.4)
    breaker.record_success(0.4)
    assert caplog.messages == [
        "store redis://cache: connection refused; going on until it is back",
        "store redis://cache: back after 0.4 s",
    ]


def test_repr_shows_state_and_failures(breaker):
    breaker.record_failure(0.0, "refused")
    assert repr(breaker) == "<Breaker redis://cache open, 1 failures>"
