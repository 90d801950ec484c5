"""least_conn, with the sequences of nginx."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.balance import NginxLeastConn
from tests.core.balance.nginx.model import PlainModel


@given(
    weights=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    ops=st.lists(st.tuples(st.sampled_from(["serve", "serve", "take", "leave"]), st.integers(0, 4)), max_size=80),
)
def test_least_conn_gives_the_sequence_of_the_plain_model(bench, weights, ops):
    on, peers = bench(NginxLeastConn(start=0), weights), PlainModel(weights)
    for what, which in ops:
        server = on.servers[which % len(weights)]
        if what == "take":
            on.acquire(server)
        elif what == "leave" and server.in_flight:
            on.release(server)
        elif what == "serve":
            load = [len(each.in_flight) / each.weight for each in on.servers]
            chosen = peers.next([number for number, has in enumerate(load) if has > min(load)])
            assert chosen is not None
            assert on.serve() == chosen + 1


def test_least_conn_counts_bound_requests(bench):
    on = bench(NginxLeastConn(start=0), (1, 1))
    for _ in range(5):
        on.acquire(on.servers[0])
    assert [on.serve() for _ in range(5)] == [2] * 5


@pytest.mark.parametrize("drawn, sequence", [(0, "123"), (2, "312")])
def test_the_first_among_equals_is_drawn(bench, scripted, drawn, sequence):
    rng = scripted([drawn])
    on = bench(NginxLeastConn(), [1, 1, 1], rng)
    assert rng.arguments == [], "only at the first choice, so that a forked child draws its own number"
    assert on.sequence(3) == sequence
