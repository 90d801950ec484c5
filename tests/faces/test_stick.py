"""Clients recognised by what they send: each kind of sample on both faces, in front of replicas and of URLs, beside
cookies and rules, and several requests at once.
"""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from sticky_asgi import Cookie, Forward, Stick, StickTable, cook, hdr, path_param, samples, src, url_param
from sticky_core.backend.backend import Backend
from sticky_core.persistence.claim import Claim, Reason
from sticky_core.persistence.persistence import Persist
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health

if TYPE_CHECKING:
    from tests.faces.conftest import Face

PATIENCE = 300.0  # seconds for what takes milliseconds
PLAIN = Cookie("SERVERID", signed=False, nocache=False)
FORM = ("content-type", "application/x-www-form-urlencoded")
JSON = ("content-type", "application/json")


def bearer(**claims: object) -> tuple[str, str]:
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return ("authorization", f"Bearer eyJhbGciOiJub25lIn0.{payload}.sig")


#: a rule, a request of one client, and one of another
KINDS = [
    pytest.param(Stick.on(src), {"peer": "10.0.0.1"}, {"peer": "10.0.0.2"}, id="src"),
    pytest.param(Stick.on("src"), {"peer": "2001:db8::1"}, {"peer": "2001:db8::2"}, id="src, IPv6"),
    pytest.param(Stick.on("src,ipmask(24)"), {"peer": "10.0.0.1"}, {"peer": "10.0.1.1"}, id="src, masked"),
    pytest.param(Stick.on(hdr("X-User")), {"headers": [("x-user", "ann")]}, {"headers": [("x-user", "bob")]}, id="hdr"),
    pytest.param(
        Stick.on(samples.lower(hdr("host-of"))), {"headers": [("host-of", "A")]}, {"headers": [("host-of", "b")]},
        id="hdr, lower",
    ),
    pytest.param(Stick.on(cook("sid")), {"cookie": "a=1; sid=ann"}, {"cookie": "sid=bob"}, id="cook"),
    pytest.param(Stick.on(url_param("user")), {"path": "/?user=ann"}, {"path": "/cart?a=1&user=bob"}, id="url_param"),
    pytest.param(Stick.on(path_param("sid")), {"path": "/cart;sid=ann"}, {"path": "/;sid=bob/x"}, id="path_param"),
    pytest.param(Stick.on("path"), {"path": "/ann"}, {"path": "/bob"}, id="path"),
    pytest.param(Stick.on("path,field(2,/)"), {"path": "/ann/1"}, {"path": "/bob/1"}, id="a segment of the path"),
    pytest.param(Stick.on("method"), {"method": "GET"}, {"method": "OPTIONS"}, id="method"),
    pytest.param(Stick.on(samples.scheme), {"scheme": "http"}, {"scheme": "https"}, id="scheme"),
    pytest.param(Stick.on(samples.jwt("id")), {"headers": [bearer(id="ann")]}, {"headers": [bearer(id=7)]}, id="jwt"),
    pytest.param(
        Stick.on(lambda request: request.header("x-tenant")[0]),
        {"headers": [("x-tenant", "ann")]}, {"headers": [("x-tenant", "bob")]},
        id="a function",
    ),
    pytest.param(
        Stick.on(samples.form("user")),
        {"method": "POST", "headers": [FORM], "body": b"user=ann"},
        {"method": "POST", "headers": [FORM], "body": b"a=1&user=bob&b=2"},
        id="a field of a form",
    ),
    pytest.param(
        Stick.on(samples.json_field("user.id")),
        {"method": "POST", "headers": [JSON], "body": b'{"user": {"id": 1}}'},
        {"method": "POST", "headers": [JSON], "body": b'{"user": {"id": 2}}'},
        id="a field of JSON",
    ),
]  # fmt: skip


def over(face: Face, *persist: Persist, names: Sequence[str] = ("s1", "s2", "s3"), **options: Any) -> Backend:
    return face.backend(*(face.server(name) for name in names), persist=persist, **options)


@pytest.mark.parametrize(("rule", "ann", "bob"), KINDS)
def test_requests_with_the_same_sample_go_to_the_same_server(
    face: Face, rule: Stick, ann: dict[str, Any], bob: dict[str, Any]
):
    rule.table.clear()
    get = face.client(over(face, rule))
    first = [get(**ann), get(**bob)]
    assert [response.server for response in first] == ["s1", "s2"]
    assert [response.letters for response in first] == ["NN", "NN"]
    for client, server in ((bob, "s2"), (ann, "s1"), (ann, "s1")):
        response = get(**client)
        assert (response.server, response.letters) == (server, "VN")
        assert (response.all("set-cookie"), response.all("cache-control")) == ([], [])


