"""The list of static-rr and of hashes: HAProxy's order by weight, and what replaces a server to be avoided."""

import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.balance.static_map import StaticMap, weighted_order
from sticky_core.server.server import Server


def haproxy_s_order(weights: Sequence[int]) -> list[int]:
    """HAProxy's `recalc_server_map`: all servers are compared for each position."""
    common = math.gcd(*weights)
    weights = [weight // common for weight in weights]
    round_ = sum(weights)
    score = [0] * len(weights)
    order: list[int] = []
    for _ in range(round_):
        score = [has + weight for has, weight in zip(score, weights, strict=True)]
        owed = [(has + round_) // round_ for has in score]
        best = owed.index(max(owed))
        score[best] -= round_
        order.append(best)
    return order


@given(weights=st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_the_order_is_that_of_the_plain_model(weights):
    assert weighted_order(weights) == haproxy_s_order(weights)


@given(weights=st.lists(st.integers(1, 256), min_size=1, max_size=50))
def test_each_server_occurs_in_a_round_as_often_as_its_weight(weights):
    common = math.gcd(*weights)
    assert Counter(weighted_order(weights)) == Counter({n: weight // common for n, weight in enumerate(weights)})


def app(environ, start_response):
    return []


def static_map(*weights, start=0):
    """Return servers s1, s2, … of these weights, and their map."""
    servers = [Server(f"s{number}", app, weight=weight) for number, weight in enumerate(weights, 1)]
    return servers, StaticMap(servers, random.Random(1), start)


@pytest.mark.parametrize("digest, name", [(0, "s1"), (1, "s1"), (2, "s2"), (3, "s1"), (5, "s2"), (3_000_002, "s2")])
def test_hash_modulo_the_sum_of_weights_is_the_position_in_the_list(digest, name):
    _, positions = static_map(2, 1)
    server = positions.find(digest, ())
    assert server is not None and server.name == name


@pytest.mark.parametrize("weights", [(), (0,), (0, 0)], ids=str)
def test_map_without_an_electable_server_has_none(weights):
    _, positions = static_map(*weights)
    assert (positions.find(7, ()), positions.next_server(())) == (None, None)


def test_other_server_is_found_for_a_hash_whose_servers_are_to_be_avoided():
    servers, positions = static_map(1, 1, 1, 1)
    for digest in range(40):
        assert positions.find(digest, servers[:3]) is servers[3]
        assert positions.find(digest, servers) is None


def test_hashes_of_an_avoided_server_spread_over_the_others_and_always_go_the_same_way():
    servers, positions = static_map(1, 1, 1, 1)
    found = [positions.find(4 * number, servers[:1]) for number in range(200)]
    assert found == [positions.find(4 * number, servers[:1]) for number in range(200)]
    counts = Counter(found)
    assert set(counts) == set(servers[1:]) and min(counts.values()) > 40


def test_list_is_rebuilt_after_a_change_of_weight():
    servers, positions = static_map(1, 1)
    assert [positions.next_server(()) for _ in range(2)] == servers
    servers[0].weight = 0
    servers[0].refresh_state()
    positions.state_changed(servers[0])
    assert [positions.find(digest, ()) for digest in range(4)] == [servers[1]] * 4
