"""random and random two, as nginx has them."""

from collections import Counter

import pytest

from sticky_core.balance import NginxRandom
from sticky_core.server.state import AdminState


def test_nginx_random_two_draws_two_different_servers(bench, scripted):
    on = bench(NginxRandom(two=True), [1, 1, 1], scripted([0.1, 0.1, 0.1, 0.9]))
    on.acquire(on.servers[0])
    assert on.serve() == 3


def test_one_server_is_drawn_by_weight_whatever_its_load(bench, scripted):
    on = bench(NginxRandom(), [3, 1, 2], scripted(share / 6 for share in range(6)))
    for _ in range(50):
        on.acquire(on.servers[0])
    assert Counter(on.serve() for _ in range(6)) == {1: 3, 2: 1, 3: 2}


@pytest.mark.parametrize(
    "loads, weights, chosen",
    [
        pytest.param((0, 0), (1, 1), 1, id="of equals the first drawn"),
        pytest.param((1, 0), (1, 1), 2, id="fewer requests in flight"),
        pytest.param((3, 2), (2, 1), 1, id="fewer requests in flight for its weight"),
    ],
)
def test_two_compares_requests_in_flight_by_weight(bench, scripted, loads, weights, chosen):
    on = bench(NginxRandom(two=True), weights, scripted([0.1, 0.9]))
    for server, count in zip(on.servers, loads, strict=True):
        server.in_flight.extend([None] * count)
    assert on.serve() == chosen


def test_two_chooses_the_only_electable_server(bench, scripted):
    on = bench(NginxRandom(two=True), [1, 1], scripted([0.1] * 40))
    on.servers[0].state = AdminState.MAINT
    assert on.serve() == 2
