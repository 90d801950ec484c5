"""Each example keeps the promise that it opens with."""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest
from starlette.testclient import TestClient
from werkzeug.test import Client

import sticky_core
from sticky_asgi import ConfigError

EXAMPLES = Path(__file__).parents[2] / "examples"
SIGNING = sorted(file.stem for file in EXAMPLES.glob("*.py") if "export STICKY_SECRET" in file.read_text())
SECRET = "a-secret-of-the-example-tests"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Imports an example as a server would, in the environment that its docstring asks for."""

    def loaded(name: str, secret: str = SECRET, admin_token: str = "") -> ModuleType:
        monkeypatch.setenv("STICKY_SECRET", secret)
        monkeypatch.setenv("ADMIN_TOKEN", admin_token)
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return loaded


@pytest.fixture(params=["fastapi_gateway", "flask_gateway"])
def gateway(request, load):
    """Starts a gateway; what it gives is a maker of clients, each with a cookie jar of its own."""
    lifespans: list[TestClient] = []

    def started(**environment: str):
        app = load(request.param, **environment).app
        if request.param == "flask_gateway":
            return lambda: Client(app)
        lifespans.append(TestClient(app))
        lifespans[-1].__enter__()
        return lambda: TestClient(app)

    yield started
    for lifespan in lifespans:
        lifespan.__exit__(None, None, None)


def said(answer):
    """The JSON of an answer, of either test client."""
    assert answer.status_code == 200, answer.text
    return json.loads(answer.text)


@pytest.mark.parametrize("name", SIGNING)
def test_an_example_without_a_secret_names_the_line_that_makes_one(name, load):
    with pytest.raises(ConfigError, match="make one with: python -c"):
        load(name, secret="")


def test_every_client_comes_back_to_the_replica_that_has_its_cart(gateway):
    client = gateway()
    clients = [client() for _ in range(6)]
    homes = [said(each.post("/cart/tea")) for each in clients]
    assert sorted(home["replica"] for home in homes) == ["r1", "r1", "r2", "r2", "r3", "r3"]
    assert [home["items"] for home in homes] == [["tea"]] * 6
    for number, (each, home) in enumerate(zip(clients, homes, strict=True)):
        assert said(each.post(f"/cart/cup-{number}")) == {
            "replica": home["replica"],
            "items": ["tea", f"cup-{number}"],
        }
        assert said(each.get("/cart"))["items"] == ["tea", f"cup-{number}"]


def test_the_rest_of_the_app_is_no_replica_s(gateway):
    answer = gateway()().get("/")
    assert said(answer) == {"r1": "ready", "r2": "ready", "r3": "ready"}
    assert "set-cookie" not in answer.headers


def test_an_administrator_takes_a_replica_out_and_its_clients_move_once(gateway):
    client = gateway(admin_token="let-me-in")
    clients = [client() for _ in range(3)]
    homes = [said(each.post("/cart/tea"))["replica"] for each in clients]

    def set_state(state):
        token = {"X-Admin-Token": "let-me-in"}
        return said(client().post("/admin/servers/r1/state", json={"state": state}, headers=token))

    assert set_state("maint") == {"r1": "maint", "r2": "ready", "r3": "ready"}
    moved = [said(each.get("/cart"))["replica"] for each in clients]
    assert [new for old, new in zip(homes, moved, strict=True) if old != "r1"] == [
        home for home in homes if home != "r1"
    ]
    assert "r1" not in moved
    assert set_state("ready") == {"r1": "ready", "r2": "ready", "r3": "ready"}
    assert [said(each.get("/cart"))["replica"] for each in clients] == moved
    assert set_state("drain") == {"r1": "drain", "r2": "ready", "r3": "ready"}
    assert "r1" not in [said(client().get("/cart"))["replica"] for _ in range(4)]


@pytest.mark.parametrize("configured", ["", "let-me-in"], ids=["none configured", "one configured"])
@pytest.mark.parametrize(
    "given", [{}, {"X-Admin-Token": ""}, {"X-Admin-Token": "let-me-out"}], ids=["none", "empty", "wrong"]
)
def test_who_does_not_know_the_token_is_no_administrator(gateway, configured, given):
    client = gateway(admin_token=configured)()
    answer = client.post("/admin/servers/r1/state", json={"state": "maint"}, headers=given)
    assert answer.status_code == 403
    assert said(client.get("/"))["r1"] == "ready"


def test_an_administrator_who_errs_is_told(gateway):
    client = gateway(admin_token="let-me-in")()
    token = {"X-Admin-Token": "let-me-in"}

    def status(server, body):
        return client.post(f"/admin/servers/{server}/state", json=body, headers=token).status_code

    assert status("r9", {"state": "maint"}) == 404
    assert status("r1", {"state": "off"}) in (400, 422)
    assert status("r1", {}) in (400, 422)


def test_a_client_has_a_replica_under_each_prefix_and_the_cookies_never_meet(load):
    with TestClient(load("two_prefixes").app) as client:
        first = {country: said(client.get(f"/{country}/visit")) for country in ("de", "fr")}
        jar = {cookie.path: cookie.value for cookie in client.cookies.jar}
        assert jar.keys() == {"/de", "/fr"}
        for country in ("de", "fr"):
            for visits in (2, 3):
                assert said(client.get(f"/{country}/visit")) == {
                    "country": country,
                    "replica": first[country]["replica"],
                    "visits": visits,
                }
        assert {cookie.path: cookie.value for cookie in client.cookies.jar} == jar

        stranger = {"Cookie": f"SERVERID={jar['/de']}"}  # signed, but for the other backend
        answer = TestClient(client.app).get("/fr/visit", headers=stranger)
        assert answer.headers["set-cookie"].startswith("SERVERID=r")


def test_clients_of_the_old_key_stay_and_get_a_cookie_of_the_new_one(load):
    old, new = "the-key-of-last-year", "the-key-of-this-year"

    def visit(secret: str, cookie: str) -> tuple[str, str]:
        with TestClient(load("key_rotation", secret).app) as client:
            answer = client.get("/", headers={"Cookie": cookie} if cookie else {})
            return said(answer)["server"], answer.headers.get("set-cookie", "").partition(";")[0]

    home, old_cookie = visit(old, "")
    assert visit(old, old_cookie) == (home, "")
    server, new_cookie = visit(f"{old} {new}", old_cookie)
    assert server == home and new_cookie not in ("", old_cookie)
    assert visit(f"{old} {new}", new_cookie) == (home, "")
    assert visit(new, new_cookie) == (home, "")
    assert visit(new, old_cookie)[1] != ""  # the old key is out: who did not come in between is a stranger


def test_the_mark_goes_before_the_app_s_own_jsessionid_and_the_app_never_sees_it(load):
    app = load("prefix_jsessionid").app
    clients = [Client(app) for _ in range(3)]
    first = [said(client.get("/")) for client in clients]
    assert {visit["replica"] for visit in first} == {"r1", "r2", "r3"}
    for client, visit in zip(clients, first, strict=True):
        cookie = client.get_cookie("JSESSIONID")
        assert cookie is not None
        mark, _, session = cookie.value.partition("~")
        assert mark.startswith(f"{visit['replica']}@")
        assert session == visit["session"]
        assert said(client.get("/")) == {**visit, "visits": 2}


def test_the_test_with_replicas_passes_by_the_command_in_its_docstring():
    known = importlib.metadata.entry_points(group="pytest11", name="sticky_sessions")
    plugin = () if known else ("-p", "sticky_core.pytest_plugin")  # in a checkout that is not installed
    passed = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *plugin, "examples/test_with_replicas.py"],
        cwd=EXAMPLES.parent,
        env={**os.environ, "PYTHONPATH": str(Path(sticky_core.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert passed.returncode == 0, passed.stdout + passed.stderr
    assert "4 passed" in passed.stdout


class _Named(BaseHTTPRequestHandler):
    """Answers with the name of its server."""

    def do_GET(self) -> None:
        said = f"{self.connection.getsockname()[1]} {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def upstreams():
    """Two servers, listening; what is called ends one."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _Named) for _ in range(2)]
    threads = [threading.Thread(target=server.serve_forever, args=(0.01,)) for server in servers]
    for thread in threads:
        thread.start()
    alive = {server.server_address[1]: server for server in servers}

    def end(port: int) -> None:
        server = alive.pop(port)
        server.shutdown()
        server.server_close()

    yield list(alive), end
    for port in list(alive):
        end(port)
    for thread in threads:
        thread.join()


