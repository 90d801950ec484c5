"""What rolling restarts and a hot spot do to sessions, by algorithm and persistence: a simulation of the real core.

    python benchmarks/simulate.py
    python benchmarks/simulate.py --quick --plot simulate.svg --only leastconn consistent

There are no sockets and no sleep, and randomness is seeded: the same call prints the same figures. Each row has a
backend of its own; every request goes through its `Transaction`, and clients keep the cookies that they are sent.

The model. 1 000 servers of equal weight, a million sessions, time in windows of equal length (24). Sessions begin
evenly over all windows; each sends one request in the window it begins in and one in each of the next two, at a random
place in it. So a window has some 125 000 requests, 125 for each server. A request stays in flight until a later request
replaces it at random, with 5 in flight for each server: that is the load that leastconn and similar algorithms compare.
All servers are equally quick.

The hot spot: a tenth of the sessions (`--hot`) share ten keys, as if they came from ten offices, each behind one
address, to ten pages. Every other session has a key of its own. A key is an address (source, ip_hash), a path (uri), a
parameter (url_param) and a header (hdr, hash); those of one session are the same.

The restarts: from the 7th window to the 18th a twelfth of the servers is in maintenance, another one in each window, so
that each server is restarted once; in the other windows all are up. The servers are not drained first.

Figures. "moved": the share of sessions with a response from another server than the time before. The moves, for 100
sessions: "driven", because their server was in maintenance; "back", to a server that has just come back; "for nothing":
both servers were up all the time. "imbalance": requests at the busiest server over the mean of those that are up, in a
window: "rest", the mean of the three windows before the restarts; "worst", the highest since they began; "end", the
last window. Randomness alone makes 1.3 of it with 125 requests each.

The persistence: none, where an algorithm by a key brings a session back and another does not; a cookie, signed, which
each session keeps for itself; a stick table of the header, so that sessions with the same key share a server.

`--quick` has 40 servers and 8 000 sessions, so its figures are coarse, and takes some ten seconds. At full size a row
takes a quarter of a minute on a core at rest, with a table half of one to a whole; `--only` selects rows.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import logging
import random
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from sticky_core.backend.backend import Backend
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
from sticky_core.balance.algorithm import Balance
from sticky_core.clock import Clock, ManualClock
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.persistence import Persist
from sticky_core.persistence.stick.config import Stick
from sticky_core.samples.request import hdr
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState
from sticky_core.stick_table.table import StickTable
from sticky_core.transaction.reporting import Reporting
from sticky_core.transaction.transaction import Transaction

_log = logging.getLogger("sticky_sessions")

SECRET = "a secret for benchmarks and nothing else"
COOKIE = "SERVERID"
HOT_KEYS = 10
VISITS = 3  # windows in which a session sends a request
IN_FLIGHT = 5  # requests in flight, for each server
RESPONDS_IN = 0.05  # seconds until a response, on average
NO_SERVER = 0xFFFF  # the server of a session that has not begun


@dataclass(frozen=True)
class Model:
    """The size of the simulation and the times of the restarts."""

    servers: int = 1_000
    sessions: int = 1_000_000
    hot: float = 0.1
    seed: int = 1
    windows: int = 24
    first_restart: int = 6
    batches: int = 12

    def down(self, window: int) -> range:
        """Return the numbers of the servers that are in maintenance in a window."""
        batch = window - self.first_restart
        return range(batch, self.servers, self.batches) if 0 <= batch < self.batches else range(0)


QUICK = Model(servers=40, sessions=8_000)


@dataclass(frozen=True)
class Contender:
    """An algorithm and a persistence."""

    algorithm: str
    balance: Balance
    persistence: str
    persist: Callable[[Clock], Sequence[Persist]]

    @property
    def name(self) -> str:
        return f"{self.algorithm} / {self.persistence}"


USER = hdr("x-user")


def nothing(clock: Clock) -> Sequence[Persist]:
    return []


def cookie(clock: Clock) -> Sequence[Persist]:
    return [Cookie(COOKIE, secret=SECRET)]


def table(clock: Clock) -> Sequence[Persist]:
    return [Stick.on(USER, StickTable("string", size="1m", expire="30m", clock=clock))]


#: By name, the function that makes it for a row. There is a row for each algorithm and persistence.
PERSISTENCES: dict[str, Callable[[Clock], Sequence[Persist]]] = {"none": nothing, "cookie": cookie, "table": table}

ALGORITHMS: dict[str, Balance] = {
    "roundrobin": RoundRobin(),
    "static-rr": StaticRR(),
    "leastconn": LeastConn(),
    "first": First(),
    "random": Random(),
    "ewma": Ewma(),
    "source": Source(),
    "uri": Uri(),
    "url_param": UrlParam("user"),
    "hdr": Hdr("x-user"),
    "hash hdr": Hash(USER),
    "source, consistent": Source(hash_type="consistent"),
    "uri, consistent": Uri(hash_type="consistent"),
    "uri, consistent, bounded": Uri(hash_type="consistent", hash_balance_factor=150),
    "hdr, consistent crc32": Hdr("x-user", hash_type="consistent crc32 avalanche"),
    "nginx: smooth turns": Smooth(),
    "nginx: ip_hash": IpHash(),
    "nginx: hash": NginxHash(USER),
    "nginx: hash consistent": NginxHash(USER, consistent=True),
    "nginx: least_conn": NginxLeastConn(),
    "nginx: random two": NginxRandom(two=True),
}
CONTENDERS = [
    Contender(algorithm, balance, persistence, persist)
    for algorithm, balance in ALGORITHMS.items()
    for persistence, persist in PERSISTENCES.items()
]


class Schedule:
    """Which session sends a request when, and with which key: drawn once, and the same for all rows."""

    def __init__(self, model: Model) -> None:
        rng = random.Random(model.seed)
        self.model = model
        sessions = model.sessions
        hot, draw = model.hot, rng.random
        #: by session, the number that its key is derived from
        self.keys = array(
            "I", (rng.randrange(HOT_KEYS) if draw() < hot else HOT_KEYS + number for number in range(sessions))
        )
        begins = [sessions * window // model.windows for window in range(model.windows + 1)]
        #: by window, the sessions that send a request, in order
        self.windows: list[array[int]] = []
        for window in range(model.windows):
            sending = list(range(begins[max(0, window - VISITS + 1)], begins[window + 1]))
            rng.shuffle(sending)
            self.windows.append(array("I", sending))
        #: the place of the request that each request replaces, again and again
        self.places = array("I", (rng.randrange(IN_FLIGHT * model.servers) for _ in range(100_003)))


class ResponseHead:
    """The head of a response, as far as a client stores it."""

    __slots__ = ("cookie",)

    sets_cookies = False
    set_cookies = ()
    cache_control = ""

    def header(self, name: str) -> Sequence[str]:
        return ()

    def __init__(self) -> None:
        self.cookie: str | None = None

    def add(self, name: str, value: str) -> None:
        if name == "set-cookie":
            self.cookie = value.partition(";")[0]

    def edit_cookies(self, new: Callable[[str], str | None]) -> None: ...


class SimulatedRequest(Transaction[int, None]):
    """A request, which consists of the number of its key. Keys are scattered, as addresses are."""

    __slots__ = ()

    method = "GET"
    scheme = "http"
    secure = False

    @property
    def number(self) -> int:
        return self.raw_request * 2654435761 & 0xFFFFFFFF

    @property
    def peer(self) -> str:
        number = self.number
        return f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"

    @property
    def path(self) -> str:
        return f"/users/{self.number:08x}/cart"

    @property
    def query(self) -> str:
        return f"lang=en&user={self.number:08x}"

    def header(self, name: str) -> Sequence[str]:
        return [f"{self.number:08x}"] if name == "x-user" else ()

    @property
    def cookies(self) -> tuple[str, ...]:
        return () if self.cookie_key is None else (str(self.cookie_key),)

    def set_forwarded_cookies(self, texts: Sequence[str]) -> None:
        self.forwarded_cookies = texts


class ReportedRequest(Reporting[int, None], SimulatedRequest):
    """A request with a time, for algorithms that measure latency."""

    __slots__ = ()


@dataclass
class Outcome:
    """The result of one row."""

    sessions: int
    moved: int = 0
    driven: int = 0
    back: int = 0
    for_nothing: int = 0
    unavailable: int = 0
    imbalance: list[float] = field(default_factory=list)  #: by window
    seconds: float = 0.0
    model: Model = field(default_factory=Model)

    def of_100(self, moves: int) -> float:
        return 100 * moves / self.sessions

    @property
    def rest(self) -> float:
        first = self.model.first_restart
        return fmean(self.imbalance[first - 3 : first])

    @property
    def worst(self) -> float:
        return max(self.imbalance[self.model.first_restart :])

    @property
    def end(self) -> float:
        return self.imbalance[-1]


class Run:
    """One row: a backend, its clients, and the requests in flight."""

    def __init__(self, contender: Contender, schedule: Schedule) -> None:
        model = schedule.model
        self._schedule = schedule
        self._clock = ManualClock()
        self._places = itertools.cycle(schedule.places)
        self._in_flight: list[SimulatedRequest | None] = [None] * (IN_FLIGHT * model.servers)
        self._gap = RESPONDS_IN / len(self._in_flight)
        self.servers = [
            Server(f"s{number}", f"http://10.0.{number >> 8}.{number & 255}:8080") for number in range(model.servers)
        ]
        self.backend = Backend(
            "simulated",
            self.servers,
            balance=contender.balance,
            persist=contender.persist(self._clock),
            clock=self._clock,
            rng=random.Random(model.seed),
        )
        self._request_class = ReportedRequest if self.backend.snapshot.observes else SimulatedRequest
        self._sessions = array("H", [NO_SERVER]) * model.sessions
        self._cookies: list[str | None] = [None] * model.sessions
        self._moved = bytearray(model.sessions)
        self._was_down = [-2] * model.servers  # the last window in which it was in maintenance
        self.outcome = Outcome(model.sessions, model=model)

    def run(self) -> Outcome:
        begin = time.thread_time()
        model = self._schedule.model
        for window, sending in enumerate(self._schedule.windows):
            for number in model.down(window - 1):
                self.servers[number].state = AdminState.READY
            for number in model.down(window):
                self.servers[number].state = AdminState.MAINT
                self._was_down[number] = window
            responses = self._window(window, sending)
            up = model.servers - len(model.down(window))
            self.outcome.imbalance.append(max(responses) * up / sum(responses))
        self.outcome.moved = sum(self._moved)
        self.outcome.seconds = time.thread_time() - begin
        return self.outcome

    def _window(self, window: int, sending: Sequence[int]) -> list[int]:
        """Send one request for each session of the window. Return how many responses each server has sent."""
        request_class, backend, advance, gap = self._request_class, self.backend, self._clock.advance, self._gap
        keys, cookies, sessions, in_flight = self._schedule.keys, self._cookies, self._sessions, self._in_flight
        responses = [0] * len(self.servers)
        for session, place in zip(sending, self._places, strict=False):
            advance(gap)
            request = request_class()
            request.snapshot = backend.snapshot
            request.owner = backend
            request.raw_request = keys[session]
            request.client_send = None
            server = request.first(cookies[session])
            if not isinstance(server, Server):
                self.outcome.unavailable += 1
                request.unavailable_response()
                continue
            request.decision.status = 200
            if not request.persisted.needs_no_mark:
                head = ResponseHead()
                request.stamp(head)
                if head.cookie is not None:
                    cookies[session] = head.cookie
            ended, in_flight[place] = in_flight[place], request
            if ended is not None:
                ended.release(ended.tried[-1], True)
            number = server.id - 1
            responses[number] += 1
            before = sessions[session]
            if before != number:
                sessions[session] = number
                if before != NO_SERVER:
                    self._note_move(session, before, number, window)
        return responses

    def _note_move(self, session: int, before: int, now: int, window: int) -> None:
        self._moved[session] = 1
        if self._was_down[before] == window:
            self.outcome.driven += 1
        elif self._was_down[now] == window - 1:
            self.outcome.back += 1
        else:
            self.outcome.for_nothing += 1


def simulated(model: Model, contenders: Sequence[Contender]) -> Iterator[tuple[Contender, Outcome]]:
    """Yield the outcome of each row."""
    schedule = Schedule(model)
    for contender in contenders:
        run = Run(contender, schedule)
        gc.collect()
        gc.freeze()
        gc.disable()
        logged = _log.level
        _log.setLevel(logging.CRITICAL)  # each restart would log a line
        try:
            outcome = run.run()
        finally:
            _log.setLevel(logged)
            gc.enable()
            gc.unfreeze()
        yield contender, outcome


HEAD = (
    f"{'':<26}{'':<13}{'':>8}{'moves of 100 sessions':>30}   {'imbalance':>22}\n"
    f"{'algorithm':<26}{'persistence':<13}{'moved':>8}{'driven':>10}{'back':>8}{'for nothing':>12}"
    f"   {'rest':>6}{'worst':>8}{'end':>8}"
)


def line(contender: Contender, outcome: Outcome) -> str:
    moves = f"{outcome.of_100(outcome.driven):>10.1f}{outcome.of_100(outcome.back):>8.1f}"
    return (
        f"{contender.algorithm:<26}{contender.persistence:<13}{outcome.of_100(outcome.moved):>7.1f}%{moves}"
        f"{outcome.of_100(outcome.for_nothing):>12.1f}"
        f"   {outcome.rest:>6.2f}{outcome.worst:>8.2f}{outcome.end:>8.2f}"
        + (f"   {outcome.unavailable} no server available" if outcome.unavailable else "")
    )


def plot(results: Sequence[tuple[Contender, Outcome]], model: Model, file: Path) -> None:
    """Draw the table: a bar of moves by their reason, and the imbalance before, at its worst, and at the end."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    # the same figures make the same file, with text that can be searched
    with mpl.rc_context({"svg.hashsalt": "simulate", "svg.fonttype": "none"}):
        drawn: Any = pyplot.subplots(
            1, 2, sharey=True, figsize=(13, 2 + 0.26 * len(results)), layout="constrained", width_ratios=(1, 1)
        )
        figure, (moves, imbalance) = drawn
        rows = range(len(results))
        left = [0.0] * len(results)
        for reason, colour in (("driven", "#4c78a8"), ("back", "#9ecae9"), ("for_nothing", "#e45756")):
            widths = [outcome.of_100(getattr(outcome, reason)) for _, outcome in results]
            moves.barh(rows, widths, left=left, color=colour, label=reason.replace("_", " "))
            left = [so_far + width for so_far, width in zip(left, widths, strict=True)]
        moves.set_xlabel("moves of 100 sessions")
        moves.set_yticks(rows, [contender.name for contender, _ in results])
        moves.set_ylim(len(results) - 0.4, -0.6)
        for row, (_, outcome) in enumerate(results):
            imbalance.plot([outcome.rest, outcome.worst], [row, row], color="#bbbbbb", zorder=1)
        for moment, marker, colour in (("rest", "o", "#54a24b"), ("worst", "D", "#e45756"), ("end", "|", "#333333")):
            at = [getattr(outcome, moment) for _, outcome in results]
            imbalance.scatter(at, rows, marker=marker, color=colour, label=moment, zorder=2)
        imbalance.set_xscale("log")
        imbalance.set_xlabel("imbalance: the busiest server over the mean")
        for each in (moves, imbalance):
            each.grid(axis="x", alpha=0.3)
            each.legend(loc="lower right")
        figure.suptitle(
            f"{model.servers} servers, {model.sessions} sessions, {model.hot:.0%} of them of {HOT_KEYS} keys; "
            f"all servers restarted, {100 / model.batches:.0f} % at a time"
        )
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
        pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", type=int, help="servers (1000)")
    parser.add_argument("--sessions", type=int, help="sessions (1000000)")
    parser.add_argument("--hot", type=float, default=0.1, help=f"the share of sessions with {HOT_KEYS} keys (0.1)")
    parser.add_argument("--seed", type=int, default=1, help="of chance (1)")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="rows with a WORD in them")
    parser.add_argument("--quick", action="store_true", help="40 servers, 8000 sessions")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it as well: an .svg, a .png")
    arguments = parser.parse_args()
    model = replace(QUICK if arguments.quick else Model(), hot=arguments.hot, seed=arguments.seed)
    model = replace(model, servers=arguments.servers or model.servers, sessions=arguments.sessions or model.sessions)
    if not model.batches <= model.servers < NO_SERVER:
        parser.error(f"--servers {model.servers}: from {model.batches} to {NO_SERVER - 1}")
    if model.sessions < 1000:
        parser.error(f"--sessions {model.sessions}: at least 1000, or there is nothing to count")
    if not 0 <= model.hot <= 1:
        parser.error(f"--hot {model.hot}: a share is within 0 and 1")
    for word in arguments.only:
        if not any(word in contender.name for contender in CONTENDERS):
            parser.error(f"--only {word}: in none of {', '.join(contender.name for contender in CONTENDERS)}")
    chosen = [
        contender
        for contender in CONTENDERS
        if not arguments.only or any(word in contender.name for word in arguments.only)
    ]
    print(
        f"{model.servers} servers, {model.sessions} sessions, {model.hot:.0%} of them of {HOT_KEYS} keys, "
        f"a restart of all, {100 / model.batches:.0f} % at a time; seed {model.seed}\n"
    )
    print(HEAD)
    results: list[tuple[Contender, Outcome]] = []
    seconds = 0.0
    for contender, outcome in simulated(model, chosen):
        print(line(contender, outcome), flush=True)
        seconds += outcome.seconds
        results.append((contender, outcome))
    print(f"\n{seconds:.0f} s on one core")
    if arguments.plot is not None:
        plot(results, model, arguments.plot)
        print(f"drawn: {arguments.plot}")


if __name__ == "__main__":
    main()
