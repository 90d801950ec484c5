"""HAProxy itself as a witness. It gets the same bytes as both of our faces, in front of servers that do the
same; what the servers receive and what the client receives must be the same, too.

A row is a backend, and some requests to it in order. Where we differ on purpose, the row says why and what is
ours, and the witness must contradict, or the difference would be none. HAProxy 2.6 and later will do.
"""

import asyncio
import json
import random
import re
import socket
import socketserver
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from http import HTTPStatus
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest

import sticky_asgi
import sticky_wsgi
from sticky_core.errors import Failure, ServerFailure

pytestmark = pytest.mark.live

DEADLINE = 300.0
HOST = "127.0.0.1"

# -- the parts of a row


@dataclass(frozen=True)
class Srv:
    """A server: its name, its cookie if it has one, and its state."""

    name: str
    cookie: str = ""
    weight: int = 1
    backup: bool = False
    state: Literal["ready", "maint", "refusing"] = "ready"


@dataclass(frozen=True)
class Ask:
    """A request, and the response of the application in the server."""

    cookies: tuple[str, ...] = ()
    method: str = "GET"
    status: int = 200
    answer: tuple[tuple[str, str], ...] = ()

    @property
    def told(self) -> str:
        return json.dumps({"status": self.status, "headers": self.answer})


@dataclass(frozen=True)
class Pull:
    """A change between requests: the operator sets the state or the weight of a server."""

    server: str
    state: Literal["ready", "drain", "maint"] | None = None
    weight: int | None = None


@dataclass(frozen=True)
class Seen:
    """One exchange as the server and the client see it."""

    status: int = 200
    server: str | None = None
    cookies: tuple[str, ...] = ()
    set_cookie: tuple[str, ...] = ()
    cache_control: tuple[str, ...] = ()


A_AND_B = (Srv("s1", "A"), Srv("s2", "B"))


@dataclass(frozen=True)
class Row:
    id: str
    #: what follows `cookie SRV` in haproxy.cfg; None: no persistence
    cookie: str | None
    steps: tuple[Ask | Pull, ...]
    servers: tuple[Srv, ...] = A_AND_B
    redispatch: bool = True
    why: str = ""  #: why our result differs
    ours: tuple[Seen, ...] = ()

    @property
    def asks(self) -> list[Ask]:
        return [step for step in self.steps if isinstance(step, Ask)]


def sent(*cookies: str) -> Ask:
    return Ask(cookies)


def app(*headers: str, cookies: tuple[str, ...] = (), status: int = 200, method: str = "GET") -> Ask:
    """Return a request to which the application responds with these headers."""
    split = (header.partition(": ") for header in headers)
    return Ask(cookies, method, status, tuple((name, value) for name, _, value in split))


# -- HAProxy's words in ours

FLAGS = ("indirect", "nocache", "postonly", "preserve", "httponly", "secure")
VALUED = ("domain", "attr", "maxidle", "maxlife")


def cookie(text: str) -> sticky_asgi.Cookie:
    """Return the plain Cookie for options such as `insert indirect maxidle 30m`."""
    words = text.split()
    mode = next((word for word in words if word in ("insert", "rewrite", "prefix")), "passive")
    given: dict[str, Any] = {"mode": mode}
    if mode != "passive":
        given["signed"] = False
    if mode == "insert":
        given |= dict.fromkeys(("indirect", "nocache"), False)
    given |= dict.fromkeys((word for word in words if word in FLAGS), True)
    for word, value in pairwise(words):
        if word in VALUED:
            given[word] = [*given[word], value] if word in given else [value]
    for word in ("maxidle", "maxlife"):
        if word in given:
            (given[word],) = given[word]
    return sticky_asgi.Cookie("SRV", **given)


# -- dates

DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
NOW = int(time.time())
HOUR = 3600
DAY = 24 * HOUR


def date(ago: int) -> str:
    """Return the time `ago` seconds before now, as HAProxy writes it."""
    units = (NOW - ago + 3) >> 2
    return "".join(DIGITS[units >> shift & 63] for shift in (24, 18, 12, 6, 0))


def dateless(text: str) -> str:
    """Replace dates of just now by a placeholder: HAProxy and our code have read the clock at different moments."""

    def told(found: re.Match[str]) -> str:
        units = 0
        for digit in found[1]:
            units = units << 6 | DIGITS.index(digit)
        return "|just now" if -4 <= time.time() - (units << 2) <= 90 else found[0]

    return re.sub(r"\|([A-Za-z0-9+/]{5})(?=[|;]|$)", told, text)


def seen(status: int, headers: list[tuple[str, str]]) -> Seen:
    """Return what the client received, and what the server received, which it sends in a header."""

    def values(name: str) -> tuple[str, ...]:
        return tuple(dateless(value) for key, value in headers if key.lower() == name)

    saw = [json.loads(value) for key, value in headers if key.lower() == "x-saw"]
    if not saw:  # no server responded: HAProxy and we have error pages of our own, and none has a mark
        return Seen(status, set_cookie=values("set-cookie"))
    ((server, cookies),) = saw
    return Seen(status, server, tuple(cookies), values("set-cookie"), values("cache-control"))


def answered(server: str, cookies: list[str], told: str) -> tuple[int, list[tuple[str, str]]]:
    """What every server does: respond as the request asks, with what it received in a header."""
    answer = json.loads(told)
    headers = [(name, value) for name, value in answer["headers"]]
    return answer["status"], [*headers, ("X-Saw", json.dumps([server, cookies]))]


# -- the witness


