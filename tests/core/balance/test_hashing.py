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
from sticky_core.balance.hashing import FUNCTIONS, HashType, djb2, none, ring_base, sdbm
from sticky_core.errors import ConfigError
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
def test_a_hash_function_turns_a_key_into_a_number(name, key, number):
    assert FUNCTIONS[name](key) == number


@given(st.binary(max_size=60))
def test_hashes_have_32_bits(key):
    for function in FUNCTIONS.values():
        assert 0 <= function(key) < 2**32


@given(st.binary(max_size=40), st.binary(min_size=1, max_size=1))
def test_sdbm_and_djb2_hash_byte_by_byte(key, byte):
    assert sdbm(key + byte) == (sdbm(key) * 65599 + byte[0]) % 2**32
    assert djb2(key + byte) == (djb2(key) * 33 + byte[0]) % 2**32


def test_bytes_above_127_are_not_negative():
    assert sdbm(b"\xff") == 255
    assert none(b"\xff") == 0


def test_avalanche_is_a_bijection_and_separates_adjacent_numbers():
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
def test_a_hash_type_is_parsed_as_in_haproxy(text, kind):
    assert HashType.parse(text) == kind


@pytest.mark.parametrize(
    "text",
    ["", "sdbm", "avalanche", "consistent md5", "map-based avalanche", "consistent sdbm twice", "map-based a b c"],
)
def test_an_unknown_hash_type_is_refused_with_the_list_of_known_ones(text):
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
def test_invalid_options_are_refused(options, problem):
    with pytest.raises(ConfigError) as refused:
        Uri(**options)
    assert problem in str(refused.value)


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as refused:
        Uri(hash_type="ring", hash_preserve_affinity=cast(Any, "never"), start=-1)
    assert len(refused.value.problems) == 3


# -- which keys move

CLIENTS = 4000


def placed(on, client):
    return [on.choose((), client(path=f"/key/{number}")) for number in range(CLIENTS)]


def moved(before, after):
    return [one for one, other in zip(before, after, strict=True) if one is not other]


@pytest.mark.parametrize("hash_type", [RING, "consistent crc32 avalanche", "consistent wt6 avalanche"])
def test_only_the_keys_of_a_removed_server_move_on_a_ring_and_return_with_it(bench, client, hash_type):
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
def test_nearly_all_keys_of_a_map_move_with_a_removed_server_and_return_with_it(bench, client, count):
    on = bench(Uri(hash_type=MAP), [1] * count)
    before = placed(on, client)
    on.servers[-1].state = AdminState.MAINT
    assert len(moved(before, placed(on, client))) == pytest.approx(CLIENTS * (1 - 1 / count), rel=0.05)
    on.servers[-1].state = AdminState.READY
    assert placed(on, client) == before


@pytest.mark.parametrize("hash_key", ["id", "id32", "name"])
def test_an_added_server_gets_its_share_of_a_ring_and_no_other_key_moves(bench, client, hash_key):
    balance = Uri(hash_type=RING, hash_key=hash_key)
    ten, eleven = bench(balance, [10] * 10), bench(balance, [10] * 11)
    before = [server.name for server in placed(ten, client)]
    after = [server.name for server in placed(eleven, client)]
    came = [other for one, other in zip(before, after, strict=True) if one != other]
    assert set(came) == {"s11"}
    assert len(came) == pytest.approx(CLIENTS / 11, rel=0.35)


def test_nearly_all_keys_of_a_map_move_with_an_added_server(bench, client):
    ten, eleven = bench(Uri(hash_type=MAP), [1] * 10), bench(Uri(hash_type=MAP), [1] * 11)
    before = [server.name for server in placed(ten, client)]
    after = [server.name for server in placed(eleven, client)]
    stayed = sum(one == other for one, other in zip(before, after, strict=True))
    assert stayed == pytest.approx(CLIENTS / 11, rel=0.2)


def test_a_higher_weight_only_gains_keys_and_a_lower_one_only_loses_keys(bench, client):
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


def test_a_key_whose_server_is_avoided_always_gets_the_same_other_server(bench, client):
    for hash_type in (MAP, RING):
        on = bench(Uri(hash_type=hash_type), [1] * 10)
        for number in range(50):
            asking = client(path=f"/key/{number}")
            first = on.choose((), asking)
            second = on.choose((first,), asking)
            assert second is not first
            assert on.choose((first,), asking) is second
            assert on.choose((first, second), asking) not in (first, second)


def test_the_keys_of_an_avoided_server_spread_over_the_others(bench, client):
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


# -- the points of a server


def test_the_points_of_a_server_are_computed_from_its_number_or_address():
    inet, inet6 = Server("a", "http://10.0.0.1:8080"), Server("b", "http://[::1]:8080")
    assert ring_base(inet, 3, "id") == 3 * 4096
    assert ring_base(inet, 3, "id32") == avalanche(0x03000000)
    assert ring_base(inet, 3, "addr") == avalanche(0x0100000A)
    assert ring_base(inet, 3, "addr-port") == avalanche(avalanche(8080) + 0x0100000A)
    assert ring_base(inet6, 3, "addr") != ring_base(inet6, 3, "addr-port")
    assert ring_base(inet, 3, "name") == avalanche(zlib.crc32(b"a"))


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("http://app.example", id="a name"),
        pytest.param("unix:/run/app.sock", id="a socket"),
        pytest.param(lambda environ, start_response: [], id="an app"),
    ],
)
def test_the_points_of_a_server_without_an_address_are_computed_from_its_number(target):
    for key in ("addr", "addr-port"):
        assert ring_base(Server("a", target), 3, key) == 3 * 4096


def test_the_order_of_servers_does_not_count_with_hash_key_addr(client):
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


def test_the_id_of_a_server_counts_rather_than_its_position(client):
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


# -- requests without a key take turns


def no_key(request):
    return None


def test_requests_without_a_key_take_turns_with_a_map(bench):
    assert bench(Hash(no_key, start=0), (3, 1, 1, 1)).sequence(12) == "112134112134"


def test_requests_without_a_key_go_from_point_to_point_on_a_ring(bench):
    on = bench(Hash(no_key, hash_type=RING, start=0), (1, 1))
    points = sorted((avalanche(number * 4096 + nth), number) for number in (1, 2) for nth in range(16))
    assert on.sequence(40) == "".join(str(number) for _, number in points + points[:8])


def test_turns_on_a_ring_continue_when_most_servers_are_removed(bench):
    on = bench(Hash(no_key, hash_type=RING, start=60), (1, 1, 1, 1))
    on.sequence(2)
    for server in on.servers[1:]:
        server.state = AdminState.DRAIN
    assert on.sequence(20) == "1" * 20


@pytest.mark.parametrize("hash_type, turns", [(MAP, 2), (RING, 32)])
def test_the_first_turn_is_drawn_without_a_start(bench, scripted, hash_type, turns):
    rng = scripted([1])
    on = bench(Hash(no_key, hash_type=hash_type), (1, 1), rng)
    assert rng.arguments == [], "only at the first choice, so that a forked child draws its own number"
    first = on.sequence(4)
    assert rng.arguments == [turns]
    assert first == bench(Hash(no_key, hash_type=hash_type, start=1), (1, 1)).sequence(4)
