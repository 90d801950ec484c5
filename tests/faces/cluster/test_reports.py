"""What a cluster reports: decisions, `assert_sticky`, its repr."""

from __future__ import annotations

import pytest

from tests.faces.cluster.shop import DEADLINE, in_flight, in_thread


def test_decisions_are_in_the_order_in_which_requests_end(cluster, shop):
    first, second = cluster.client(), cluster.client()
    late = in_thread(lambda: first.get("/late"))
    try:
        assert shop.arrived.wait(DEADLINE)
        assert in_flight(cluster) == [1, 0, 0]
        second.get("/cart")
        assert [decision.server for decision in cluster.decisions] == ["r2"]
    finally:
        shop.go_on.set()
    assert late.result(DEADLINE).text == "late"
    assert [decision.server for decision in cluster.decisions] == ["r2", "r1"]
    assert in_flight(cluster) == [0, 0, 0]


def test_client_that_stayed_is_sticky(cluster):
    clients = [cluster.client(), cluster.client()]
    for client in clients * 2:
        client.get("/cart")
    for client in clients:
        cluster.assert_sticky(client)


def test_client_that_moved_fails_with_the_list_of_its_requests(cluster):
    client = cluster.client()
    client.post("/cart/tea")
    client.get("/cart")
    cluster.kill("r1")
    client.get("/cart")
    with pytest.raises(AssertionError) as failed:
        cluster.assert_sticky(client)
    assert str(failed.value).splitlines() == [
        "the client did not stay on one replica:",
        "  1. POST /cart/tea: r1 (no cookie; balance chose r1; status 200)",
        "  2. GET /cart: r1 (r1: server is usable; status 200)",
        "  3. GET /cart: r2 (r1: server did not respond; balance chose r2; status 200)",
    ]


def test_client_with_an_unserved_request_is_not_sticky(start):
    cluster = start(unavailable="fail")
    client = cluster.client()
    client.get("/cart")
    cluster.kill("r1")
    client.get("/cart")
    with pytest.raises(AssertionError, match=r"2\. GET /cart: no server \(.*; status 503\)"):
        cluster.assert_sticky(client)


def test_client_without_a_served_request_is_not_sticky(start):
    cluster = start(1)
    cluster.kill("r1")
    client = cluster.client()
    for _ in range(2):
        client.get("/cart")
    with pytest.raises(AssertionError, match="no server"):
        cluster.assert_sticky(client)


@pytest.mark.parametrize("requests", [0, 1])
def test_fewer_than_two_requests_do_not_show_stickiness(cluster, requests):
    client = cluster.client()
    for _ in range(requests):
        client.get("/cart")
    with pytest.raises(AssertionError, match="let it make two at least"):
        cluster.assert_sticky(client)


def test_repr_shows_states_and_killed_replicas(cluster):
    cluster.client().get("/cart")
    cluster.drain("r2")
    assert repr(cluster) == "<Cluster of <Backend cluster: r1 UP 0/1, r2 DRAIN 0/0, r3 UP 0/0>>"
    cluster.kill("r3")
    cluster.kill("r1")
    assert repr(cluster) == ("<Cluster of <Backend cluster: r1 UP 0/1, r2 DRAIN 0/0, r3 UP 0/0>, killed: r1, r3>")


def test_cluster_has_the_given_name(start):
    assert "<Backend shop: " in repr(start(name="shop"))
