"""Cookies compared with HAProxy. The same bytes go to HAProxy and to both faces, in front of servers that do the same;
what the servers receive and what the client receives must be the same, too.

HAProxy 2.6 and later will do.
"""

import asyncio
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
from http import HTTPStatus
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import sticky_asgi
import sticky_wsgi
from sticky_core.errors import Failure, ServerFailure
from tests.live.haproxy_rows import DIGITS, ROWS, Change, Exchange, Request, Row

pytestmark = pytest.mark.live

DEADLINE = 300.0
HOST = "127.0.0.1"

# -- responses


def without_current_dates(text: str) -> str:
    """Replace the dates of just now: HAProxy and the faces have read the clock at different moments."""

    def replace_date(found: re.Match[str]) -> str:
        units = 0
        for digit in found[1]:
            units = units << 6 | DIGITS.index(digit)
        return "|just now" if -4 <= time.time() - (units << 2) <= 90 else found[0]

    return re.sub(r"\|([A-Za-z0-9+/]{5})(?=[|;]|$)", replace_date, text)


def exchange_of(status: int, headers: list[tuple[str, str]]) -> Exchange:
    """Return the exchange of a response: the server has added a header with what it received."""

    def values(name: str) -> tuple[str, ...]:
        return tuple(without_current_dates(value) for key, value in headers if key.lower() == name)

    received = [json.loads(value) for key, value in headers if key.lower() == "x-received"]
    if not received:  # from no server: an error page, which must not set a cookie
        return Exchange(status, set_cookie=values("set-cookie"))
    ((server, cookies),) = received
    return Exchange(status, server, tuple(cookies), values("set-cookie"), values("cache-control"))


def respond(server: str, cookies: list[str], response_json: str) -> tuple[int, list[tuple[str, str]]]:
    """Return the response of a server: as the request says, with a header of what the server received."""
    response = json.loads(response_json)
    headers = [(name, value) for name, value in response["headers"]]
    return response["status"], [*headers, ("X-Received", json.dumps([server, cookies]))]


# -- cookies

FLAGS = ("indirect", "nocache", "postonly", "preserve", "httponly", "secure")
VALUED = ("domain", "attr", "maxidle", "maxlife")


def cookie(text: str) -> sticky_asgi.Cookie:
    """Return the Cookie for HAProxy's options, such as `insert indirect maxidle 30m`, unsigned."""
    words = text.split()
    mode = next((word for word in words if word in ("insert", "rewrite", "prefix")), "passive")
    options: dict[str, Any] = {"mode": mode}
    if mode != "passive":
        options["signed"] = False
    if mode == "insert":
        options |= dict.fromkeys(("indirect", "nocache"), False)
    options |= dict.fromkeys((word for word in words if word in FLAGS), True)
    for word, value in pairwise(words):
        if word in VALUED:
            options[word] = [*options[word], value] if word in options else [value]
    for word in ("maxidle", "maxlife"):
        if word in options:
            (options[word],) = options[word]
    return sticky_asgi.Cookie("SRV", **options)


# -- HAProxy


