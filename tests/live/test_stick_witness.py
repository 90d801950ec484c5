"""HAProxy itself as a witness of stick rules. It gets the same requests as both of our faces, in front of the same
servers; the servers that respond must be the same, and the entries of the tables afterwards.

A row is a backend's stick table and rules, in HAProxy's words, and some requests to it in order. Where we differ on
purpose, the row says why and what is ours, and the witness must contradict. HAProxy 2.6 and later will do.
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


# -- the parts of a row


@dataclass(frozen=True)
class Ask:
    """A request, the address it comes from, and the headers of the server's response."""

    peer: str = "127.0.0.1"
    path: str = "/"
    headers: tuple[tuple[str, str], ...] = ()
    answer: tuple[tuple[str, str], ...] = ()
    status: int = 200


@dataclass(frozen=True)
class Pull:
    """A change between requests: the operator sets the state of a server."""

    server: str
    state: Literal["ready", "drain", "maint"]


Step = Ask | Pull


@dataclass(frozen=True)
class Outcome:
    """The server that responded to each request (None: an error page), and the entries of the table afterwards."""

    servers: list[str | None]
    entries: dict[str, str]


@dataclass(frozen=True)
class Row:
    id: str
    table: str  #: what follows `stick-table`
    rules: tuple[str, ...]  #: what follows `stick`
    steps: tuple[Step, ...]
    count: int = 3  #: servers
    refusing: tuple[str, ...] = ()  #: servers that refuse connections
    non_stick: tuple[str, ...] = ()
    cookie: str = ""  #: what follows `cookie`
    balance: str = "roundrobin"
    #: the order of equal servers is arbitrary: they are named by their turn
    alike: bool = False
    #: HAProxy evicts approximately the oldest, even a new entry: compared is that there is space, and ours stays
    nearly: bool = False
    why: str = ""  #: why our result differs
    ours: Outcome | None = None

    @property
    def names(self) -> list[str]:
        return [f"s{number}" for number in range(1, self.count + 1)]


def sent(*headers: str, peer: str = "127.0.0.1", path: str = "/") -> Ask:
    return Ask(peer, path, pairs(headers))


def told(*answer: str, status: int = 200, headers: tuple[str, ...] = ()) -> Ask:
    """Return a request to which its server responds with these headers."""
    return Ask(headers=pairs(headers), answer=pairs(answer), status=status)


