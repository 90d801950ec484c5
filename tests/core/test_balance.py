"""Balance: one table of behaviour for every algorithm, then what each promises beyond it; roundrobin against
HAProxy's own sequences (persistence 4)."""

import random
import threading
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from fractions import Fraction
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.backend import Backend
from sticky_core.balance import Algorithm, Balance, LeastConn, Random, RoundRobin, named
from sticky_core.clock import Rng
from sticky_core.errors import ConfigError
from sticky_core.request import Request
from sticky_core.server import AdminState, Health, Server

BALANCES = [
    pytest.param(RoundRobin(), id="roundrobin"),
    pytest.param(RoundRobin(start=0), id="roundrobin from the first"),
    pytest.param(LeastConn(), id="leastconn"),
    pytest.param(Random(1), id="random(1)"),
    pytest.param(Random(), id="random"),
    pytest.param(Random(3), id="random(3)"),
]
every_balance = pytest.mark.parametrize("balance", BALANCES)


def app(environ: object, start_response: object) -> list[bytes]:
    return []


class Nobody:
    """A request that nobody looks at."""


NOBODY = cast(Request, Nobody())


class Bench:
    """An algorithm at work over servers s1, s2, …, told of everything as a backend would tell it."""

    def __init__(self, balance: Balance, weights: Sequence[int], rng: Rng | None = None) -> None:
        self.servers = [Server(f"s{number}", app, weight=weight) for number, weight in enumerate(weights, 1)]
        self.algorithm: Algorithm = balance.over(self.servers, random.Random(1) if rng is None else rng)
        for server in self.servers:
            server.belong(self._changed)

    def _changed(self, server: Server) -> None:
        server.settle()
        self.algorithm.changed(server)

    def choose(self, avoid: Container[Server] = ()) -> Server | None:
        return self.algorithm.choose(NOBODY, avoid)

    def take(self, server: Server) -> None:
        server.in_flight.append(None)
        self.algorithm.taken(server)

    def leave(self, server: Server) -> None:
        server.in_flight.pop()
        self.algorithm.left(server)

    def serve(self, avoid: Container[Server] = ()) -> int:
        """The number of the server that a request goes to, and stays; 0 if there is none."""
        server = self.choose(avoid)
        if server is None:
            return 0
        self.take(server)
        return self.servers.index(server) + 1

    def sequence(self, count: int) -> str:
        """The numbers of the servers of `count` requests that are over at once."""
        served: list[int] = []
        for _ in range(count):
            served.append(self.serve())
            if served[-1]:
                self.leave(self.servers[served[-1] - 1])
        return "".join(map(str, served))

    def all_leave(self) -> None:
        for server in self.servers:
            while server.in_flight:
                self.leave(server)


# -- what every algorithm does


@every_balance
def test_among_no_servers_there_is_none(balance: Balance):
    bench = Bench(balance, [])
    assert [bench.choose(), bench.choose()] == [None, None]


@every_balance
def test_a_single_server_is_always_the_one(balance: Balance):
    assert Bench(balance, [7]).sequence(20) == "1" * 20


@every_balance
def test_when_all_are_down_there_is_none_until_one_is_back(balance: Balance):
    bench = Bench(balance, [1, 2, 3])
    bench.sequence(5)
    for server in bench.servers:
        server.health = Health.DOWN
    assert bench.sequence(3) == "000"
    bench.servers[1].health = Health.UP
    assert bench.sequence(10) == "2" * 10


@every_balance
def test_when_all_are_down_from_the_start_the_first_to_come_up_serves(balance: Balance):
    bench = Bench(balance, [1, 1])
    for server in bench.servers:
        server.health = Health.DOWN
    assert bench.sequence(2) == "00"
    bench.servers[1].health = Health.UP
    assert bench.sequence(3) == "222"