class RecordingServer(socketserver.ThreadingTCPServer):
    """A server behind HAProxy. No library that would normalise what HAProxy sends."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, name: str) -> None:
        super().__init__((HOST, 0), RequestHandler)
        self.name = name

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class RequestHandler(socketserver.StreamRequestHandler):
    server: RecordingServer

    def handle(self) -> None:
        lines = iter(self.rfile.readline, b"\r\n")
        fields = [line.decode("latin-1").rstrip("\r\n").partition(":") for line in list(lines)[1:]]
        headers = [(name.lower(), value.removeprefix(" ")) for name, _, value in fields]
        cookies = [value for name, value in headers if name == "cookie"]
        status, response = respond(self.server.name, cookies, dict(headers)["x-response"])
        head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "Connection: close"]
        head += [f"{name}: {value}" for name, value in response]
        if status not in (204, 304):
            head.append("Content-Length: 0")
        self.wfile.write("".join(f"{line}\r\n" for line in (*head, "")).encode("latin-1"))


def haproxy_config(rows: list[Row], ports: dict[str, int], admin: Path) -> str:
    """Return haproxy.cfg, with a backend for each row."""
    lines = [
        "global",
        "  nbthread 1",
        f"  stats socket {admin} mode 600 level admin",
        "defaults",
        "  mode http",
        "  balance roundrobin",
        *(f"  timeout {what} 10s" for what in ("client", "server", "queue")),
        "  timeout connect 10s",  # a busy machine may take its time; a refusing port refuses at once
        "frontend f",
        "  bind fd@${LISTENER}",
        "  use_backend b%[req.hdr(x-row)]",
    ]
    for number, row in enumerate(rows):
        lines.append(f"backend b{number}")
        if row.redispatch:
            lines.append("  option redispatch 1")  # at once, as the faces do
        else:
            lines.append("  retries 0")
        if row.cookie is not None:
            lines.append(f"  cookie SRV {row.cookie}")
        for spec in row.servers:
            port = ports["refusing" if spec.state == "refusing" else spec.name]
            words = [f"  server {spec.name} {HOST}:{port} weight {spec.weight}"]
            words += [f"cookie {spec.cookie}"] * bool(spec.cookie)
            words += ["backup"] * spec.backup + ["disabled"] * (spec.state == "maint")
            lines.append(" ".join(words))
    return "\n".join((*lines, ""))


def request_bytes(row: int, request: Request) -> bytes:
    lines = [
        f"{request.method} / HTTP/1.1",
        "Host: shop.example",
        f"X-Row: {row}",
        f"X-Response: {request.response_json}",
    ]
    lines += [f"Cookie: {text}" for text in request.cookies]
    if request.method in ("POST", "PUT"):
        lines.append("Content-Length: 0")
    return "".join(f"{line}\r\n" for line in (*lines, "Connection: close", "")).encode("latin-1")


def parse_response(raw: bytes) -> Exchange:
    head = raw.partition(b"\r\n\r\n")[0].decode("latin-1")
    line, *lines = head.split("\r\n")
    split = (header.partition(":") for header in lines)
    return exchange_of(int(line.split()[1]), [(name, value.removeprefix(" ")) for name, _, value in split])


class HAProxy:
    """A running HAProxy. Each row runs once, as it changes its backend; the exchanges are kept."""

    def __init__(self, port: int, admin: Path) -> None:
        self._port = port
        self._admin = admin
        self._exchanges: dict[int, list[Exchange]] = {}
        # The port accepts connections before HAProxy does; with the first response its admin socket is there as well.
        assert self._exchange_bytes(b"GET / HTTP/1.1\r\nHost: shop.example\r\nX-Row: none\r\nConnection: close\r\n\r\n")

    def exchanges(self, number: int, row: Row) -> list[Exchange]:
        if number not in self._exchanges:
            self._exchanges[number] = self._run(number, row)
        return self._exchanges[number]

    def _run(self, number: int, row: Row) -> list[Exchange]:
        exchanges: list[Exchange] = []
        for step in row.steps:
            if isinstance(step, Request):
                exchanges.append(parse_response(self._exchange_bytes(request_bytes(number, step))))
            else:
                what = f"state {step.state}" if step.state is not None else f"weight {step.weight}"
                self._command(f"set server b{number}/{step.server} {what}")
        return exchanges

    def _exchange_bytes(self, request: bytes) -> bytes:
        with socket.create_connection((HOST, self._port), DEADLINE) as connection:
            connection.sendall(request)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def _command(self, command: str) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(DEADLINE)
            connection.connect(str(self._admin))
            connection.sendall(command.encode() + b"\n")
            assert b"".join(iter(lambda: connection.recv(4096), b"")).strip() == b"", command


# -- the faces


def build_backend(row: Row, face: Any, make_app: Callable[[str, bool], Any]) -> Any:
    servers = [
        face.Server(
            spec.name,
            make_app(spec.name, spec.state == "refusing"),
            cookie=spec.cookie,
            weight=spec.weight,
            backup=spec.backup,
        )
        for spec in row.servers
    ]
    backend = face.Backend(
        "shop",
        servers,
        balance=face.RoundRobin(start=0),  # as HAProxy starts
        persist=() if row.cookie is None else cookie(row.cookie),
        retries=3 if row.redispatch else 0,
    )
    for spec in row.servers:
        if spec.state == "maint":
            backend[spec.name].state = "maint"
    return backend


def apply_change(backend: Any, change: Change) -> None:
    server = backend[change.server]
    if change.state is not None:
        server.state = change.state
    if change.weight is not None:
        server.weight = change.weight


def parse_request(raw: bytes) -> tuple[str, list[tuple[str, str]]]:
    """Return method and headers of a request as servers pass them to an app: without space around values."""
    line, *lines = raw.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    split = (header.partition(":") for header in lines)
    return line.split()[0], [(name.lower(), value.strip(" \t")) for name, _, value in split]


def run_asgi(row: Row) -> list[Exchange]:
    def make_app(name: str, refusing: bool) -> Any:
        async def application(scope: Any, receive: Any, send: Any) -> None:
            if refusing:
                raise ServerFailure(Failure.REFUSED, name)
            headers = [(key.decode("latin-1"), value.decode("latin-1")) for key, value in scope["headers"]]
            cookies = [value for key, value in headers if key == "cookie"]
            status, response = respond(name, cookies, dict(headers)["x-response"])
            lines = [(key.lower().encode("latin-1"), value.encode("latin-1")) for key, value in response]
            await send({"type": "http.response.start", "status": status, "headers": lines})
            await send({"type": "http.response.body", "body": b""})

        return application

    backend = build_backend(row, sticky_asgi, make_app)
    dispatcher = sticky_asgi.Dispatcher(backend)

    async def send_request(raw: bytes) -> Exchange:
        method, headers = parse_request(raw)
        messages: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        async def send(message: Any) -> None:
            messages.append(message)

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
        response = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in messages[0]["headers"]]
        return exchange_of(messages[0]["status"], response)

    exchanges: list[Exchange] = []
    for step in row.steps:
        if isinstance(step, Request):
            exchanges.append(asyncio.run(send_request(request_bytes(0, step))))
        else:
            apply_change(backend, step)
    return exchanges


def run_wsgi(row: Row) -> list[Exchange]:
    def make_app(name: str, refusing: bool) -> Any:
        def application(environ: Any, start_response: Any) -> list[bytes]:
            if refusing:
                raise ServerFailure(Failure.REFUSED, name)
            cookies = [environ["HTTP_COOKIE"]] if "HTTP_COOKIE" in environ else []
            status, response = respond(name, cookies, environ["HTTP_X_RESPONSE"])
            start_response(f"{status} {HTTPStatus(status).phrase}", response)
            return []

        return application

    backend = build_backend(row, sticky_wsgi, make_app)
    dispatcher = sticky_wsgi.Dispatcher(backend)

    def send_request(raw: bytes) -> Exchange:
        method, headers = parse_request(raw)
        environ = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": "/",
            "QUERY_STRING": "",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.url_scheme": "http",
            **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers},
        }
        messages: list[Any] = []

        def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
            messages.append(exchange_of(int(status[:3]), headers))
            return lambda _: None

        body: Any = dispatcher(environ, start_response)
        list(body)
        if hasattr(body, "close"):
            body.close()
        (exchange,) = messages
        assert isinstance(exchange, Exchange)
        return exchange

    exchanges: list[Exchange] = []
    for step in row.steps:
        if isinstance(step, Request):
            exchanges.append(send_request(request_bytes(0, step)))
        else:
            apply_change(backend, step)
    return exchanges


FACES = {"asgi": run_asgi, "wsgi": run_wsgi}


@pytest.fixture(scope="module")
def witness(part: Callable[[str], str]) -> Iterator[HAProxy]:
    """HAProxy, with a backend for each row, in front of servers that report what they received."""
    program = part("haproxy")
    names = sorted({spec.name for row in ROWS for spec in row.servers})
    listeners = [RecordingServer(name) for name in names]
    for listener in listeners:
        threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}).start()
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            closing(socket.create_server((HOST, 0))) as http_socket,
            closing(socket.socket()) as refusing,
        ):
            refusing.bind((HOST, 0))  # bound, but not listening: it refuses
            ports = {listener.name: listener.port for listener in listeners}
            ports["refusing"] = refusing.getsockname()[1]
            config, admin, log = (Path(folder, name) for name in ("haproxy.cfg", "admin", "log"))
            config.write_text(haproxy_config(ROWS, ports, admin).replace("${LISTENER}", f"{http_socket.fileno()}"))
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [program, "-db", "-q", "-f", config],
                    pass_fds=(http_socket.fileno(),), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                )  # fmt: skip
            try:
                port = http_socket.getsockname()[1]
                http_socket.close()  # HAProxy has inherited it; if it dies, connections are refused
                yield HAProxy(port, admin)
                assert process.poll() is None, log.read_text()
            finally:
                process.kill()
                process.wait()
    finally:
        for listener in listeners:
            listener.shutdown()
            listener.server_close()


# In WSGI there is one Cookie header at most: servers join several.
CASES = [
    pytest.param(face, number, id=f"{face}, {row.id}")
    for face in FACES
    for number, row in enumerate(ROWS)
    if face == "asgi" or all(len(each.cookies) < 2 for each in row.requests)
]


@pytest.mark.parametrize("face, number", CASES)
def test_haproxy_does_the_same(witness, face, number):
    row = ROWS[number]
    ours = FACES[face](row)
    theirs = witness.exchanges(number, row)
    if row.why:
        assert ours == list(row.ours), row.why
        assert theirs != ours, f"HAProxy does the same, so this is no difference: {row.why}"
    else:
        compared = list(zip(row.requests, theirs, ours, strict=True))
        assert [(request, own) for request, _, own in compared] == [(request, other) for request, other, _ in compared]


def test_ids_of_rows_are_unique():
    names = [row.id for row in ROWS]
    assert sorted(set(names)) == sorted(names)