class Listener(socketserver.ThreadingTCPServer):
    """A server for HAProxy, without a library that would tidy up what it receives."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, name: str) -> None:
        super().__init__((HOST, 0), Turn)
        self.name = name

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class Turn(socketserver.StreamRequestHandler):
    server: Listener

    def handle(self) -> None:
        lines = iter(self.rfile.readline, b"\r\n")
        fields = [line.decode("latin-1").rstrip("\r\n").partition(":") for line in list(lines)[1:]]
        headers = [(name.lower(), value.removeprefix(" ")) for name, _, value in fields]
        cookies = [value for name, value in headers if name == "cookie"]
        status, answer = answered(self.server.name, cookies, dict(headers)["x-told"])
        head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "Connection: close"]
        head += [f"{name}: {value}" for name, value in answer]
        if status not in (204, 304):
            head.append("Content-Length: 0")
        self.wfile.write("".join(f"{line}\r\n" for line in (*head, "")).encode("latin-1"))


def configured(rows: list[Row], ports: dict[str, int], admin: Path) -> str:
    """Return haproxy.cfg, with a backend for each row."""
    lines = [
        "global",
        "  nbthread 1",
        f"  stats socket {admin} mode 600 level admin",
        "defaults",
        "  mode http",
        "  balance roundrobin",
        *(f"  timeout {what} 10s" for what in ("client", "server", "queue")),
        "  timeout connect 10s",  # a busy machine may be slow; a refused connection fails at once
        "frontend f",
        "  bind fd@${LISTENER}",
        "  use_backend b%[req.hdr(x-row)]",
    ]
    for number, row in enumerate(rows):
        lines.append(f"backend b{number}")
        if row.redispatch:
            lines.append("  option redispatch 1")  # without a pause, as here
        else:
            lines.append("  retries 0")
        if row.cookie is not None:
            lines.append(f"  cookie SRV {row.cookie}")
        for srv in row.servers:
            port = ports["refusing" if srv.state == "refusing" else srv.name]
            words = [f"  server {srv.name} {HOST}:{port} weight {srv.weight}"]
            words += [f"cookie {srv.cookie}"] * bool(srv.cookie)
            words += ["backup"] * srv.backup + ["disabled"] * (srv.state == "maint")
            lines.append(" ".join(words))
    return "\n".join((*lines, ""))


def request_bytes(row: int, ask: Ask) -> bytes:
    lines = [f"{ask.method} / HTTP/1.1", "Host: shop.example", f"X-Row: {row}", f"X-Told: {ask.told}"]
    lines += [f"Cookie: {text}" for text in ask.cookies]
    if ask.method in ("POST", "PUT"):
        lines.append("Content-Length: 0")
    return "".join(f"{line}\r\n" for line in (*lines, "Connection: close", "")).encode("latin-1")


def parsed(raw: bytes) -> Seen:
    head = raw.partition(b"\r\n\r\n")[0].decode("latin-1")
    line, *lines = head.split("\r\n")
    split = (header.partition(":") for header in lines)
    return seen(int(line.split()[1]), [(name, value.removeprefix(" ")) for name, _, value in split])


class Witness:
    """A running HAProxy. Each row has a backend and is run once; its outcome is stored."""

    def __init__(self, port: int, admin: Path) -> None:
        self._port = port
        self._admin = admin
        self._said: dict[int, list[Seen]] = {}
        # The listening socket accepts before HAProxy does; after the first response HAProxy's admin socket exists.
        assert self._asked(b"GET / HTTP/1.1\r\nHost: shop.example\r\nX-Row: none\r\nConnection: close\r\n\r\n")

    def testify(self, number: int, row: Row) -> list[Seen]:
        if number not in self._said:
            self._said[number] = self._testify(number, row)
        return self._said[number]

    def _testify(self, number: int, row: Row) -> list[Seen]:
        said: list[Seen] = []
        for step in row.steps:
            if isinstance(step, Ask):
                said.append(parsed(self._asked(request_bytes(number, step))))
            else:
                what = f"state {step.state}" if step.state is not None else f"weight {step.weight}"
                self._command(f"set server b{number}/{step.server} {what}")
        return said

    def _asked(self, request: bytes) -> bytes:
        with socket.create_connection((HOST, self._port), DEADLINE) as connection:
            connection.sendall(request)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def _command(self, command: str) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(DEADLINE)
            connection.connect(str(self._admin))
            connection.sendall(command.encode() + b"\n")
            assert b"".join(iter(lambda: connection.recv(4096), b"")).strip() == b"", command


# -- our faces


def in_our_words(row: Row, face: Any, app_of: Callable[[str, bool], Any]) -> Any:
    servers = [
        face.Server(
            srv.name,
            app_of(srv.name, srv.state == "refusing"),
            cookie=srv.cookie,
            weight=srv.weight,
            backup=srv.backup,
        )
        for srv in row.servers
    ]
    backend = face.Backend(
        "shop",
        servers,
        balance=face.RoundRobin(start=0),  # HAProxy starts with the first server
        persist=() if row.cookie is None else cookie(row.cookie),
        retries=3 if row.redispatch else 0,
    )
    for srv in row.servers:
        if srv.state == "maint":
            backend[srv.name].state = "maint"
    return backend


def operated(backend: Any, pull: Pull) -> None:
    server = backend[pull.server]
    if pull.state is not None:
        server.state = pull.state
    if pull.weight is not None:
        server.weight = pull.weight


def head_of(raw: bytes) -> tuple[str, list[tuple[str, str]]]:
    """Return the method and the headers as a server passes them to an app, without space around values."""
    line, *lines = raw.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    split = (header.partition(":") for header in lines)
    return line.split()[0], [(name.lower(), value.strip(" \t")) for name, _, value in split]


def asgi(row: Row) -> list[Seen]:
    def app_of(name: str, refusing: bool) -> Any:
        async def application(scope: Any, receive: Any, send: Any) -> None:
            if refusing:
                raise ServerFailure(Failure.REFUSED, name)
            headers = [(key.decode("latin-1"), value.decode("latin-1")) for key, value in scope["headers"]]
            cookies = [value for key, value in headers if key == "cookie"]
            status, answer = answered(name, cookies, dict(headers)["x-told"])
            lines = [(key.lower().encode("latin-1"), value.encode("latin-1")) for key, value in answer]
            await send({"type": "http.response.start", "status": status, "headers": lines})
            await send({"type": "http.response.body", "body": b""})

        return application

    backend = in_our_words(row, sticky_asgi, app_of)
    dispatcher = sticky_asgi.Dispatcher(backend)

    async def ask(raw: bytes) -> Seen:
        method, headers = head_of(raw)
        got: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        async def send(message: Any) -> None:
            got.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": "/",
            "raw_path": b"/",
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        }
        await dispatcher(scope, receive, send)
        answer = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in got[0]["headers"]]
        return seen(got[0]["status"], answer)

    said: list[Seen] = []
    for step in row.steps:
        if isinstance(step, Ask):
            said.append(asyncio.run(ask(request_bytes(0, step))))
        else:
            operated(backend, step)
    return said


def wsgi(row: Row) -> list[Seen]:
    def app_of(name: str, refusing: bool) -> Any:
        def application(environ: Any, start_response: Any) -> list[bytes]:
            if refusing:
                raise ServerFailure(Failure.REFUSED, name)
            cookies = [environ["HTTP_COOKIE"]] if "HTTP_COOKIE" in environ else []
            status, answer = answered(name, cookies, environ["HTTP_X_TOLD"])
            start_response(f"{status} {HTTPStatus(status).phrase}", answer)
            return []

        return application

    backend = in_our_words(row, sticky_wsgi, app_of)
    dispatcher = sticky_wsgi.Dispatcher(backend)

    def ask(raw: bytes) -> Seen:
        method, headers = head_of(raw)
        environ = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": "/",
            "QUERY_STRING": "",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.url_scheme": "http",
            **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers},
        }
        got: list[Any] = []

        def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
            got.append(seen(int(status[:3]), headers))
            return lambda _: None

        body: Any = dispatcher(environ, start_response)
        list(body)
        if hasattr(body, "close"):
            body.close()
        (one,) = got
        assert isinstance(one, Seen)
        return one

    said: list[Seen] = []
    for step in row.steps:
        if isinstance(step, Ask):
            said.append(ask(request_bytes(0, step)))
        else:
            operated(backend, step)
    return said


FACES = {"asgi": asgi, "wsgi": wsgi}

# -- the table

S = Srv
PLAIN, INDIRECT = "insert", "insert indirect"
MAINT_A = (S("s1", "A", state="maint"), S("s2", "B"))
REFUSING_A = (S("s1", "A", state="refusing"), S("s2", "B"))
NO_ID = (S("s1"), S("s2"))

BEHAVIOURS: tuple[tuple[str, tuple[Ask | Pull, ...], dict[str, Any]], ...] = (
    ("no cookie", (Ask(), Ask(), Ask()), {}),
    ("valid", (sent("SRV=B"), sent("SRV=A"), sent("SRV=A")), {}),
    ("unknown", (sent("SRV=Z"), sent("SRV=Z")), {}),
    ("another case", (sent("SRV=a"),), {}),
    ("empty", (sent("SRV="),), {}),
    ("quoted", (sent('SRV="A"'),), {}),
    ("a longer value", (sent("SRV=AA"),), {}),
    ("in maint", (sent("SRV=A"), sent("SRV=A")), {"servers": MAINT_A}),
    ("drained", (Pull("s1", state="drain"), sent("SRV=A"), Ask(), Ask()), {}),
    ("weight 0", (sent("SRV=A"), Ask(), Ask()), {"servers": (S("s1", "A", 0), S("s2", "B"))}),
    ("put into maint and back", (
        sent("SRV=A"), Pull("s1", state="maint"), sent("SRV=A"), Pull("s1", state="ready"), sent("SRV=A"),
    ), {}),
    ("refused, redispatched", (sent("SRV=A"),), {"servers": REFUSING_A}),
    ("a new client refused, redispatched", (Ask(),), {"servers": REFUSING_A}),
    ("refused, not redispatched", (sent("SRV=A"),), {"servers": REFUSING_A, "redispatch": False}),
    ("everybody in maint", (Ask(), sent("SRV=A")), {"servers": (S("s1", "A", state="maint"),)}),
    ("two, the first that is usable wins", (
        sent("SRV=Z; SRV=B"), sent("SRV=A; SRV=B"), sent("SRV=B; SRV=A"),
    ), {}),
    ("two, one in maint", (
        sent("SRV=A; SRV=B"), sent("SRV=A; SRV=Z"), sent("SRV=Z; SRV=A"),
    ), {"servers": MAINT_A}),
    ("in two headers", (sent("SRV=Z", "SRV=B"), sent("a=1", "SRV=B", "c=1")), {}),
    ("shared with a backup, the primary in maint", (sent("SRV=A"), Ask()), {
        "servers": (S("s1", "A", state="maint"), S("s2", "B"), S("s3", "A", backup=True)),
    }),
    ("names a backup", (sent("SRV=C"), Ask(), Ask()), {"servers": (*A_AND_B, S("s3", "C", backup=True))}),
    ("only a backup is left", (Ask(), sent("SRV=A")), {
        "servers": (S("s1", "A", state="maint"), S("s3", "C", backup=True)),
    }),
    ("a bare backup takes the cookie back", (sent("SRV=A"), sent("SRV=Z"), sent("SRV=; a=1")), {
        "servers": (S("s1", "A", state="maint"), S("s3", backup=True)),
    }),
    ("a backup of two, in order", (Ask(), Ask()), {
        "servers": (S("s1", "A", state="maint"), S("s2", "B", backup=True), S("s3", "C", backup=True)),
    }),
    *(
        (f"status {status}", (app(status=status), app(status=status, cookies=("SRV=Z; a=1",))), {})
        for status in (200, 204, 301, 304, 404, 500)
    ),
    ("HEAD", (app(method="HEAD"), app(method="HEAD", cookies=("SRV=A",))), {}),
    # what the application sets under the same name
    ("the application's cookie, no cookie", (app("Set-Cookie: SRV=own; path=/x"),), {}),
    ("the application's cookie, direct", (app("Set-Cookie: SRV=own; path=/x", cookies=("SRV=A",)),), {}),
    ("the application's cookies among others", (
        app("Set-Cookie: a=1", "Set-Cookie: SRV=own", "Set-Cookie: SRV=more", "Set-Cookie: b=2"),
    ), {}),
    ("a name that begins like ours", (
        app("Set-Cookie: SRVX=own", "Set-Cookie: srv=own", "Set-Cookie: SRV"),
    ), {}),
)  # fmt: skip

INSERTED = [
    Row(f"{name}, {mode}", mode, steps, **more) for mode in (PLAIN, INDIRECT) for name, steps, more in BEHAVIOURS
]

OPTIONS = [
    Row("preserve, the application sets it", "insert preserve", (
        app("Set-Cookie: SRV=own; path=/x"), app("Set-Cookie: SRV=own; path=/x", cookies=("SRV=B",)),
    )),
    Row("preserve, the application does not", "insert preserve", (Ask(), app("Set-Cookie: a=1"))),
    Row("preserve indirect", "insert indirect preserve", (
        app("Set-Cookie: SRV=own"), app("Set-Cookie: SRV=own", cookies=("SRV=B; a=1",)),
    )),
    Row("postonly", "insert postonly", (
        Ask(), Ask(method="POST"), Ask(method="PUT"), Ask(method="HEAD"),
        Ask(("SRV=Z",)), Ask(("SRV=Z",), "POST"),
    )),
    Row("postonly takes nothing from a valid cookie", "insert indirect postonly", (
        Ask(("SRV=B",)), Ask(("SRV=B",), "POST"),
    )),
    Row("postonly blocks renewal", "insert postonly maxidle 1h", (
        sent(f"SRV=B|{date(60)}"), Ask((f"SRV=B|{date(60)}",), "POST"),
    )),
    Row("every attribute, to the byte", (
        "insert domain .a.example domain .b.example httponly secure attr SameSite=None attr Priority=High"
    ), (Ask(),)),
    Row("httponly", "insert httponly", (Ask(),)),
    Row("secure", "insert secure", (Ask(),)),
    Row("a bare backup takes it back with its attributes", "insert domain .a.example httponly secure", (
        sent("SRV=A"),
    ), (S("s1", "A", state="maint"), S("s3", backup=True))),
]  # fmt: skip

NOCACHE = "insert nocache"
CACHING = [
    Row(f"nocache, {headers or 'nothing said'}, {method}", NOCACHE, (app(*headers, method=method),))
    for method in ("GET",)
    for headers in (
        ("Cache-Control: max-age=60",),
        ("Cache-Control: public, max-age=60",),
        ("ETag: x",),
        ("Last-Modified: Sat, 21 Nov 2026 17:00:00 GMT",),
        ("Expires: Thu, 01 Jan 2032 00:00:00 GMT",),
        ("Cache-Control: private",),
        ("Cache-Control: no-store",),
        ("Cache-Control: no-store, max-age=60",),
        ("Cache-Control: max-age=60, private",),
    )
] + [
    Row("nocache, nothing is inserted", NOCACHE, (app("Cache-Control: max-age=60", cookies=("SRV=A",)),)),
    Row("no nocache", PLAIN, (app("Cache-Control: max-age=60"),)),
]

DATES = [
    Row(name, f"insert indirect {options}", steps)
    for name, options, steps in (
        ("maxidle, a new client", "maxidle 1h", (Ask(),)),
        ("maxlife, a new client", "maxlife 1h", (Ask(),)),
        ("both, a new client", "maxidle 1h maxlife 1h", (Ask(),)),
        ("maxidle, seen a minute ago", "maxidle 1h", (sent(f"SRV=B|{date(60)}"),)),
        ("maxidle, idle for too long", "maxidle 1h", (sent(f"SRV=B|{date(HOUR + 60)}"),)),
        ("maxidle, from a minute ahead", "maxidle 1h", (sent(f"SRV=B|{date(-60)}"),)),
        ("maxidle, from an hour ahead", "maxidle 1h", (sent(f"SRV=B|{date(-HOUR)}"),)),
        ("maxidle, from beyond a day ahead", "maxidle 1h", (sent(f"SRV=B|{date(-DAY - 60)}"),)),
        ("maxidle, undated", "maxidle 1h", (sent("SRV=B"),)),
        ("maxidle, a first date as well", "maxidle 1h", (sent(f"SRV=B|{date(60)}|{date(120)}"),)),
        ("maxidle, a future date and a first one", "maxidle 1h", (sent(f"SRV=B|{date(-60)}|{date(120)}"),)),
        ("maxlife, first seen a minute ago", "maxlife 1h", (sent(f"SRV=B|{date(-60)}|{date(120)}"),)),
        ("maxlife, the last date is old", "maxlife 1h", (sent(f"SRV=B|{date(5 * HOUR)}|{date(120)}"),)),
        ("maxlife, too old", "maxlife 1h", (sent(f"SRV=B|{date(60)}|{date(HOUR + 60)}"),)),
        ("maxlife, undated", "maxlife 1h", (sent("SRV=B"),)),
        ("maxlife, no first date", "maxlife 1h", (sent(f"SRV=B|{date(60)}"),)),
        ("maxlife, first date from a minute ahead", "maxlife 1h", (sent(f"SRV=B|{date(-60)}|{date(-60)}"),)),
        ("maxlife, first date from beyond a day ahead", "maxlife 1h", (
            sent(f"SRV=B|{date(60)}|{date(-DAY - 60)}"),
        )),
        ("both, in time", "maxidle 1h maxlife 8h", (sent(f"SRV=B|{date(60)}|{date(2 * HOUR)}"),)),
        ("both, idle", "maxidle 1h maxlife 8h", (sent(f"SRV=B|{date(2 * HOUR)}|{date(3 * HOUR)}"),)),
        ("both, old", "maxidle 1h maxlife 8h", (sent(f"SRV=B|{date(60)}|{date(9 * HOUR)}"),)),
        ("both, idle and old", "maxidle 1h maxlife 8h", (sent(f"SRV=B|{date(2 * HOUR)}|{date(9 * HOUR)}"),)),
        ("neither, a last date", "", (sent(f"SRV=B|{date(60)}"),)),
        ("neither, a future last date", "", (sent(f"SRV=B|{date(-60)}"),)),
        ("neither, both dates", "", (sent(f"SRV=B|{date(60)}|{date(120)}"),)),
        ("neither, a future last date and a first one", "", (sent(f"SRV=B|{date(-60)}|{date(120)}"),)),
        ("a date too short", "maxidle 1h", (sent("SRV=B|abc"),)),
        ("a date with bad characters", "maxidle 1h", (sent("SRV=B|ab-cd"),)),
        ("a date of zero", "maxidle 1h", (sent("SRV=B|AAAAA"),)),
        ("a date with more behind it", "maxidle 1h", (
            sent(f"SRV=B|{date(60)}zzz"), sent(f"SRV=B|{date(60)}zzz|{date(120)}"),
        )),
        ("a second date too short", "maxidle 1h maxlife 1h", (sent(f"SRV=B|{date(60)}|abc"),)),
        ("only a bar", "maxidle 1h", (sent("SRV=B|"), sent("SRV=|"), sent(f"SRV=|{date(60)}"))),
        ("an unknown server with dates", "maxidle 1h", (sent(f"SRV=Z|{date(60)}"),)),
        ("idle for too long, and another that is not", "maxidle 1h", (
            sent(f"SRV=A|{date(2 * HOUR)}; SRV=B|{date(60)}"),
        )),
        ("a server in maint, idle for too long", "maxidle 1h", (
            Pull("s2", state="maint"), sent(f"SRV=B|{date(2 * HOUR)}"),
        )),
    )
] + [
    Row("dates in prefix mode are none", "prefix", (sent(f"SRV=B|{date(60)}~x"), sent(f"SRV=B|{date(60)}"))),
    Row("dates in rewrite mode", "rewrite", (sent(f"SRV=B|{date(60)}"),)),
]  # fmt: skip

STRIPPED = [
    Row(f"indirect, {text}", INDIRECT, (sent(text),))
    for text in (
        "SRV=A",
        "SRV=A; a=1; b=2",
        "a=1; SRV=A; b=2",
        "a=1; b=2; SRV=A",
        "a=1;SRV=A;b=2",
        "a=1 ; SRV=A ; b=2",
        "a=1;   SRV=A;   b=2",
        "SRV=A;a=1",
        "SRV=A; a=1; SRV=B",
        "SRV=A; SRV=B",
        "a=1; SRV=A; SRV=B; b=2",
        "SRV = A; a=1",
        "a=1; SRV =A",
        'SRV="A"; a=1',
        'a="x;SRV=A;y"; b=1',
        'a="x; SRV=A',
        r'a="x\";SRV=A;y"; b=1',
        "srv=A",
        "SRVX=A",
        "XSRV=A; a=1",
        "SRV",
        "SRV; a=1",
        "a=1; SRV=A;",
        "a=1; SRV=A; ",
        "SRV=A;",
        "$Version=1; SRV=A; $Path=/; a=1; $Path=/",
        "$Version=1; a=1; $Path=/; SRV=A; $Path=/",
        "$Version=1; SRV=A; $Path=/",
        "a=1, SRV=A, b=2",
        "a=1,SRV=A",
        "SRV=A;;a=1",
        "a=1;;SRV=A",
        "SRV=A; foo",
        "foo; SRV=A; bar",
        "SRV=A=B; a=1",
        "SRV==A; a=1",
        "a=SRV=A; b=1",
        "a=1; SRV=Z; b=2",
        "a=1; SRV=; b=2",
        "a=b c; SRV=A",
        "a=caf\xe9; SRV=A; b=\xff",
        "=A; SRV=A; a=1",
        "a=1; =; SRV=A",
        " SRV=A; a=1",
        "a=1;\tSRV=A;\tb=2",
    )
] + [
    Row("indirect, three headers", INDIRECT, (sent("a=1", "SRV=A", "b=2"),)),
    Row("indirect, two headers with both", INDIRECT, (sent("a=1; SRV=A", "SRV=B; b=2"),)),
    Row("plain insert strips nothing", PLAIN, (sent("a=1;  SRV=A ;b=2"), sent("SRV=Z; a=1"))),
]

OTHER_MODES = [
    # rewrite
    Row("rewrite, the application sets nothing", "rewrite", (Ask(), sent("a=1; SRV=B; b=2"), sent("SRV=Z"))),
    Row("rewrite, the application sets it", "rewrite", (
        app("Set-Cookie: SRV=own; Path=/x; HttpOnly"),
        app("Set-Cookie: SRV=own; Path=/x", cookies=("SRV=B",)),
    )),
    Row("rewrite, a quoted value", "rewrite", (app('Set-Cookie: SRV="o;w n"; Path=/x'),)),
    Row("rewrite, an empty value", "rewrite", (app("Set-Cookie: SRV="),)),
    Row("rewrite, spaces around the sign", "rewrite", (app("Set-Cookie: SRV = own ; Path=/x"),)),
    Row("rewrite, a deletion", "rewrite", (app("Set-Cookie: SRV=; expires=Thu, 01-Jan-1970 00:00:01 GMT"),)),
    Row("rewrite, several headers among others", "rewrite", (
        app("Set-Cookie: a=SRV=1", "Set-Cookie: SRV=one", "Set-Cookie: SRVX=2", "Set-Cookie: SRV=2; Secure"),
    )),
    Row("rewrite, a server in maint", "rewrite", (app("Set-Cookie: SRV=own", cookies=("SRV=A",)),), MAINT_A),
    Row("rewrite, no sign", "rewrite", (app("Set-Cookie: SRV"), app("Set-Cookie: SRV; Path=/"))),
    Row("rewrite, no space", "rewrite", (app("Set-Cookie: SRV=own;Path=/;HttpOnly"),)),
    # prefix
    Row("prefix, the application sets nothing", "prefix", (Ask(),)),
    Row("prefix, the application sets it", "prefix", (
        app("Set-Cookie: SRV=own; Path=/x; HttpOnly"),
        app("Set-Cookie: SRV=own", cookies=("SRV=B~old; a=1",)),
    )),
    Row("prefix, several headers among others", "prefix", (
        app("Set-Cookie: SRV=one", "Set-Cookie: b=~2", "Set-Cookie: SRV=two~x; Secure"),
    )),
    *(
        Row(f"prefix, {text}", "prefix", (sent(text),))
        for text in (
            "SRV=B~rest",
            "SRV=B~x~y",
            "SRV=Z~abc",
            "SRV=~abc",
            "SRV=B",
            "SRV=abc123",
            "SRV=B~",
            "SRV=~",
            "a=1; SRV=B~x; b=2",
            "SRV=B~x; SRV=A~y",
            "SRV=Z~x; SRV=A~y",
            "a=1;SRV=B~x;b=2",
            "SRV=",
        )
    ),
    Row("prefix, two headers", "prefix", (sent("a=1; SRV=B~x", "SRV=A~y"),)),
    Row("prefix, a server in maint", "prefix", (
        sent("SRV=A~x"), app("Set-Cookie: SRV=own", cookies=("SRV=A~x",)),
    ), MAINT_A),
    Row("prefix, deletions", "prefix", (
        app("Set-Cookie: SRV=; Max-Age=0"), app('Set-Cookie: SRV=""'), app("Set-Cookie: SRV"),
    )),
    Row("prefix, spaces around the sign", "prefix", (app("Set-Cookie: SRV = own ; Path=/x"),)),
    Row("prefix indirect", "prefix indirect", (
        app("Set-Cookie: SRV=own"), app("Set-Cookie: SRV=own", "Set-Cookie: a=1", cookies=("SRV=B~x",)),
    )),
    # passive
    Row("passive", "", (
        app("Set-Cookie: SRV=own"), app("Set-Cookie: SRV=own", cookies=("a=1; SRV=B",)),
        sent("SRV=Z"), sent("SRV=A"),
    )),
    Row("passive indirect", "indirect", (
        app("Set-Cookie: SRV=own"), app("Set-Cookie: SRV=own", "Set-Cookie: a=1", cookies=("a=1; SRV=B",)),
    )),
    Row("passive indirect preserve", "indirect preserve", (
        app("Set-Cookie: SRV=own", cookies=("a=1; SRV=B",)),
    )),
    Row("passive, a server in maint", "", (sent("SRV=A"),), MAINT_A),
]  # fmt: skip


def weighing(*weights: int) -> tuple[Srv, ...]:
    return tuple(S(f"s{number}", chr(64 + number), weight) for number, weight in enumerate(weights, 1))


def turns(count: int) -> tuple[Ask, ...]:
    return (Ask(),) * count


TURNS = [
    *(
        Row(f"roundrobin, weights {weights}", None, turns(3 * sum(weights) + 2), weighing(*weights))
        for weights in (
            (1, 1, 1, 1), (3, 1, 1, 1), (5, 3, 1, 1), (2, 1), (1, 2), (5, 1, 1), (1, 0, 2),
            (3, 3, 2), (7, 5, 3), (10, 7, 3, 2, 1),
        )
    ),
    Row("roundrobin, weights of more than one round", None, turns(60), weighing(256, 1, 100)),
    Row("bound requests do not move the turns", PLAIN, (
        Ask(), sent("SRV=A"), sent("SRV=A"), sent("SRV=C"), Ask(), Ask(), sent("SRV=D"), Ask(), Ask(),
    ), weighing(1, 1, 1, 1)),
    Row("a server refuses, and another has its turn", None, turns(12), (
        S("s1"), S("s2", state="refusing"), S("s3"),
    )),
    Row("a heavy server refuses", None, turns(18), (
        S("s1", weight=3, state="refusing"), S("s2", weight=2), S("s3"),
    )),
    Row("a server goes into maint and comes back", None, (
        *turns(3), Pull("s2", state="maint"), *turns(5), Pull("s2", state="ready"), *turns(9),
    ), weighing(1, 1, 1, 1)),
    Row("a heavy server goes into maint and comes back", None, (
        *turns(3), Pull("s1", state="maint"), *turns(5), Pull("s1", state="ready"), *turns(20),
    ), weighing(5, 3, 1, 1)),
    Row("a server is drained and comes back", None, (
        *turns(4), Pull("s3", state="drain"), *turns(7), Pull("s3", state="ready"), *turns(20),
    ), weighing(3, 1, 2)),
    Row("a weight grows", None, (*turns(3), Pull("s2", weight=5), *turns(20)), weighing(1, 1, 1)),
    Row("a weight shrinks", None, (*turns(3), Pull("s1", weight=1), *turns(20)), weighing(7, 3, 1)),
    Row("a weight goes and comes", None, (
        *turns(2), Pull("s1", weight=0), *turns(4), Pull("s1", weight=3), *turns(15),
    ), weighing(3, 1, 1)),
    Row("a server in maint from the beginning comes", None, (
        *turns(3), Pull("s1", state="ready"), *turns(12),
    ), (S("s1", state="maint", weight=2), S("s2"), S("s3"))),
]  # fmt: skip

# -- random rows

WHITE_SIGN = re.compile(r"[ \t]=|=[ \t]")
NAMELESS = re.compile(r"(^|[;,])[ \t]*[;,]")
IN_COOKIE = [
    *(
        "SRV=A",
        "SRV=B",
        "SRV=Z",
        "SRV=A~x",
        "SRV=B~y~",
        "SRV",
        "a=1",
        "b=2",
        'a="x;y"',
        "foo",
        "$Path=/",
        "$x",
    ),
    *(";", "; ", ",", ", ", " ", "\t", "=", "~", "|", "\\", '"'),
]
IN_SET_COOKIE = [
    *("SRV=own", "SRV=", "SRV=o~w", "SRV=two", 'SRV="q;r"', "SRV", "SRVX=1", "srv=2", "a=SRV=3"),
    *("; Path=/x", ";HttpOnly", "; Secure", ";", "~", "|", '"', " "),
]


def drawn(rng: random.Random, pieces: list[str], but: Callable[[str], object]) -> str:
    """Return a text of a few pieces, without the differences below."""
    while True:
        text = "".join(rng.choices(pieces, k=rng.randint(1, 7))).strip(" \t")
        if text and not WHITE_SIGN.search(text) and not but(text):
            return text


def random_cookies(mode: str) -> tuple[Ask, ...]:
    rng = random.Random(f"cookies {mode}")
    return tuple(
        sent(drawn(rng, IN_COOKIE, lambda text: '"' in text if mode == "prefix" else NAMELESS.search(text)))
        for _ in range(150)
    )


def random_set_cookies(mode: str) -> tuple[Ask, ...]:
    rng = random.Random(f"set-cookies {mode}")
    return tuple(
        app(
            *(f"Set-Cookie: {drawn(rng, IN_SET_COOKIE, lambda _: False)}" for _ in range(rng.randint(1, 3))),
            cookies=rng.choice(((), ("SRV=B",), ("SRV=A; a=1",), ("SRV=Z",))),
        )
        for _ in range(100)
    )


def random_turns(number: int) -> Row:
    """Return rows with some servers and many changes of their states; s1 is always ready, so that one server is."""
    rng = random.Random(f"turns {number}")
    servers = weighing(*(rng.choice((1, 1, 2, 3, 4, 5, 7, 10, 20)) for _ in range(rng.randint(2, 6))))
    steps: list[Ask | Pull] = []
    for _ in range(60):
        steps.append(Ask())
        if number % 2 and rng.random() < 0.15:
            server = rng.choice(servers[1:]).name
            changes = [Pull(server, "ready"), Pull(server, "drain"), Pull(server, "maint")]
            changes += [Pull(server, weight=weight) for weight in (0, 2, 8)]
            steps.append(rng.choice(changes))
    what = "and pulls " if number % 2 else ""
    return Row(f"turns {what}at random, {number}", None, tuple(steps), servers)


AT_RANDOM = [
    *(
        Row(f"cookies at random, {mode or 'passive'}", mode, random_cookies(mode))
        for mode in (PLAIN, INDIRECT, "rewrite", "prefix", "")
    ),
    *(
        Row(f"set-cookies at random, {mode or 'passive'}", mode, random_set_cookies(mode))
        for mode in (
            PLAIN,
            INDIRECT,
            "insert preserve",
            "rewrite",
            "prefix",
            "prefix indirect",
            "",
            "indirect",
        )
    ),
    *(random_turns(number) for number in range(10)),
]

# -- where we differ, on purpose

PRIVATE = ("private",)
A = Seen(server="s1", set_cookie=("SRV=A; path=/",))
BARE_BACKUP = (S("s1", "A", state="maint"), S("s3", backup=True))

DIFFERENCES = [
    *(
        Row(f"nocache, {what}", NOCACHE, (ask,), why="whoever does not forbid caching may be cached", ours=(
            replace(A, cache_control=(*said, "private")),
        ))
        for what, ask, said in (
            ("nothing said", Ask(), ()),
            ("public", app("Cache-Control: public"), ("public",)),
            ("no-cache", app("Cache-Control: no-cache, max-age=60"), ("no-cache, max-age=60",)),
            ("max-age=0", app("Cache-Control: max-age=0"), ("max-age=0",)),
            ("Pragma", app("Pragma: no-cache", "Cache-Control: max-age=60"), ("max-age=60",)),
            ("POST", app("Cache-Control: max-age=60", method="POST"), ("max-age=60",)),
        )
    ),
    Row("nocache, a redirection", NOCACHE, (app("Cache-Control: max-age=60", status=302),),
        why="whoever does not forbid caching may be cached",
        ours=(replace(A, status=302, cache_control=("max-age=60", "private")),)),
    Row("a bare backup, nothing to take back", PLAIN, (Ask(),), BARE_BACKUP,
        why="a client that sent no cookie has none to give back", ours=(Seen(server="s3"),)),
    Row("servers without a cookie, nothing to take back", INDIRECT, (Ask(), Ask(("a=1",))), NO_ID,
        why="a client that sent no cookie has none to give back",
        ours=(Seen(server="s1"), Seen(server="s2", cookies=("a=1",)))),
    Row("only draining servers are left", PLAIN, (
        Pull("s1", state="drain"), Pull("s2", state="drain"), Ask(),
    ), why="a server that lets its clients go is better than none", ours=(A,)),
    Row("prefix, quoted", "prefix", (sent('a=1; SRV="B~abc"; b=2'),),
        why="HAProxy takes the quote for a part of the id",
        ours=(Seen(server="s2", cookies=("a=1; SRV=abc; b=2",)),)),
    Row("spaces around the sign of somebody else's cookie", INDIRECT, (sent("a = 1; SRV=A"),),
        why="what is not our cookie keeps every byte",
        ours=(Seen(server="s1", cookies=("a = 1",)),)),
    Row("preserve, spaces around the sign", "insert preserve", (app("Set-Cookie: SRV = own; path=/x"),),
        why="what is preserved keeps every byte",
        ours=(Seen(server="s1", set_cookie=("SRV = own; path=/x",)),)),
    Row("rewrite, a comma in the value", "rewrite", (app("Set-Cookie: SRV=one,two; path=/x"),),
        why="browsers read a value up to the semicolon (RFC 6265, 5.2)",
        ours=(Seen(server="s1", set_cookie=("SRV=A; path=/x",)),)),
    Row("a delimiter with nothing before it", INDIRECT, (sent(";SRV=A; a=1"),),
        why="a nameless pair is not our cookie, and stays",
        ours=(Seen(server="s1", cookies=("; a=1",)),)),
]  # fmt: skip

ROWS = [*INSERTED, *OPTIONS, *CACHING, *DATES, *STRIPPED, *OTHER_MODES, *TURNS, *AT_RANDOM, *DIFFERENCES]


@pytest.fixture(scope="module")
def witness(part: Callable[[str], str]) -> Iterator[Witness]:
    """HAProxy, with a backend for each row, in front of servers that send back what they received."""
    program = part("haproxy")
    names = sorted({srv.name for row in ROWS for srv in row.servers})
    listeners = [Listener(name) for name in names]
    for listener in listeners:
        threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}).start()
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            closing(socket.create_server((HOST, 0))) as entrance,
            closing(socket.socket()) as closed_socket,
        ):
            closed_socket.bind((HOST, 0))  # bound without listening: connections are refused
            ports = {listener.name: listener.port for listener in listeners}
            ports["refusing"] = closed_socket.getsockname()[1]
            config, admin, said = (Path(folder, name) for name in ("haproxy.cfg", "admin", "said"))
            config.write_text(configured(ROWS, ports, admin).replace("${LISTENER}", f"{entrance.fileno()}"))
            with said.open("wb") as output:
                process = subprocess.Popen(
                    [program, "-db", "-q", "-f", config],
                    pass_fds=(entrance.fileno(),), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                )  # fmt: skip
            try:
                port = entrance.getsockname()[1]
                entrance.close()  # HAProxy has its own copy; if it ends, connections are refused
                yield Witness(port, admin)
                assert process.poll() is None, said.read_text()
            finally:
                process.kill()
                process.wait()
    finally:
        for listener in listeners:
            listener.shutdown()
            listener.server_close()


# In WSGI there is at most one Cookie header: servers join several.
CASES = [
    pytest.param(face, number, id=f"{face}, {row.id}")
    for face in FACES
    for number, row in enumerate(ROWS)
    if face == "asgi" or all(len(ask.cookies) < 2 for ask in row.asks)
]


@pytest.mark.parametrize("face, number", CASES)
def test_haproxy_does_the_same(witness, face, number):
    row = ROWS[number]
    ours = FACES[face](row)
    theirs = witness.testify(number, row)
    if row.why:
        assert ours == list(row.ours), row.why
        assert theirs != ours, f"HAProxy does the same, so this is no difference: {row.why}"
    else:
        together = list(zip(row.asks, theirs, ours, strict=True))
        assert [(ask, own) for ask, _, own in together] == [(ask, witnessed) for ask, witnessed, _ in together]


def test_every_row_has_a_name_of_its_own():
    names = [row.id for row in ROWS]
    assert sorted(set(names)) == sorted(names)
