"""What StickyWorkers costs: four workers without it, with every client at its own worker, and with every request
forwarded to a peer; and a request forwarded to a peer beside the same request forwarded over HTTP.

    python benchmarks/workers.py
    python benchmarks/workers.py --quick

Four uvicorn processes with a port each stand for the workers of one server: they are peers by `name=`, so the port
decides which worker accepts a request, and the cookie which worker serves it. "at the own worker" sends to each worker
its own clients, "forwarded to a peer" sends to each the clients of the next one. The clients send what a browser sends,
the mark among other cookies.

"a relay without any work" shows the lower bound for a worker in Python: it writes prepared bytes to a process like
itself, takes the next read for the response, and responds with other prepared bytes. Nothing is packed, no app is
called there, no client is recognised.

- `rates`: requests per second of one client of each worker, which repeats its Cookie header.
- `mix`: the same with a thousand clients, each with a Cookie header of its own: all at the worker that has their
  session, and one of four there, as a server that spreads connections evenly brings it about.
- `latency`: how long a request takes that is alone on its connection and on the machine, p50 and p99.
- `costs`: two processes, loaded by one client: all CPU time, system and user, that /proc counts for both, per request,
  less what the bare request costs (the same app on the same server without us). "forwarded over ..." is the same
  request through our Upstream to the same app in another uvicorn, over TCP and over a UNIX socket.
- `start`: how long a worker takes from its start to its first response, and how much memory it has after a thousand
  requests: of its own (USS) and in all (RSS).

Rounds of all contenders take turns. Figures are medians, ratios are the median of the ratios of each round (in brackets
the lowest and the highest), and the goal follows. Nothing is asserted. Linux only. `rates` and `mix` need wrk for what
they are worth: else a client of ours makes the load, and limits the rates.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import itertools
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

HOST = "127.0.0.1"
WORKERS = 4
BODY = b"x" * 1024
SECRET = "a secret for benchmarks and nothing else"
DEADLINE = 60.0  # in seconds, for hangs only
HEADERS = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Language": "en-US,en;q=0.5",
    "Accept-Encoding": "gzip, deflate, br, zstd",
}
COOKIES = "theme=dark; _ga=GA1.1.1234567890.1234567890; sessionid=0123456789abcdef0123456789abcdef"


# The contenders' apps: uvicorn calls these factories.


def hello() -> Any:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(BODY))]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": BODY})

    return app


def sticky() -> Any:
    from sticky_asgi import StickyWorkers

    return StickyWorkers(hello(), name="bench", directory=os.environ["BENCH_DIRECTORY"], secret=SECRET)


def replicas() -> Any:
    """The same app as replicas in one process, for comparison."""
    from sticky_asgi import Backend, Cookie, Dispatcher, Server

    app = hello()
    servers = [Server(f"w{number}", app, stateless=True) for number in range(1, WORKERS + 1)]
    return Dispatcher(Backend("bench", servers, persist=Cookie("STICKYWORKER", secret=SECRET)))


def forwarding() -> Any:
    from sticky_asgi import Backend, Cookie, Dispatcher, Server

    server = Server("w1", os.environ["BENCH_UPSTREAM"])
    return Dispatcher(Backend("bench", [server], persist=Cookie("STICKYWORKER", secret=SECRET)))


class Asking(asyncio.Protocol):
    """The end of a relay that asks: one request at a time."""

    transport: asyncio.Transport
    answered: asyncio.Future[None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    async def ask(self) -> None:
        self.answered = asyncio.get_running_loop().create_future()
        self.transport.write(b"q" * 700)  # as long as the frame of the request
        await self.answered

    def data_received(self, data: bytes) -> None:
        self.answered.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answered.done():
            self.answered.set_exception(ConnectionError("the other relay has closed the connection"))


class Answering(asyncio.Protocol):
    """The end of a relay that answers."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(BODY)


def relay() -> Any:
    """Respond to a request after one of the relays listed in BENCH_UPSTREAM, the next in turn, has answered; an empty
    one stands for a request that is not relayed. The first in the list is where this one listens.
    """
    own, *targets = os.environ["BENCH_UPSTREAM"].split(",")
    idle: dict[str, list[Asking]] = {target: [] for target in targets}
    turns = itertools.cycle(targets)
    respond = hello()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        loop = asyncio.get_running_loop()
        if scope["type"] == "lifespan":
            await receive()
            async with await loop.create_unix_server(Answering, own):
                await send({"type": "lifespan.startup.complete"})
                await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        target = next(turns)
        if target:
            connections = idle[target]
            asking = connections.pop() if connections else (await loop.create_unix_connection(Asking, target))[1]
            await asking.ask()
            connections.append(asking)
        await respond(scope, receive, send)

    return app


