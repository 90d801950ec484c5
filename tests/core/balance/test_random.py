"""Random: drawn by weight, the less loaded of those drawn."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.balance import NginxRandom, Random, parse_balance
from sticky_core.errors import ConfigError
from sticky_core.server.state import AdminState

# A number drawn is a share of all weights: 0.5 is the middle.


def test_one_draw_is_chance_by_weight_alone(bench, scripted):
    on = bench(Random(1), [3, 1, 2], scripted(share / 6 for share in range(6)))
    for _ in range(50):
        on.take(on.servers[0])  # a load that one draw does not look at
    assert Counter(on.serve() for _ in range(6)) == {1: 3, 2: 1, 3: 2}


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=6).filter(any),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=10),
)
def test_whatever_weights_became_each_number_falls_to_one_by_weight(bench, scripted, weights, changes):
    rng = scripted()
    on = bench(Random(1), weights, rng)
    for which, weight in changes:
        on.servers[which % len(weights)].weight = weight
    weights = [server.weight for server in on.servers]
    # the middle of each sixteenth of a weight, so that no rounding decides
    total = 16 * sum(weights)
    rng.numbers = [(share + 0.5) / total for share in range(total)]
    shares = Counter(on.serve() for _ in range(total))
    assert shares == {number: 16 * weight for number, weight in enumerate(weights, 1) if weight}


@pytest.mark.parametrize(
    "loads, weights, drawn, chosen",
    [
        pytest.param((0, 0, 0), (1, 1, 1), [0.1, 0.9], 1, id="of equals the first drawn"),
        pytest.param((1, 0, 0), (1, 1, 1), [0.1, 0.9], 3, id="the one with less"),
        pytest.param((1, 0, 0), (1, 1, 1), [0.1, 0.1], 1, id="the one that was drawn twice"),
        pytest.param((3, 2, 0), (2, 1, 1), [0.1, 0.6], 1, id="less for its weight"),
        pytest.param((4, 2, 0), (2, 1, 1), [0.6, 0.1], 2, id="as much for its weight"),
    ],
)
def test_of_two_draws_the_less_loaded_is_chosen(bench, scripted, loads, weights, drawn, chosen):
    on = bench(Random(), weights, scripted(drawn))
    for server, count in zip(on.servers, loads, strict=True):
        server.in_flight.extend([None] * count)
    assert on.serve() == chosen


def test_as_many_servers_are_drawn_as_was_asked_for(bench, scripted):
    rng = scripted([0.1, 0.3, 0.5, 0.7, 0.9])
    bench(Random(4), [1, 1, 1, 1], rng).choose()
    assert rng.numbers == [0.9]


def test_whom_chance_draws_again_and_again_though_he_is_to_be_avoided_gives_way(bench, scripted):
    on = bench(Random(), [1, 1, 1], scripted([0.1] * 100))
    assert on.choose([on.servers[0]]) in on.servers[1:]


@pytest.mark.parametrize("which", [pytest.param(0, id="the first drawn"), pytest.param(2, id="the second drawn")])
def test_who_is_to_be_avoided_is_not_chosen_though_he_has_the_least_to_do(bench, scripted, which):
    on = bench(Random(), [1, 1, 1], scripted([0.1, 0.9, 0.5, 0.5]))
    on.take(on.servers[2 - which])
    assert on.serve(avoid=[on.servers[which]]) == 2


def test_weights_that_have_changed_count_at_the_next_draw(bench, scripted):
    on = bench(Random(1), [1, 1], scripted([0.8, 0.8, 0.2]))
    assert on.serve() == 2
    on.servers[0].weight = 9
    on.servers[1].weight = 0
    assert on.serve() == 1
    on.servers[1].weight = 1
    on.servers[0].state = AdminState.DRAIN
    assert on.serve() == 2


def test_two_of_nginx_are_two_different_ones(bench, scripted):
    on = bench(NginxRandom(two=True), [1, 1, 1], scripted([0.1, 0.1, 0.1, 0.9]))
    on.take(on.servers[0])
    assert on.serve() == 3


def test_who_has_more_than_the_factor_allows_is_not_drawn(bench, scripted):
    on = bench(Random(1, hash_balance_factor=150), [1, 1, 1], scripted([0.1, 0.1, 0.4, 0.1]))
    # five requests and this one: nine places, three for each
    for server, count in zip(on.servers, (3, 0, 2), strict=True):
        for _ in range(count):
            on.take(server)
    assert on.serve() == 2
    on.leave(on.servers[0])
    assert on.serve() == 1


def test_no_draws_choose_nobody():
    for wrong in (lambda: Random(0), lambda: parse_balance("random(0)"), lambda: Random(-1)):
        with pytest.raises(ConfigError, match="draws choose nobody"):
            wrong()


@pytest.mark.parametrize("factor", [-1, 1, 100])
def test_a_factor_that_leaves_requests_without_a_place_is_refused(factor):
    with pytest.raises(ConfigError, match=f"hash_balance_factor {factor} is not above 100"):
        Random(hash_balance_factor=factor)
