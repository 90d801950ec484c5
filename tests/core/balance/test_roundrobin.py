"""Roundrobin against HAProxy's own sequences (persistence 4)."""

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sticky_core.balance import RoundRobin
from sticky_core.errors import ConfigError
from sticky_core.server.state import AdminState, Health

# What HAProxy answered (2.6, one thread): the rows of the facts, and weights that divide no round evenly.
HAPROXY = [
    ((1, 1, 1, 1), "12341234"),
    ((3, 1, 1, 1), "121314121314"),
    ((5, 3, 1, 1), "12131212141213121214"),
    ((2, 1), "112112"),
    ((2, 3, 3), "2323123213231232"),
    ((7, 4, 2), "11213211213121121321121312"),
    ((5, 1, 4, 8), "414341431424134143414341431424134143"),
    ((1, 2, 3, 4, 5), "543542534515342543542534515342"),
    ((6, 4, 4), "1213213121321312132131213213"),
]


@pytest.mark.parametrize("weights, sequence", [*HAPROXY, ((1,), "1111"), ((1, 0, 1), "131313")], ids=str)
def test_roundrobin_gives_haproxy_s_sequence(bench, weights, sequence):
    assert bench(RoundRobin(start=0), weights).sequence(len(sequence)) == sequence


GO_AND_COME = ((6, "maint"), (2, "drain"), (6, "ready"), (2, "ready"))
WEIGH = ((6, 4), (6, 0), (4, 9), (6, 10))
# What HAProxy answered (2.6) to five requests each before, between and behind these changes; a is the tenth.
CHANGED = [
    ((1,) * 10, GO_AND_COME, "12345789a1345789a13457869"),
    ((1,) * 10, WEIGH, "123456786912345a444718243"),
    ((7, 4, 2, 9, 1, 1), GO_AND_COME, "4142143142414145143414142"),
    ((7, 4, 2, 9, 1, 1), WEIGH, "4142146142341451241441236"),
    ((1, 2, 3, 5, 1, 10, 4, 1, 7, 3), GO_AND_COME, "6946739a249157934a9674698"),
    ((1, 2, 3, 5, 1, 10, 4, 1, 7, 3), WEIGH, "69467396a49217935849a7496"),
    ((2, 4, 5), ((1, "maint"), (1, "ready"), (1, 7)), "32323233232323132113"),
]


@pytest.mark.parametrize("weights, changes, sequence", CHANGED, ids=str)
def test_roundrobin_takes_haproxy_s_turns_while_servers_change(bench, weights, changes, sequence):
    on = bench(RoundRobin(start=0), weights)
    served = on.sequence(5)
    for number, what in changes:
        if isinstance(what, str):
            on.servers[number - 1].state = what
        else:
            on.servers[number - 1].weight = what
        served += on.sequence(5)
    assert served == sequence.replace("a", "10")