def test_upstreams_keep_their_clients_and_take_over_and_say_sorry(load, upstreams, monkeypatch):
    ports, end = upstreams
    monkeypatch.setenv("UPSTREAMS", " ".join(f"http://127.0.0.1:{port}" for port in ports))
    with TestClient(load("upstreams").app) as client:
        first = client.get("/cart?a=%2F")
        own, path = first.text.split()
        assert path == "/cart?a=%2F"
        assert [client.get("/cart").text.split()[0] for _ in range(4)] == [own] * 4
        end(int(own))
        (other,) = {f"{port}" for port in ports} - {own}
        assert client.get("/cart").text.split()[0] == other
        end(int(other))
        sorry = client.get("/cart")
        assert (sorry.status_code, "mending" in sorry.text) == (503, True)


def test_an_app_that_names_its_sessions_in_a_header_is_sticky_by_it(load):
    with TestClient(load("learned_sessions").app) as client:
        first = [client.post("/") for _ in range(3)]
        assert sorted(answer.json()["replica"] for answer in first) == ["r1", "r2", "r3"]
        for calls in (2, 3):
            for answer in first:
                again = client.post("/", headers={"mcp-session-id": answer.headers["mcp-session-id"]})
                assert again.json() == {"replica": answer.json()["replica"], "calls": calls}
        assert "set-cookie" not in first[0].headers
        assert client.post("/", headers={"mcp-session-id": "invented"}).status_code == 404
