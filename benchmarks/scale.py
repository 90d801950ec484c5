"""What grows with the configuration: a change of one server, backends that are compared with each other, routes, and
health checks, at 10 to 10 000 of them.

    python benchmarks/scale.py
    python benchmarks/scale.py --only checks --sizes 10 1000

Contenders take turns in one run, and figures are medians of processor time: other work on the machine can only add to
it, and ratios are steadier than times. A change is measured with the next choice of balance, which may have to renew an
index, on the thread that would be the event loop's: it stands for so long. A health check is compared with a connection
and a request by hand, at the same pace, to the same server in another process.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import logging
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import anyio

import sticky_asgi
import sticky_wsgi
from sticky_core.backend.backend import Backend
from sticky_core.health.check import Check, CheckResult, CheckStatus
from sticky_core.health.runtime import CheckRuntime
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.routing import Frontend
from sticky_core.server.server import Server

SIZES = (10, 100, 1_000, 10_000)
SECRET = "a secret for benchmarks and nothing else"
#: Goals: milliseconds for which a change of one server may keep the event loop, by the number of servers.
STANDING = {1_000: 5.0, 10_000: 30.0}
#: Goals: times as much for each of the most as for each of the fewest; times as much as a connection and a request.
FLAT, CHECK = 3.0, 2.0
#: how many health checks begin in a second
PACE = 200.0


@dataclass
class Row:
    """What was measured at each size, and the verdict."""

    name: str
    unit: str
    figures: list[float] = field(default_factory=list)
    verdict: str = ""


class Client:
    """A request."""

    def __init__(self, number: int) -> None:
        self.src = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        self.path = f"/users/{number:08x}/cart"
        self.query = ""

    def header(self, name: str) -> Sequence[str]:
        return ()


def url(number: int) -> str:
    return f"http://10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}:8080"


def build_servers(count: int) -> list[Server]:
    return [Server(f"s{number}", url(number)) for number in range(count)]


def seconds_of(call: Callable[[], object]) -> float:
    begin = time.thread_time()
    call()
    return time.thread_time() - begin


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


# -- one server more, one less, another one


BALANCES = ("roundrobin", "leastconn", "random", "uri", "uri, consistent")
STEPS = ("built", "add", "remove", "apply", "plan", "drain")


class Changing:
    """A backend with a dispatcher, and changes of one of its servers."""

    def __init__(self, balance: str, size: int) -> None:
        from sticky_core.balance import Uri

        chosen = Uri(hash_type="consistent") if balance == "uri, consistent" else balance
        servers = build_servers(size)
        self.took: dict[str, list[float]] = {step: [] for step in STEPS}

        def build() -> Backend:
            return Backend("shop", servers, balance=chosen, persist=Cookie("SERVERID", secret=SECRET))

        begin = time.thread_time()
        self.backend = build()
        self.took["built"].append(time.thread_time() - begin)
        self.replicas = sticky_asgi.Dispatcher(self.backend).replicas
        self.replicas.build_apps()
        self._numbers = itertools.count()

    def _choose(self) -> None:
        client: Any = Client(next(self._numbers))
        self.backend.placement.choose(self.backend.snapshot, client, ())

    def run(self) -> None:
        """Do each step once."""
        backend, number = self.backend, next(self._numbers)
        new = Server(f"new{number}", url((1 << 20) + number))
        known = backend.servers[len(backend.servers) // 2]
        configs = [
            replace(each, weight=each.weight % 5 + 1) if each.name == known.name else each
            for each in backend.config.servers
        ]
        changed = replace(backend.config, servers=tuple(configs))
        fewer = replace(backend.config, servers=backend.config.servers[1:])

        def after(step: str, call: Callable[[], object]) -> None:
            def call_and_choose() -> None:
                call()
                self._choose()

            self.took[step].append(seconds_of(call_and_choose))

        after("add", lambda: backend.add(new))
        after("plan", lambda: backend.plan(fewer))
        after("remove", lambda: backend.remove(new.name))
        after("apply", lambda: backend.apply(changed))
        after("drain", lambda: known.drain())
        known.state = "ready"


def measure_changes(sizes: Sequence[int], rounds: int) -> Iterator[Row]:
    rows = {(balance, step): Row(f"{balance}: {step}", "ms") for step in STEPS for balance in BALANCES}
    for size in sizes:
        contenders = {balance: Changing(balance, size) for balance in BALANCES}
        with without_garbage_collection():
            for number in range(rounds + 1):
                for contender in contenders.values():
                    contender.run()
                    if not number:  # caches are filled and indexes made
                        for step in STEPS[1:]:
                            contender.took[step].clear()
        for balance, contender in contenders.items():
            for step in STEPS:
                rows[balance, step].figures.append(statistics.median(contender.took[step]) * 1e3)
    for (_, step), row in rows.items():
        if step != "built":
            row.verdict = standing_verdict(sizes, row.figures)
    yield from rows.values()


def standing_verdict(sizes: Sequence[int], milliseconds: Sequence[float]) -> str:
    """Return whether the goal of each size is reached."""
    goals = [(took, STANDING[size], size) for took, size in zip(milliseconds, sizes, strict=True) if size in STANDING]
    missed = [f"{took:.1f} ms > {most:g} at {size}" for took, most, size in goals if took > most]
    return ("not reached: " + ", ".join(missed) if missed else "reached") if goals else ""


# -- backends that are compared with each other, and routes


def measure_routes(sizes: Sequence[int], rounds: int) -> Iterator[Row]:
    made = Row("a frontend of so many backends", "µs each")
    lookup = Row("a route, of so many", "µs")
    deep = Row("a route, of so many, six segments deep", "µs")
    for size in sizes:
        routes = {
            f"/tenants/t{number}/shop": Backend(
                f"b{number}",
                [Server("s1", url(number))],
                persist=Cookie("SERVERID", path=f"/tenants/t{number}/shop", secret=SECRET),
            )
            for number in range(size)
        }
        paths = [f"/tenants/t{number * 7919 % size}/shop/cart" for number in range(500)]
        deeper = [f"{path}/items/{number}/x" for number, path in enumerate(paths)]
        frontend = Frontend(routes)

        def look_up(paths: Sequence[str], frontend: Frontend = frontend) -> None:
            find = frontend.routes.find
            for path in paths:
                find(path)

        took: dict[str, list[float]] = {row.name: [] for row in (made, lookup, deep)}
        with without_garbage_collection():
            for _ in range(rounds):
                took[made.name].append(seconds_of(partial(Frontend, routes)) / size)
                took[lookup.name].append(seconds_of(partial(look_up, paths)) / len(paths))
                took[deep.name].append(seconds_of(partial(look_up, deeper)) / len(deeper))
        for row in (made, lookup, deep):
            row.figures.append(statistics.median(took[row.name]) * 1e6)
    for row in (made, lookup, deep):
        times = max(row.figures) / min(row.figures)
        row.verdict = f"{times:.1f} × the fewest: " + ("reached" if times <= FLAT else f"not reached, {FLAT:g} ×")
    yield from (made, lookup, deep)


# -- health checks

ORIGIN = """
import asyncio

