"""Does the app work with more than one replica? The tests run three of them without a port, and drain and kill them:
with sticky sessions every client finds its cart again, and without them it does not.

    pytest examples/test_with_replicas.py
"""

from collections.abc import Callable

from fastapi import FastAPI

from sticky_asgi.testing import Cluster


def create_app() -> FastAPI:
    app = FastAPI()
    carts: dict[str, list[str]] = {}  # in the memory of one replica

    @app.get("/{name}")
    async def look(name: str) -> list[str]:
        return carts.get(name, [])

    @app.post("/{name}/{item}")
    async def put(name: str, item: str) -> list[str]:
        carts.setdefault(name, []).append(item)
        return carts[name]

    return app


def test_every_client_finds_its_cart_again(sticky_cluster: Callable[..., Cluster]) -> None:
    cluster = sticky_cluster(create_app, replicas=3)
    ann, bob = cluster.client(), cluster.client()
    ann.post("/ann/tea")
    bob.post("/bob/coffee")
    assert ann.get("/ann").json() == ["tea"]
    assert bob.get("/bob").json() == ["coffee"]
    cluster.assert_sticky(ann)
    cluster.assert_sticky(bob)
    assert cluster.server_of(ann) != cluster.server_of(bob)


def test_without_sticky_sessions_it_does_not(sticky_cluster: Callable[..., Cluster]) -> None:
    ann = sticky_cluster(create_app, replicas=3, persist=None).client()
    ann.post("/ann/tea")
    assert ann.get("/ann").json() == []


def test_a_draining_replica_still_serves_its_clients(sticky_cluster: Callable[..., Cluster]) -> None:
    cluster = sticky_cluster(create_app, replicas=3)
    ann = cluster.client()
    ann.post("/ann/tea")
    cluster.drain(cluster.server_of(ann))
    assert ann.get("/ann").json() == ["tea"]


def test_a_client_of_a_killed_replica_loses_its_cart_and_can_fill_a_new_one() -> None:
    with Cluster(create_app, replicas=3) as cluster:
        ann = cluster.client()
        ann.post("/ann/tea")
        cluster.kill(cluster.server_of(ann))
        assert ann.post("/ann/cake").json() == ["cake"]
        assert ann.get("/ann").json() == ["cake"]
        assert [decision.attempts for decision in cluster.decisions] == [("r1",), ("r1", "r2"), ("r2",)]
