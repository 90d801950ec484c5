"""The cost of a choice, by algorithm and number of servers, and of a change of a weight.

    python benchmarks/choosing.py

Each algorithm chooses among 2 to 10 000 servers, every fifth of weight 5, the others of weight 1, for clients that come
back again and again. Rounds of all algorithms take turns, and of each the quickest counts, in processor time, because
other work on the machine can only add to it. Beside the choice are printed the notifications of each request, where an
algorithm counts requests (`acquired`, `released`), a choice for a new key, and how long an algorithm takes to be
built, and to follow a change of a weight, or of a server that is removed or comes back, up to the next choice.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sticky_core.balance import (
    Ewma,
    First,
    Hash,
    Hdr,
    IpHash,
    LeastConn,
    NginxHash,
    NginxLeastConn,
    NginxRandom,
    Random,
    RoundRobin,
    Smooth,
    Source,
    StaticRR,
    Uri,
    UrlParam,
)
from sticky_core.balance.algorithm import Algorithm, Balance, LatencyAware
from sticky_core.samples.request import hdr
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState

SIZES = (2, 10, 100, 1_000, 10_000)
#: Goals, from ten servers on: microseconds per choice, and how many times more among the most than among the fewest.
MICROSECONDS = {"flat": 1.0, "ring": 2.0}
FLAT = 3.0


@dataclass(frozen=True)
class Contender:
    """An algorithm, and its goal, if it has one."""

    name: str
    balance: Balance
    goal: Literal["flat", "ring"] | None = None


USER = hdr("x-user")
CONTENDERS = [
    Contender("roundrobin", RoundRobin(), "flat"),
    Contender("static-rr", StaticRR(), "flat"),
    Contender("leastconn", LeastConn(), "flat"),
    Contender("first", First()),
    Contender("random", Random(), "flat"),
    Contender("source", Source(), "flat"),
    Contender("uri", Uri(), "flat"),
    Contender("url_param", UrlParam("user"), "flat"),
    Contender("hdr", Hdr("x-user"), "flat"),
    Contender("hash hdr", Hash(USER), "flat"),
    Contender("source, consistent", Source(hash_type="consistent"), "ring"),
    Contender("uri, consistent", Uri(hash_type="consistent"), "ring"),
    Contender("uri, consistent, bounded", Uri(hash_type="consistent", hash_balance_factor=150)),
    Contender("hdr, consistent crc32", Hdr("x-user", hash_type="consistent crc32 avalanche"), "ring"),
    Contender("ewma", Ewma()),
    Contender("nginx: smooth turns", Smooth()),
    Contender("nginx: ip_hash", IpHash()),
    Contender("nginx: hash", NginxHash(USER)),
    Contender("nginx: hash consistent", NginxHash(USER, consistent=True), "ring"),
    Contender("nginx: least_conn", NginxLeastConn()),
    Contender("nginx: random two", NginxRandom(two=True)),
]


class Client:
    """A request."""

    def __init__(self, number: int) -> None:
        self.src = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        self.path = f"/users/{number:08x}/cart"
        self.query = f"lang=en&user={number:016x}"
        self._headers = {"x-user": [f"{number:032x}"]}

    def header(self, name: str) -> Sequence[str]:
        return self._headers.get(name, ())


def app(environ: object, start_response: object) -> list[bytes]:
    return []


class Work:
    """One algorithm over so many servers."""

    def __init__(self, contender: Contender, servers: list[Server]) -> None:
        self.servers = servers
        begin = time.thread_time()
        self.algorithm: Algorithm = contender.balance.build(servers, random)
        self.build_time = time.thread_time() - begin
        if isinstance(self.algorithm, LatencyAware):
            for server in servers:
                self.algorithm.record_latency(server, 0.1)

    def choices(self, clients: Sequence[Any]) -> float:
        """Return the seconds per choice."""
        choose = self.algorithm.choose
        begin = time.thread_time()
        for client in clients:
            choose(client, ())
        return (time.thread_time() - begin) / len(clients)

    def notified(self, clients: Sequence[Any]) -> float:
        """Return the seconds per request for `acquired` and `released`."""
        algorithm, servers = self.algorithm, self.servers
        some = [servers[number * 7919 % len(servers)] for number in range(len(clients))]
        begin = time.thread_time()
        for server in some:
            server.in_flight.append(None)
            algorithm.acquired(server)
            server.in_flight.pop()
            algorithm.released(server)
        with_it = time.thread_time() - begin
        begin = time.thread_time()
        for server in some:
            server.in_flight.append(None)
            server.in_flight.pop()
        return (with_it - (time.thread_time() - begin)) / len(clients)

    def changed(self, client: Any, change: Callable[[Server], None], back: Callable[[Server], None]) -> float:
        """Return the seconds until the next choice after a server's change."""
        server = self.servers[len(self.servers) // 2]
        took: list[float] = []
        for step in (change, back) * 3:
            step(server)
            begin = time.thread_time()
            self.algorithm.state_changed(server)
            self.algorithm.choose(client, ())
            took.append(time.thread_time() - begin)
        return max(min(took[::2]), min(took[1::2]))


def raise_weight(server: Server) -> None:
    server.weight += 2


def lower_weight(server: Server) -> None:
    server.weight -= 2


def set_maintenance(server: Server) -> None:
    server.state = AdminState.MAINT


def set_ready(server: Server) -> None:
    server.state = AdminState.READY


def measured(rounds: int, count: int) -> Iterator[tuple[Contender, dict[str, list[float]]]]:
    """Return for each contender, by what was measured, the figures by number of servers, in microseconds."""
    servers = [Server(f"s{number}", app, weight=5 if number % 5 == 4 else 1) for number in range(SIZES[-1])]
    clients = [Client(number) for number in range(count)]
    figures: dict[str, dict[str, list[float]]] = {contender.name: {} for contender in CONTENDERS}
    new_keys = iter(range(count, 10**9))
    for size in SIZES:
        works = [(contender, Work(contender, servers[:size])) for contender in CONTENDERS]
        choices: dict[str, list[float]] = {contender.name: [] for contender in CONTENDERS}
        notified: dict[str, list[float]] = {contender.name: [] for contender in CONTENDERS}
        for _, work in works:  # warm up: keys become known, and all rounds have begun
            for _ in range(3):
                work.choices(clients)
        gc.collect()
        gc.freeze()
        gc.disable()
        for _ in range(rounds):
            for contender, work in works:
                choices[contender.name].append(work.choices(clients))
                if work.algorithm.counts_requests:
                    notified[contender.name].append(work.notified(clients))
        for contender, work in works:
            figure = figures[contender.name]
            figure.setdefault("choice", []).append(min(choices[contender.name]) * 1e6)
            if work.algorithm.counts_requests:
                figure.setdefault("notified", []).append(min(notified[contender.name]) * 1e6)
            unseen = min(work.choices([Client(next(new_keys)) for _ in range(count)]) for _ in range(5))
            figure.setdefault("new key", []).append(unseen * 1e6)
            figure.setdefault("built", []).append(work.build_time * 1e6)
            figure.setdefault("weight", []).append(work.changed(clients[0], raise_weight, lower_weight) * 1e6)
            figure.setdefault("maintenance", []).append(work.changed(clients[0], set_maintenance, set_ready) * 1e6)
        gc.enable()
        gc.unfreeze()
    for contender in CONTENDERS:
        yield contender, figures[contender.name]


def verdict(contender: Contender, choice: Sequence[float]) -> str:
    """Return whether the goal is reached, from ten servers on."""
    if contender.goal is None:
        return ""
    from_ten = choice[1:]
    most, times = max(from_ten), max(from_ten) / min(from_ten)
    bar = MICROSECONDS[contender.goal]
    missed = [f"{most:.2f} µs > {bar:g}"] * (most > bar)
    if contender.goal == "flat":
        missed += [f"{times:.1f} × > {FLAT:g}"] * (times > FLAT)
    return "not reached: " + ", ".join(missed) if missed else "reached"


TABLES = {
    "choice": "a choice for a known key",
    "new key": "a choice for a new key",
    "notified": "acquired and released",
    "weight": "a weight changed, and the next choice",
    "maintenance": "a server in maintenance or back, and the next choice",
    "built": "built",
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=30, help="rounds of each algorithm and size (30)")
    arguments.add_argument("--clients", type=int, default=2000, help="clients, each asking once a round (2000)")
    chosen = arguments.parse_args()
    results = list(measured(chosen.rounds, chosen.clients))
    for what, title in TABLES.items():
        print(f"\n{title}, µs at … servers")
        print(f"{'':<28}" + "".join(f"{size:>10}" for size in SIZES))
        for contender, figures in results:
            if what in figures:
                digits = 2 if what in ("choice", "new key", "notified") else 0
                line = "".join(f"{figure:>10.{digits}f}" for figure in figures[what])
                goal = verdict(contender, figures["choice"]) if what == "choice" else ""
                print(f"  {contender.name:<26}{line}   {goal}".rstrip())
    print(
        f"\nto reach from ten servers on: {MICROSECONDS['flat']:g} µs and at most {FLAT:g} times as much among the most"
        f" as among the fewest; rings {MICROSECONDS['ring']:g} µs"
    )


if __name__ == "__main__":
    main()
