"""Stick rules compared with HAProxy. The same requests go to HAProxy and to both faces, in front of the same servers;
the servers that respond must be the same, and the entries of the tables afterwards.

A row is a backend's stick table and rules, in HAProxy's words, and some requests to it in order. Where this project
differs on purpose the row gives the reason, and HAProxy has to differ. HAProxy 2.6 and later will do.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import socket
import socketserver
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

import pytest

import sticky_asgi
import sticky_wsgi
from sticky_core.server.state import AdminState
from sticky_core.stick_table.keys import KeyType

pytestmark = pytest.mark.live

DEADLINE = 300.0
HOST = "127.0.0.1"


# -- what rows are made of


@dataclass(frozen=True)
class Request:
    """A request, the address that it comes from, and the headers of the response."""

    peer: str = "127.0.0.1"
    path: str = "/"
    headers: tuple[tuple[str, str], ...] = ()
    response: tuple[tuple[str, str], ...] = ()
    status: int = 200


@dataclass(frozen=True)
class StateChange:
    """A step that is no request: the operator changes the state of a server."""

    server: str
    state: Literal["ready", "drain", "maint"]


Step = Request | StateChange


@dataclass(frozen=True)
class Outcome:
    """The server of each response (None: the balancer itself), and the entries of the table after the last."""

    servers: list[str | None]
    entries: dict[str, str]


@dataclass(frozen=True)
class Row:
    id: str
    parse_table: str  #: what follows `stick-table`
    rules: tuple[str, ...]  #: what follows `stick`
    steps: tuple[Step, ...]
    count: int = 3  #: servers
    refusing: tuple[str, ...] = ()  #: those that refuse connections
    non_stick: tuple[str, ...] = ()
    cookie: str = ""  #: what follows `cookie`
    balance: str = "roundrobin"
    #: the order of equal servers may differ: they are numbered as they are chosen
    any_order: bool = False
    #: HAProxy may purge even the newest entry: only the number of entries counts, and that ours keeps the newest
    any_victim: bool = False
    why: str = ""  #: the reason of a difference
    ours: Outcome | None = None

    @property
    def names(self) -> list[str]:
        return [f"s{number}" for number in range(1, self.count + 1)]


def request(*headers: str, peer: str = "127.0.0.1", path: str = "/") -> Request:
    """Return a request with these headers."""
    return Request(peer, path, pairs(headers))


def responding(*response: str, status: int = 200, headers: tuple[str, ...] = ()) -> Request:
    """Return a request to which its server responds with these headers."""
    return Request(headers=pairs(headers), response=pairs(response), status=status)


def pairs(lines: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    split = (line.partition(": ") for line in lines)
    return tuple((name, value) for name, _, value in split)


def peers(*addresses: str) -> tuple[Request, ...]:
    """Return a request from each address."""
    return tuple(request(peer=each) for each in addresses)


def with_x(*values: str) -> tuple[Request, ...]:
    """Return a request with each value of the header X."""
    return tuple(request(f"X: {value}") for value in values)


# -- the servers


class RespondingServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, name: str) -> None:
        super().__init__((HOST, 0), RequestHandler)
        self.name = name

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class RequestHandler(socketserver.StreamRequestHandler):
    """Responds as the request says, with a header that names the server."""

    server: RespondingServer

    def handle(self) -> None:
        lines = list(iter(self.rfile.readline, b"\r\n"))
        if not lines or not lines[0]:
            return
        fields = (line.decode("latin-1").rstrip("\r\n").partition(":") for line in lines[1:])
        response = json.loads({name.lower(): value for name, _, value in fields}["x-response"])
        head = [f"HTTP/1.1 {response['status']} Reason", "Connection: close", "Content-Length: 0"]
        head += [f"X-Server: {self.server.name}", *(f"{name}: {value}" for name, value in response["headers"])]
        self.wfile.write("".join(f"{line}\r\n" for line in (*head, "")).encode("latin-1"))


def headers_of(request: Request) -> list[tuple[str, str]]:
    """The headers of a request."""
    response = json.dumps({"status": request.status, "headers": request.response})
    return [("Host", "shop.example"), ("X-Response", response), *request.headers]


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """The ports of the servers, and one that refuses connections."""
    listeners = [RespondingServer(f"s{number}") for number in range(1, 5)]
    threads = [threading.Thread(target=each.serve_forever, args=(0.01,), daemon=True) for each in listeners]
    for thread in threads:
        thread.start()
    with closing(socket.socket()) as refusing:
        refusing.bind((HOST, 0))  # and does not listen
        yield {each.name: each.port for each in listeners} | {"refusing": refusing.getsockname()[1]}
    for each in listeners:
        each.shutdown()
        each.server_close()


# -- HAProxy


def haproxy_config(rows: list[Row], ports: dict[str, int], admin: Path) -> str:
    lines = [
        "global",
        "  nbthread 1",
        f"  stats socket {admin} mode 600 level admin",
        "defaults",
        "  mode http",
        *(f"  timeout {what} 10s" for what in ("client", "server", "queue", "connect")),
        "  option redispatch 1",
        "frontend f",
        "  bind fd@${LISTENER}",
        "  use_backend b%[req.hdr(x-row)]",
    ]
    for number, row in enumerate(rows):
        lines += [f"backend b{number}", f"  balance {row.balance}", f"  stick-table {row.parse_table}"]
        lines += [f"  stick {parse_rule}" for parse_rule in row.rules]
        lines += [f"  cookie {row.cookie}"] * bool(row.cookie)
        for name in row.names:
            port = ports["refusing" if name in row.refusing else name]
            words = [f"  server {name} {HOST}:{port}"]
            words += [f"cookie {name}"] * bool(row.cookie) + ["non-stick"] * (name in row.non_stick)
            lines.append(" ".join(words))
    return "\n".join((*lines, ""))


class HAProxy:
    """A running HAProxy."""

    def __init__(self, port: int, admin: Path) -> None:
        self._port = port
        self._admin = admin
        self._outcomes: dict[int, Outcome] = {}
        assert self._server_for(Request(), "none")  # with the first response its admin socket is there as well

    def outcome(self, number: int, row: Row) -> Outcome:
        """Return the outcome of a row. It runs once, as it changes its backend; the outcome is kept."""
        if number not in self._outcomes:
            servers: list[str | None] = []
            for step in row.steps:
                if isinstance(step, Request):
                    servers.append(self._server_for(step, str(number)))
                else:
                    assert self._command(f"set server b{number}/{step.server} state {step.state}") == ""
            self._outcomes[number] = Outcome(servers, self._table(f"b{number}"))
        return self._outcomes[number]

    def _server_for(self, request: Request, row: str) -> str | None:
        lines = [
            f"GET {request.path} HTTP/1.1",
            f"X-Row: {row}",
            *(f"{name}: {value}" for name, value in headers_of(request)),
        ]
        raw = "".join(f"{line}\r\n" for line in (*lines, "Connection: close", "")).encode("latin-1")
        with socket.create_connection((HOST, self._port), DEADLINE, (request.peer, 0)) as connection:
            connection.sendall(raw)
            response = b"".join(iter(lambda: connection.recv(65536), b"")).decode("latin-1")
        found = re.search(r"(?im)^x-server: (\S+)", response)
        return found[1] if found else None if row != "none" else response

    def _command(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(DEADLINE)
            connection.connect(str(self._admin))
            connection.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode("latin-1").strip()

    def _table(self, name: str) -> dict[str, str]:
        lines = self._command(f"show table {name}").splitlines()[1:]
        found = (re.search(r"key=(.*?) use=\d+ .*server_key=(\S+)", line) for line in lines if line)
        return {match[1]: match[2] for match in found if match is not None}


@pytest.fixture(scope="module")
def witness(part: Callable[[str], str], ports: dict[str, int]) -> Iterator[HAProxy]:
    program = part("haproxy")
    with tempfile.TemporaryDirectory() as folder, socket.create_server((HOST, 0), backlog=64) as http_socket:
        config, admin, log = (Path(folder, name) for name in ("haproxy.cfg", "admin", "log"))
        config.write_text(haproxy_config(ROWS, ports, admin))
        http_socket.set_inheritable(True)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [program, "-db", "-f", str(config)],
                env={"LISTENER": str(http_socket.fileno())},
                pass_fds=[http_socket.fileno()],
                stdout=output,
                stderr=output,
            )
        try:
            deadline = time.monotonic() + DEADLINE
            while not admin.exists():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.01)
            yield HAProxy(http_socket.getsockname()[1], admin)
        finally:
            process.kill()
            process.wait()


# -- the faces


def parse_table(text: str) -> sticky_asgi.StickTable:
    """Return the StickTable for HAProxy's words, such as `type string len 4 size 10 expire 30m nopurge`."""
    words = text.split()
    after = dict(pairwise(words))
    return sticky_asgi.StickTable(
        cast("KeyType", after["type"]),
        length=int(after.get("len", 32)),
        size=after["size"],
        expire=after.get("expire"),
        nopurge="nopurge" in words,
        srvkey="addr" if after.get("srvkey") == "addr" else "name",
    )


