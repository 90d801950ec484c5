import pytest

from sticky_core.workers.heartbeat import NOT_IN_APP, HeartbeatTimeout

RULE = HeartbeatTimeout(30)


@pytest.mark.parametrize(
    ("in_app_since", "now", "expected"),
    [
        pytest.param([], 1000, False, id="no request"),
        pytest.param([100], 130, False, id="as long as allowed"),
        pytest.param([100], 130.1, True, id="longer"),
        pytest.param([NOT_IN_APP], 1e9, False, id="the app waits for the peer"),
        pytest.param([NOT_IN_APP, 100, 990], 1000, True, id="one of several"),
    ],
)
def test_request_of_a_peer_may_take_as_long_as_an_own_one(in_app_since, now, expected):
    assert RULE.is_over(in_app_since, now) is expected


@pytest.mark.parametrize(("grace", "expected"), [(10, 10), (15, 15), (60, 15), (0, 0)])
def test_drain_ends_before_the_timeout(grace, expected):
    assert RULE.limit_drain(grace) == expected


@pytest.mark.parametrize(("now", "expected"), [(100, False), (115, False), (115.1, True)])
def test_wait_without_heartbeats_is_given_up_after_half_of_the_timeout(now, expected):
    assert RULE.must_give_up(100, now) is expected