def pairs(lines: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    split = (line.partition(": ") for line in lines)
    return tuple((name, value) for name, _, value in split)


def peers(*addresses: str) -> tuple[Ask, ...]:
    return tuple(sent(peer=each) for each in addresses)


def x(*values: str) -> tuple[Ask, ...]:
    return tuple(sent(f"X: {value}") for value in values)


# -- the servers


class Listener(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, name: str) -> None:
        super().__init__((HOST, 0), Turn)
        self.name = name

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class Turn(socketserver.StreamRequestHandler):
    """Responds as the request asks, with its name in a header."""

    server: Listener

    def handle(self) -> None:
        lines = list(iter(self.rfile.readline, b"\r\n"))
        if not lines or not lines[0]:
            return
        fields = (line.decode("latin-1").rstrip("\r\n").partition(":") for line in lines[1:])
        order = json.loads({name.lower(): value for name, _, value in fields}["x-told"])
        head = [f"HTTP/1.1 {order['status']} So be it", "Connection: close", "Content-Length: 0"]
        head += [f"X-Server: {self.server.name}", *(f"{name}: {value}" for name, value in order["headers"])]
        self.wfile.write("".join(f"{line}\r\n" for line in (*head, "")).encode("latin-1"))


def order(ask: Ask) -> list[tuple[str, str]]:
    """Read the headers of a request."""
    answer = json.dumps({"status": ask.status, "headers": ask.answer})
    return [("Host", "shop.example"), ("X-Told", answer), *ask.headers]


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """Start the servers; return their ports, and one where connections are refused."""
    listeners = [Listener(f"s{number}") for number in range(1, 5)]
    threads = [threading.Thread(target=each.serve_forever, args=(0.01,), daemon=True) for each in listeners]
    for thread in threads:
        thread.start()
    with closing(socket.socket()) as closed_socket:
        closed_socket.bind((HOST, 0))  # bound without listening
        yield {each.name: each.port for each in listeners} | {"refusing": closed_socket.getsockname()[1]}
    for each in listeners:
        each.shutdown()
        each.server_close()


# -- the witness


def configured(rows: list[Row], ports: dict[str, int], admin: Path) -> str:
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
        lines += [f"backend b{number}", f"  balance {row.balance}", f"  stick-table {row.table}"]
        lines += [f"  stick {rule}" for rule in row.rules]
        lines += [f"  cookie {row.cookie}"] * bool(row.cookie)
        for name in row.names:
            port = ports["refusing" if name in row.refusing else name]
            words = [f"  server {name} {HOST}:{port}"]
            words += [f"cookie {name}"] * bool(row.cookie) + ["non-stick"] * (name in row.non_stick)
            lines.append(" ".join(words))
    return "\n".join((*lines, ""))


class Witness:
    """A running HAProxy."""

    def __init__(self, port: int, admin: Path) -> None:
        self._port = port
        self._admin = admin
        self._said: dict[int, Outcome] = {}
        assert self._asked(Ask(), "none")  # after the first response its admin socket exists

    def testify(self, number: int, row: Row) -> Outcome:
        """Return the outcome of a row; each is run once, and its outcome is stored."""
        if number not in self._said:
            servers: list[str | None] = []
            for step in row.steps:
                if isinstance(step, Ask):
                    servers.append(self._asked(step, str(number)))
                else:
                    assert self._command(f"set server b{number}/{step.server} state {step.state}") == ""
            self._said[number] = Outcome(servers, self._table(f"b{number}"))
        return self._said[number]

    def _asked(self, ask: Ask, row: str) -> str | None:
        lines = [f"GET {ask.path} HTTP/1.1", f"X-Row: {row}", *(f"{name}: {value}" for name, value in order(ask))]
        raw = "".join(f"{line}\r\n" for line in (*lines, "Connection: close", "")).encode("latin-1")
        with socket.create_connection((HOST, self._port), DEADLINE, (ask.peer, 0)) as connection:
            connection.sendall(raw)
            answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode("latin-1")
        found = re.search(r"(?im)^x-server: (\S+)", answer)
        return found[1] if found else None if row != "none" else answer

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
def witness(part: Callable[[str], str], ports: dict[str, int]) -> Iterator[Witness]:
    program = part("haproxy")
    with tempfile.TemporaryDirectory() as folder, socket.create_server((HOST, 0), backlog=64) as entrance:
        config, admin, said = (Path(folder, name) for name in ("haproxy.cfg", "admin", "said"))
        config.write_text(configured(ROWS, ports, admin))
        entrance.set_inheritable(True)
        with said.open("wb") as output:
            process = subprocess.Popen(
                [program, "-db", "-f", str(config)],
                env={"LISTENER": str(entrance.fileno())},
                pass_fds=[entrance.fileno()],
                stdout=output,
                stderr=output,
            )
        try:
            deadline = time.monotonic() + DEADLINE
            while not admin.exists():
                assert process.poll() is None, said.read_text()
                assert time.monotonic() < deadline, said.read_text()
                time.sleep(0.01)
            yield Witness(entrance.getsockname()[1], admin)
        finally:
            process.kill()
            process.wait()


# -- our faces


def table(text: str) -> sticky_asgi.StickTable:
    """`type string len 4 size 10 expire 30m nopurge` as a table of ours."""
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


def rule(text: str, keys: sticky_asgi.StickTable) -> sticky_asgi.Stick:
    does, _, word = text.partition(" ")
    made: Any = {
        "on": sticky_asgi.Stick.on,
        "match": sticky_asgi.Stick.match,
        "store-request": sticky_asgi.Stick.store_request,
        "store-response": sticky_asgi.Stick.store_response,
    }[does]
    stick: sticky_asgi.Stick = made(word, keys)
    return stick


def in_our_words(row: Row, face: Any, ports: dict[str, int]) -> tuple[Any, sticky_asgi.StickTable]:
    keys = table(row.table)
    servers = [
        face.Server(
            name,
            f"http://{HOST}:{ports['refusing' if name in row.refusing else name]}",
            non_stick=name in row.non_stick,
            cookie=name if row.cookie else None,
        )
        for name in row.names
    ]
    persist: list[Any] = [rule(each, keys) for each in row.rules]
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


def shown(keys: sticky_asgi.StickTable) -> dict[str, str]:
    return {entry.key: entry.server for entry in keys}


def asgi(row: Row, ports: dict[str, int]) -> Outcome:
    backend, keys = in_our_words(row, sticky_asgi, ports)
    dispatcher = sticky_asgi.Dispatcher(backend)

    async def ask(step: Ask) -> str | None:
        path, _, query = step.path.partition("?")
        got: list[Any] = []
        over = asyncio.Event()
        coming = iter([{"type": "http.request", "body": b"", "more_body": False}])

        async def receive() -> Any:
            for message in coming:
                return message
            await over.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            got.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                over.set()

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
            "headers": [(name.lower().encode(), value.strip().encode("latin-1")) for name, value in order(step)],
            "client": (step.peer, 50000),
        }
        await dispatcher(scope, receive, send)
        found = dict(got[0]["headers"]).get(b"x-server")
        return found.decode() if found is not None else None

    return followed(row, backend, keys, lambda step: asyncio.run(ask(step)))