def parse_rule(text: str, keys: sticky_asgi.StickTable) -> sticky_asgi.Stick:
    action, _, sample = text.partition(" ")
    made: Any = {
        "on": sticky_asgi.Stick.on,
        "match": sticky_asgi.Stick.match,
        "store-request": sticky_asgi.Stick.store_request,
        "store-response": sticky_asgi.Stick.store_response,
    }[action]
    stick: sticky_asgi.Stick = made(sample, keys)
    return stick


def build_backend(row: Row, face: Any, ports: dict[str, int]) -> tuple[Any, sticky_asgi.StickTable]:
    keys = parse_table(row.parse_table)
    servers = [
        face.Server(
            name,
            f"http://{HOST}:{ports['refusing' if name in row.refusing else name]}",
            non_stick=name in row.non_stick,
            cookie=name if row.cookie else None,
        )
        for name in row.names
    ]
    persist: list[Any] = [parse_rule(each, keys) for each in row.rules]
    if row.cookie:
        name, _, options = row.cookie.partition(" ")
        persist.insert(
            0,
            face.Cookie(
                name, signed=False, indirect="indirect" in options, nocache=False, httponly=False, samesite=None
            ),
        )
    balance: Any = face.RoundRobin(start=0) if row.balance == "roundrobin" else row.balance
    return face.Backend("shop", servers, balance=balance, persist=persist), keys


