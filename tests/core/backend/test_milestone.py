"""Milestone and Drained: waited for in a thread."""

import threading

from sticky_core.backend.milestone import Drained, Milestone


def test_milestone_is_waited_for_in_a_thread():
    milestone = Milestone()
    assert not milestone.wait(0)
    thread = threading.Thread(target=milestone.reach)
    thread.start()
    assert milestone.wait(300) and milestone.reached
    thread.join()


def test_milestone_that_was_reached_is_not_waited_for():
    milestone = Milestone()
    milestone.reach()
    assert milestone.wait(0)


def test_milestone_is_true_and_shows_it_once_it_is_reached():
    milestone = Milestone()
    assert (bool(milestone), repr(milestone)) == (False, "<Milestone: not reached>")
    milestone.reach()
    assert (bool(milestone), repr(milestone)) == (True, "<Milestone: reached>")


def test_milestone_keeps_nothing_of_those_that_have_given_up_waiting():
    milestone = Milestone()
    assert not milestone.wait(0)
    assert milestone._callbacks == []


def test_poll_may_reach_the_milestone():
    polled: list[None] = []

    def poll() -> None:
        polled.append(None)
        if len(polled) == 2:
            milestone.reach()

    milestone = Milestone(poll)
    assert milestone.wait(300) and len(polled) == 2


def test_drained_is_false_when_the_timeout_is_over():
    assert not Drained(lambda: False, 0.001).wait(0.002)


def test_drained_calls_until_it_is_so():
    results = iter([False, False, True])
    assert Drained(lambda: next(results), 0.001).wait()
