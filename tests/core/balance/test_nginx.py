"""nginx's words: smooth turns, ip_hash, hash, least_conn, as nginx has them (persistence 8.4)."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, cast
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.balance import IpHash, NginxHash, NginxLeastConn, Smooth
from sticky_core.balance.nginx.hash import nginx_name
from sticky_core.errors import ConfigError
from sticky_core.samples.request import hdr, path
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState

# -- smooth

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


class Peers:
    """nginx's own way (`ngx_http_upstream_get_peer`): everybody gains, the one with the most pays for all."""

    def __init__(self, weights: Sequence[int]) -> None:
        self.weights = list(weights)
        self.current = [0] * len(weights)

    def next(self, avoid: Sequence[int] = (), bound: int | None = None) -> int | None:
        if bound is not None and self.current[bound] <= self.weights[bound] - sum(self.weights):
            return bound
        taking = [n for n, weight in enumerate(self.weights) if weight and n not in avoid]
        if not taking:
            return None
        for number in taking:
            self.current[number] += self.weights[number]
        best = max(taking, key=lambda number: (self.current[number], -number)) if bound is None else bound
        self.current[best] -= sum(self.weights[number] for number in taking)
        return best


@given(weights=st.lists(st.integers(0, 9), min_size=1, max_size=7).filter(any))
def test_smooth_gives_the_sequence_of_the_plain_model(bench, weights):
    peers = Peers(weights)
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
    on, peers = bench(Smooth(start=0), weights), Peers(weights)
    assert on.serve() - 1 == peers.next()  # the first choice has been made: from now on bound requests count
    for what, which, weight in ops:
        which %= len(weights)
        server = on.servers[which]
        if what == "next":
            chosen = peers.next()
            assert on.serve() == (0 if chosen is None else chosen + 1)
        elif what == "bound" and server.electable:
            on.take(server)
            peers.next(bound=which)
        elif what == "weigh":
            server.weight = peers.weights[which] = weight
        elif what == "out":
            server.weight = peers.weights[which] = 0


def test_the_credit_of_an_avoided_server_does_not_grow(bench):
    on, peers = bench(Smooth(start=0), (5, 2, 1)), Peers((5, 2, 1))
    for avoid in ((), (0,), (0,), (), (), (1,), (), (), (0, 2), ()):
        avoided = [on.servers[number] for number in avoid]
        chosen = peers.next(avoid)
        assert chosen is not None
        assert on.serve(avoided) == chosen + 1


def test_a_server_busy_with_bound_clients_gets_fewer_new_ones(bench):
    on = bench(Smooth(start=0), (1, 1, 1))
    shares: Counter[int] = Counter()
    for _ in range(300):
        on.take(on.servers[0])
        shares[on.serve()] += 1
    assert shares[1] < 10
    assert shares[2] == pytest.approx(shares[3], abs=2)


def test_ten_thousand_bound_requests_leave_nothing_behind(bench):
    on = bench(Smooth(start=0), (1, 2, 3))
    on.sequence(6)
    for number in range(10_000):
        server = on.servers[number % 3]
        on.take(server)
        on.leave(server)
    schedule = on.algorithm._schedule
    assert sum(len(group.heap) for group in schedule._groups.values()) < 200


@pytest.mark.parametrize("drawn, sequence", [(0, "121341"), (2, "134112")])
def test_smooth_draws_its_first_turn_at_the_first_choice_without_a_start(bench, scripted, drawn, sequence):
    rng = scripted([drawn])
    on = bench(Smooth(), [3, 1, 1, 1], rng)
    assert rng.asked == [], "not before: a forked child draws for itself"
    assert on.sequence(6) == sequence
    assert rng.asked == [6]


# -- ip_hash

# What nginx 1.22 answered over four servers of weights 1 2 3 4.
ADDRESSES = [f"10.{n * 37 % 256}.{n * 91 % 256}.{n * 13 % 256}" for n in range(20)]
ADDRESSES += [f"2001:db8:{n * 4711 % 65536:x}::{n * 31:x}" for n in range(20)]
IP_HASH = "3443342414443334134444332244422444444114"


def test_ip_hash_chooses_as_nginx_does(bench, client):
    on = bench(IpHash(), (1, 2, 3, 4))
    assert on.chosen(*(client(src=address) for address in ADDRESSES)) == IP_HASH


def test_ip_hash_takes_the_address_from_another_sample(bench, client):
    on = bench(IpHash(hdr("x-real-ip")), (1, 2, 3, 4))
    assert on.chosen(*(client(headers=[("x-real-ip", address)]) for address in ADDRESSES)) == IP_HASH


def test_clients_of_one_network_share_a_server(bench, client):
    on = bench(IpHash(), [1] * 97)
    assert len({on.choose((), client(src=f"192.0.2.{last}")) for last in range(256)}) == 1


def test_when_a_server_is_down_only_its_own_clients_move(bench, client):
    on = bench(IpHash(), [1] * 10)
    clients = [client(src=f"10.{n >> 8}.{n & 255}.1") for n in range(2000)]
    before = [on.choose((), each) for each in clients]
    on.servers[3].state = AdminState.MAINT
    after = [on.choose((), each) for each in clients]
    assert {one for one, other in zip(before, after, strict=True) if one is not other} == {on.servers[3]}


def test_requests_without_an_address_take_turns(bench, client):
    assert bench(IpHash(start=0), (1, 1, 1)).chosen(*[client(src="")] * 6) == "123123"


# -- hash

# What nginx 1.22 answered over 127.0.0.1:1 … 127.0.0.4:4 of weights 1 2 3 4 for /key/0 … /key/39.
HASH = "3443223443132231443333411233432313414234"
CONSISTENT = "2432234344211422444334413434324432342344"


