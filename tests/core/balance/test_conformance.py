"""The behaviour that all algorithms share, as one table."""

import random
import threading
from collections import Counter
from functools import partial
from itertools import count
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sticky_core import balance as balances
from sticky_core.backend.backend import Backend
from sticky_core.balance import (
    Ewma,
    First,
    Hash,
    Hdr,
    IpHash,
    LeastConn,
    NginxHash,
    NginxLeastConn,
    NginxRandom,
    Random,
    RoundRobin,
    Smooth,
    Source,
    StaticRR,
    Uri,
    UrlParam,
)
from sticky_core.balance.algorithm import HashAware
from sticky_core.http.messages import Request
from sticky_core.samples.request import src
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health
from tests.counting import count_calls


def user(request: Request) -> str:
    return request.header("x-user")[0]


def no_key(request: Request) -> None:
    return None


# An algorithm, and how near to their weights shares come: a ring of sixteen points for each weight is rough.
EXACT, CHANCE, ROUGH = 0.01, 0.2, 0.7

BALANCES = [
    pytest.param(RoundRobin(), EXACT, id="roundrobin"),
    pytest.param(RoundRobin(start=0), EXACT, id="roundrobin from the first"),
    pytest.param(StaticRR(), EXACT, id="static-rr"),
    pytest.param(LeastConn(), CHANCE, id="leastconn"),
    pytest.param(Random(1), CHANCE, id="random(1)"),
    pytest.param(Random(), CHANCE, id="random"),
    pytest.param(Random(3), CHANCE, id="random(3)"),
    pytest.param(Random(hash_balance_factor=150), CHANCE, id="random, bounded"),
    pytest.param(Source(), CHANCE, id="source"),
    pytest.param(Source(hash_type="consistent"), ROUGH, id="source, consistent"),
    pytest.param(Uri(), CHANCE, id="uri"),
    pytest.param(Uri(hash_type="consistent crc32 avalanche"), ROUGH, id="uri, consistent"),
    pytest.param(UrlParam("user"), CHANCE, id="url_param"),
    pytest.param(Hdr("X-User", hash_type="map-based djb2"), CHANCE, id="hdr"),
    pytest.param(Hdr("X-Absent"), EXACT, id="hdr that no client sends"),
    pytest.param(Hash(src, hash_type="map-based sdbm avalanche"), CHANCE, id="hash src"),
    pytest.param(Hash(user, hash_type="consistent", hash_key="name"), ROUGH, id="hash by a function, consistent"),
    pytest.param(Hash(no_key, hash_type="consistent"), ROUGH, id="hash without a key, consistent"),
    pytest.param(Hash(user, hash_type="consistent", hash_balance_factor=125), 0.3, id="hash, bounded"),
    pytest.param(Ewma(), CHANCE, id="ewma"),
    pytest.param(Smooth(), EXACT, id="nginx's smooth turns"),
    pytest.param(IpHash(), CHANCE, id="nginx's ip_hash"),
    pytest.param(NginxHash(user), CHANCE, id="nginx's hash"),
    pytest.param(NginxHash(user, consistent=True), CHANCE, id="nginx's hash, consistent"),
    pytest.param(NginxHash(no_key), EXACT, id="nginx's hash without a key"),
    pytest.param(NginxLeastConn(), CHANCE, id="nginx's least_conn"),
    pytest.param(NginxRandom(), CHANCE, id="nginx's random"),
    pytest.param(NginxRandom(two=True), CHANCE, id="nginx's random two"),
]
FIRST = pytest.param(First(), EXACT, id="first")

# one of each class, and of those that may be a ring one that is
ONE_OF_EACH = {(type(param.values[0]), "consistent" in str(param.id)): param for param in [FIRST, *BALANCES]}

every_balance = pytest.mark.parametrize("balance, near", [*BALANCES, FIRST])
every_balance_that_shares = pytest.mark.parametrize("balance, near", BALANCES)


def test_every_algorithm_has_a_row():
    tried = {type(param.values[0]).__name__ for param in [*BALANCES, FIRST]}
    words = {name for name in balances.__all__ if hasattr(getattr(balances, name), "build")}
    assert tried == words


@every_balance
def test_no_server_is_chosen_among_none(bench, balance, near):
    on = bench(balance, [])
    assert [on.choose(), on.choose()] == [None, None]