def haproxy_s_turns(weights: Sequence[int], count: int) -> str:
    """HAProxy's own way (`lb_fwrr.c`), with lists that are sorted again and again.

    Weights count sixteenfold, so a round has sixteen times as many turns as the weights have together; and of
    those that are due at once the heavier goes first, less what it carries, in sixteenths too.
    """
    scaled = [16 * weight for weight in weights]
    every = sum(scaled)
    fresh = sorted((-weight, number, number) for number, weight in enumerate(scaled) if weight)
    seated: list[tuple[int, int, int, int]] = []
    done: list[tuple[int, int, int]] = []
    due, carried = [0] * len(scaled), [0] * len(scaled)
    turn, turns = every, ""
    for arrived in range(count):
        seated.sort()
        if not (seated or fresh):
            fresh, done, turn = sorted(done), [], every
        if seated and (seated[0][0] <= turn or not fresh):
            number = seated.pop(0)[-1]
        else:
            number = fresh.pop(0)[-1]
            due[number], carried[number] = turn, 0
        turns += str(number + 1)
        due[number] += every // scaled[number]
        carried[number] += every % scaled[number]
        if carried[number] >= scaled[number]:
            carried[number] -= scaled[number]
            due[number] += 1
        turn += 1
        if due[number] >= 2 * every:
            done.append((-scaled[number], arrived, number))
        else:
            seated.append((due[number], (4096 + carried[number] - scaled[number]) // 16, arrived, number))
    return turns


@pytest.mark.parametrize("weights, sequence", HAPROXY, ids=str)
def test_the_plain_model_gives_the_recorded_sequences(weights, sequence):
    assert haproxy_s_turns(weights, len(sequence)) == sequence


@given(weights=st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any))
def test_roundrobin_gives_the_sequence_of_the_plain_model(bench, weights):
    count = min(20 * sum(weights) + 5, 600)
    assert bench(RoundRobin(start=0), weights).sequence(count) == haproxy_s_turns(weights, count)


@given(weights=st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(any), start=st.integers(0, 500))
def test_each_server_gets_turns_by_weight_in_any_window_give_or_take_one(bench, weights, start):
    on = bench(RoundRobin(start=start), weights)
    shares: Counter[int] = Counter()
    for rounds in range(1, 6):
        shares.update(on.serve() for _ in range(sum(weights)))
        for number, weight in enumerate(weights, 1):
            assert abs(shares[number] - rounds * weight) <= (2 if weight else 0)


changes = st.one_of(
    st.tuples(st.just("choose"), st.integers(0, 15)),  # the bits are the servers to avoid
    st.tuples(st.sampled_from(["down", "up", "drain", "ready"]), st.integers(0, 3)),
    st.tuples(st.just("weigh"), st.integers(0, 19)),
)


@given(ops=st.lists(changes, max_size=40))
@example(ops=[("choose", 0), ("choose", 3), ("choose", 11), ("down", 0), ("down", 1), ("down", 3), ("choose", 0)])
def test_shares_are_by_weight_again_after_any_changes(bench, ops):
    on = bench(RoundRobin(start=0), [1, 2, 1, 3])
    for what, which in ops:
        server = on.servers[which % 4]
        if what == "choose":
            on.choose([each for bit, each in enumerate(on.servers) if which >> bit & 1])
        elif what == "weigh":
            server.weight = which // 4
        elif what in ("up", "down"):
            server.health = Health[what.upper()]
        else:
            server.state = AdminState(what)
    for server in on.servers:
        server.state, server.health, server.weight = AdminState.READY, Health.UP, server.weight or 1
    weights = [server.weight for server in on.servers]
    # A server that comes back late in a round waits for the next one, and a round has 16 turns for each unit of weight.
    on.sequence(2 * 16 * sum(weights))
    shares = Counter(on.serve() for _ in range(50 * sum(weights)))
    for number, weight in enumerate(weights, 1):
        assert abs(shares[number] - 50 * weight) <= 8


def test_bound_requests_do_not_use_up_turns(bench):
    on = bench(RoundRobin(start=0), [1, 1, 1, 1])
    served = []
    for _ in range(8):
        served.append(on.serve())
        for bound in on.servers[:3]:
            on.acquire(bound)
            on.release(bound)
    assert served == [1, 2, 3, 4, 1, 2, 3, 4]


@pytest.mark.parametrize("taken", [pytest.param(0, id="before its first"), pytest.param(3, id="after its first")])
def test_an_avoided_server_keeps_its_turn(bench, taken):
    on = bench(RoundRobin(start=0), [1, 1, 1])
    on.sequence(taken)
    assert on.serve(avoid=[on.servers[0]]) == 2
    assert on.serve() == 1


@pytest.mark.parametrize("drawn, sequence", [(0, "121314"), (1, "213141"), (5, "412131")])
def test_roundrobin_draws_its_first_turn_at_the_first_choice_without_a_start(bench, scripted, drawn, sequence):
    rng = scripted([drawn])
    on = bench(RoundRobin(), [3, 1, 1, 1], rng)
    assert rng.arguments == [], "only at the first choice, so that a forked child draws its own number"
    assert on.sequence(12) == sequence * 2
    assert [asked % 6 for asked in rng.arguments] == [0]


@pytest.mark.parametrize("start, sequence", [(0, "1234"), (1, "2341"), (3, "4123"), (4, "1234"), (4_000_001, "2341")])
def test_start_is_the_number_of_turns_to_skip(bench, scripted, start, sequence):
    on = bench(RoundRobin(start=start), [1, 1, 1, 1], scripted())
    assert on.sequence(8) == sequence * 2


def test_a_start_below_0_is_refused():
    with pytest.raises(ConfigError, match="start -1 is below 0"):
        RoundRobin(start=-1)
