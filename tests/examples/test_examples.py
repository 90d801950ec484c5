"""Each example does what its docstring says."""

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
    """Return a function that imports an example as a server does, in the environment that its docstring describes."""

    def load_example(name: str, secret: str = SECRET, admin_token: str = "") -> ModuleType:
        monkeypatch.setenv("STICKY_SECRET", secret)
        monkeypatch.setenv("ADMIN_TOKEN", admin_token)
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load_example


@pytest.fixture(params=["fastapi_gateway", "flask_gateway"])
def gateway(request, load):
    """Return a function that starts a gateway and returns a factory of clients, each with its own cookie jar."""
    lifespans: list[TestClient] = []

    def start(**environment: str):
        app = load(request.param, **environment).app
        if request.param == "flask_gateway":
            return lambda: Client(app)
        lifespans.append(TestClient(app))
        lifespans[-1].__enter__()
        return lambda: TestClient(app)

    yield start
    for lifespan in lifespans:
        lifespan.__exit__(None, None, None)


def json_of(response):
    """Return the JSON of a response of either test client."""
    assert response.status_code == 200, response.text
    return json.loads(response.text)


@pytest.mark.parametrize("name", SIGNING)
def test_an_example_without_a_secret_names_the_line_that_makes_one(name, load):
    with pytest.raises(ConfigError, match="make one with: python -c"):
        load(name, secret="")


def test_every_client_comes_back_to_the_replica_that_has_its_cart(gateway):
    client = gateway()
    clients = [client() for _ in range(6)]
    first = [json_of(each.post("/cart/tea")) for each in clients]
    assert sorted(home["replica"] for home in first) == ["r1", "r1", "r2", "r2", "r3", "r3"]
    assert [home["items"] for home in first] == [["tea"]] * 6
    for number, (each, home) in enumerate(zip(clients, first, strict=True)):
        assert json_of(each.post(f"/cart/cup-{number}")) == {
            "replica": home["replica"],
            "items": ["tea", f"cup-{number}"],
        }
        assert json_of(each.get("/cart"))["items"] == ["tea", f"cup-{number}"]


def test_paths_without_a_route_are_served_by_the_app_itself(gateway):
    response = gateway()().get("/")
    assert json_of(response) == {"r1": "ready", "r2": "ready", "r3": "ready"}
    assert "set-cookie" not in response.headers


def test_an_administrator_takes_a_replica_out_and_its_clients_move_once(gateway):
    client = gateway(admin_token="let-me-in")
    clients = [client() for _ in range(3)]
    first = [json_of(each.post("/cart/tea"))["replica"] for each in clients]

    def set_state(state):
        token = {"X-Admin-Token": "let-me-in"}
        return json_of(client().post("/admin/servers/r1/state", json={"state": state}, headers=token))

    assert set_state("maint") == {"r1": "maint", "r2": "ready", "r3": "ready"}
    moved = [json_of(each.get("/cart"))["replica"] for each in clients]
    assert [new for old, new in zip(first, moved, strict=True) if old != "r1"] == [
        home for home in first if home != "r1"
    ]
    assert "r1" not in moved
    assert set_state("ready") == {"r1": "ready", "r2": "ready", "r3": "ready"}
    assert [json_of(each.get("/cart"))["replica"] for each in clients] == moved
    assert set_state("drain") == {"r1": "drain", "r2": "ready", "r3": "ready"}
    assert "r1" not in [json_of(client().get("/cart"))["replica"] for _ in range(4)]


@pytest.mark.parametrize("configured", ["", "let-me-in"], ids=["none configured", "one configured"])
@pytest.mark.parametrize(
    "given", [{}, {"X-Admin-Token": ""}, {"X-Admin-Token": "let-me-out"}], ids=["none", "empty", "wrong"]
)
def test_a_request_without_the_token_is_refused(gateway, configured, given):
    client = gateway(admin_token=configured)()
    response = client.post("/admin/servers/r1/state", json={"state": "maint"}, headers=given)
    assert response.status_code == 403
    assert json_of(client.get("/"))["r1"] == "ready"