async def respond(reader, writer):
    try:
        await reader.readuntil(b"\\r\\n\\r\\n")
        writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\nconnection: close\\r\\n\\r\\nok")
        await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()

async def main():
    server = await asyncio.start_server(respond, "127.0.0.1", 0, backlog=1000)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""
REQUEST = b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"


@contextmanager
def running_origin() -> Iterator[int]:
    """Run a server that responds at once, in a process of its own. Yield its port."""
    process = subprocess.Popen([sys.executable, "-c", ORIGIN], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Checked:
    """A backend of so many servers that are all at one port, and counts the checks that passed."""

    def __init__(self, size: int, port: int) -> None:
        servers = [Server(f"s{number}", f"http://127.0.0.1:{port}") for number in range(size)]
        self.backend = Backend("shop", servers, check=Check("/health", inter=max(size / PACE, 0.02)))
        self.passed = self.failed = 0
        record = self.backend.monitor.record_check

        def count(server: Server, result: CheckResult, checking: CheckRuntime | None = None) -> None:
            if result.status is CheckStatus.L7OK:
                self.passed += 1
            else:
                self.failed += 1
            record(server, result, checking)

        self.backend.monitor.record_check = count  # type: ignore[method-assign]


async def check_on_asgi(size: int, port: int, seconds: float) -> tuple[float, int]:
    """Return the processor time of checks for so many seconds, and how many there were."""
    checked = Checked(size, port)
    async with sticky_asgi.Dispatcher(checked.backend).lifespan():
        while not checked.passed:  # noqa: ASYNC110 - a check sets no event
            await anyio.sleep(0.01)
        before, begin = checked.passed, time.process_time()
        await anyio.sleep(seconds)
        return time.process_time() - begin, checked.passed - before


def check_on_wsgi(size: int, port: int, seconds: float) -> tuple[float, int]:
    checked = Checked(size, port)
    checks = sticky_wsgi.Dispatcher(checked.backend).replicas.checks
    checks.start()
    while not checked.passed:
        time.sleep(0.01)
    before, begin = checked.passed, time.process_time()
    time.sleep(seconds)
    took = time.process_time() - begin, checked.passed - before
    checks.stop()
    return took


async def ask_on_asyncio(port: int, seconds: float) -> tuple[float, int]:
    """Connect and ask by hand, at the same pace."""
    begin, end, asked = time.process_time(), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST)
        await reader.read()
        writer.close()
        asked += 1
        await asyncio.sleep(1 / PACE)
    return time.process_time() - begin, asked