def test_clients_of_one_network_are_one_key(face: Face):
    get = face.client(over(face, Stick.on(samples.ipmask(src, 24, 64))))
    for peers in (("10.0.0.1", "10.0.0.200", "::ffff:10.0.0.9"), ("2001:db8::1", "2001:db8::ffff")):
        assert len({get(peer=peer).server for peer in peers}) == 1


def test_behind_trusted_proxies_the_client_s_address_counts(face: Face):
    get = face.client(over(face, Stick.on(src), forward=Forward(trusted_proxies=("10.0.0.0/8",))))
    ann, bob = [("x-forwarded-for", "203.0.113.1")], [("x-forwarded-for", "203.0.113.2, 10.0.0.7")]
    assert get(peer="10.0.0.1", headers=ann).server == "s1"
    assert get(peer="10.0.0.1", headers=bob).server == "s2"
    assert get(peer="10.0.0.2", headers=ann).server == "s1"
    # no other header counts
    assert get(peer="203.0.113.9", headers=ann).server == "s3"


def test_request_without_an_address_is_balanced(face: Face):
    get = face.client(over(face, Stick.on(src)))
    responses = [get(peer=peer) for peer in ("", "unix:", "localhost")]
    assert [response.server for response in responses] == ["s1", "s2", "s3"]
    assert {response.decision.reason for response in responses} == {Reason.NO_KEY}


def test_decision_gives_the_reason(face: Face):
    keys = StickTable("string")
    backend = over(face, Stick.on(hdr("x"), keys))
    get = face.client(backend)
    assert get(headers=[("x", "a")]).decision.reason is Reason.NO_ENTRY
    assert get(headers=[("x", "a")]).decision.reason is Reason.BOUND
    backend["s1"].state = AdminState.MAINT
    assert get(headers=[("x", "a")]).decision.reason is Reason.MAINT
    assert get(headers=[("x", "a")]).decision.reason is Reason.BOUND


# -- real addresses


