"""Random: drawn by weight, the less loaded of those drawn."""

from collections import Counter

import pytest

from sticky_core.balance import Random, parse_balance
from sticky_core.errors import ConfigError
from sticky_core.server.state import AdminState

# A number drawn is a share of all weights: 0.5 is the middle.


def test_one_draw_chooses_at_random_by_weight(bench, scripted):
    on = bench(Random(1), [3, 1, 2], scripted(share / 6 for share in range(6)))
    for _ in range(50):
        on.acquire(on.servers[0])  # a load that one draw does not look at
    assert Counter(on.serve() for _ in range(6)) == {1: 3, 2: 1, 3: 2}


@pytest.mark.parametrize(
    "loads, weights, drawn, chosen",
    [
        pytest.param((0, 0, 0), (1, 1, 1), [0.1, 0.9], 1, id="of equals the first drawn"),
        pytest.param((1, 0, 0), (1, 1, 1), [0.1, 0.9], 3, id="the one with less"),
        pytest.param((1, 0, 0), (1, 1, 1), [0.1, 0.1], 1, id="the one that was drawn twice"),
        pytest.param((3, 2, 0), (2, 1, 1), [0.1, 0.6], 1, id="a lower load for its weight"),
        pytest.param((4, 2, 0), (2, 1, 1), [0.6, 0.1], 2, id="an equal load for its weight"),
    ],
)
def test_the_less_loaded_of_two_draws_is_chosen(bench, scripted, loads, weights, drawn, chosen):
    on = bench(Random(), weights, scripted(drawn))
    for server, count in zip(on.servers, loads, strict=True):
        server.in_flight.extend([None] * count)
    assert on.serve() == chosen


def test_the_configured_number_of_servers_is_drawn(bench, scripted):
    rng = scripted([0.1, 0.3, 0.5, 0.7, 0.9])
    bench(Random(4), [1, 1, 1, 1], rng).choose()
    assert rng.numbers == [0.9]


def test_another_server_is_chosen_if_an_avoided_one_is_drawn_again_and_again(bench, scripted):
    on = bench(Random(), [1, 1, 1], scripted([0.1] * 100))
    assert on.choose([on.servers[0]]) in on.servers[1:]


@pytest.mark.parametrize("which", [pytest.param(0, id="the first drawn"), pytest.param(2, id="the second drawn")])
def test_an_avoided_server_is_not_chosen_even_with_the_lowest_load(bench, scripted, which):
    on = bench(Random(), [1, 1, 1], scripted([0.1, 0.9, 0.5, 0.5]))
    on.acquire(on.servers[2 - which])
    assert on.serve(avoid=[on.servers[which]]) == 2


def test_changed_weights_count_at_the_next_draw(bench, scripted):
    on = bench(Random(1), [1, 1], scripted([0.8, 0.8, 0.2]))
    assert on.serve() == 2
    on.servers[0].weight = 9
    on.servers[1].weight = 0
    assert on.serve() == 1
    on.servers[1].weight = 1
    on.servers[0].state = AdminState.DRAIN
    assert on.serve() == 2


def test_a_server_above_the_balance_factor_is_not_drawn(bench, scripted):
    on = bench(Random(1, hash_balance_factor=150), [1, 1, 1], scripted([0.1, 0.1, 0.4, 0.1]))
    # five requests and this one: nine places, three for each
    for server, count in zip(on.servers, (3, 0, 2), strict=True):
        for _ in range(count):
            on.acquire(server)
    assert on.serve() == 2
    on.release(on.servers[0])
    assert on.serve() == 1


def test_zero_draws_are_refused():
    for wrong in (lambda: Random(0), lambda: parse_balance("random(0)"), lambda: Random(-1)):
        with pytest.raises(ConfigError, match="draws choose no server"):
            wrong()


@pytest.mark.parametrize("factor", [-1, 1, 100])
def test_a_balance_factor_of_100_percent_or_less_is_refused(factor):
    with pytest.raises(ConfigError, match=f"hash_balance_factor {factor} is not above 100"):
        Random(hash_balance_factor=factor)