def wsgi(row: Row, ports: dict[str, int]) -> Outcome:
    backend, keys = in_our_words(row, sticky_wsgi, ports)
    dispatcher = sticky_wsgi.Dispatcher(backend)

    def ask(step: Ask) -> str | None:
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
        for name, value in order(step):
            key = f"HTTP_{name.upper().replace('-', '_')}"
            environ[key] = f"{environ[key]},{value.strip()}" if key in environ else value.strip()
        got: list[Any] = []

        def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
            got.append({name.lower(): value for name, value in headers}.get("x-server"))
            return lambda _: None

        body: Any = dispatcher(environ, start_response)
        list(body)
        if hasattr(body, "close"):
            body.close()
        (one,) = got
        return None if one is None else str(one)

    return followed(row, backend, keys, ask)


def followed(row: Row, backend: Any, keys: sticky_asgi.StickTable, ask: Callable[[Ask], str | None]) -> Outcome:
    servers: list[str | None] = []
    for step in row.steps:
        if isinstance(step, Ask):
            servers.append(ask(step))
        else:
            backend[step.server].state = AdminState(step.state)
    return Outcome(servers, shown(keys))


FACES = {"asgi": asgi, "wsgi": wsgi}


# -- the table

STRING = "type string len 32 size 100 expire 30m"
A, B, C = "127.0.0.1", "127.0.0.2", "127.0.1.1"


def keyed(id: str, kind: str, *values: str, rules: tuple[str, ...] = ("on req.hdr(x)",), **more: Any) -> Row:
    """Return a row with these values of a header as keys."""
    return Row(id, kind, rules, x(*values), **more)