def entries_of(keys: sticky_asgi.StickTable) -> dict[str, str]:
    return {entry.key: entry.server for entry in keys}


def run_asgi(row: Row, ports: dict[str, int]) -> Outcome:
    backend, keys = build_backend(row, sticky_asgi, ports)
    dispatcher = sticky_asgi.Dispatcher(backend)

    async def send_request(step: Request) -> str | None:
        path, _, query = step.path.partition("?")
        messages: list[Any] = []
        is_complete = asyncio.Event()
        incoming = iter([{"type": "http.request", "body": b"", "more_body": False}])

        async def receive() -> Any:
            for message in incoming:
                return message
            await is_complete.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            messages.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                is_complete.set()

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.strip().encode("latin-1")) for name, value in headers_of(step)],
            "client": (step.peer, 50000),
        }
        await dispatcher(scope, receive, send)
        found = dict(messages[0]["headers"]).get(b"x-server")
        return found.decode() if found is not None else None

    return run_steps(row, backend, keys, lambda step: asyncio.run(send_request(step)))


def run_wsgi(row: Row, ports: dict[str, int]) -> Outcome:
    backend, keys = build_backend(row, sticky_wsgi, ports)
    dispatcher = sticky_wsgi.Dispatcher(backend)

    def send_request(step: Request) -> str | None:
        path, _, query = step.path.partition("?")
        environ = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "RAW_URI": step.path,
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": step.peer,
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
        }
        for name, value in headers_of(step):
            key = f"HTTP_{name.upper().replace('-', '_')}"
            environ[key] = f"{environ[key]},{value.strip()}" if key in environ else value.strip()
        messages: list[Any] = []

        def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
            messages.append({name.lower(): value for name, value in headers}.get("x-server"))
            return lambda _: None

        body: Any = dispatcher(environ, start_response)
        list(body)
        if hasattr(body, "close"):
            body.close()
        (server,) = messages
        return None if server is None else str(server)

    return run_steps(row, backend, keys, send_request)


def run_steps(
    row: Row, backend: Any, keys: sticky_asgi.StickTable, send_request: Callable[[Request], str | None]
) -> Outcome:
    servers: list[str | None] = []
    for step in row.steps:
        if isinstance(step, Request):
            servers.append(send_request(step))
        else:
            backend[step.server].state = AdminState(step.state)
    return Outcome(servers, entries_of(keys))


FACES = {"asgi": run_asgi, "wsgi": run_wsgi}


# -- rows

