"""Static-rr: HAProxy's sequence of turns."""

import pytest

from sticky_core.balance import StaticRR
from sticky_core.errors import ConfigError
from sticky_core.server.state import AdminState

# What HAProxy answered: the rows of the facts, and weights that divide no round evenly (2.6).
HAPROXY = [
    ((1, 1, 1, 1), "1234"),
    ((3, 1, 1, 1), "112134"),
    ((5, 3, 1, 1), "1121212134"),
    ((2, 1), "112"),
    ((2, 2), "12"),
]


@pytest.mark.parametrize("weights, round_", HAPROXY, ids=str)
def test_static_rr_gives_haproxy_s_sequence(bench, weights, round_):
    assert bench(StaticRR(start=0), weights).sequence(3 * len(round_)) == 3 * round_


def test_an_avoided_server_is_skipped_and_turns_continue_after_the_chosen_one(bench):
    on = bench(StaticRR(start=0), [1, 1, 1, 1])
    assert on.serve(avoid=on.servers[:2]) == 3
    assert on.sequence(5) == "41234"


def test_turns_continue_at_the_same_position_after_a_change(bench):
    on = bench(StaticRR(start=0), [1, 1, 1, 1])
    assert on.sequence(2) == "12"
    on.servers[3].state = AdminState.MAINT
    assert on.sequence(4) == "3123"
    on.servers[3].state = AdminState.READY
    assert on.sequence(4) == "4123"


@pytest.mark.parametrize("drawn, sequence", [(0, "1121"), (2, "2134"), (5, "4112")])
def test_static_rr_draws_its_first_turn_at_the_first_choice_without_a_start(bench, scripted, drawn, sequence):
    rng = scripted([drawn])
    on = bench(StaticRR(), [3, 1, 1, 1], rng)
    assert rng.arguments == [], "only at the first choice, so that a forked child draws its own number"
    assert on.sequence(4) == sequence
    assert rng.arguments == [6]


def test_a_start_below_0_is_refused():
    with pytest.raises(ConfigError, match="start -1 is below 0"):
        StaticRR(start=-1)
