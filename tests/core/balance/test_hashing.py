"""Hashing: functions, maps and rings, as HAProxy has them (persistence 4), and what moves when servers go and come."""

import random
import zlib
from collections import Counter
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.balance import Hash, Uri
from sticky_core.balance.avalanche import avalanche
from sticky_core.balance.hashing import FUNCTIONS, HashType, base, djb2, none, sdbm
from sticky_core.balance.ring import Ring
from sticky_core.errors import ConfigError
from sticky_core.samples.request import path
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState

# What HAProxy 2.6 answered over four servers of weights 1 2 3 4 for /key/0 … /key/39.
HAPROXY = {
    "map-based": "4124342343341243423443412434233434124342",
    "consistent": "4141222424324344341233441344412344143224",
    "map-based sdbm": "4124342343341243423443412434233434124342",
    "map-based sdbm avalanche": "1344143423242333434443344334333333234424",
    "map-based djb2": "4234341243434124342312434234343423434124",
    "map-based djb2 avalanche": "3432444323443333413421443432333242334442",
    "map-based wt6": "4422443344432424223424324244444234242222",
    "map-based wt6 avalanche": "2424221343333424434444422333144244424412",
    "map-based crc32": "4244414444444343344324223443424414223443",
    "map-based crc32 avalanche": "2123434412242334433344423243344444341243",
    "consistent sdbm": "3333333333444444444444444444444444444444",
    "consistent sdbm avalanche": "4141222424324344341233441344412344143224",
    "consistent djb2": "2222222222111111111111111111111111111111",
    "consistent djb2 avalanche": "4114244344412343444442244434311432131244",
    "consistent wt6": "3333333333433334432243413333333414441132",
    "consistent wt6 avalanche": "3224243443442343443414114422442413333344",
    "consistent crc32": "2434143422314143414444442322334444442442",
    "consistent crc32 avalanche": "2434444422421441444434133232132231113141",
}
MAP, RING = "map-based sdbm avalanche", "consistent"


@pytest.mark.parametrize("hash_type, chosen", HAPROXY.items())
def test_each_hash_type_chooses_as_haproxy_does(bench, client, hash_type, chosen):
    on = bench(Uri(hash_type=hash_type), (1, 2, 3, 4))
    assert on.chosen(*(client(path=f"/key/{number}") for number in range(40))) == chosen


# -- functions


@pytest.mark.parametrize(
    "name, key, number",
    [
        ("sdbm", b"", 0),
        ("sdbm", b"a", 97),
        ("sdbm", b"ab", 97 * 65599 + 98),
        ("djb2", b"", 5381),
        ("djb2", b"a", 5381 * 33 + 97),
        ("crc32", b"123456789", 0xCBF43926),
        ("wt6", b"", 0xA53C965A ^ 0x5CA6953A),
        ("none", b"1234", 1234),
        ("none", b"12ab", 12),
        ("none", b"-1", 0xFFFFFFFF),
        ("none", b"+7", 7),
        ("none", b"", 0),
        ("none", b"ab", 0),
        ("none", b"4294967297", 1),
        ("none", b"9" * 30, 0xFFFFFFFF),
        ("none", b"-" + b"9" * 30, 1),
    ],
)
def test_a_function_makes_a_number_of_a_key(name, key, number):
    assert FUNCTIONS[name](key) == number


@given(st.binary(max_size=60))
def test_numbers_have_32_bits(key):
    for function in FUNCTIONS.values():
        assert 0 <= function(key) < 2**32


@given(st.binary(max_size=40), st.binary(min_size=1, max_size=1))
def test_sdbm_and_djb2_go_on_byte_by_byte(key, byte):
    assert sdbm(key + byte) == (sdbm(key) * 65599 + byte[0]) % 2**32
    assert djb2(key + byte) == (djb2(key) * 33 + byte[0]) % 2**32


def test_bytes_above_127_are_not_negative():
    assert sdbm(b"\xff") == 255
    assert none(b"\xff") == 0