# Processes


@dataclass
class Process:
    """A uvicorn that listens on a port or at a UNIX socket. `mark`: the cookie of its clients, `NAME=value`."""

    process: subprocess.Popen[bytes]
    port: int
    mark: str = ""

    @property
    def cpu(self) -> float:
        """How much CPU time it has used, system and user, in seconds."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def memory(self) -> tuple[float, float]:
        """How much memory it has of its own (USS), and in all (RSS), in MB."""
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        sizes = {name: int(size) / 1024 for name, size in re.findall(r"^(\w+): +(\d+) kB$", text, re.MULTILINE)}
        return sizes["Private_Clean"] + sizes["Private_Dirty"], sizes["Rss"]


def free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def serving(factory: str, folder: str, upstream: str = "", uds: str = "") -> Iterator[Process]:
    port = free_port() if not uds else 0
    address = ["--uds", uds] if uds else ["--port", f"{port}"]
    command = [sys.executable, "-m", "uvicorn", "--factory", f"workers:{factory}", "--no-access-log"]
    environment = {**os.environ, "BENCH_DIRECTORY": folder, "BENCH_UPSTREAM": upstream}
    here = Path(__file__).parent
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (f"{here.parent}", os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [*command, "--log-level", "warning", *address], cwd=here, env=environment, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + DEADLINE
        while True:
            with socket.socket(socket.AF_UNIX if uds else socket.AF_INET) as end:
                if not end.connect_ex(uds or (HOST, port)):
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{factory} does not start to listen within {DEADLINE:g} seconds")
            time.sleep(0.02)
        yield Process(process, port)
    finally:
        process.terminate()
        process.wait()


def mark_of(process: Process) -> str:
    """Return the mark that it gives to a new client; empty if it gives none."""
    connection = http.client.HTTPConnection(HOST, process.port)
    connection.request("GET", "/shop/small")
    response = connection.getresponse()
    response.read()
    connection.close()
    cookie_text = response.getheader("set-cookie") or ""
    return cookie_text.partition(";")[0]


# The load


def cookie(mark: str) -> str:
    return f"{COOKIES}; {mark}" if mark else COOKIES


# A Cookie header of its own for each of a thousand clients. Their marks take turns.
CLIENTS = """
local marks, requests, turn = {%s}, {}, 0
function init(args)
  for client = 1, 1000 do
    local mark = marks[client %% #marks + 1]
    wrk.headers["Cookie"] = "theme=dark; visitor=" .. client .. mark
    requests[client] = wrk.format("GET", "/shop/small")
  end
end
function request()
  turn = turn %% #requests + 1
  return requests[turn]
end
"""


def load(
    targets: list[tuple[int, str]], connections: int, seconds: float, clients: list[tuple[str, ...]] | None = None
) -> list[int]:
    """Send requests to each port, with its mark, over so many connections, to all ports at the same time. Return the
    number of responses from each. `clients`: for each port the marks of a thousand clients, instead of one client.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        return asyncio.run(load_without_wrk(targets, connections, seconds))
    running = []
    for number, (port, mark) in enumerate(targets):
        headers = [
            part for name, value in {**HEADERS, "Cookie": cookie(mark)}.items() for part in ("-H", f"{name}: {value}")
        ]
        command = [wrk, "-t", "1", "-c", f"{connections}", "-d", f"{seconds:g}s", *headers]
        if clients is not None:
            script = Path(tempfile.gettempdir(), f"clients-{os.getpid()}-{number}.lua")
            script.write_text(CLIENTS % ", ".join(f'"; {each}"' for each in clients[number]))
            command += ["-s", f"{script}"]
        running.append(
            subprocess.Popen([*command, f"http://{HOST}:{port}/shop/small"], stdout=subprocess.PIPE, text=True)
        )
    responses = []
    for each in running:
        report, _ = each.communicate()
        if "Non-2xx" in report:
            raise SystemExit(report)
        found = re.search(r"(\d+) requests in", report)
        responses.append(int(found[1]) if found else 0)
    for number in range(len(targets) if clients is not None else 0):
        Path(tempfile.gettempdir(), f"clients-{os.getpid()}-{number}.lua").unlink()
    return responses


async def load_without_wrk(targets: list[tuple[int, str]], connections: int, seconds: float) -> list[int]:
    counts = [0] * len(targets)
    end = time.monotonic() + seconds

    async def client(number: int, port: int, mark: str) -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        lines = [f"{name}: {value}" for name, value in {"Host": HOST, **HEADERS, "Cookie": cookie(mark)}.items()]
        request = "\r\n".join(("GET /shop/small HTTP/1.1", *lines, "", "")).encode()
        while time.monotonic() < end:
            writer.write(request)
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(len(BODY))
            counts[number] += 1
        writer.close()

    await asyncio.gather(
        *(client(number, *target) for number, target in enumerate(targets) for _ in range(connections))
    )
    return counts


# The tables


def print_row(name: str, figures: list[float], unit: str, against: list[float] | None = None, goal: str = "") -> None:
    line = f"  {name:<34}{statistics.median(figures):>10.1f} {unit}"
    if against is not None:
        ratios = [figure / other for figure, other in zip(figures, against, strict=True)]
        line += f"{statistics.median(ratios):>8.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
    print(f"{line}   {goal}".rstrip(), flush=True)


def rates(rounds: int, seconds: float) -> None:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sticky-"))
        plain = [stack.enter_context(serving("hello", folder)) for _ in range(WORKERS)]
        inside = [stack.enter_context(serving("replicas", folder)) for _ in range(WORKERS)]
        workers = [stack.enter_context(serving("sticky", f"{folder}/run")) for _ in range(WORKERS)]
        for each in (*inside, *workers):
            each.mark = mark_of(each)
        next_workers = [*workers[1:], workers[0]]
        contenders: dict[str, list[tuple[int, str]]] = {
            "plain": [(each.port, "") for each in plain],
            "bound in process, one worker each": [(each.port, each.mark) for each in inside],
            "StickyWorkers, at the own worker": [(each.port, each.mark) for each in workers],
            "StickyWorkers, forwarded to a peer": [
                (each.port, peer.mark) for each, peer in zip(workers, next_workers, strict=True)
            ],
        }
        figures: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(rounds + 1):
            for name, targets in contenders.items():
                total = sum(load(targets, 16, seconds))
                if number:  # the first round warms up
                    figures[name].append(total / seconds)
        print(f"\n{WORKERS} workers, {WORKERS} × 16 connections, requests per second")
        for name, rates_of_contender in figures.items():
            print_row(name, rates_of_contender, "/s ", figures["plain"])


def mix(rounds: int, seconds: float) -> None:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sticky-"))
        plain = [stack.enter_context(serving("hello", folder)) for _ in range(WORKERS)]
        workers = [stack.enter_context(serving("sticky", f"{folder}/run")) for _ in range(WORKERS)]
        for each in workers:
            each.mark = mark_of(each)
        marks = tuple(each.mark for each in workers)
        relays = start_relays(stack, folder, WORKERS, all_relayed=False)
        contenders: dict[str, tuple[list[Process], list[tuple[str, ...]]]] = {
            "plain": (plain, [marks] * WORKERS),
            "every client at its own worker": (workers, [(each.mark,) for each in workers]),
            "three of four forwarded to a peer": (workers, [marks] * WORKERS),
            "three of four, a relay without work": (relays, [marks] * WORKERS),
        }
        goals = {"every client at its own worker": "goal: 0.8", "three of four forwarded to a peer": "goal: 0.5"}
        figures: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(rounds + 1):
            for name, (processes, clients) in contenders.items():
                total = sum(load([(each.port, "") for each in processes], 16, seconds, clients))
                if number:
                    figures[name].append(total / seconds)
        print(f"\n{WORKERS} workers, {WORKERS} × 16 connections, a thousand clients each, requests per second")
        for name, rates_of_contender in figures.items():
            print_row(name, rates_of_contender, "/s ", figures["plain"], goals.get(name, ""))


def latency(rounds: int, seconds: float) -> None:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sticky-"))
        plain = stack.enter_context(serving("hello", folder))
        workers = [stack.enter_context(serving("sticky", f"{folder}/run")) for _ in range(2)]
        for each in workers:
            each.mark = mark_of(each)
        first, second = workers
        relaying, _ = start_relays(stack, folder, 2, all_relayed=True)
        contenders = {
            "plain": (plain, ""),
            "at the own worker": (first, first.mark),
            "forwarded to a peer": (first, second.mark),
            "a relay without any work": (relaying, ""),
        }
        goals = {"at the own worker": "goal of p50: 1.1", "forwarded to a peer": "goal of p50: 1.8"}
        figures: dict[str, list[list[float]]] = {name: [] for name in contenders}
        for number in range(rounds + 1):
            for name, (process, mark) in contenders.items():
                times = time_requests(process.port, mark, seconds / 4)
                if number:
                    figures[name].append(times)
        for label, part in (("p50", 0.5), ("p99", 0.99)):
            print(f"\none request at a time, {label}")
            quantiles = {
                name: [1e6 * sorted(times)[int(part * len(times))] for times in of_rounds]
                for name, of_rounds in figures.items()
            }
            for name, of_rounds in quantiles.items():
                goal = goals.get(name, "") if label == "p50" else ""
                print_row(name, of_rounds, "µs", quantiles["plain"], goal)


def start_relays(stack: contextlib.ExitStack, folder: str, count: int, *, all_relayed: bool) -> list[Process]:
    """Start relays that send requests to each other, in turn. `all_relayed`: else each responds to one of `count`."""
    paths = [f"{folder}/relay{number}" for number in range(count)]
    relays = []
    for path in paths:
        targets = [other if other != path else "" for other in paths]
        if all_relayed:
            targets.remove("")
        relays.append(stack.enter_context(serving("relay", folder, ",".join((path, *targets)))))
    return relays


def time_requests(port: int, mark: str, seconds: float) -> list[float]:
    """Send one request after another over one connection. Return how long each took, in seconds."""
    lines = [f"{name}: {value}" for name, value in {"Host": HOST, **HEADERS, "Cookie": cookie(mark)}.items()]
    request = "\r\n".join(("GET /shop/small HTTP/1.1", *lines, "", "")).encode()
    times: list[float] = []
    with socket.create_connection((HOST, port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            begin = time.perf_counter()
            connection.sendall(request)
            received = connection.recv(65536)
            while not received.endswith(BODY):
                received += connection.recv(65536)
            times.append(time.perf_counter() - begin)
    return times


def start(rounds: int, _: float) -> None:
    figures: dict[str, list[tuple[float, float, float]]] = {"plain": [], "StickyWorkers": []}
    with tempfile.TemporaryDirectory(prefix="sticky-") as folder:
        for _ in range(rounds):
            for name, factory in (("plain", "hello"), ("StickyWorkers", "sticky")):
                begin = time.monotonic()
                with serving(factory, f"{folder}/run") as process:
                    mark = mark_of(process)
                    took = time.monotonic() - begin
                    for _ in range(1000):
                        mark_of(process)
                    time_requests(process.port, mark, 0.1)
                    figures[name].append((1000 * took, *process.memory))
    kinds = (("from start to first response", "ms"), ("own memory", "MB"), ("memory in all", "MB"))
    for number, (label, unit) in enumerate(kinds):
        print(f"\none worker, {label}")
        for name, rows in figures.items():
            print_row(name, [row[number] for row in rows], unit, [row[number] for row in figures["plain"]])


def costs(rounds: int, seconds: float) -> None:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sticky-"))
        bare = stack.enter_context(serving("hello", folder))
        inside = stack.enter_context(serving("replicas", folder))
        workers = [stack.enter_context(serving("sticky", f"{folder}/run")) for _ in range(2)]
        gateway = stack.enter_context(serving("forwarding", folder, f"http://{HOST}:{bare.port}"))
        behind = stack.enter_context(serving("hello", folder, uds=f"{folder}/u.sock"))
        unix = stack.enter_context(serving("forwarding", folder, f"unix:{folder}/u.sock"))
        for each in (inside, *workers, gateway, unix):
            each.mark = mark_of(each)
        first, second = workers
        contenders: dict[str, tuple[tuple[int, str], list[Process]]] = {
            "bare": ((bare.port, ""), [bare]),
            "bound in process": ((inside.port, inside.mark), [inside]),
            "StickyWorkers, at the own worker": ((first.port, first.mark), workers),
            "StickyWorkers, forwarded to a peer": ((first.port, second.mark), workers),
            "forwarded over TCP": ((gateway.port, gateway.mark), [gateway, bare]),
            "forwarded over a UNIX socket": ((unix.port, unix.mark), [unix, behind]),
        }
        for connections in (1, 32):
            figures: dict[str, list[float]] = {name: [] for name in contenders}
            for number in range(rounds + 1):
                for name, (target, processes) in contenders.items():
                    before = sum(each.cpu for each in processes)
                    responses = sum(load([target], connections, seconds))
                    used = sum(each.cpu for each in processes) - before
                    if number:
                        figures[name].append(1e6 * used / responses)
            print(f"\none worker accepts, {connections} connections, CPU of all processes per request")
            print_row("bare", figures["bare"], "µs")
            over_bare = {
                name: [figure - bare for figure, bare in zip(each, figures["bare"], strict=True)]
                for name, each in figures.items()
                if name != "bare"
            }
            print("  over bare:")
            for name, more in over_bare.items():
                print_row(name, more, "µs", over_bare["forwarded over TCP"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    tables: dict[str, Callable[[int, float], None]] = {
        "rates": rates,
        "mix": mix,
        "latency": latency,
        "costs": costs,
        "start": start,
    }
    parser.add_argument("--only", choices=tables, help="one of the tables")
    options = parser.parse_args()
    rounds, seconds = (3, 2.0) if options.quick else (7, 4.0)
    for name, table in tables.items():
        if options.only in (None, name):
            table(rounds, seconds)


if __name__ == "__main__":
    main()