def loopback(number: int) -> str:
    return f"http://127.0.0.{number}:{number}"


@pytest.mark.parametrize("consistent, chosen", [(False, HASH), (True, CONSISTENT)])
def test_hash_chooses_as_nginx_does(bench, client, consistent, chosen):
    on = bench(NginxHash(path, consistent), (1, 2, 3, 4), targets=loopback)
    assert on.chosen(*(client(path=f"/key/{number}") for number in range(40))) == chosen


@pytest.mark.parametrize("consistent", [False, True])
def test_when_one_of_ten_is_down_only_its_own_keys_move(bench, client, consistent):
    on = bench(NginxHash(path, consistent), [1] * 10, targets=loopback)
    clients = [client(path=f"/{number}") for number in range(2000)]
    before = [on.choose((), each) for each in clients]
    gone = on.servers[3]
    gone.state = AdminState.MAINT
    after = [on.choose((), each) for each in clients]
    moved = [one for one, other in zip(before, after, strict=True) if one is not other]
    assert set(moved) == {gone}
    assert len(moved) == pytest.approx(200, rel=0.3)
    gone.state = AdminState.READY
    assert [on.choose((), each) for each in clients] == before


@pytest.mark.parametrize("consistent, share", [(False, 10 / 11), (True, 1 / 11)])
def test_an_added_server_moves_its_share_of_keys(bench, client, consistent, share):
    clients = [client(path=f"/{number}") for number in range(2000)]
    ten, eleven = (bench(NginxHash(path, consistent), [1] * count, targets=loopback) for count in (10, 11))
    moved = sum(ten.number(ten.choose((), each)) != eleven.number(eleven.choose((), each)) for each in clients)
    assert moved == pytest.approx(2000 * share, rel=0.3)


@pytest.mark.parametrize("key", [None, ""])
def test_requests_without_a_key_or_with_an_empty_one_take_turns(bench, client, key):
    for consistent in (False, True):
        on = bench(NginxHash(lambda request: key, consistent, start=0), (1, 1, 1))
        assert on.chosen(*[client()] * 6) == "123123"


@pytest.mark.parametrize(
    "target, called",
    [
        ("http://10.0.0.1:8080", b"10.0.0.1\x008080"),
        ("http://10.0.0.1:8080/base", b"10.0.0.1\x008080"),
        ("http://10.0.0.1", b"10.0.0.1\x00"),
        ("https://[::1]:443/", b"[::1]\x00443"),
        ("http://[::1]", b"[::1]\x00"),
        ("unix:/run/app.sock", b"/run/app.sock\x00"),
        ("unix:/run/app.sock:/base", b"/run/app.sock\x00"),
        ("http://unix:/run/app.sock:/base", b"/run/app.sock\x00"),
        pytest.param(lambda environ, start_response: [], b"s1\x00", id="an app"),
    ],
)
def test_the_points_of_a_server_are_computed_from_its_name_in_nginx(target, called):
    assert nginx_name(Server("s1", target)) == called


def test_each_point_of_a_server_is_the_hash_of_the_one_before(bench, client):
    """Ketama as the facts tell it, over all points of one server against another's."""
    points = []
    for number in (1, 2):
        before = b"\0\0\0\0"
        for _ in range(160):
            where = crc32(f"127.0.0.{number}".encode() + b"\0" + str(number).encode() + before)
            points.append((where, number))
            before = where.to_bytes(4, "little")
    on = bench(NginxHash(path, True), (1, 1), targets=loopback)
    for number in range(300):
        key = crc32(f"/{number}".encode())
        expected = min(points, key=lambda point: (point[0] - key) % 2**32)[1]
        assert on.number(on.choose((), client(path=f"/{number}"))) == expected


# -- least_conn


@given(
    weights=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    ops=st.lists(st.tuples(st.sampled_from(["serve", "serve", "take", "leave"]), st.integers(0, 4)), max_size=80),
)
def test_least_conn_gives_the_sequence_of_the_plain_model(bench, weights, ops):
    on, peers = bench(NginxLeastConn(start=0), weights), Peers(weights)
    for what, which in ops:
        server = on.servers[which % len(weights)]
        if what == "take":
            on.take(server)
        elif what == "leave" and server.in_flight:
            on.leave(server)
        elif what == "serve":
            load = [len(each.in_flight) / each.weight for each in on.servers]
            chosen = peers.next([number for number, has in enumerate(load) if has > min(load)])
            assert chosen is not None
            assert on.serve() == chosen + 1


def test_least_conn_counts_bound_requests(bench):
    on = bench(NginxLeastConn(start=0), (1, 1))
    for _ in range(5):
        on.take(on.servers[0])
    assert [on.serve() for _ in range(5)] == [2] * 5


@pytest.mark.parametrize("drawn, sequence", [(0, "123"), (2, "312")])
def test_the_first_among_equals_is_drawn(bench, scripted, drawn, sequence):
    rng = scripted([drawn])
    on = bench(NginxLeastConn(), [1, 1, 1], rng)
    assert rng.asked == [], "not before: a forked child draws for itself"
    assert on.sequence(3) == sequence


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda: Smooth(start=-1), id="smooth"),
        pytest.param(lambda: NginxLeastConn(start=-1), id="least_conn"),
        pytest.param(lambda: IpHash(start=-1), id="ip_hash"),
        pytest.param(lambda: NginxHash(path, start=-1), id="hash"),
    ],
)
def test_a_start_below_0_is_refused(wrong):
    with pytest.raises(ConfigError, match="start -1 is below 0"):
        wrong()


def test_a_key_that_is_not_callable_is_refused():
    with pytest.raises(ConfigError, match=r"'\$request_uri' is not a sample"):
        NginxHash(cast(Any, "$request_uri"))