ROWS = [
    Row("stick on src", "type ip size 1m expire 30m", ("on src",), peers(A, B, C, B, A, C)),
    Row("stick on src, IPv6 table", "type ipv6 size 1m expire 30m", ("on src",), peers(A, B, A)),
    Row("stick on src, text table", STRING, ("on src",), peers(A, B, A)),
    Row("stick on src, masked", "type ip size 1m expire 30m", ("on src,ipmask(24)",), peers(A, B, C, B, C, A)),
    Row("the guide: stick match src, store-request src", "type ip size 1m", ("match src", "store-request src"),
        peers(A, B, C, C, B, A)),
    Row("the guide: leastconn, stick on src", "type ip size 1m expire 30m", ("on src",), peers(A, B, A, B, A, B, C, C),
        balance="leastconn", alike=True),
    Row("store-response and match of a cookie", STRING, ("match req.cook(X)", "store-response res.cook(X)"), (
        told("Set-Cookie: X=abc; path=/"), told("Set-Cookie: X=def"), sent("Cookie: a=1; X=abc"), sent("Cookie: X=def"),
        sent("Cookie: X=other"), sent("Cookie: X=abc"),
    )),
    Row("of two cookies of one name the last", STRING, ("match req.cook(X)", "store-response res.cook(X)"), (
        told("Set-Cookie: X=y1", "Set-Cookie: X=y2"), sent("Cookie: X=y2"), sent("Cookie: X=y1"),
    )),
    Row("any status is learned from", STRING, ("store-response res.cook(X)",), (
        told("Set-Cookie: X=a", status=404), told("Set-Cookie: X=b", status=500), told("Set-Cookie: X=c", status=302),
    )),
    Row("store-response of a header", STRING, ("match req.hdr(mcp-id)", "store-response res.hdr(mcp-id)"), (
        told("Mcp-Id: abc"), sent("Mcp-Id: abc"), sent("Mcp-Id: abc"), sent(),
    )),
    Row("stick on url_param", STRING, ("on url_param(u)",), (
        sent(path="/?u=ann"), sent(path="/x?a=1&u=bob"), sent(path="/?u=ann&u=bob"), sent(path="/?u=bob"),
        sent(path="/"), sent(path="/?uu=ann"), sent(path="/?u=a%6en"),
    )),
    Row("stick on path", STRING, ("on path",), (sent(path="/a?1"), sent(path="/b"), sent(path="/a?2"))),
    Row("stick on a segment of the path", STRING, ("on path,field(2,/)",), (
        sent(path="/a/1"), sent(path="/b/1"), sent(path="/a/2"),
    )),
    keyed("stick on hdr", STRING, "ann", "bob", "ann", "Ann", "bob"),
    keyed("hdr takes the last value", STRING, "q1,q2", "q2", "q1"),
    keyed("hdr, lower", STRING, "Ann", "aNN", "bob", rules=("on req.hdr(x),lower",)),
    Row("a key that is not there", STRING, ("on req.hdr(x)",), (sent(), sent(), sent())),
    keyed("an empty key", STRING, "", "", "",
          why="all who lack the value would share a server", ours=Outcome(["s1", "s2", "s3"], {})),
    # which rule
    Row("two rules, one table: the first with a key stores", STRING, ("on req.hdr(a)", "on req.hdr(b)"), (
        sent("A: 1", "B: 2"), sent("B: 2"), sent("A: 1"), sent("A: 3", "B: 2"), sent("A: 3"),
    )),
    Row("the first match wins", STRING, ("match req.hdr(a)", "match req.hdr(b)", "store-request req.hdr(c)"), (
        sent("C: 1"), sent("C: 2"), sent("A: 1", "B: 2"), sent("A: 2", "B: 1"), sent("B: 2"), sent("A: 9", "B: 2"),
    )),
    # servers that are not there
    Row("put into maintenance and back", STRING, ("on req.hdr(x)",), (
        *x("a", "b", "a"), Pull("s1", "maint"), *x("a"), Pull("s1", "ready"), *x("a", "b"),
    )),
    Row("drained: it keeps its own", STRING, ("on req.hdr(x)",), (*x("a"), Pull("s1", "drain"), *x("a", "new", "a"))),
    Row("refused, redispatched, moved for good", STRING, ("on req.hdr(x)",), x("a", "a", "b", "b"), refusing=("s1",)),
    Row("no server responds: nothing is stored", STRING, ("on req.hdr(x)",), x("a"), count=1, refusing=("s1",)),
    Row("no server is there", STRING, ("on req.hdr(x)",), (Pull("s1", "maint"), *x("a")), count=1),
    Row("a non-stick server", STRING, ("on req.hdr(x)",), x("a", "a", "a", "b", "c"), count=2, non_stick=("s1",)),
    Row("srvkey addr", f"{STRING} srvkey addr", ("on req.hdr(x)",), x("a", "b", "a", "b")),
    # beside a cookie
    Row("a cookie writes over the table", STRING, ("on req.hdr(x)",), (
        *x("a"), sent("X: a", "Cookie: SRV=s3"), *x("a"),
    ), cookie="SRV insert indirect"),
    # what becomes a key
    keyed("string: cut to its length", "type string len 4 size 100", "abcd", "abcdzzz", "abc", "abcdef"),
    keyed("binary: cut and filled up", "type binary len 4 size 100", "abcdef", "abcdzz", "ab"),
    *(
        keyed(f"integer: {value}", "type integer size 100", value)
        for value in ("12", "012", "12abc", "abc", "0x10", "-1", "+5", "-", "1.5", "4294967295", "4294967296", "9" * 12)
    ),
    *(
        keyed(f"ip: {value}", "type ip size 100", value)
        for value in ("10.0.0.1", "10.0.0.1:80", "2001:db8::1", "nobody", "10.0.0", "10.0.0.256", "::1")
    ),
    keyed("ip: ::ffff:10.0.0.1", "type ip size 100", "::ffff:10.0.0.1",
          why="as HAProxy 3.5 has it; 2.8 looks for no IPv4 address in such a text",
          ours=Outcome(["s1"], {"10.0.0.1": "s1"})),
    *(keyed(f"ipv6: {value}", "type ipv6 size 100", value) for value in ("2001:db8::1", "nobody", "::")),
    keyed("ipv6: 10.0.0.1", "type ipv6 size 100", "10.0.0.1",
          why="as HAProxy 3.5 has it; 2.8 takes no text that names an IPv4 address",
          ours=Outcome(["s1"], {str(ip_address("::ffff:10.0.0.1")): "s1"})),
    # when it is full
    keyed("full: an entry is evicted", "type string size 3 expire 30m", "a", "b", "c", "d", "e", "e", nearly=True),
    keyed("full, and no entry is evicted", "type string size 1 nopurge", "a", "b", "b", "a", "b"),
]  # fmt: skip