@every_balance
def test_a_single_server_is_always_chosen(bench, balance, near):
    assert bench(balance, [7]).sequence(20) == "1" * 20


@every_balance
def test_no_server_is_chosen_while_all_are_down(bench, balance, near):
    on = bench(balance, [1, 2, 3])
    on.sequence(5)
    for server in on.servers:
        server.health = Health.DOWN
    assert on.sequence(3) == "000"
    on.servers[1].health = Health.UP
    assert on.sequence(10) == "2" * 10


@every_balance
def test_the_first_server_to_come_up_is_chosen_if_all_were_down_from_the_start(bench, balance, near):
    on = bench(balance, [1, 1])
    for server in on.servers:
        server.health = Health.DOWN
    assert on.sequence(2) == "00"
    on.servers[1].health = Health.UP
    assert on.sequence(3) == "222"


@every_balance
def test_an_avoided_server_is_not_chosen(bench, balance, near):
    on = bench(balance, [1, 1, 1])
    one, two, three = on.servers
    for _ in range(20):
        assert on.choose((one,)) in (two, three)
        assert on.choose((one, three)) is two
        assert on.choose(on.servers) is None
    assert on.reachable() == "123", "no server is forgotten because it was avoided"


WEIGHTS = pytest.mark.parametrize(
    "weights", [(1, 1), (3, 1, 2), (1, 5, 1, 1), (10, 20, 30), (256, 128, 128), (1, 1, 1, 1, 1, 1)], ids=str
)