STRING = "type string len 32 size 100 expire 30m"
A, B, C = "127.0.0.1", "127.0.0.2", "127.0.1.1"


def row_of_keys(id: str, kind: str, *values: str, rules: tuple[str, ...] = ("on req.hdr(x)",), **more: Any) -> Row:
    """Return a row with values of a header as keys."""
    return Row(id, kind, rules, with_x(*values), **more)


ROWS = [
    Row("stick on src", "type ip size 1m expire 30m", ("on src",), peers(A, B, C, B, A, C)),
    Row("stick on src, IPv6 table", "type ipv6 size 1m expire 30m", ("on src",), peers(A, B, A)),
    Row("stick on src, text table", STRING, ("on src",), peers(A, B, A)),
    Row("stick on src, masked", "type ip size 1m expire 30m", ("on src,ipmask(24)",), peers(A, B, C, B, C, A)),
    Row("the guide: stick match src, store-request src", "type ip size 1m", ("match src", "store-request src"),
        peers(A, B, C, C, B, A)),
    Row("the guide: leastconn, stick on src", "type ip size 1m expire 30m", ("on src",), peers(A, B, A, B, A, B, C, C),
        balance="leastconn", any_order=True),
    Row("store-response and match of a cookie", STRING, ("match req.cook(X)", "store-response res.cook(X)"), (
        responding("Set-Cookie: X=abc; path=/"), responding("Set-Cookie: X=def"), request("Cookie: a=1; X=abc"),
        request("Cookie: X=def"),
        request("Cookie: X=other"), request("Cookie: X=abc"),
    )),
    Row("of two cookies of one name the last", STRING, ("match req.cook(X)", "store-response res.cook(X)"), (
        responding("Set-Cookie: X=y1", "Set-Cookie: X=y2"), request("Cookie: X=y2"), request("Cookie: X=y1"),
    )),
    Row("responses of any status are learned from", STRING, ("store-response res.cook(X)",), (
        responding("Set-Cookie: X=a", status=404), responding("Set-Cookie: X=b", status=500),
        responding("Set-Cookie: X=c", status=302),
    )),
    Row("store-response of a header", STRING, ("match req.hdr(mcp-id)", "store-response res.hdr(mcp-id)"), (
        responding("Mcp-Id: abc"), request("Mcp-Id: abc"), request("Mcp-Id: abc"), request(),
    )),
    Row("stick on url_param", STRING, ("on url_param(u)",), (
        request(path="/?u=ann"), request(path="/x?a=1&u=bob"), request(path="/?u=ann&u=bob"), request(path="/?u=bob"),
        request(path="/"), request(path="/?uu=ann"), request(path="/?u=a%6en"),
    )),
    Row("stick on path", STRING, ("on path",), (request(path="/a?1"), request(path="/b"), request(path="/a?2"))),
    Row("stick on a segment of the path", STRING, ("on path,field(2,/)",), (
        request(path="/a/1"), request(path="/b/1"), request(path="/a/2"),
    )),
    row_of_keys("stick on hdr", STRING, "ann", "bob", "ann", "Ann", "bob"),
    row_of_keys("hdr takes the last value", STRING, "q1,q2", "q2", "q1"),
    row_of_keys("hdr, lower", STRING, "Ann", "aNN", "bob", rules=("on req.hdr(x),lower",)),
    Row("a missing key", STRING, ("on req.hdr(x)",), (request(), request(), request())),
    row_of_keys("an empty key", STRING, "", "", "",
          why="all clients without the value would share a server", ours=Outcome(["s1", "s2", "s3"], {})),
    # which rule
    Row("two rules, one table: the first with a key stores", STRING, ("on req.hdr(a)", "on req.hdr(b)"), (
        request("A: 1", "B: 2"), request("B: 2"), request("A: 1"), request("A: 3", "B: 2"), request("A: 3"),
    )),
    Row("the first match wins", STRING, ("match req.hdr(a)", "match req.hdr(b)", "store-request req.hdr(c)"), (
        request("C: 1"), request("C: 2"), request("A: 1", "B: 2"), request("A: 2", "B: 1"), request("B: 2"),
        request("A: 9", "B: 2"),
    )),
    # servers that are not usable
    Row("put into maintenance and back", STRING, ("on req.hdr(x)",), (
        *with_x("a", "b", "a"), StateChange("s1", "maint"), *with_x("a"), StateChange("s1", "ready"), *with_x("a", "b"),
    )),
    Row("drained: it keeps its clients", STRING, ("on req.hdr(x)",), (
        *with_x("a"), StateChange("s1", "drain"), *with_x("a", "new", "a"),
    )),
    Row("refused, redispatched, moved for good", STRING, ("on req.hdr(x)",), with_x("a", "a", "b", "b"),
        refusing=("s1",)),
    Row("no server responds: nothing is stored", STRING, ("on req.hdr(x)",), with_x("a"), count=1, refusing=("s1",)),
    Row("no server is usable", STRING, ("on req.hdr(x)",), (StateChange("s1", "maint"), *with_x("a")), count=1),
    Row("a non-stick server", STRING, ("on req.hdr(x)",), with_x("a", "a", "a", "b", "c"), count=2, non_stick=("s1",)),
    Row("srvkey addr", f"{STRING} srvkey addr", ("on req.hdr(x)",), with_x("a", "b", "a", "b")),
    # beside a cookie
    Row("a cookie replaces the entry in the table", STRING, ("on req.hdr(x)",), (
        *with_x("a"), request("X: a", "Cookie: SRV=s3"), *with_x("a"),
    ), cookie="SRV insert indirect"),
    # what becomes a key
    row_of_keys("string: cut to its length", "type string len 4 size 100", "abcd", "abcdzzz", "abc", "abcdef"),
    row_of_keys("binary: cut and filled up", "type binary len 4 size 100", "abcdef", "abcdzz", "ab"),
    *(
        row_of_keys(f"integer: {value}", "type integer size 100", value)
        for value in ("12", "012", "12abc", "abc", "0x10", "-1", "+5", "-", "1.5", "4294967295", "4294967296", "9" * 12)
    ),
    *(
        row_of_keys(f"ip: {value}", "type ip size 100", value)
        for value in ("10.0.0.1", "10.0.0.1:80", "2001:db8::1", "nobody", "10.0.0", "10.0.0.256", "::1")
    ),
    row_of_keys("ip: ::ffff:10.0.0.1", "type ip size 100", "::ffff:10.0.0.1",
          why="as HAProxy 3.5 has it; 2.8 looks for no IPv4 address in such a text",
          ours=Outcome(["s1"], {"10.0.0.1": "s1"})),
    *(row_of_keys(f"ipv6: {value}", "type ipv6 size 100", value) for value in ("2001:db8::1", "nobody", "::")),
    row_of_keys("ipv6: 10.0.0.1", "type ipv6 size 100", "10.0.0.1",
          why="as HAProxy 3.5 has it; 2.8 does not accept a text that is an IPv4 address",
          ours=Outcome(["s1"], {str(ip_address("::ffff:10.0.0.1")): "s1"})),
    # when it is full
    row_of_keys("full: an entry is purged", "type string size 3 expire 30m", "a", "b", "c", "d", "e", "e",
                any_victim=True),
    row_of_keys("full, and no entry is purged", "type string size 1 nopurge", "a", "b", "b", "a", "b"),
]  # fmt: skip


