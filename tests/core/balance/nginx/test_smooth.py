"""The smooth round robin, with the sequences of nginx."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.balance import Smooth
from tests.core.balance.nginx.model import PlainModel

# What nginx 1.22 answered.
SMOOTH = [
    ((1, 1, 1), "123123"),
    ((3, 1, 1, 1), "121341" * 2),
    ((5, 1, 1), "1121311" * 2),
    ((2, 3, 3), "23123123" * 2),
]


@pytest.mark.parametrize("weights, sequence", SMOOTH, ids=str)
def test_smooth_takes_nginx_s_turns(bench, weights, sequence):
    assert bench(Smooth(start=0), weights).sequence(len(sequence)) == sequence


@given(weights=st.lists(st.integers(0, 9), min_size=1, max_size=7).filter(any))
def test_smooth_gives_the_sequence_of_the_plain_model(bench, weights):
    peers = PlainModel(weights)
    count = min(5 * sum(weights), 200)
    expected = "".join(str(n + 1) for n in (peers.next() for _ in range(count)) if n is not None)
    assert bench(Smooth(start=0), weights).sequence(count) == expected


@given(
    weights=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    ops=st.lists(
        st.tuples(st.sampled_from(["next", "next", "bound", "weigh", "out"]), st.integers(0, 4), st.integers(1, 5)),
        max_size=80,
    ),
)
def test_smooth_follows_the_plain_model_through_changes_and_bound_requests(bench, weights, ops):
    on, peers = bench(Smooth(start=0), weights), PlainModel(weights)
    assert on.serve() - 1 == peers.next()  # the first choice has been made: from now on bound requests count
    for what, which, weight in ops:
        which %= len(weights)
        server = on.servers[which]
        if what == "next":
            chosen = peers.next()
            assert on.serve() == (0 if chosen is None else chosen + 1)
        elif what == "bound" and server.electable:
            on.acquire(server)
            peers.next(bound=which)
        elif what == "weigh":
            server.weight = peers.weights[which] = weight
        elif what == "out":
            server.weight = peers.weights[which] = 0


def test_the_credit_of_an_avoided_server_does_not_grow(bench):
    on, peers = bench(Smooth(start=0), (5, 2, 1)), PlainModel((5, 2, 1))
    for avoid in ((), (0,), (0,), (), (), (1,), (), (), (0, 2), ()):
        avoided = [on.servers[number] for number in avoid]
        chosen = peers.next(avoid)
        assert chosen is not None
        assert on.serve(avoided) == chosen + 1


def test_a_server_busy_with_bound_clients_gets_fewer_new_ones(bench):
    on = bench(Smooth(start=0), (1, 1, 1))
    shares: Counter[int] = Counter()
    for _ in range(300):
        on.acquire(on.servers[0])
        shares[on.serve()] += 1
    assert shares[1] < 10
    assert shares[2] == pytest.approx(shares[3], abs=2)


def test_ten_thousand_bound_requests_leave_nothing_behind(bench):
    on = bench(Smooth(start=0), (1, 2, 3))
    on.sequence(6)
    for number in range(10_000):
        server = on.servers[number % 3]
        on.acquire(server)
        on.release(server)
    schedule = on.algorithm._schedule
    assert sum(len(group.heap) for group in schedule._groups.values()) < 200


@pytest.mark.parametrize("drawn, sequence", [(0, "121341"), (2, "134112")])
def test_smooth_draws_its_first_turn_at_the_first_choice_without_a_start(bench, scripted, drawn, sequence):
    rng = scripted([drawn])
    on = bench(Smooth(), [3, 1, 1, 1], rng)
    assert rng.arguments == [], "only at the first choice, so that a forked child draws its own number"
    assert on.sequence(6) == sequence
    assert rng.arguments == [6]
