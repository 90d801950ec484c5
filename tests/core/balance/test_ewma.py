"""Ewma: response times of late, times requests."""

import pytest

from sticky_core.balance import Ewma
from sticky_core.balance.algorithm import LatencyAware
from sticky_core.clock import ManualClock
from sticky_core.errors import ConfigError

# Two servers, both drawn each time: the lots fall on the first, then the second.
BOTH = [0.1, 0.9]


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def two(bench, scripted, clock):
    made = bench(Ewma(decay=10), [1, 1], scripted(BOTH * 50))
    made.algorithm.use_clock(clock)
    return made


def test_it_records_latencies(two):
    assert isinstance(two.algorithm, LatencyAware)


def test_the_faster_server_is_chosen(two):
    two.algorithm.record_latency(two.servers[0], 0.2)
    two.algorithm.record_latency(two.servers[1], 0.1)
    assert two.sequence(5) == "22222"


def test_the_slower_server_is_chosen_when_its_load_is_low_enough(two):
    two.algorithm.record_latency(two.servers[0], 0.25)
    two.algorithm.record_latency(two.servers[1], 0.1)
    assert [two.serve() for _ in range(7)] == [2, 2, 1, 2, 2, 1, 2]


def test_a_server_without_a_response_is_compared_by_load_alone(two):
    two.algorithm.record_latency(two.servers[0], 0.001)
    two.acquire(two.servers[0])
    assert two.serve() == 2
    assert two.serve() == 1


def test_a_slow_response_counts_at_once_and_decays_slowly(two, clock):
    slow, quick = two.servers
    two.algorithm.record_latency(quick, 0.1)
    for _ in range(20):
        two.algorithm.record_latency(slow, 0.01)
    assert two.serve() == 1
    two.release(slow)
    two.algorithm.record_latency(slow, 1.0)
    assert two.serve() == 2
    two.release(quick)
    for _ in range(3):  # within the second: quick answers do not outweigh it yet
        clock.advance(0.3)
        two.algorithm.record_latency(slow, 0.01)
        two.algorithm.record_latency(quick, 0.1)
    assert two.sequence(1) == "2"
    for _ in range(300):
        clock.advance(0.3)
        two.algorithm.record_latency(slow, 0.01)
        two.algorithm.record_latency(quick, 0.1)
    assert two.sequence(1) == "1"


def test_a_slow_server_without_requests_is_tried_again(two, clock):
    slow, quick = two.servers
    two.algorithm.record_latency(slow, 5.0)
    two.algorithm.record_latency(quick, 0.1)
    chosen = ""
    for _ in range(10):
        clock.advance(5)
        two.algorithm.record_latency(quick, 0.1)
        chosen += two.sequence(1)
    assert chosen == "2222222111"


def test_servers_are_drawn_by_weight(bench):
    on = bench(Ewma(), [3, 1])
    assert 1000 < on.sequence(2000).count("1") < 1900, "two different ones are drawn, the heavier first more often"


@pytest.mark.parametrize(
    "arguments, problem",
    [
        pytest.param({"draws": 0}, "0 draws choose no server", id="no draws"),
        pytest.param({"decay": 0}, "decay 0 is not above 0", id="no time"),
        pytest.param({"decay": "soon"}, "'soon' is not a duration", id="not a time"),
    ],
)
def test_invalid_options_are_refused(arguments, problem):
    with pytest.raises(ConfigError, match=problem):
        Ewma(**arguments)
