"""source: the address of the client chooses the server."""

import pytest

from sticky_core.balance import Source
from sticky_core.samples.request import hdr

# What HAProxy 2.6 chose among four servers of weights 1 2 3 4.
ADDRESSES = [f"10.{n * 37 % 256}.{n * 91 % 256}.{n * 13 % 256}" for n in range(20)]
ADDRESSES += [f"2001:db8:{n * 4711 % 65536:x}::{n * 31:x}" for n in range(20)]
HAPROXY = {
    "map-based": "1244344412344333441214343413333232343214",
    "map-based sdbm avalanche": "3334244444414433342231443342244421314423",
    "consistent": "3444424213443443444442442431431111432324",
    "consistent sdbm": "3333333333333333333312343333234444334232",
}


@pytest.mark.parametrize("hash_type, chosen", HAPROXY.items())
def test_source_chooses_as_haproxy_does(bench, client, hash_type, chosen):
    on = bench(Source(hash_type=hash_type), (1, 2, 3, 4))
    assert on.chosen(*(client(src=address) for address in ADDRESSES)) == chosen


def test_source_does_not_use_the_hash_function(bench, client):
    clients = [client(src=address) for address in ADDRESSES]
    assert bench(Source(hash_type="map-based djb2"), (1, 2, 3, 4)).chosen(*clients) == HAPROXY["map-based"]


@pytest.mark.parametrize("src", ["", "unix:", "not an address"])
def test_source_takes_turns_for_requests_without_an_address(bench, client, src):
    assert bench(Source(start=0), (1, 1, 1)).chosen(*[client(src=src)] * 6) == "123123"


def test_source_takes_the_address_from_another_sample(bench, client):
    on = bench(Source(hdr("x-real-ip")), (1, 2, 3, 4))
    clients = [client(headers=[("x-real-ip", address)]) for address in ADDRESSES]
    assert on.chosen(*clients) == HAPROXY["map-based"]