def normalised(row: Row, outcome: Outcome) -> Outcome:
    """Return the outcome with addresses as Python writes them, and servers numbered as they are chosen."""
    numbers: dict[str, str] = {}
    if row.any_order:
        for server in outcome.servers:
            if server is not None:
                numbers.setdefault(server, f"the {len(numbers) + 1}.")
    servers = [numbers.get(server, server) if server is not None else None for server in outcome.servers]
    kind = row.parse_table.split()[1]
    entries = {
        str(ip_address(key)) if kind.startswith("ip") else key.lower() if kind == "binary" else key: numbers.get(to, to)
        for key, to in outcome.entries.items()
    }
    return Outcome(servers, entries)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("number", range(len(ROWS)), ids=[row.id for row in ROWS])
def test_haproxy_does_the_same(witness: HAProxy, ports: dict[str, int], number: int, face: str):
    row = ROWS[number]
    theirs, ours = witness.outcome(number, row), FACES[face](row, ports)
    if row.any_victim:
        assert 1 < len(theirs.entries) <= len(ours.entries) == 3
        assert ours.servers[-1] == ours.servers[-2]
    elif row.why:
        assert row.ours is not None
        assert normalised(row, ours) == row.ours
        assert normalised(row, theirs) != row.ours, "HAProxy does not differ"
    else:
        assert normalised(row, ours) == normalised(row, theirs)