def test_a_wrong_state_or_server_is_a_client_error(gateway):
    client = gateway(admin_token="let-me-in")()
    token = {"X-Admin-Token": "let-me-in"}

    def status(server, body):
        return client.post(f"/admin/servers/{server}/state", json=body, headers=token).status_code

    assert status("r9", {"state": "maint"}) == 404
    assert status("r1", {"state": "off"}) in (400, 422)
    assert status("r1", {}) in (400, 422)


def test_a_client_has_a_replica_under_each_prefix_and_the_cookies_do_not_mix(load):
    with TestClient(load("two_prefixes").app) as client:
        first = {country: json_of(client.get(f"/{country}/visit")) for country in ("de", "fr")}
        jar = {cookie.path: cookie.value for cookie in client.cookies.jar}
        assert jar.keys() == {"/de", "/fr"}
        for country in ("de", "fr"):
            for visits in (2, 3):
                assert json_of(client.get(f"/{country}/visit")) == {
                    "country": country,
                    "replica": first[country]["replica"],
                    "visits": visits,
                }
        assert {cookie.path: cookie.value for cookie in client.cookies.jar} == jar

        of_the_other = {"Cookie": f"SERVERID={jar['/de']}"}  # signed, but for the other backend
        response = TestClient(client.app).get("/fr/visit", headers=of_the_other)
        assert response.headers["set-cookie"].startswith("SERVERID=r")


def test_clients_of_the_old_key_stay_and_get_a_cookie_of_the_new_one(load):
    old, new = "the-key-of-last-year", "the-key-of-this-year"

    def visit(secret: str, cookie: str) -> tuple[str, str]:
        with TestClient(load("key_rotation", secret).app) as client:
            response = client.get("/", headers={"Cookie": cookie} if cookie else {})
            return json_of(response)["server"], response.headers.get("set-cookie", "").partition(";")[0]

    home, old_cookie = visit(old, "")
    assert visit(old, old_cookie) == (home, "")
    server, new_cookie = visit(f"{old} {new}", old_cookie)
    assert server == home and new_cookie not in ("", old_cookie)
    assert visit(f"{old} {new}", new_cookie) == (home, "")
    assert visit(new, new_cookie) == (home, "")
    assert visit(new, old_cookie)[1] != ""  # the old key is out: a client that did not come in between is unknown


def test_the_mark_goes_before_the_jsessionid_of_the_app_which_never_sees_the_mark(load):
    app = load("prefix_jsessionid").app
    clients = [Client(app) for _ in range(3)]
    first = [json_of(client.get("/")) for client in clients]
    assert {visit["replica"] for visit in first} == {"r1", "r2", "r3"}
    for client, visit in zip(clients, first, strict=True):
        cookie = client.get_cookie("JSESSIONID")
        assert cookie is not None
        mark, _, session = cookie.value.partition("~")
        assert mark.startswith(f"{visit['replica']}@")
        assert session == visit["session"]
        assert json_of(client.get("/")) == {**visit, "visits": 2}


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
    """Responds with the name of its server."""

    def do_GET(self) -> None:
        body = f"{self.connection.getsockname()[1]} {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def upstreams():
    """Return the ports of two servers, and a function that ends one."""
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


def test_upstreams_keep_their_clients_take_over_and_the_backup_responds_last(load, upstreams, monkeypatch):
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
        assert sorted(response.json()["replica"] for response in first) == ["r1", "r2", "r3"]
        for calls in (2, 3):
            for response in first:
                again = client.post("/", headers={"mcp-session-id": response.headers["mcp-session-id"]})
                assert again.json() == {"replica": response.json()["replica"], "calls": calls}
        assert "set-cookie" not in first[0].headers
        assert client.post("/", headers={"mcp-session-id": "invented"}).status_code == 404