def test_avalanche_loses_no_number_and_scatters_neighbours():
    numbers = [avalanche(number) for number in range(10_000)]
    assert len(set(numbers)) == 10_000
    flipped = [(one ^ other).bit_count() for one, other in pairwise(numbers)]
    assert 14 < sum(flipped) / len(flipped) < 18


@pytest.mark.parametrize(
    "text, kind",
    [
        ("map-based", HashType("map-based", "sdbm", False)),
        ("consistent", HashType("consistent", "sdbm", True)),
        ("consistent sdbm", HashType("consistent", "sdbm", False)),
        ("map-based crc32 avalanche", HashType("map-based", "crc32", True)),
    ],
)
def test_a_hash_type_is_read_as_haproxy_reads_it(text, kind):
    assert HashType.of(text) == kind


@pytest.mark.parametrize(
    "text",
    ["", "sdbm", "avalanche", "consistent md5", "map-based avalanche", "consistent sdbm twice", "map-based a b c"],
)
def test_another_hash_type_is_refused_with_those_that_there_are(text):
    with pytest.raises(ConfigError, match="write map-based or consistent") as refused:
        Uri(hash_type=text)
    assert repr(text) in str(refused.value)
    for name in FUNCTIONS:
        assert name in str(refused.value)


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"hash_key": "port"}, "hash_key 'port' is none of id, id32, addr, addr-port, name"),
        ({"hash_key": "addr"}, "hash_key addr places points on a ring: it needs hash_type consistent"),
        ({"hash_balance_factor": 150}, "hash_balance_factor 150 walks around a ring: it needs hash_type consistent"),
        ({"hash_type": RING, "hash_balance_factor": 100}, "hash_balance_factor 100 is not above 100 percent"),
        ({"hash_preserve_affinity": "never"}, "hash_preserve_affinity 'never' is none of always, maxconn, maxqueue"),
        ({"start": -1}, "start -1 is below 0"),
    ],
)
def test_options_that_cannot_work_are_refused(options, problem):
    with pytest.raises(ConfigError) as refused:
        Uri(**options)
    assert problem in str(refused.value)


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError) as refused:
        Uri(hash_type="ring", hash_preserve_affinity=cast(Any, "never"), start=-1)
    assert len(refused.value.problems) == 3


# -- what moves

CLIENTS = 4000


def placed(on, client):
    return [on.choose((), client(path=f"/key/{number}")) for number in range(CLIENTS)]


def moved(before, after):
    return [one for one, other in zip(before, after, strict=True) if one is not other]


@pytest.mark.parametrize("hash_type", [RING, "consistent crc32 avalanche", "consistent wt6 avalanche"])
def test_when_one_of_ten_goes_only_its_own_keys_move_from_a_ring_and_come_back_with_it(bench, client, hash_type):
    on = bench(Uri(hash_type=hash_type), [10] * 10)
    before = placed(on, client)
    gone = on.servers[3]
    gone.state = AdminState.MAINT
    left = moved(before, placed(on, client))
    assert set(left) == {gone}
    assert len(left) == before.count(gone) == pytest.approx(CLIENTS / 10, rel=0.35)
    gone.state = AdminState.READY
    assert placed(on, client) == before


@pytest.mark.parametrize("count", [4, 10])
def test_when_one_goes_from_a_map_nearly_all_keys_move_and_come_back_with_it(bench, client, count):
    on = bench(Uri(hash_type=MAP), [1] * count)
    before = placed(on, client)
    on.servers[-1].state = AdminState.MAINT
    assert len(moved(before, placed(on, client))) == pytest.approx(CLIENTS * (1 - 1 / count), rel=0.05)
    on.servers[-1].state = AdminState.READY
    assert placed(on, client) == before