def likened(row: Row, outcome: Outcome) -> Outcome:
    """Write addresses as Python does, and name equal servers by their turn."""
    turns: dict[str, str] = {}
    if row.alike:
        for server in outcome.servers:
            if server is not None:
                turns.setdefault(server, f"the {len(turns) + 1}.")
    servers = [turns.get(server, server) if server is not None else None for server in outcome.servers]
    kind = row.table.split()[1]
    entries = {
        str(ip_address(key)) if kind.startswith("ip") else key.lower() if kind == "binary" else key: turns.get(to, to)
        for key, to in outcome.entries.items()
    }
    return Outcome(servers, entries)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("number", range(len(ROWS)), ids=[row.id for row in ROWS])
def test_haproxy_does_the_same(witness: Witness, ports: dict[str, int], number: int, face: str):
    row = ROWS[number]
    theirs, ours = witness.testify(number, row), FACES[face](row, ports)
    if row.nearly:
        assert 1 < len(theirs.entries) <= len(ours.entries) == 3
        assert ours.servers[-1] == ours.servers[-2]
    elif row.why:
        assert row.ours is not None
        assert likened(row, ours) == row.ours
        assert likened(row, theirs) != row.ours, "the witness does not differ"
    else:
        assert likened(row, ours) == likened(row, theirs)
