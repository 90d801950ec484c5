"""Clients of a cluster stay on their replicas, also while replicas are killed, revived, restarted, drained and in
maintenance.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from sticky_core.errors import Failure
from sticky_core.persistence.claim import Claim, Mark, Reason
from sticky_core.server.state import Health
from tests.faces.cluster.shop import DEADLINE, in_flight, in_thread, letters


def test_client_stays_on_the_replica_that_served_it_first(cluster):
    client = cluster.client()
    for item in ("tea", "milk", "sugar"):
        client.post(f"/cart/{item}")
    assert client.get("/cart").text == "tea milk sugar"
    assert [decision.server for decision in cluster.decisions] == ["r1"] * 4
    assert [decision.mark for decision in cluster.decisions] == [Mark.INSERTED] + [Mark.NONE] * 3


def test_new_clients_are_balanced_over_the_replicas_in_turn(cluster):
    clients = [cluster.client() for _ in range(7)]
    for client in clients:
        client.get("/cart")
    assert [cluster.server_of(client) for client in clients] == ["r1", "r2", "r3", "r1", "r2", "r3", "r1"]


def test_cluster_has_the_given_number_of_replicas_each_made_once(start, shop):
    cluster = start(5)
    for _ in range(12):
        cluster.client().get("/cart")
    assert [server.name for server in cluster.backend.servers] == ["r1", "r2", "r3", "r4", "r5"]
    assert shop.made == 5


def test_each_client_has_a_cookie_jar_of_its_own(cluster):
    first, second = cluster.client(), cluster.client()
    first.post("/cart/tea")
    second.post("/cart/milk")
    assert [decision.reason for decision in cluster.decisions] == [Reason.NO_COOKIE] * 2
    assert (first.get("/cart").text, second.get("/cart").text) == ("tea", "milk")


def test_server_of_returns_the_replica_of_the_latest_request(cluster):
    client = cluster.client()
    client.get("/cart")
    assert cluster.server_of(client) == "r1"
    cluster.kill("r1")
    client.get("/cart")
    assert cluster.server_of(client) == "r2"


def test_server_of_a_client_without_requests_raises(cluster):
    with pytest.raises(LookupError, match="not served yet: let it make a request first"):
        cluster.server_of(cluster.client())


def test_server_of_returns_the_earlier_replica_if_no_replica_got_the_latest_request(cluster):
    client = cluster.client()
    client.get("/cart")
    for name in ("r1", "r2", "r3"):
        cluster.kill(name)
    assert client.get("/cart").status_code == 503
    assert cluster.server_of(client) == "r1"


def test_client_of_another_cluster_raises(start):
    here, there = start(), start()
    client = there.client()
    client.get("/cart")
    for method in (here.server_of, here.assert_sticky):
        with pytest.raises(LookupError, match=r"not one of this cluster's: make it with cluster\.client\(\)"):
            method(client)


def test_two_clients_at_once_stay_on_their_own_replicas(cluster):
    clients = [cluster.client(), cluster.client()]

    def shop_for(client: Any, item: str) -> str:
        responses = [client.get("/together"), client.post(f"/cart/{item}"), client.get("/cart")]
        return " ".join(response.text for response in responses)

    results = [in_thread(partial(shop_for, *each)) for each in zip(clients, ("tea", "milk"), strict=True)]
    texts = [result.result(DEADLINE) for result in results]
    assert texts == ["together tea tea", "together milk milk"]
    for client in clients:
        cluster.assert_sticky(client)
    assert {cluster.server_of(client) for client in clients} == {"r1", "r2"}
    assert in_flight(cluster) == [0, 0, 0]


REQUESTS: dict[str, Callable[[Any], Any]] = {
    "GET": lambda client: client.get("/cart"),
    "POST": lambda client: client.post("/cart/milk"),
}


@pytest.mark.parametrize("method", REQUESTS)
def test_client_of_a_killed_replica_is_redispatched_and_gets_a_new_cookie(cluster, method):
    client = cluster.client()
    client.post("/cart/tea")
    cluster.kill("r1")
    response = REQUESTS[method](client)
    assert (response.status_code, response.text) == (200, "" if method == "GET" else "milk"), (
        "the other replica has an empty cart"
    )
    assert response.headers["set-cookie"].startswith("SERVERID=r2@")
    decision = cluster.decisions[-1]
    assert decision.attempts == ("r1", "r2")
    assert decision.failures == (Failure.REFUSED,)
    assert (decision.claim, decision.reason, decision.claimed) == (Claim.DOWN, Reason.FAILED, "r1")
    assert decision.mark is Mark.INSERTED
    client.get("/cart")
    assert cluster.decisions[-1].attempts == ("r2",), "the new cookie names r2"


def test_killed_replica_is_still_up_without_checks(cluster):
    cluster.client().get("/cart")
    cluster.kill("r1")
    cluster.client().get("/cart")
    assert cluster.backend["r1"].health is Health.UP


def test_replica_can_be_killed_before_the_first_request(cluster):
    cluster.kill("r1")
    client = cluster.client()
    assert client.get("/cart").status_code == 200
    assert cluster.decisions[-1].attempts == ("r1", "r2")
    assert cluster.decisions[-1].claim is Claim.NONE


def test_killed_replica_refuses_every_request(start):
    cluster = start(2)
    cluster.kill("r1")
    for _ in range(4):
        cluster.client().get("/cart")
    assert {cluster.decisions[-1].server for _ in range(4)} == {"r2"}
    assert cluster.backend["r1"].total > 1


def test_revived_replica_has_its_memory_and_serves_its_clients_again(cluster):
    client = cluster.client()
    client.post("/cart/tea")
    cluster.kill("r1")
    cluster.revive("r1")
    response = client.post("/cart/milk")
    assert response.text == "tea milk"
    assert "set-cookie" not in response.headers
    assert letters(cluster) == "VN"


def test_redispatched_client_does_not_move_back_to_a_revived_replica(cluster):
    client = cluster.client()
    client.post("/cart/tea")
    cluster.kill("r1")
    client.post("/cart/milk")
    cluster.revive("r1")
    assert client.get("/cart").text == "milk"
    assert letters(cluster) == "VN"


def test_restarted_replica_is_another_instance_with_an_empty_memory(start, shop):
    cluster = start(1)
    client = cluster.client()
    client.post("/cart/tea")
    cluster.restart("r1")
    assert shop.made == 2
    response = client.post("/cart/milk")
    assert response.text == "milk"
    assert response.headers["set-cookie"].startswith("SERVERID=r1@")
    decision = cluster.decisions[-1]
    assert (decision.claim, decision.reason, decision.attempts) == (
        Claim.INVALID,
        Reason.OTHER_INSTANCE,
        ("r1",),
    )
    assert client.post("/cart/sugar").text == "milk sugar"
    assert letters(cluster) == "VN"


def test_restart_does_not_affect_the_other_replicas(cluster):
    clients = [cluster.client() for _ in range(3)]
    for client in clients:
        client.post("/cart/tea")
    cluster.restart("r1")
    assert [client.get("/cart").text for client in clients[1:]] == ["tea", "tea"]
    assert letters(cluster) == "VN"


def test_killed_replica_can_be_restarted(start):
    cluster = start(1)
    cluster.kill("r1")
    cluster.restart("r1")
    assert cluster.client().get("/cart").status_code == 200


def test_replica_that_fails_to_restart_stays_killed(start, shop):
    cluster = start(2)
    clients = [cluster.client(), cluster.client()]
    clients[0].post("/cart/tea")
    clients[1].post("/cart/milk")
    shop.broken = 3
    with pytest.raises((ValueError, RuntimeError), match="no database"):
        cluster.restart("r1")
    assert clients[0].get("/cart").text == "milk"
    assert cluster.decisions[-1].attempts == ("r1", "r2")
    assert repr(cluster).endswith(", killed: r1>")


def test_with_all_replicas_killed_a_client_gets_a_503_with_retry_after(cluster):
    client = cluster.client()
    client.get("/cart")
    for name in ("r1", "r2", "r3"):
        cluster.kill(name)
    response = client.post("/cart/tea")
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert "set-cookie" not in response.headers
    decision = cluster.decisions[-1]
    assert decision.server is None
    assert sorted(decision.attempts) == ["r1", "r2", "r3"]
    cluster.revive("r1")
    assert client.post("/cart/tea").text == "tea"
    assert letters(cluster) == "VN", "the client has kept its cookie"


def test_draining_replica_keeps_its_clients_and_accepts_no_new_ones(cluster):
    client = cluster.client()
    client.post("/cart/tea")
    cluster.drain("r1")
    assert client.get("/cart").text == "tea"
    others = [cluster.client() for _ in range(4)]
    for other in others:
        other.get("/cart")
    assert {cluster.server_of(other) for other in others} == {"r2", "r3"}


def test_replica_in_maintenance_gets_no_requests_until_it_is_ready(cluster):
    clients = [cluster.client() for _ in range(3)]
    for client in clients:
        client.post("/cart/tea")
    cluster.maint("r1")
    clients[0].get("/cart")
    decision = cluster.decisions[-1]
    assert (decision.claim, decision.reason, decision.claimed) == (Claim.DOWN, Reason.MAINT, "r1")
    assert (decision.mark, "r1" in decision.attempts) == (Mark.INSERTED, False)
    cluster.ready("r1")
    new_clients = [cluster.client() for _ in range(3)]
    for new_client in new_clients:
        new_client.get("/cart")
    (at_r1,) = [new_client for new_client in new_clients if cluster.server_of(new_client) == "r1"]
    assert at_r1.get("/cart").text == "tea", "maintenance is not a restart"