@pytest.mark.parametrize("hash_key", ["id", "id32", "name"])
def test_when_an_eleventh_comes_a_ring_gives_it_its_share_and_moves_nothing_else(bench, client, hash_key):
    balance = Uri(hash_type=RING, hash_key=hash_key)
    ten, eleven = bench(balance, [10] * 10), bench(balance, [10] * 11)
    before = [server.name for server in placed(ten, client)]
    after = [server.name for server in placed(eleven, client)]
    came = [other for one, other in zip(before, after, strict=True) if one != other]
    assert set(came) == {"s11"}
    assert len(came) == pytest.approx(CLIENTS / 11, rel=0.35)


def test_when_an_eleventh_comes_nearly_all_keys_of_a_map_move(bench, client):
    ten, eleven = bench(Uri(hash_type=MAP), [1] * 10), bench(Uri(hash_type=MAP), [1] * 11)
    before = [server.name for server in placed(ten, client)]
    after = [server.name for server in placed(eleven, client)]
    stayed = sum(one == other for one, other in zip(before, after, strict=True))
    assert stayed == pytest.approx(CLIENTS / 11, rel=0.2)


def test_who_weighs_more_only_gains_keys_and_who_weighs_less_only_loses_some(bench, client):
    on = bench(Uri(hash_type=RING), [10] * 5)
    changing = on.servers[2]
    before = placed(on, client)
    changing.weight = 20
    heavy = placed(on, client)
    assert {other for one, other in zip(before, heavy, strict=True) if one is not other} == {changing}
    changing.weight = 5
    light = placed(on, client)
    assert set(moved(before, light)) == {changing}
    changing.weight = 10
    assert placed(on, client) == before


def test_a_key_whose_server_is_avoided_has_always_the_same_other_one(bench, client):
    for hash_type in (MAP, RING):
        on = bench(Uri(hash_type=hash_type), [1] * 10)
        for number in range(50):
            asking = client(path=f"/key/{number}")
            first = on.choose((), asking)
            second = on.choose((first,), asking)
            assert second is not first
            assert on.choose((first,), asking) is second
            assert on.choose((first, second), asking) not in (first, second)


def test_keys_of_who_is_avoided_scatter_over_the_others(bench, client):
    for hash_type in (MAP, RING):
        on = bench(Uri(hash_type=hash_type), [10] * 10)
        gone = on.servers[4]
        others = Counter(
            on.choose((gone,), asking)
            for asking in (client(path=f"/key/{number}") for number in range(CLIENTS))
            if on.choose((), asking) is gone
        )
        assert len(others) == 9
        assert max(others.values()) < others.total() / 3


# -- rings against a plain model


def nearest(points: dict[int, str], digest: int) -> str:
    """As HAProxy has it, looking at all points."""
    behind = min(points, key=lambda where: (where - digest) % 2**32)
    before = min(points, key=lambda where: (digest - where) % 2**32)
    return points[before if (digest - before) % 2**32 <= (behind - digest) % 2**32 else behind]


places = st.integers(0, 2**32 - 1)


@given(
    points=st.lists(st.lists(places, min_size=1, max_size=5, unique=True), min_size=1, max_size=4),
    steps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.lists(places, max_size=6)), max_size=12),
)
def test_a_ring_finds_the_nearest_point_whatever_has_changed(points, steps):
    flat = [where for each in points for where in each]
    if len(set(flat)) < len(flat):
        return  # whose a point is that two have is not said
    servers = [Server(f"s{number}", "http://localhost") for number in range(len(points))]
    ring = Ring(servers, lambda number, count: points[number][:count])
    counts = [0] * len(points)
    for which, count, digests in steps:
        which %= len(points)
        counts[which] = min(count, len(points[which]))
        ring.resize(which, counts[which])
        now = {
            where: server.name
            for server, each, counting in zip(servers, points, counts, strict=True)
            for where in each[:counting]
        }
        assert ring.counting == len(now)
        if not now:
            continue
        for digest in (*digests, *now):
            assert ring.owner(ring.nearest(digest)).name == nearest(now, digest)
            at = ring.at_or_after(digest)
            behind = min(now, key=lambda where: (where - digest) % 2**32)
            assert ring.owner(at).name == ring.first_owner(digest).name == now[behind]
            around = sorted(now, key=lambda where: (where - behind - 1) % 2**32)
            assert [owner.name for owner in ring.owners(at)] == [now[where] for where in around]


