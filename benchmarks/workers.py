"""What StickyWorkers costs: four workers plain, with every client at home, with every request handed over; and a
hand-over beside the same request forwarded over HTTP.

    python benchmarks/workers.py
    python benchmarks/workers.py --quick

Four uvicorn processes with a port each stand for the workers of one server: they are siblings by `name=`, and who has a
port and a mark decides who accepts a request and who owns it. "at home" sends each worker its own clients, "handed
over" sends each the clients of the next one. The clients send what a browser sends, the mark among other cookies.

The second table is of two processes and one client at a time loading them: all CPU, system and user, that /proc counts
for both, per request, less what the bare request costs (the same app on the same server alone). "forwarded" is the same
request through our own Upstream to the same app on a uvicorn of its own, over TCP and over a UNIX socket. The goal: a
hand-over costs no more than forwarding over TCP; better, 0.8 of it.

Rounds of all contenders take turns; figures are medians, ratios the median of the rounds' own (in brackets the lowest
and the highest). Nothing is asserted. Linux only; wrk makes the load where it is installed, else a loop of ours, which
then bounds the rates of the first table.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
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
from typing import Any

HOST = "127.0.0.1"
WORKERS = 4
BODY = b"x" * 1024
SECRET = "a secret for benchmarks and nothing else"
DEADLINE = 60.0  # seconds for what should take an instant
HEADERS = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Language": "en-US,en;q=0.5",
    "Accept-Encoding": "gzip, deflate, br, zstd",
}
COOKIES = "theme=dark; _ga=GA1.1.1234567890.1234567890; sessionid=0123456789abcdef0123456789abcdef"


# The contenders' apps, made by factories that uvicorn calls.


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


def bound() -> Any:
    """What a bound in-process request costs, for comparison."""
    from sticky_asgi import Backend, Cookie, Dispatcher, Server

    app = hello()
    servers = [Server(f"w{number}", app, stateless=True) for number in range(1, WORKERS + 1)]
    return Dispatcher(Backend("bench", servers, persist=Cookie("STICKYWORKER", secret=SECRET)))


def forwarding() -> Any:
    from sticky_asgi import Backend, Cookie, Dispatcher, Server

    server = Server("w1", os.environ["BENCH_UPSTREAM"])
    return Dispatcher(Backend("bench", [server], persist=Cookie("STICKYWORKER", secret=SECRET)))


# Processes


@dataclass
class Process:
    """A uvicorn, on a port of its own or at a UNIX socket."""

    process: subprocess.Popen[bytes]
    port: int
    mark: str = ""

    @property
    def cpu(self) -> float:
        """Seconds that it has used so far, system and user."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def serving(factory: str, folder: str, upstream: str = "", uds: str = "") -> Iterator[Process]:
    port = free_port() if not uds else 0
    where = ["--uds", uds] if uds else ["--port", f"{port}"]
    command = [sys.executable, "-m", "uvicorn", "--factory", f"workers:{factory}", "--no-access-log"]
    environment = {**os.environ, "BENCH_DIRECTORY": folder, "BENCH_UPSTREAM": upstream}
    here = Path(__file__).parent
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (f"{here.parent}", os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [*command, "--log-level", "warning", *where], cwd=here, env=environment, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + DEADLINE
        while True:
            with socket.socket(socket.AF_UNIX if uds else socket.AF_INET) as end:
                if not end.connect_ex(uds or (HOST, port)):
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{factory} does not come up")
            time.sleep(0.02)
        yield Process(process, port)
    finally:
        process.terminate()
        process.wait()


def marked(each: Process) -> str:
    """The mark that it gives to a first visitor; empty if it gives none."""
    connection = http.client.HTTPConnection(HOST, each.port)
    connection.request("GET", "/shop/small")
    answer = connection.getresponse()
    answer.read()
    connection.close()
    said = answer.getheader("set-cookie") or ""
    return said.partition(";")[0]


# The load


def cookie(mark: str) -> str:
    return f"{COOKIES}; {mark}" if mark else COOKIES


def load(targets: list[tuple[int, str]], connections: int, seconds: float) -> list[int]:
    """Keep asking each port, with its mark, over so many connections, all at once: how many answers came from each."""
    wrk = shutil.which("wrk")
    if wrk is None:
        return asyncio.run(own_load(targets, connections, seconds))
    running = []
    for port, mark in targets:
        headers = [
            part for name, value in {**HEADERS, "Cookie": cookie(mark)}.items() for part in ("-H", f"{name}: {value}")
        ]
        command = [wrk, "-t", "1", "-c", f"{connections}", "-d", f"{seconds:g}s", *headers]
        running.append(
            subprocess.Popen([*command, f"http://{HOST}:{port}/shop/small"], stdout=subprocess.PIPE, text=True)
        )
    answers = []
    for each in running:
        said, _ = each.communicate()
        if "Non-2xx" in said:
            raise SystemExit(said)
        found = re.search(r"(\d+) requests in", said)
        answers.append(int(found[1]) if found else 0)
    return answers


async def own_load(targets: list[tuple[int, str]], connections: int, seconds: float) -> list[int]:
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


def told(name: str, figures: list[float], unit: str, against: list[float] | None = None) -> None:
    line = f"  {name:<34}{statistics.median(figures):>10.1f} {unit}"
    if against is not None:
        ratios = [figure / other for figure, other in zip(figures, against, strict=True)]
        line += f"{statistics.median(ratios):>8.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
    print(line)


def rates(rounds: int, seconds: float) -> None:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sticky-"))
        plain = [stack.enter_context(serving("hello", folder)) for _ in range(WORKERS)]
        inside = [stack.enter_context(serving("bound", folder)) for _ in range(WORKERS)]
        workers = [stack.enter_context(serving("sticky", f"{folder}/run")) for _ in range(WORKERS)]
        for each in (*inside, *workers):
            each.mark = marked(each)
        owners = [*workers[1:], workers[0]]
        contenders: dict[str, list[tuple[int, str]]] = {
            "plain": [(each.port, "") for each in plain],
            "bound in process, one worker each": [(each.port, each.mark) for each in inside],
            "StickyWorkers, at home": [(each.port, each.mark) for each in workers],
            "StickyWorkers, handed over": [
                (each.port, owner.mark) for each, owner in zip(workers, owners, strict=True)
            ],
        }
        figures: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(rounds + 1):
            for name, targets in contenders.items():
                total = sum(load(targets, 16, seconds))
                if number:  # the first round warms up
                    figures[name].append(total / seconds)
        print(f"\n{WORKERS} workers, {WORKERS} × 16 connections, requests per second")
        for name, rates_of_it in figures.items():
            told(name, rates_of_it, "/s ", figures["plain"])


def costs(rounds: int, seconds: float) -> None:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sticky-"))
        bare = stack.enter_context(serving("hello", folder))
        inside = stack.enter_context(serving("bound", folder))
        workers = [stack.enter_context(serving("sticky", f"{folder}/run")) for _ in range(2)]
        gateway = stack.enter_context(serving("forwarding", folder, f"http://{HOST}:{bare.port}"))
        behind = stack.enter_context(serving("hello", folder, uds=f"{folder}/u.sock"))
        unix = stack.enter_context(serving("forwarding", folder, f"unix:{folder}/u.sock"))
        for each in (inside, *workers, gateway, unix):
            each.mark = marked(each)
        first, second = workers
        contenders: dict[str, tuple[tuple[int, str], list[Process]]] = {
            "bare": ((bare.port, ""), [bare]),
            "bound in process": ((inside.port, inside.mark), [inside]),
            "StickyWorkers, at home": ((first.port, first.mark), workers),
            "StickyWorkers, handed over": ((first.port, second.mark), workers),
            "forwarded over TCP": ((gateway.port, gateway.mark), [gateway, bare]),
            "forwarded over a UNIX socket": ((unix.port, unix.mark), [unix, behind]),
        }
        for connections in (1, 32):
            figures: dict[str, list[float]] = {name: [] for name in contenders}
            for number in range(rounds + 1):
                for name, (target, processes) in contenders.items():
                    before = sum(each.cpu for each in processes)
                    answers = sum(load([target], connections, seconds))
                    used = sum(each.cpu for each in processes) - before
                    if number:
                        figures[name].append(1e6 * used / answers)
            print(f"\none worker accepts, {connections} connections, CPU of all processes per request")
            told("bare", figures["bare"], "µs")
            over = {
                name: [figure - bare for figure, bare in zip(each, figures["bare"], strict=True)]
                for name, each in figures.items()
                if name != "bare"
            }
            print("  over bare:")
            for name, more in over.items():
                told(name, more, "µs", over["forwarded over TCP"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--only", choices=("rates", "costs"), help="one of the two tables")
    asked = parser.parse_args()
    rounds, seconds = (3, 2.0) if asked.quick else (7, 4.0)
    tables: dict[str, Callable[[int, float], None]] = {"rates": rates, "costs": costs}
    for name, table in tables.items():
        if asked.only in (None, name):
            table(rounds, seconds)


if __name__ == "__main__":
    main()