def ask_in_a_thread(port: int, seconds: float) -> tuple[float, int]:
    begin, end, asked = time.process_time(), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            connection.sendall(REQUEST)
            while connection.recv(65536):
                pass
        asked += 1
        time.sleep(1 / PACE)
    return time.process_time() - begin, asked


def measure_checks(sizes: Sequence[int], rounds: int, seconds: float) -> Iterator[Row]:
    names = ("by hand, asyncio", "checks, ASGI on asyncio", "checks, ASGI on trio", "by hand, a thread", "checks, WSGI")
    rows = {name: Row(name, "µs") for name in names}
    with running_origin() as port:
        for size in sizes:
            took: dict[str, list[float]] = {name: [] for name in names}
            for _ in range(rounds):
                results = (
                    asyncio.run(ask_on_asyncio(port, seconds)),
                    anyio.run(check_on_asgi, size, port, seconds),
                    anyio.run(check_on_asgi, size, port, seconds, backend="trio"),
                    ask_in_a_thread(port, seconds),
                    check_on_wsgi(size, port, seconds),
                )
                for name, (processor, count) in zip(names, results, strict=True):
                    took[name].append(processor / max(count, 1))
            for name, row in rows.items():
                row.figures.append(statistics.median(took[name]) * 1e6)
    for name, hand in (("checks, ASGI on asyncio", "by hand, asyncio"), ("checks, WSGI", "by hand, a thread")):
        times = [ours / bare for ours, bare in zip(rows[name].figures, rows[hand].figures, strict=True)]
        verdict = "reached" if max(times) <= CHECK else f"not reached, {CHECK:g} ×"
        rows[name].verdict = f"{', '.join(f'{each:.1f}' for each in times)} × by hand: {verdict}"
    yield from rows.values()


TABLES = {
    "changes": "a change of one server among so many, with the next choice, while the event loop stands",
    "routes": "backends behind one middleware",
    "checks": "a health check of one of so many servers, in processor time",
}


@contextmanager
def nothing_logged() -> Iterator[None]:
    """Keep the log empty: each change would log a line."""
    log = logging.getLogger("sticky_sessions")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="how many servers, backends and routes")
    arguments.add_argument("--rounds", type=int, default=11, help="rounds of each change and look-up (11)")
    arguments.add_argument("--check-rounds", type=int, default=3, help="rounds of health checks (3)")
    arguments.add_argument("--seconds", type=float, default=2.0, help="how long health checks run in a round (2)")
    arguments.add_argument("--only", choices=TABLES, help="measure only this")
    chosen = arguments.parse_args()
    measures: dict[str, Callable[[], Iterator[Row]]] = {
        "changes": lambda: measure_changes(chosen.sizes, chosen.rounds),
        "routes": lambda: measure_routes(chosen.sizes, chosen.rounds),
        "checks": lambda: measure_checks(chosen.sizes, chosen.check_rounds, chosen.seconds),
    }
    for what, title in TABLES.items():
        if chosen.only in (None, what):
            print(f"\n{title}")
            print(f"{'':<44}" + "".join(f"{size:>10}" for size in chosen.sizes))
            with nothing_logged():
                for row in measures[what]():
                    line = "".join(f"{figure:>10.2f}" for figure in row.figures)
                    print(f"  {row.name:<42}{line} {row.unit}   {row.verdict}".rstrip(), flush=True)
    goals = " and ".join(f"{most:g} ms among {size}" for size, most in STANDING.items())
    print(
        f"\nto reach: {goals} for a change; at most {FLAT:g} × the fewest for each of the most routes; at "
        f"most {CHECK:g} × by hand for a check on asyncio and on WSGI"
    )


if __name__ == "__main__":
    main()