@pytest.mark.parametrize(
    "digest, owner",
    [
        pytest.param(10, "s0", id="on a point"),
        pytest.param(14, "s0", id="nearer to the one before"),
        pytest.param(15, "s0", id="as near to both: the one before"),
        pytest.param(16, "s1", id="nearer to the one behind"),
        pytest.param(2**31, "s1", id="beyond the last"),
        pytest.param(2**32 - 1, "s0", id="nearer around the end"),
        pytest.param(0, "s0", id="before the first"),
    ],
)
def test_the_nearest_point_takes_a_hash(digest, owner):
    servers = [Server("s0", "http://localhost"), Server("s1", "http://localhost")]
    ring = Ring(servers, lambda number, count: [[10], [20]][number])
    ring.resize(0, 1)
    ring.resize(1, 1)
    assert ring.owner(ring.nearest(digest)).name == owner


def test_a_ring_of_which_most_does_not_count_is_made_anew():
    servers = [Server(f"s{number}", "http://localhost") for number in range(10)]
    ring = Ring(servers, lambda number, count: [avalanche(number * 4096 + nth) for nth in range(count)])
    for number in range(10):
        ring.resize(number, 100)
    ring.settle()
    for number in range(9):
        ring.resize(number, 0)
        assert ring.owner(ring.nearest(0)) in servers[number + 1 :]
        assert len(ring) <= 2 * ring.counting
    for number in range(9):
        ring.resize(number, 100)
    assert ring.owner(ring.nearest(avalanche(5 * 4096))) is servers[5]
    assert len(ring) == ring.counting == 1000


def test_a_ring_takes_no_more_servers_than_it_can_tell_apart():
    with pytest.raises(ConfigError, match="room for 65536 servers, and these are 65537"):
        Ring([Server("s", "http://localhost")] * 65537, lambda number, count: [0] * count)


# -- what points are made of


def test_a_server_s_points_begin_at_its_number_or_its_address():
    inet, inet6 = Server("a", "http://10.0.0.1:8080"), Server("b", "http://[::1]:8080")
    assert base(inet, 3, "id") == 3 * 4096
    assert base(inet, 3, "id32") == avalanche(0x03000000)
    assert base(inet, 3, "addr") == avalanche(0x0100000A)
    assert base(inet, 3, "addr-port") == avalanche(avalanche(8080) + 0x0100000A)
    assert base(inet6, 3, "addr") != base(inet6, 3, "addr-port")
    assert base(inet, 3, "name") == avalanche(zlib.crc32(b"a"))


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("http://app.example", id="a name"),
        pytest.param("unix:/run/app.sock", id="a socket"),
        pytest.param(lambda environ, start_response: [], id="an app"),
    ],
)
def test_a_server_without_an_address_has_its_number(target):
    for key in ("addr", "addr-port"):
        assert base(Server("a", target), 3, key) == 3 * 4096


def test_by_address_the_order_of_servers_does_not_count(client):
    urls = [f"http://10.0.0.{number}:80" for number in range(1, 11)]
    chosen = []
    for order in (urls, urls[::-1]):
        servers = [Server(f"s{number}", url) for number, url in enumerate(order)]
        algorithm = Uri(hash_type=RING, hash_key="addr").build(servers, random.Random(1))
        found = (algorithm.choose(client(path=f"/{number}"), ()) for number in range(200))
        chosen.append([server.config.target for server in found if server is not None])
    assert chosen[0] == chosen[1]


class Numbered(Server):
    """A server that its backend has given a number of its own."""

    id: int