class Upstream(BaseHTTPRequestHandler):
    """Respond with its own port, and the length of the body of the request."""

    def do_GET(self) -> None:
        came = len(self.rfile.read(int(self.headers.get("content-length", 0))))
        body = f"{self.connection.getsockname()[1]} {came}".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def ports() -> Iterator[list[int]]:
    """Two addresses that respond."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Upstream) for _ in range(2)]
    threads = [threading.Thread(target=server.serve_forever, args=(0.01,)) for server in servers]
    for thread in threads:
        thread.start()
    yield [server.server_address[1] for server in servers]
    for server in servers:
        server.shutdown()
        server.server_close()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(
    ("rule", "ann", "bob"),
    [row for row in KINDS if row.id in ("src", "url_param", "jwt", "a field of a form", "a field of JSON")],
)
def test_upstreams_are_recognised_like_apps(
    face: Face, ports: list[int], rule: Stick, ann: dict[str, Any], bob: dict[str, Any]
):
    rule.table.clear()
    servers = [Server(f"s{port}", f"http://127.0.0.1:{port}") for port in ports]
    get = face.client(face.backend(*servers, persist=rule))
    for client, port in ((ann, ports[0]), (bob, ports[1]), (bob, ports[1]), (ann, ports[0])):
        assert get(**client).body.decode() == f"{port} {len(client.get('body', b''))}"


def test_clients_of_an_upstream_that_refuses_are_bound_to_another(face: Face, ports: list[int]):
    keys = StickTable("ip", srvkey="addr")
    servers = [Server("dead", "http://127.0.0.1:1"), Server("alive", f"http://127.0.0.1:{ports[0]}")]
    get = face.client(face.backend(*servers, persist=Stick.on(src, keys)))
    assert get(peer="10.0.0.1").decision.attempts == ("dead", "alive")
    assert get(peer="10.0.0.1").decision.attempts == ("alive",)
    assert [entry.server for entry in keys] == [f"127.0.0.1:{ports[0]}"]


# -- several ways at once


def test_a_cookie_else_a_header_else_the_address(face: Face):
    users, clients = StickTable("string"), StickTable("ip")
    get = face.client(over(face, PLAIN, Stick.on(hdr("x-user"), users), Stick.on(src, clients)))
    assert get(peer="10.0.0.1").mark == "SERVERID=s1"
    assert get(peer="10.0.0.2", headers=[("x-user", "bob")]).mark == "SERVERID=s2"
    # the cookie
    assert get(peer="10.0.0.1", headers=[("x-user", "bob")], cookie="SERVERID=s3").server == "s3"
    assert users["bob"] == clients["10.0.0.1"] and users["bob"].startswith("s3")  # and it writes over both
    # the header: no cookie for a client that a table knows
    response = get(peer="10.0.0.9", headers=[("x-user", "bob")])
    assert (response.server, response.all("set-cookie")) == ("s3", [])
    # the address
    response = get(peer="10.0.0.2")
    assert (response.server, response.all("set-cookie")) == ("s2", [])


def test_consecutive_rules_are_applied_together(face: Face):
    keys = StickTable("string")
    get = face.client(over(face, Stick.on(hdr("a"), keys), Stick.on(hdr("b"), keys)))
    assert get(headers=[("a", "x"), ("b", "y")]).server == "s1"
    assert [entry.key for entry in keys] == ["x"]
    assert get(headers=[("b", "y")]).server == "s2"
    assert get(headers=[("a", "new"), ("b", "y")]).server == "s3"


def test_ignore_persist_does_not_apply_to_tables(face: Face):
    backend = over(
        face,
        Cookie("SRV", signed=False),
        Stick.on(hdr("x")),
        ignore_persist=lambda request: request.path == "/ignored",
    )
    get = face.client(backend)
    assert get(headers=[("x", "ann")]).server == "s1"
    response = get("/ignored", cookie="SRV=s2", headers=[("x", "ann")])
    assert (response.server, response.all("set-cookie")) == ("s1", [])
    assert response.seen is not None and response.seen.cookies == ()
    assert get(cookie="SRV=s2", headers=[("x", "ann")]).server == "s2"


def test_rules_of_persistence_apply_to_tables(face: Face):
    keys = StickTable("string")
    backend = over(
        face,
        Stick.on(hdr("x"), keys),
        force_persist=lambda request: request.path == "/forced",
        ignore_persist=lambda request: request.path == "/ignored",
        use_server={"s3": lambda request: request.path == "/three"},
    )
    get = face.client(backend)
    ann = [("x", "ann")]
    assert get(headers=ann).server == "s1"

    response = get("/ignored", headers=ann)  # that is for cookies, as in HAProxy
    assert (response.server, response.decision.claim) == ("s1", Claim.VALID)
    assert get("/ignored", headers=[("x", "bob")]).server == get(headers=[("x", "bob")]).server

    backend["s1"].health = Health.DOWN
    response = get("/forced", headers=ann)
    assert (response.server, response.decision.claim) == ("s1", Claim.DOWN)
    backend["s1"].health = Health.UP

    assert get("/three", headers=ann).decision.claim is Claim.UNUSED
    assert get(headers=ann).server == "s3"  # the server of its last response, as in HAProxy


# -- at the same time


class Together:
    """Requests of one client that are in flight at the same time, in apps that hold them."""

    def __init__(self, face: Face, leave: Callable[[Together], bool]) -> None:
        self.face = face
        self.leave = leave  # whether apps may respond
        self.inside: list[str] = []
        self.served: list[str] = []

    def server(self, name: str, **options: Any) -> Server:
        app = self._asgi(name) if self.face.name == "asgi" else self._wsgi(name)
        made: Server = self.face.package.Server(name, app, **options)
        return made

    def _asgi(self, name: str) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            self.inside.append(name)
            deadline = time.monotonic() + PATIENCE
            while not self.leave(self):
                assert time.monotonic() < deadline, "it did not happen"
                await asyncio.sleep(0)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            self.served.append(name)

        return app

    def _wsgi(self, name: str) -> Any:
        def app(environ: Any, start_response: Any) -> list[bytes]:
            self.inside.append(name)
            deadline = time.monotonic() + PATIENCE
            while not self.leave(self):
                assert time.monotonic() < deadline, "it did not happen"
                time.sleep(0.001)
            start_response("200 OK", [("content-type", "text/plain")])
            self.served.append(name)
            return []

        return app

    def request(self, backend: Backend, *clients: dict[str, Any]) -> list[int]:
        """The statuses of their responses."""
        dispatcher = self.face.dispatcher(backend)
        return (self._tasks if self.face.name == "asgi" else self._threads)(dispatcher, clients)

    def _tasks(self, dispatcher: Any, clients: Sequence[dict[str, Any]]) -> list[int]:
        statuses: list[int] = []

        async def one(headers: Any, peer: str = "192.0.2.1") -> None:
            scope = {
                "type": "http",
                "asgi": {"version": "3.0"},
                "http_version": "1.1",
                "method": "GET",
                "scheme": "http",
                "path": "/",
                "raw_path": b"/",
                "query_string": b"",
                "root_path": "",
                "headers": [(name.encode(), value.encode()) for name, value in headers],
                "client": (peer, 50000),
            }

            async def receive() -> Any:
                return {"type": "http.request", "body": b"", "more_body": False}

            async def send(message: Any) -> None:
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])

            await dispatcher(scope, receive, send)

        async def all_of_them() -> None:
            await asyncio.gather(*(one(**client) for client in clients))

        asyncio.run(all_of_them())
        return statuses

    def _threads(self, dispatcher: Any, clients: Sequence[dict[str, Any]]) -> list[int]:
        statuses: list[int] = []

        def one(headers: Any, peer: str = "192.0.2.1") -> None:
            environ = {
                "REQUEST_METHOD": "GET",
                "SCRIPT_NAME": "",
                "PATH_INFO": "/",
                "QUERY_STRING": "",
                "SERVER_PROTOCOL": "HTTP/1.1",
                "REMOTE_ADDR": peer,
                "wsgi.url_scheme": "http",
                "wsgi.input": None,
                **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers},
            }

            def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
                statuses.append(int(status[:3]))

            body = dispatcher(environ, start_response)
            list(body)
            if hasattr(body, "close"):
                body.close()

        threads = [threading.Thread(target=one, kwargs=client) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        return statuses


ANN = {"headers": [("x", "ann")]}


def test_simultaneous_first_requests_of_one_client_go_to_one_server(face: Face):
    crowd = Together(face, lambda crowd: len(crowd.inside) == 4)
    keys = StickTable("string")
    backend = face.backend(*map(crowd.server, ("s1", "s2", "s3")), persist=Stick.on(hdr("x"), keys))
    assert crowd.request(backend, *[ANN] * 4) == [200] * 4
    assert len(set(crowd.served)) == 1 and len(keys) == 1
    assert all(not server.in_flight for server in backend.servers)


def test_first_requests_of_several_clients_are_spread(face: Face):
    crowd = Together(face, lambda crowd: len(crowd.inside) == 3)
    backend = face.backend(*map(crowd.server, ("s1", "s2", "s3")), persist=Stick.on(hdr("x")))
    crowd.request(backend, *({"headers": [("x", str(number))]} for number in range(3)))
    assert sorted(crowd.served) == ["s1", "s2", "s3"]


def test_a_client_waits_for_its_server_though_another_is_free(face: Face):
    crowd = Together(face, lambda crowd: bool(crowd.served) or backend.placement.queue.waiting_for(backend["s1"]) == 1)
    servers = [crowd.server(name, maxconn=1) for name in ("s1", "s2")]
    backend = face.backend(*servers, persist=Stick.on(hdr("x")))
    assert crowd.request(backend, ANN, ANN) == [200, 200]
    assert crowd.served == ["s1", "s1"]
    assert all(not server.in_flight for server in servers)


def test_a_client_moves_if_too_many_wait_for_its_server(face: Face):
    crowd = Together(face, lambda crowd: len(crowd.inside) > 1)
    servers = [crowd.server(name, maxconn=1, maxqueue=1) for name in ("s1", "s2")]
    backend = face.backend(*servers, persist=Stick.on(hdr("x")))
    assert crowd.request(backend, ANN, ANN, ANN) == [200, 200, 200]
    assert sorted(crowd.served) == ["s1", "s1", "s2"]
    assert all(not server.in_flight for server in servers)


def test_first_request_that_waits_reserves_the_server_that_it_gets(face: Face):
    crowd = Together(face, lambda crowd: bool(crowd.served) or backend.placement.queue.waiting == 2)
    keys = StickTable("string")
    server = crowd.server("s1", maxconn=1)
    backend = face.backend(server, persist=Stick.on(hdr("x"), keys))
    clients = [{"headers": [("x", str(number))]} for number in range(3)]
    assert crowd.request(backend, *clients) == [200] * 3
    assert sorted(entry.key for entry in keys) == ["0", "1", "2"]
    assert not server.in_flight
