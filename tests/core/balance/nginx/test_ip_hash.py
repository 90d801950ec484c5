"""ip_hash, with the choices of nginx."""

from sticky_core.balance import IpHash
from sticky_core.samples.request import hdr
from sticky_core.server.state import AdminState

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