def test_a_server_s_own_number_counts_rather_than_its_place(client):
    alone, among = [], []
    for number in (1, 2, 4):
        server = Numbered(f"s{number}", "http://localhost")
        server.id = number
        alone.append(server)
    among = [Server(f"s{number}", "http://localhost") for number in (1, 2, 3, 4)]
    among[2].weight = 0
    balance = Uri(hash_type=RING)
    one, other = balance.build(alone, random.Random(1)), balance.build(among, random.Random(1))
    for number in range(200):
        asking = client(path=f"/{number}")
        here, there = one.choose(asking, ()), other.choose(asking, ())
        assert here is not None
        assert there is not None
        assert here.name == there.name


# -- who has no key goes in turn


def nobody(request):
    return None


def test_without_a_key_a_map_gives_turns(bench):
    assert bench(Hash(nobody, start=0), (3, 1, 1, 1)).sequence(12) == "112134112134"


def test_without_a_key_a_ring_gives_the_server_of_its_next_point(bench):
    on = bench(Hash(nobody, hash_type=RING, start=0), (1, 1))
    points = sorted((avalanche(number * 4096 + nth), number) for number in (1, 2) for nth in range(16))
    assert on.sequence(40) == "".join(str(number) for _, number in points + points[:8])


def test_turns_on_a_ring_go_on_when_most_of_it_goes(bench):
    on = bench(Hash(nobody, hash_type=RING, start=60), (1, 1, 1, 1))
    on.sequence(2)
    for server in on.servers[1:]:
        server.state = AdminState.DRAIN
    assert on.sequence(20) == "1" * 20


@pytest.mark.parametrize("hash_type, turns", [(MAP, 2), (RING, 32)])
def test_without_a_start_the_first_turn_is_drawn(bench, scripted, hash_type, turns):
    rng = scripted([1])
    on = bench(Hash(nobody, hash_type=hash_type), (1, 1), rng)
    assert rng.asked == [], "not before: a forked child draws for itself"
    first = on.sequence(4)
    assert rng.asked == [turns]
    assert first == bench(Hash(nobody, hash_type=hash_type, start=1), (1, 1)).sequence(4)


# -- the bound


def test_a_hot_key_goes_elsewhere_when_its_server_has_so_much_more_than_the_others(bench, client):
    on = bench(Hash(path, hash_type=RING, hash_balance_factor=150), [1] * 4)
    hot = client(path="/hot")
    served = []
    for _ in range(40):
        server = on.choose((), hot)
        on.take(server)
        served.append(server)
        loads = [len(each.in_flight) for each in on.servers]
        assert max(loads) <= -(-sum(loads) * 150 // 100) / 4 + 1
    assert served[0] is served[1] or len(set(served[:2])) == 2
    assert len(set(served)) > 2
    on.all_leave()
    assert on.choose((), hot) is served[0]


def test_requests_that_are_over_leave_the_bound_as_it_was(bench, client):
    fresh, used = (bench(Hash(path, hash_type=RING, hash_balance_factor=150), [1] * 4) for _ in range(2))
    for _ in range(100):
        used.take(used.servers[0])
    used.all_leave()
    for on in (fresh, used):
        for _ in range(20):
            on.take(on.choose((), client(path="/hot")))
    assert [len(server.in_flight) for server in used.servers] == [len(server.in_flight) for server in fresh.servers]


def test_where_nobody_else_may_be_asked_the_bound_gives_way(bench, client):
    on = bench(Hash(path, hash_type=RING, hash_balance_factor=150), [1] * 3)
    one, two, three = on.servers
    for _ in range(20):
        on.take(one)
    assert on.choose((two, three), client(path="/hot")) is one


def test_without_a_bound_nothing_is_counted(bench):
    assert not bench(Uri(hash_type=RING), [1]).algorithm.counts_requests
    assert bench(Uri(hash_type=RING, hash_balance_factor=150), [1]).algorithm.counts_requests


@pytest.mark.parametrize("affinity", ["always", "maxconn", "maxqueue"])
def test_it_says_how_far_it_insists_on_a_full_server(bench, affinity):
    assert bench(Uri(hash_preserve_affinity=affinity), [1]).algorithm.preserve_affinity == affinity