@every_balance
def test_whom_we_avoid_is_not_chosen(balance: Balance):
    bench = Bench(balance, [1, 1, 1])
    one, two, three = bench.servers
    for _ in range(20):
        assert bench.choose((one,)) in (two, three)
        assert bench.choose((one, three)) is two
        assert bench.choose(bench.servers) is None
    assert set(bench.sequence(60)) == set("123"), "nobody is forgotten for having been avoided"


@every_balance
@pytest.mark.parametrize(
    "weights", [(1, 1), (3, 1, 2), (1, 5, 1, 1), (10, 20, 30), (256, 128, 128), (1, 1, 1, 1, 1, 1)], ids=str
)
def test_requests_that_stay_are_shared_by_weight(balance: Balance, weights: tuple[int, ...]):
    bench = Bench(balance, weights)
    rounds = -(-3000 // sum(weights))
    shares = Counter(bench.serve() for _ in range(rounds * sum(weights)))
    for number, weight in enumerate(weights, 1):
        assert shares[number] == pytest.approx(rounds * weight, rel=0.2)


@every_balance
def test_a_server_of_weight_0_takes_nobody(balance: Balance):
    bench = Bench(balance, [1, 0, 1])
    assert set(bench.sequence(60)) == set("13")
    bench.servers[1].weight = 1
    assert set(bench.sequence(60)) == set("123")
    bench.servers[0].weight = bench.servers[2].weight = 0
    assert set(bench.sequence(20)) == {"2"}
    bench.servers[1].weight = 0
    assert bench.sequence(2) == "00"


@every_balance
@pytest.mark.parametrize("state", [AdminState.DRAIN, AdminState.MAINT], ids=str)
def test_a_server_that_drains_or_rests_takes_nobody_until_it_is_ready(balance: Balance, state: AdminState):
    bench = Bench(balance, [1, 1, 1])
    bench.sequence(4)
    bench.servers[0].state = state
    assert set(bench.sequence(60)) == set("23")
    bench.servers[0].state = AdminState.READY
    assert set(bench.sequence(60)) == set("123")


@every_balance
def test_telling_an_algorithm_again_what_it_knows_changes_nothing(balance: Balance):
    told, untold = Bench(balance, [3, 1, 1, 1]), Bench(balance, [3, 1, 1, 1])
    for bench in (told, untold):
        bench.sequence(3)
    for server in told.servers:
        server.health = Health.UP
        server.weight = server.weight
        server.life = "another"
    assert told.sequence(30) == untold.sequence(30)


changes = st.one_of(
    st.tuples(st.just("choose"), st.integers(0, 15)),  # the bits are the servers to avoid
    st.tuples(st.just("leave"), st.integers(0, 3)),
    st.tuples(st.just("down"), st.integers(0, 3)),
    st.tuples(st.just("up"), st.integers(0, 3)),
    st.tuples(st.just("drain"), st.integers(0, 3)),
    st.tuples(st.just("ready"), st.integers(0, 3)),
    st.tuples(st.just("weigh"), st.integers(0, 19)),
)


def change(bench: Bench, what: str, which: int) -> None:
    server = bench.servers[which % 4]
    if what == "choose":
        avoid = [each for bit, each in enumerate(bench.servers) if which >> bit & 1]
        allowed = [each for each in bench.servers if each.electable and each not in avoid]
        chosen = bench.choose(avoid)
        if chosen is None:
            assert not allowed
        else:
            assert chosen in allowed
            bench.take(chosen)
    elif what == "leave":
        if server.in_flight:
            bench.leave(server)
    elif what == "weigh":
        server.weight = which // 4
    elif what in ("up", "down"):
        server.health = Health.UP if what == "up" else Health.DOWN
    else:
        server.state = AdminState(what)


@every_balance
@given(ops=st.lists(changes, max_size=60))
def test_whatever_changes_while_it_runs_it_chooses_whom_it_may_and_forgets_nobody(
    balance: Balance, ops: list[tuple[str, int]]
):
    bench = Bench(balance, [1, 2, 1, 3])
    for what, which in ops:
        change(bench, what, which)
    bench.all_leave()
    for server in bench.servers:
        server.state, server.health, server.weight = AdminState.READY, Health.UP, server.weight or 1
    assert set(bench.sequence(400)) == set("1234")


@every_balance
def test_a_hundred_threads_choose_at_once_and_every_server_has_its_share(balance: Balance):
    weights = (3, 1, 1, 1)
    backend = Backend(
        "web",
        [Server(f"s{n}", app, weight=weight) for n, weight in enumerate(weights)],
        balance=balance,
        rng=random.Random(1),
    )
    together = threading.Barrier(100)
    chosen: list[list[Server]] = []
    wrong: list[BaseException] = []

    def run(mine: list[Server]) -> None:
        try:
            together.wait()
            for turn in range(30):
                server = backend.choose(NOBODY, ())
                assert server is not None
                server.in_flight.append(None)
                if backend.counts:
                    backend.taken(server)
                mine.append(server)
                if turn % 10 == 5:
                    server.health = Health.UP  # changes are told meanwhile
                server.in_flight.pop()
                if backend.counts:
                    backend.left(server)
        except BaseException as error:
            wrong.append(error)

    threads: list[threading.Thread] = []
    for _ in range(100):
        chosen.append([])
        threads.append(threading.Thread(target=run, args=(chosen[-1],)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    shares = Counter(server for mine in chosen for server in mine)
    assert shares.total() == 3000
    assert all(not server.in_flight for server in backend.servers)
    if isinstance(balance, RoundRobin):
        assert [shares[server] for server in backend.servers] == [1500, 500, 500, 500]
    else:
        assert min(shares[server] for server in backend.servers) > 100
    again = Counter(backend.choose(NOBODY, ()) for _ in range(600))
    assert set(again) == set(backend.servers)


# -- roundrobin: HAProxy's sequence

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
def test_roundrobin_takes_haproxy_s_turns(weights: tuple[int, ...], sequence: str):
    assert Bench(RoundRobin(start=0), weights).sequence(len(sequence)) == sequence


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
def test_the_algorithm_as_told_here_gives_the_recorded_sequences(weights: tuple[int, ...], sequence: str):
    assert haproxy_s_turns(weights, len(sequence)) == sequence


@given(st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any))
def test_roundrobin_takes_the_turns_of_the_algorithm_as_told_here(weights: list[int]):
    count = min(20 * sum(weights) + 5, 600)
    assert Bench(RoundRobin(start=0), weights).sequence(count) == haproxy_s_turns(weights, count)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(any), st.integers(0, 500))
def test_any_number_of_rounds_gives_each_its_weight_but_for_a_turn_wherever_it_begins(weights: list[int], start: int):
    bench = Bench(RoundRobin(start=start), weights)
    shares: Counter[int] = Counter()
    for rounds in range(1, 6):
        shares.update(bench.serve() for _ in range(sum(weights)))
        for number, weight in enumerate(weights, 1):
            assert abs(shares[number] - rounds * weight) <= (2 if weight else 0)


@given(st.lists(changes, max_size=40))
def test_after_any_changes_roundrobin_comes_to_shares_by_weight_again(ops: list[tuple[str, int]]):
    bench = Bench(RoundRobin(start=0), [1, 2, 1, 3])
    for what, which in ops:
        change(bench, what, which)
    for server in bench.servers:
        server.state, server.health, server.weight = AdminState.READY, Health.UP, server.weight or 1
    weights = [server.weight for server in bench.servers]
    bench.sequence(3 * sum(weights))  # what was owed before is settled within a few rounds
    shares = Counter(bench.serve() for _ in range(50 * sum(weights)))
    for number, weight in enumerate(weights, 1):
        assert abs(shares[number] - 50 * weight) <= 8


def test_bound_requests_do_not_move_the_turns():
    bench = Bench(RoundRobin(start=0), [1, 1, 1, 1])
    served = []
    for _ in range(8):
        served.append(bench.serve())
        for bound in bench.servers[:3]:
            bench.take(bound)
            bench.leave(bound)
    assert served == [1, 2, 3, 4, 1, 2, 3, 4]


def test_a_server_avoided_keeps_its_turn():
    bench = Bench(RoundRobin(start=0), [1, 1, 1])
    assert bench.serve(avoid=[bench.servers[0]]) == 2
    assert bench.serve() == 1


class Scripted:
    """Chance that says what it is told to, and what it was asked."""

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self.numbers = list(numbers)
        self.asked: list[int] = []

    def randrange(self, stop: int, /) -> int:
        self.asked.append(stop)
        return self.numbers.pop(0)

    def random(self) -> float:
        raise AssertionError("not asked so far")

    def getrandbits(self, k: int, /) -> int:
        raise AssertionError("not asked so far")


@pytest.mark.parametrize("drawn, sequence", [(0, "121314"), (1, "213141"), (5, "412131")])
def test_without_a_start_roundrobin_draws_one_of_all_turns_at_its_first_choice(drawn: int, sequence: str):
    rng = Scripted([drawn])
    bench = Bench(RoundRobin(), [3, 1, 1, 1], rng)
    assert rng.asked == [], "not before: a forked child draws for itself"
    assert bench.sequence(12) == sequence * 2
    assert [asked % 6 for asked in rng.asked] == [0]


@pytest.mark.parametrize("start, sequence", [(0, "1234"), (1, "2341"), (3, "4123"), (4, "1234"), (4_000_001, "2341")])
def test_a_start_is_how_many_turns_are_taken_before_the_first_request(start: int, sequence: str):
    bench = Bench(RoundRobin(start=start), [1, 1, 1, 1], Scripted())
    assert bench.sequence(8) == sequence * 2


# -- leastconn: the least load for its weight


def test_leastconn_lets_equals_take_turns():
    bench = Bench(LeastConn(), [1, 1, 1, 1], Scripted([0]))
    assert bench.sequence(8) == "12341234"


@pytest.mark.parametrize("drawn, sequence", [(0, "1234"), (2, "3412")])
def test_who_is_first_among_equals_is_drawn(drawn: int, sequence: str):
    rng = Scripted([drawn])
    bench = Bench(LeastConn(), [1, 1, 1, 1], rng)
    assert rng.asked == [], "not before: a forked child draws for itself"
    assert bench.sequence(4) == sequence


def test_leastconn_shares_in_turn_what_stays():
    bench = Bench(LeastConn(), [1, 1, 1])
    for number in range(1, 31):
        bench.serve()
        loads = [len(server.in_flight) for server in bench.servers]
        assert sum(loads) == number
        assert max(loads) - min(loads) <= 1


def test_leastconn_counts_requests_that_it_did_not_choose():
    bench = Bench(LeastConn(), [1, 1], Scripted([0]))
    for _ in range(5):
        bench.take(bench.servers[0])
    assert [bench.serve() for _ in range(5)] == [2] * 5
    for _ in range(4):
        bench.leave(bench.servers[0])
    assert [bench.serve() for _ in range(4)] == [1] * 4


def load(server: Server) -> Fraction:
    """As the facts have it: nothing if nothing is there, else one more than is there, by weight."""
    return Fraction(len(server.in_flight) + 1, server.weight) if server.in_flight else Fraction(0)


@given(
    st.lists(st.integers(1, 256), min_size=2, max_size=6),
    st.lists(
        st.tuples(
            st.sampled_from(["serve", "serve", "take", "leave", "weigh"]), st.integers(0, 5), st.integers(1, 256)
        ),
        max_size=80,
    ),
)
def test_leastconn_chooses_one_of_the_least_loaded(weights: list[int], ops: list[tuple[str, int, int]]):
    bench = Bench(LeastConn(), weights)
    for what, which, weight in ops:
        server = bench.servers[which % len(weights)]
        if what == "weigh":
            server.weight = weight
        elif what == "take":
            bench.take(server)
        elif what == "leave" and server.in_flight:
            bench.leave(server)
        elif what == "serve":
            least = min(map(load, bench.servers))
            chosen = bench.choose()
            assert chosen is not None
            assert load(chosen) == least
            bench.take(chosen)
        others = [each for each in bench.servers if each is not server]
        second = bench.choose([server])
        assert second is not None
        assert load(second) == min(map(load, others))


# -- random: drawn by weight, the less loaded of those drawn


def test_one_draw_is_chance_by_weight_alone():
    bench = Bench(Random(1), [3, 1, 2], rng := Scripted([0, 1, 2, 3, 4, 5]))
    for _ in range(50):
        bench.take(bench.servers[0])  # a load that one draw does not look at
    assert [bench.serve() for _ in range(6)] == [1, 1, 1, 2, 3, 3]
    assert rng.asked == [6] * 6


@pytest.mark.parametrize(
    "loads, weights, drawn, chosen",
    [
        pytest.param((0, 0, 0), (1, 1, 1), [0, 2], 1, id="of equals the first drawn"),
        pytest.param((1, 0, 0), (1, 1, 1), [0, 2], 3, id="the one with less"),
        pytest.param((1, 0, 0), (1, 1, 1), [0, 0], 1, id="the one that was drawn twice"),
        pytest.param((3, 2, 0), (2, 1, 1), [0, 2], 1, id="less for its weight"),
        pytest.param((4, 2, 0), (2, 1, 1), [2, 0], 2, id="as much for its weight"),
    ],
)
def test_of_two_draws_the_less_loaded_is_chosen(
    loads: tuple[int, ...], weights: tuple[int, ...], drawn: list[int], chosen: int
):
    bench = Bench(Random(), weights, Scripted(drawn))
    for server, count in zip(bench.servers, loads, strict=True):
        server.in_flight.extend([None] * count)
    assert bench.serve() == chosen


def test_as_many_servers_are_drawn_as_was_asked_for():
    rng = Scripted([0, 1, 2, 3])
    Bench(Random(4), [1, 1, 1, 1], rng).choose()
    assert rng.asked == [4] * 4


def test_weights_that_have_changed_count_at_the_next_draw():
    bench = Bench(Random(1), [1, 1], rng := Scripted([1, 1, 0]))
    assert bench.serve() == 2
    bench.servers[0].weight = 9
    assert bench.serve() == 1
    bench.servers[0].state = AdminState.DRAIN
    assert bench.serve() == 2
    assert rng.asked == [2, 10, 1]


# -- words


@pytest.mark.parametrize(
    "text, balance",
    [
        ("roundrobin", RoundRobin()),
        ("leastconn", LeastConn()),
        ("random", Random(2)),
        ("random(1)", Random(1)),
        ("random(12)", Random(12)),
    ],
)
def test_a_balance_may_be_named_by_haproxy_s_word(text: str, balance: Balance):
    assert named(text) == balance


@pytest.mark.parametrize(
    "text",
    [
        "",
        "round-robin",
        "RoundRobin",
        "roundrobin(2)",
        "leastconn()",
        "random()",
        "random(-1)",
        "random(2",
        "random 2",
        " random",
        "random\n",
        "first",
    ],
)
def test_another_word_is_refused_with_those_that_there_are(text: str):
    with pytest.raises(ConfigError) as refused:
        named(text)
    assert repr(text) in str(refused.value)
    for word in ("roundrobin", "leastconn", "random"):
        assert word in str(refused.value)


def test_no_draws_choose_nobody():
    for wrong in (lambda: Random(0), lambda: named("random(0)"), lambda: Random(-1)):
        with pytest.raises(ConfigError, match="draws choose nobody"):
            wrong()


def test_a_start_below_0_is_refused():
    with pytest.raises(ConfigError, match="start -1 is below 0"):
        RoundRobin(start=-1)