@every_balance_that_shares
@WEIGHTS
def test_requests_are_shared_by_weight(bench, balance, near, weights):
    on = bench(balance, weights)
    rounds = -(-3000 // sum(weights))
    shares = Counter(on.serve() for _ in range(rounds * sum(weights)))
    for number, weight in enumerate(weights, 1):
        assert shares[number] == pytest.approx(rounds * weight, rel=near)


@every_balance
@WEIGHTS
def test_a_server_with_a_free_slot_is_found_until_all_are_full(bench, balance, near, weights):
    on = bench(balance, weights)
    assert Counter(on.fill(weights)) == Counter(dict(enumerate(weights, 1)))


@every_balance
def test_a_server_with_a_free_slot_again_is_found_again(bench, full, balance, near):
    on = bench(balance, [1, 2, 1, 3])
    places = [2, 3, 2, 4]
    crowded = full(dict(zip(on.servers, places, strict=True)))
    assert len(list(on.fill(places))) == sum(places)
    for server in (*on.servers, *on.servers):
        assert on.choose(crowded) is None
        on.release(server)
        assert on.choose(crowded) is server
        on.acquire(server)


@every_balance
def test_a_server_avoided_by_one_request_is_chosen_for_the_next(bench, balance, near):
    on = bench(balance, [1, 1])
    one, two = on.servers
    for server in (one, one, two):
        on.acquire(server)
    assert on.choose((one,)) is two
    assert on.choose((two,)) is one
    two.state = AdminState.MAINT
    assert on.choose() is one


@every_balance_that_shares
def test_a_changed_weight_counts(bench, balance, near):
    on = bench(balance, [1, 1, 1])
    on.sequence(10)
    on.servers[0].weight, on.servers[1].weight, on.servers[2].weight = 30, 60, 10
    on.sequence(200)
    shares = Counter(on.serve() for _ in range(2000))
    for number, weight in ((1, 30), (2, 60), (3, 10)):
        assert shares[number] == pytest.approx(20 * weight, rel=max(near, 0.05))


@every_balance
def test_a_server_of_weight_0_is_not_chosen(bench, balance, near):
    on = bench(balance, [1, 0, 1])
    assert on.reachable() == "13"
    on.servers[1].weight = 1
    assert on.reachable() == "123"
    on.servers[0].weight = on.servers[2].weight = 0
    assert set(on.sequence(20)) == {"2"}
    on.servers[1].weight = 0
    assert on.sequence(2) == "00"


@every_balance
@pytest.mark.parametrize("state", [AdminState.DRAIN, AdminState.MAINT], ids=str)
def test_a_server_in_drain_or_maintenance_is_not_chosen_until_it_is_ready(bench, balance, near, state):
    on = bench(balance, [1, 1, 1])
    on.sequence(4)
    on.servers[0].state = state
    assert on.reachable() == "23"
    assert "1" not in on.sequence(60)
    on.servers[0].state = AdminState.READY
    assert on.reachable() == "123"


@every_balance
def test_a_repeated_notification_changes_nothing(bench, balance, near):
    notified, unnotified = bench(balance, [3, 1, 1, 1]), bench(balance, [3, 1, 1, 1])
    for on in (notified, unnotified):
        on.sequence(3)
    for server in notified.servers:
        server.health = Health.UP
        server.weight = server.weight
        server.instance = "another"
    assert notified.sequence(30) == unnotified.sequence(30)


@every_balance
def test_one_server_of_many_is_found_when_all_others_are_avoided(bench, balance, near):
    on = bench(balance, [1] * 300)
    alone = on.servers[222]
    others = set(on.servers) - {alone}
    assert {on.choose(others) for _ in range(10)} == {alone}


# -- servers are added and removed


@every_balance
def test_an_added_server_is_chosen_and_a_removed_one_is_not(bench, balance, near):
    on = bench(balance, [1, 2, 1])
    on.sequence(5)
    on.add(2)
    assert on.reachable() == "1234"
    for _ in range(3):
        on.remove(on.servers[0])
        assert on.reachable() == "1234"[: len(on.servers)]
        on.sequence(3)
    on.remove(on.servers[0])
    assert on.choose() is None
    on.add()
    assert on.sequence(3) == "111"


@pytest.mark.parametrize("balance, near", [param for param in BALANCES if param.values[1] in (EXACT, CHANCE)])
def test_requests_are_shared_by_weight_after_servers_were_added_and_removed(bench, balance, near):
    on = bench(balance, [1, 5, 2])
    on.sequence(7)
    on.add(3)
    on.remove(on.servers[1])
    on.add(4)
    on.sequence(100)
    shares = Counter(on.serve() for _ in range(3000))
    for number, weight in enumerate((1, 2, 3, 4), 1):
        assert shares[number] == pytest.approx(300 * weight, rel=max(near, 0.02))


# nginx numbers all servers, also those that are down; leastconn begins at a random one of all, and a ring at a random
# point, also of those that are down
LIKE_MAINTENANCE = [
    param for param in BALANCES if not isinstance(param.values[0], IpHash | NginxHash | LeastConn | Hash)
]


@pytest.mark.parametrize("balance, near", [*LIKE_MAINTENANCE, FIRST])
def test_an_added_server_is_like_one_that_leaves_maintenance_and_a_removed_one_like_one_that_enters_it(
    bench, balance, near
):
    known, changed = bench(balance, [2, 1, 1]), bench(balance, [2, 1])
    late = known.servers[2]
    late.state = AdminState.MAINT
    assert known.sequence(5) == changed.sequence(5)
    late.state = AdminState.READY
    added = changed.add(id=3)
    assert known.sequence(19) == changed.sequence(19)
    late.state = AdminState.MAINT
    changed.remove(added)
    assert known.sequence(11) == changed.sequence(11)


HASHES = [param for param in BALANCES if isinstance(cast(Any, param.values[0]).build([], random.Random(1)), HashAware)]


@pytest.mark.parametrize("balance, near", HASHES)
@settings(max_examples=8)
@given(ops=st.lists(st.tuples(st.sampled_from(["add", "remove", "weigh", "choose"]), st.integers(0, 11)), max_size=25))
def test_hashes_have_the_same_servers_as_if_all_had_been_there_from_the_start(bench, balance, near, ops):
    on = bench(balance, [1, 2, 1, 3] * 20, targets=lambda number: f"http://10.0.0.{number}")
    ids = count(1)
    for server in on.servers:
        server.id = next(ids)
    for what, which in ops:
        if what == "add":
            number = next(ids)
            on.add(1 + which % 3, f"http://10.0.1.{number - 80}", number)
        elif what == "remove":
            on.remove(on.servers[which * 7 % len(on.servers)])
        elif what == "weigh":
            on.servers[which].weight = which % 4 + 1
        else:
            on.choose()
    fresh = balance.build(on.servers, random.Random(1))
    for number in range(0, 2**32, 2**26 + 12345):
        assert on.algorithm.server_for_hash(number) is fresh.server_for_hash(number)


@every_balance
def test_to_add_or_remove_a_server_costs_the_same_however_many_there_are(bench, balance, near):
    on, larger = bench(balance, [1] * 150), bench(balance, [1] * 300)

    def add_and_remove(each: Any) -> None:
        each.add()
        each.remove(each.servers[70])

    for each in (on, larger):
        each.choose()
        each.add()  # the first one may have to renew an index
    cost, cost_among_more = (count_calls(partial(add_and_remove, each)) for each in (on, larger))
    assert cost_among_more < 1.2 * cost + 10


# -- while it runs

changes = st.one_of(
    st.tuples(st.just("choose"), st.integers(0, 15)),  # the bits are the servers to avoid
    st.tuples(st.just("leave"), st.integers(0, 3)),
    st.tuples(st.just("down"), st.integers(0, 3)),
    st.tuples(st.just("up"), st.integers(0, 3)),
    st.tuples(st.just("drain"), st.integers(0, 3)),
    st.tuples(st.just("ready"), st.integers(0, 3)),
    st.tuples(st.just("bound"), st.integers(0, 3)),
    st.tuples(st.just("weigh"), st.integers(0, 19)),
)


def change(on: Any, what: str, which: int) -> None:
    server = on.servers[which % 4]
    if what == "choose":
        avoid = [each for bit, each in enumerate(on.servers) if which >> bit & 1]
        allowed = [each for each in on.servers if each.electable and each not in avoid]
        chosen = on.choose(avoid)
        if chosen is None:
            assert not allowed
        else:
            assert chosen in allowed
            on.acquire(chosen)
    elif what == "leave":
        if server.in_flight:
            on.release(server)
    elif what == "bound":
        on.acquire(server)
    elif what == "weigh":
        server.weight = which // 4
    elif what in ("up", "down"):
        server.health = Health.UP if what == "up" else Health.DOWN
    else:
        server.state = AdminState(what)


@every_balance
@settings(max_examples=50)
@given(ops=st.lists(changes, max_size=60))
def test_after_any_changes_only_usable_servers_are_chosen_and_none_is_forgotten(bench, balance, near, ops):
    on = bench(balance, [1, 2, 1, 3])
    for what, which in ops:
        change(on, what, which)
    on.release_all()
    for server in on.servers:
        server.state, server.health, server.weight = AdminState.READY, Health.UP, server.weight or 1
    assert on.reachable() == "1234"
    if not isinstance(balance, First):
        assert set(on.sequence(400)) == set("1234")


@pytest.mark.parametrize("balance, near", ONE_OF_EACH.values())
def test_every_server_gets_its_share_from_a_thousand_threads(client, balance, near):
    backend = Backend(
        "web",
        [Server(f"s{n}", lambda environ, start_response: [], weight=weight) for n, weight in enumerate((3, 1, 1, 1))],
        balance=balance,
        rng=random.Random(1),
    )
    together = threading.Barrier(1000)
    chosen: list[list[Any]] = []
    wrong: list[BaseException] = []

    def run(number: int, mine: list[Any]) -> None:
        try:
            together.wait()
            for turn in range(3):
                server = backend.placement.acquire_or_enqueue(
                    backend.snapshot, cast(Any, client(3 * number + turn)), None, ()
                )
                assert isinstance(server, Server)
                mine.append(server)
                if number % 20 == turn == 1:
                    server.health = Health.UP  # the algorithm is notified meanwhile
                backend.placement.release(server)
        except BaseException as error:
            wrong.append(error)

    threads: list[threading.Thread] = []
    stack = threading.stack_size(64 * 1024)
    try:
        for number in range(1000):
            chosen.append([])
            threads.append(threading.Thread(target=run, args=(number, chosen[-1])))
            threads[-1].start()
    finally:
        threading.stack_size(stack)
    for thread in threads:
        thread.join()
    assert wrong == []
    shares = Counter(server for mine in chosen for server in mine)
    assert shares.total() == 3000
    assert all(not server.in_flight for server in backend.servers)
    if isinstance(balance, First):
        assert set(shares) == {backend.servers[0]}
    elif near == EXACT:
        assert [shares[server] for server in backend.servers] == [1500, 500, 500, 500]
    else:
        assert min(shares[server] for server in backend.servers) > 100
    for server in backend.servers[:-1]:
        server.state = AdminState.DRAIN
    assert backend.placement.choose(backend.snapshot, cast(Any, client()), ()) is backend.servers[-1]
