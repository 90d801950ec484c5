"""The options of a cluster."""

from __future__ import annotations

import pytest

from sticky_core.errors import ConfigError
from sticky_core.persistence.claim import Claim, Mark, Reason
from sticky_core.persistence.cookie.config import Cookie


@pytest.mark.parametrize(
    "seconds, claim, mark, cart",
    [(30, Claim.VALID, Mark.NONE, "tea"), (3601, Claim.EXPIRED, Mark.INSERTED, "")],
    ids=["in time", "too late"],
)
def test_time_passes_when_the_clock_is_advanced(start, seconds, claim, mark, cart):
    cluster = start(persist=Cookie("SERVERID", secret="sixteen bytes at least", maxidle="1h"))
    client = cluster.client()
    client.post("/cart/tea")
    cluster.clock.advance(seconds)
    assert client.get("/cart").text == cart
    assert (cluster.decisions[-1].claim, cluster.decisions[-1].mark) == (claim, mark)


def test_client_with_an_expired_cookie_gets_a_new_one_and_stays(start):
    cluster = start(persist=Cookie("SERVERID", secret="sixteen bytes at least", maxidle="1h"))
    client = cluster.client()
    client.get("/cart")
    cluster.clock.advance(3601)
    client.post("/cart/milk")
    cluster.clock.advance(3599)
    assert client.get("/cart").text == "milk"
    assert cluster.decisions[-1].claim is Claim.VALID


def test_without_persistence_a_client_does_not_stay_on_one_replica(start):
    cluster = start(persist=None)
    client = cluster.client()
    assert "set-cookie" not in client.post("/cart/tea").headers
    assert client.get("/cart").text == ""
    assert cluster.decisions[-1].reason is Reason.NO_PERSISTENCE
    with pytest.raises(AssertionError, match="did not stay on one replica"):
        cluster.assert_sticky(client)


def test_unavailable_fail_gives_a_503_rather_than_another_replica(start):
    cluster = start(unavailable="fail")
    client = cluster.client()
    client.post("/cart/tea")
    cluster.kill("r1")
    response = client.get("/cart")
    assert (response.status_code, "set-cookie" in response.headers) == (503, False)
    assert cluster.decisions[-1].attempts == ("r1",)
    assert cluster.client().get("/cart").status_code == 200, "a new client is served"
    cluster.revive("r1")
    assert client.get("/cart").text == "tea"


def test_retries_limit_the_attempts(start):
    cluster = start(retries=1)
    for name in ("r1", "r2"):
        cluster.kill(name)
    assert cluster.client().get("/cart").status_code == 503
    assert cluster.decisions[-1].attempts == ("r1", "r2")


def test_random_choices_are_seeded(start):
    def run(seed: int) -> list[tuple[str, str]]:
        cluster = start(balance="random", seed=seed)
        clients = [cluster.client() for _ in range(12)]
        marks = [client.get("/cart").headers["set-cookie"] for client in clients]
        return list(zip(map(cluster.server_of, clients), marks, strict=True))

    first = run(1)
    assert run(1) == first, "to the last character of a cookie"
    assert [server for server, _ in run(2)] != [server for server, _ in first]


@pytest.mark.parametrize("replicas", [0, -1])
def test_cluster_without_replicas_is_a_config_error(start, replicas):
    with pytest.raises(ConfigError):
        start(replicas)


def test_app_in_place_of_a_factory_is_a_config_error(start, variant, shop):
    app = variant.create(shop)()
    with pytest.raises(ConfigError, match=r"cluster: .* rather than a factory, .* write Cluster\(create_app\)"):
        variant.cluster(app, **variant.options)


@pytest.mark.parametrize("act", ["kill", "revive", "restart", "drain", "maint", "ready"])
def test_unknown_name_raises_with_the_names_of_the_replicas(start, act):
    cluster = start(2)
    with pytest.raises(LookupError, match="no replica 'r9': the replicas are r1, r2"):
        getattr(cluster, act)("r9")
