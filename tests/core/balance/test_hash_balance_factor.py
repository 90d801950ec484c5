"""The bound on the load of a server by hash, and full servers."""

import pytest

from sticky_core.balance import Hash, Uri
from sticky_core.samples.request import path

MAP, RING = "map-based sdbm avalanche", "consistent"


def test_a_hot_key_goes_to_another_server_above_the_balance_factor(bench, client):
    on = bench(Hash(path, hash_type=RING, hash_balance_factor=150), [1] * 4)
    hot = client(path="/hot")
    served = []
    for _ in range(40):
        server = on.choose((), hot)
        on.acquire(server)
        served.append(server)
        loads = [len(each.in_flight) for each in on.servers]
        assert max(loads) <= -(-sum(loads) * 150 // 100) / 4 + 1
    assert served[0] is served[1] or len(set(served[:2])) == 2
    assert len(set(served)) > 2
    on.release_all()
    assert on.choose((), hot) is served[0]


def test_requests_that_end_are_subtracted_from_the_bound(bench, client):
    fresh, used = (bench(Hash(path, hash_type=RING, hash_balance_factor=150), [1] * 4) for _ in range(2))
    for _ in range(100):
        used.acquire(used.servers[0])
    used.release_all()
    for on in (fresh, used):
        for _ in range(20):
            on.acquire(on.choose((), client(path="/hot")))
    assert [len(server.in_flight) for server in used.servers] == [len(server.in_flight) for server in fresh.servers]


def test_the_bound_is_ignored_if_all_other_servers_are_avoided(bench, client):
    on = bench(Hash(path, hash_type=RING, hash_balance_factor=150), [1] * 3)
    one, two, three = on.servers
    for _ in range(20):
        on.acquire(one)
    assert on.choose((two, three), client(path="/hot")) is one


def test_requests_are_not_counted_without_a_bound(bench):
    assert not bench(Uri(hash_type=RING), [1]).algorithm.counts_requests
    assert bench(Uri(hash_type=RING, hash_balance_factor=150), [1]).algorithm.counts_requests


@pytest.mark.parametrize("affinity", ["always", "maxconn", "maxqueue"])
def test_the_algorithm_declares_its_hash_preserve_affinity(bench, affinity):
    assert bench(Uri(hash_preserve_affinity=affinity), [1]).algorithm.preserve_affinity == affinity
