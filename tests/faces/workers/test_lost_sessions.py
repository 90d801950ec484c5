"""A client loses its session when its worker ends: then it gets another worker, once, or a 410."""

from typing import Any

import pytest


@pytest.fixture(params=["kill", "stop"])
def end(request):
    """Ends a worker, as SIGKILL does or as its server does."""
    return lambda worker: getattr(worker, request.param)()


def test_client_of_a_worker_that_has_ended_is_bound_once_to_another_and_the_decision_has_the_reason(start, end):
    seen: list[Any] = []
    one, other, third = start(), start(log=seen.append), start()
    mark = one.request().mark
    assert other.request(cookie=mark).body == b"2"  # so that there is an idle connection
    end(one)
    lost = other.request(cookie=mark)
    assert (lost.status, lost.body) == (200, b"1")
    assert [(each.server, each.claim.name, each.reason.value) for each in seen[1:]] == [
        ("w2", "INVALID", "other instance")
    ]
    decision = other.seen[-1].decision
    assert decision is not None
    assert (decision.server, decision.claim.name, decision.reason.value) == ("w2", "INVALID", "other instance")
    assert lost.mark.partition("=")[2].startswith("w2@")
    again = third.request(cookie=lost.mark)
    assert (again.body, again.cookies) == (b"2", [])
    # the third worker has sent nothing to the one that has ended, and knows all the same
    assert third.request(cookie=mark).body == b"1"
    assert third.backend["w1"].status == "DOWN"


def test_next_worker_in_a_worker_slot_does_not_have_the_sessions_of_the_last(start, end):
    one, other = start(), start()
    mark = one.request().mark
    end(one)
    successor = start()
    assert successor.backend.own_server.name == "w1"
    lost = successor.request(cookie=mark)
    decision = successor.seen[0].decision
    assert decision is not None
    assert (lost.body, decision.reason.value) == (b"1", "other instance")
    assert other.request(cookie=lost.mark).body == b"2"
    assert len(successor.seen) == 2


def test_client_that_must_not_get_an_empty_session_gets_a_410_by_a_failed_attempt_and_by_its_cookie(start, end):
    one, other = (start(on_lost="gone") for _ in range(2))
    mark = one.request().mark
    end(one)
    for _ in range(2):  # of a killed worker: first by a failed attempt, then by the cookie alone
        gone = other.request(cookie=mark, scheme="https")
        assert gone.status == 410
        assert gone.cookies == [f"{mark.partition('=')[0]}=; Expires=Thu, 01-Jan-1970 00:00:01 GMT; path=/; Secure"]
    assert other.seen == []
    assert other.request().body == b"1"
