"""The examples under real servers: many concurrent clients over new connections, and each stays at its replica."""

import ast
import json
import re
import shlex
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
REPLICAS = ("r1", "r2", "r3")
CLIENTS, REQUESTS = 20, 50

SERVERS = {
    "FastAPI under uvicorn": "uvicorn fastapi_gateway:app",
    "FastAPI under hypercorn": "hypercorn fastapi_gateway:app",
    "FastAPI under granian": "granian fastapi_gateway:app",
    "Flask under gunicorn": "gunicorn -k gthread -w 1 --threads 8 flask_gateway:app",
    "Flask under waitress": "waitress-serve --threads 8 flask_gateway:app",
}


@pytest.fixture(params=list(SERVERS.values()), ids=list(SERVERS))
def gateway(request, serve):
    return serve(*request.param.split())


def put(client, item: str) -> tuple[str, list[str], list[str]]:
    """Put `item` into the client's cart; return the replica, the content of the cart, and the marks."""
    response = client.request(f"/cart/{item}", "POST")
    assert response.status == 200
    body = json.loads(response.body)
    marks = [text for text in response.values("set-cookie") if text.startswith("SERVERID=")]
    return body["replica"], body["items"], marks


def set_state(served, server: str, state: str, token: str | None = None) -> int:
    body = json.dumps({"state": state}).encode()
    token = served.admin_token if token is None else token
    headers = {"Content-Type": "application/json", "X-Admin-Token": token}
    status: int = served.client().request(f"/admin/servers/{server}/state", "POST", headers, body).status
    return status


def is_roundrobin(replicas: list[str]) -> bool:
    """Whether the replicas are in the order of roundrobin, 1 2 3 1 2 3 ..., from any start."""
    turns = [REPLICAS.index(replica) for replica in replicas]
    return all((turn + 1) % len(REPLICAS) == following for turn, following in pairwise(turns))


def test_every_client_stays_on_the_replica_with_its_cart(gateway):
    clients = [gateway.client() for _ in range(CLIENTS)]
    first = [put(client, "1") for client in clients]

    def put_items(client) -> list[tuple[str, list[str], list[str]]]:
        return [put(client, f"{number}") for number in range(2, REQUESTS + 1)]

    with ThreadPoolExecutor(CLIENTS) as together:
        later = list(together.map(put_items, clients))

    homes = [replica for replica, _, _ in first]
    assert is_roundrobin(homes)
    for (home, items, marks), visits in zip(first, later, strict=True):
        assert (items, len(marks)) == (["1"], 1)
        assert {replica for replica, _, _ in visits} == {home}
        assert [marks for _, _, marks in visits if marks] == []  # set once
        assert visits[-1][1] == [f"{number}" for number in range(1, REQUESTS + 1)]  # no item was lost


def test_client_without_cookies_reaches_every_replica(gateway):
    new_clients = [put(gateway.client(), "tea") for _ in range(6)]
    assert is_roundrobin([replica for replica, _, _ in new_clients])
    assert Counter(replica for replica, _, _ in new_clients) == dict.fromkeys(REPLICAS, 2)
    assert [items for _, items, _ in new_clients] == [["tea"]] * 6


def test_only_the_clients_of_a_replica_in_maint_move_and_only_once(gateway):
    clients = [gateway.client() for _ in range(CLIENTS)]
    homes = [put(client, "1")[0] for client in clients]
    half_way = threading.Barrier(CLIENTS + 1, timeout=300)
    in_maint = threading.Barrier(CLIENTS + 1, timeout=300)

    def put_items(client) -> Iterator[tuple[str, list[str]]]:
        for number in range(2, REQUESTS + 1):
            if number == REQUESTS // 2:
                half_way.wait()
            if number == REQUESTS - 5:
                in_maint.wait()  # r2 was put into maint during the requests; from here on it must get none
            replica, _, marks = put(client, f"{number}")
            yield replica, marks

    with ThreadPoolExecutor(CLIENTS) as together:
        shopping = together.map(lambda client: list(put_items(client)), clients)
        half_way.wait()
        assert set_state(gateway, "r2", "maint") == 200
        in_maint.wait()
        later = list(shopping)

    for home, visits in zip(homes, later, strict=True):
        path = [home] + [replica for replica, _ in visits]
        moves = [(one, other) for one, other in pairwise(path) if one != other]
        marked = [replica for replica, marks in visits if marks]
        if home == "r2":
            assert len(moves) == 1 and path[-1] != "r2"
            assert marked == [path[-1]]
        else:
            assert (moves, marked) == ([], [])
    assert set(homes) == set(REPLICAS)


def test_draining_replica_keeps_its_clients_and_gets_no_new_ones(gateway):
    clients = [gateway.client() for _ in range(3)]
    homes = [put(client, "1")[0] for client in clients]
    assert set_state(gateway, "r1", "drain") == 200
    assert [put(client, "2")[0] for client in clients] == homes
    assert {put(gateway.client(), "1")[0] for _ in range(4)} == {"r2", "r3"}
    assert set_state(gateway, "r1", "ready") == 200
    assert {put(gateway.client(), "1")[0] for _ in range(3)} == set(REPLICAS)


def test_admin_route_requires_the_token(gateway):
    assert set_state(gateway, "r1", "maint", token="let-me-in") == 403
    assert set_state(gateway, "r1", "maint", token="") == 403
    assert json.loads(gateway.client().request("/").body) == dict.fromkeys(REPLICAS, "ready")


#: each example that is served, a path of it that is sticky, and the cookie it is sticky by
STICKY = {
    "fastapi_gateway": ("/cart", "SERVERID"),
    "flask_gateway": ("/cart", "SERVERID"),
    "key_rotation": ("/", "SERVERID"),
    "prefix_jsessionid": ("/", "JSESSIONID"),
    "two_prefixes": ("/de/visit", "SERVERID"),
}
COMMAND = re.compile(r"^ +(?:[A-Z_]+=\S+ )*((?:uvicorn|hypercorn|granian|gunicorn|waitress-serve) .+)$", re.MULTILINE)


#: those that need other servers, or no cookie, and are tested elsewhere
ELSEWHERE = {"database_sessions_flask", "database_sessions_starlette", "learned_sessions", "upstreams"}


def test_every_example_is_served_here_or_is_a_test():
    examples = {file.stem for file in EXAMPLES.glob("*.py") if not file.stem.startswith("test_")}
    assert examples == set(STICKY) | ELSEWHERE


@pytest.mark.parametrize("name", STICKY)
def test_example_runs_by_the_command_in_its_docstring(name, serve):
    source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    (command,) = COMMAND.findall(ast.get_docstring(ast.parse(source), clean=False) or "")
    target, cookie = STICKY[name]
    client = serve(*shlex.split(command)).client()
    bodies = [json.loads(client.request(target).body) for _ in range(4)]
    homes = {body.get("replica") or body.get("server") for body in bodies}
    marks = [value for (name, _), value in client.jar.items() if name == cookie]
    assert len(homes) == len(marks) == 1
    assert marks[0].startswith(homes.pop())
