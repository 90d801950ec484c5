"""First: in the order of declaration, as long as there are free slots."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.balance import First
from sticky_core.server.state import AdminState


def test_the_first_server_gets_all_requests_while_it_has_free_slots_whatever_the_weights(bench):
    assert bench(First(), [1, 200, 1]).sequence(10) == "1" * 10


def test_servers_fill_one_after_the_other(bench):
    assert list(bench(First(), [1, 1, 1]).fill([3, 1, 2])) == [1, 1, 1, 2, 3, 3]


def test_a_server_with_a_free_slot_again_is_first_again(bench, full):
    on = bench(First(), [1, 1, 1])
    crowded = full(dict.fromkeys(on.servers, 2))
    assert [on.serve(crowded) for _ in range(5)] == [1, 1, 2, 2, 3]
    on.release(on.servers[1])
    assert [on.serve(crowded) for _ in range(2)] == [2, 3]
    on.release(on.servers[0])
    assert on.serve(crowded) == 1


def test_a_server_that_is_up_again_is_first_again(bench):
    on = bench(First(), [1, 1, 1])
    on.servers[0].state = AdminState.DRAIN
    assert on.sequence(2) == "22"
    on.servers[0].state = AdminState.READY
    assert on.sequence(2) == "11"


class Counting:
    """The servers that are full, and how often that was queried."""

    def __init__(self, inner: object) -> None:
        self.inner = inner
        self.asked = 0

    def __contains__(self, server: object) -> bool:
        self.asked += 1
        return server in self.inner  # type: ignore[operator]


def test_full_servers_are_not_tested_at_each_choice(bench, full):
    on = bench(First(), [1] * 1000)
    crowded = Counting(full(dict.fromkeys(on.servers, 1)))
    for number in range(1, 900):
        assert on.serve(crowded) == number
    crowded.asked = 0
    for number in range(900, 1000):
        assert on.serve(crowded) == number
    assert crowded.asked < 300


@given(
    ops=st.lists(
        st.tuples(st.sampled_from(["serve", "serve", "leave", "tried", "take"]), st.integers(0, 3)), max_size=60
    )
)
def test_the_first_server_with_a_free_slot_is_chosen_unless_it_was_avoided_while_busy(bench, full, ops):
    on = bench(First(), [1, 1, 1, 1])
    places = dict(zip(on.servers, (1, 2, 1, 3), strict=True))
    avoided = set()
    for what, which in ops:
        server = on.servers[which]
        if what == "leave" and server.in_flight:
            on.release(server)
            avoided.discard(server)
        elif what == "take":
            on.acquire(server)
        elif what in ("serve", "tried"):
            tried = (server,) if what == "tried" else ()
            if tried and server.in_flight:
                avoided.add(server)
            open_ = [s for s in on.servers if len(s.in_flight) < places[s] and s not in tried]
            chosen = on.choose(full(places, tried))
            assert (chosen is None) == (not open_)
            if chosen is not None:
                assert chosen in open_
                assert set(open_[: open_.index(chosen)]) <= avoided
                on.acquire(chosen)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_no_server_is_chosen_when_all_are_full(bench, full, count):
    on = bench(First(), [1] * count)
    crowded = full(dict.fromkeys(on.servers, 1))
    assert [on.serve(crowded) for _ in range(count + 2)] == [*range(1, count + 1), 0, 0]
