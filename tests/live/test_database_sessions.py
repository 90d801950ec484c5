"""The examples without sticky sessions: sessions are in a store, and any replica serves any client."""

import importlib.util
import json
import random
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from werkzeug.test import Client

pytestmark = pytest.mark.live

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["database_sessions_starlette", "database_sessions_flask"])
def shop(request, valkey, monkeypatch):
    """The backend of an example, and a function that makes clients of its app, each with a cookie jar of its own."""
    monkeypatch.setenv("REDIS_URL", valkey.url)
    module = load(request.param)
    if request.param == "database_sessions_flask":
        yield module.backend, lambda: Client(module.app)
        for app in module.app.replicas.apps.values():
            app.config["SESSION_REDIS"].close()
    else:
        with TestClient(module.app) as first:

            def new_client():
                client = TestClient(module.app)
                client.portal = first.portal  # the event loop of the lifespan, with the connections to the store
                return client

            yield module.backend, new_client


def session(answer):
    assert answer.status_code == 200, answer.text
    return json.loads(answer.text)


def test_any_replica_serves_any_client(shop):
    _, client = shop
    clients = [client() for _ in range(4)]
    carts: list[list[str]] = [[] for _ in clients]
    served: list[set[str]] = [set() for _ in clients]
    for number, choice in enumerate(random.Random(7).choices(range(4), k=60)):
        carts[choice].append(f"cup-{number}")
        answer = session(clients[choice].post(f"/cart/cup-{number}"))
        assert answer["items"] == carts[choice]
        served[choice].add(answer["replica"])
    assert served == [{"r1", "r2", "r3"}] * 4
    assert [session(each.get("/cart"))["items"] for each in clients] == carts


def test_session_survives_the_end_of_its_replica(shop):
    backend, client = shop
    ann = client()
    replica = session(ann.post("/cart/tea"))["replica"]
    backend[replica].state = "maint"
    answers = [session(ann.get("/cart")) for _ in range(6)]
    assert {answer["replica"] for answer in answers} == {"r1", "r2", "r3"} - {replica}
    assert [answer["items"] for answer in answers] == [["tea"]] * 6


def test_no_cookie_of_sticky_sessions_is_set(shop):
    _, client = shop
    answer = client().post("/cart/tea")
    assert [value.partition("=")[0] for name, value in answer.headers.items() if name.lower() == "set-cookie"] == [
        "session"
    ]
