"""Leastconn: the least load for its weight."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.balance import LeastConn
from sticky_core.server.server import Server


def test_equally_loaded_servers_take_turns(bench, scripted):
    assert bench(LeastConn(), [1, 1, 1, 1], scripted([0])).sequence(8) == "12341234"


@pytest.mark.parametrize("drawn, sequence", [(0, "1234"), (2, "3412")])
def test_the_first_among_equals_is_drawn(bench, scripted, drawn, sequence):
    rng = scripted([drawn])
    on = bench(LeastConn(), [1, 1, 1, 1], rng)
    assert rng.arguments == [], "only at the first choice, so that a forked child draws its own number"
    assert on.sequence(4) == sequence


def test_servers_share_long_requests_in_turn(bench):
    on = bench(LeastConn(), [1, 1, 1])
    for number in range(1, 31):
        on.serve()
        loads = [len(server.in_flight) for server in on.servers]
        assert sum(loads) == number
        assert max(loads) - min(loads) <= 1


def test_leastconn_counts_requests_that_it_did_not_assign(bench, scripted):
    on = bench(LeastConn(), [1, 1], scripted([0]))
    for _ in range(5):
        on.acquire(on.servers[0])
    assert [on.serve() for _ in range(5)] == [2] * 5
    for _ in range(4):
        on.release(on.servers[0])
    assert [on.serve() for _ in range(4)] == [1] * 4


def test_simultaneous_choices_do_not_all_return_the_same_server(bench):
    on = bench(LeastConn(), [1, 1, 1])
    assert len({on.choose() for _ in range(3)}) == 3, "before any of them has been taken"


def load(server: Server) -> Fraction:
    """As the facts have it: nothing if nothing is there, else one more than is there, by weight."""
    return Fraction(len(server.in_flight) + 1, server.weight) if server.in_flight else Fraction(0)


@given(
    weights=st.lists(st.integers(1, 256), min_size=2, max_size=6),
    ops=st.lists(
        st.tuples(
            st.sampled_from(["serve", "serve", "take", "leave", "weigh"]), st.integers(0, 5), st.integers(1, 256)
        ),
        max_size=80,
    ),
)
def test_leastconn_chooses_one_of_the_least_loaded(bench, weights, ops):
    on = bench(LeastConn(), weights)
    for what, which, weight in ops:
        server = on.servers[which % len(weights)]
        if what == "weigh":
            server.weight = weight
        elif what == "take":
            on.acquire(server)
        elif what == "leave" and server.in_flight:
            on.release(server)
        elif what == "serve":
            least = min(map(load, on.servers))
            chosen = on.choose()
            assert chosen is not None
            assert load(chosen) == least
            on.acquire(chosen)
        others = [each for each in on.servers if each is not server]
        second = on.choose([server])
        assert second is not None
        assert load(second) == min(map(load, others))
