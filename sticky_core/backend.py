"""Backend: servers, how to balance them, how to persist, when to give up."""

from __future__ import annotations

import logging
import random
import threading
import weakref
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Literal, Protocol, TypeVar, cast

from sticky_core import agent_check
from sticky_core.balance import Affinity, Algorithm, Balance, RoundRobin, Timed, named
from sticky_core.check import Check, Checking, CheckResult, spread_out
from sticky_core.clock import Clock, Rng, SystemClock
from sticky_core.decision import Decision
from sticky_core.errors import ConfigError, Failure, collected
from sticky_core.errors import check as raise_for
from sticky_core.events import Bus, Drained, Events, StateChange
from sticky_core.fork import Forked, renewed
from sticky_core.forwarding import Forward
from sticky_core.persistence import Cookie, Persist, Persistence
from sticky_core.persistence.rules import Condition, Ruled
from sticky_core.persistence.several import Several
from sticky_core.proxies import Networks
from sticky_core.queue import Queue, Ticket
from sticky_core.request import Request
from sticky_core.retries import Retries
from sticky_core.server import LOOK, NAME, AdminState, Server, ServerConfig
from sticky_core.timeouts import Timeouts

Unavailable = Literal["redispatch", "fail"]
OnEmpty = Literal["fail", "panic"]

_log = logging.getLogger("sticky_sessions")


class Kept(Forked, Protocol):
    """What a face keeps beside a backend."""

    def timed(self, timed: bool) -> None:
        """Whether time changes something about the servers, so that requests must `tick` first. Under the lock."""
        ...


T = TypeVar("T", bound=Kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendConfig:
    """What was asked of a backend. `Backend` explains the words."""

    name: str
    servers: tuple[ServerConfig, ...]
    balance: Balance
    persist: tuple[Persist, ...] = ()
    retries: int = 3
    retry_on: tuple[str, ...] = ("conn-failure",)
    redispatch: bool | int = True
    unavailable: Unavailable = "redispatch"
    retry_body_limit: int = 65536
    idempotency_key: bool = False
    timeouts: Timeouts = field(default_factory=Timeouts)
    forward: Forward = field(default_factory=Forward)
    check: Check | None = None
    on_empty: OnEmpty = "fail"
    panic_threshold: float | None = None
    allbackups: bool = False
    persist_on_down: bool = False
    force_persist: Condition | None = None
    ignore_persist: Condition | None = None
    use_server: tuple[tuple[str, Condition], ...] = ()

    def __post_init__(self) -> None:
        raise_for(f"backend {self.name}: {problem}" for problem in self._problems())

    def _problems(self) -> Iterator[str]:
        if not NAME.fullmatch(self.name):
            yield "a name is made of letters, digits and - _ . :"
        names = [server.name for server in self.servers]
        if not names:
            yield "has no servers"
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"has {names.count(name)} servers called {name}: give each a name of its own"
        cookies = [asked.name for asked in self.persist if isinstance(asked, Cookie) and asked.mode != "passive"]
        for name in sorted({name for name in cookies if cookies.count(name) > 1}):
            yield (
                f"persists by cookie {name} in {cookies.count(name)} ways that would undo each other: "
                "give each a name of its own"
            )
        yield from Retries(self.retries, self.retry_on, self.redispatch).problems()
        if self.retry_body_limit < 0:
            yield f"retry_body_limit {self.retry_body_limit} is below 0"
        if self.unavailable not in ("redispatch", "fail"):
            yield f"unavailable {self.unavailable!r} is neither 'redispatch' nor 'fail'"
        yield from self._problems_of_choice()
        yield from self._problems_of_rules()
        yield from self._problems_of_checks()

    def _problems_of_choice(self) -> Iterator[str]:
        if self.on_empty not in ("fail", "panic"):
            yield f"on_empty {self.on_empty!r} is neither 'fail' nor 'panic'"
        if self.panic_threshold is not None:
            if self.on_empty != "panic":
                yield "panic_threshold has no effect without on_empty='panic'"
            if not 0 <= self.panic_threshold <= 1:
                yield f"panic_threshold {self.panic_threshold!r} is not a share: write 0.5 for half of the servers"
        if self.allbackups and not any(server.backup for server in self.servers):
            yield "allbackups has no effect without servers that have backup=True"

    def _problems_of_rules(self) -> Iterator[str]:
        for name in ("persist_on_down", "force_persist", "ignore_persist"):
            if getattr(self, name) and not self.persist and (name == "ignore_persist" or not self.use_server):
                yield f"{name} has no effect without persist"
        if self.persist_on_down and self.force_persist is not None and self.ignore_persist is None:
            yield "force_persist is what persist_on_down says of every request: leave one of them out"
        for name in ("force_persist", "ignore_persist"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                yield f"{name} {getattr(self, name)!r} is no condition: hand a callable that is told the request"
        names = {server.name for server in self.servers}
        for name, condition in self.use_server:
            if name not in names:
                yield f"use_server names {name}, and there is no such server"
            if not callable(condition):
                yield f"use_server: {condition!r} is no condition: hand a callable that is told the request"

    def _problems_of_checks(self) -> Iterator[str]:
        for server in self.servers:
            if server.check is False and self.check is None:
                yield f"server {server.name}: check=False has no effect: the backend has no check either"
        checks = self.check
        if checks is not None and checks.port is not None:
            for server in self.servers:
                if server.check is None and server.track is None and not isinstance(server.target, str):
                    yield (
                        f"server {server.name}: check: port is for URLs, and this is an app: give it a check of its "
                        "own, or check=False"
                    )


class Backend:
    """A set of servers that serve the same thing, and the rules by which requests reach them.

    `balance`: who gets a client that belongs nowhere yet: `"roundrobin"` (default) or another of HAProxy's lines, such
    as `"leastconn"`, `"random(3)"` or `"uri depth 2"`; or a value with arguments, such as `RoundRobin`, `Uri`, `Hash`.
    `persist`: how clients are known again: a `Cookie`, or several; the first that speaks wins.
    `retries`: how many further attempts may be made when a server fails. `retry_on`: after which failures, in HAProxy's
    words: `"conn-failure"` (default) alone is known not to have executed the request; `empty-response`,
    `junk-response`, `response-timeout`, statuses such as `503`, and `all-retryable-errors` are followed by a further
    attempt only if the method is idempotent (or, with `idempotency_key`, the request has an Idempotency-Key), and its
    body fits into `retry_body_limit` bytes (16 KB in HAProxy; 64 here). `redispatch`: who gets a further attempt:
    another server at once (True), the same after a pause (False), another at every nth (n) or at the nth before the
    last (-n; HAProxy `option redispatch`).
    `unavailable`: what becomes of a client whose own server is down, in maintenance or silent: `"redispatch"` (default)
    gives it another one and tells it so; `"fail"` answers 503, for applications that must not lose a session silently.
    `timeouts`, `forward`: how long to wait for servers, and what URLs are told of the client.
    `check`: how servers are checked (`Check`); None: they are not. `on_empty`: what if no server is left: `"fail"`
    (default) answers 503; `"panic"` uses all that are not in maintenance, down or not, and clients stay where they are;
    `panic_threshold`: already when less than this share of the servers is up (0 to 1; by default when none is).
    `allbackups`: clients share all backups, rather than the first that can.
    `persist_on_down`: clients are sent to their server even if it is down (HAProxy `option persist`).
    `force_persist`, `ignore_persist`: the same for the requests of which a callable says so, and the opposite: their
    marks do not count; whom both mean, `force_persist` has. `use_server`: who goes to which server whatever it claims,
    as `{"name": callable}`; the first whose server can be used.
    `log`: called with the `Decision` of each request when it is over, in the thread that served it.
    `clock`, `rng`: time and chance, for tests.

    Raises `ConfigError` with every problem found. Safe to use from any thread, and after a fork.
    """

    def __init__(
        self,
        name: str,
        servers: Sequence[Server],
        *,
        balance: str | Balance = "roundrobin",
        persist: Persist | Sequence[Persist] = (),
        retries: int = 3,
        retry_on: str | Sequence[str] = "conn-failure",
        redispatch: bool | int = True,
        retry_body_limit: int = 65536,
        idempotency_key: bool = False,
        unavailable: Unavailable = "redispatch",
        timeouts: Timeouts | None = None,
        forward: Forward | None = None,
        check: Check | None = None,
        on_empty: OnEmpty = "fail",
        panic_threshold: float | None = None,
        allbackups: bool = False,
        persist_on_down: bool = False,
        force_persist: Condition | None = None,
        ignore_persist: Condition | None = None,
        use_server: Mapping[str, Condition] | Sequence[tuple[str, Condition]] = (),
        log: Callable[[Decision], None] | None = None,
        clock: Clock | None = None,
        rng: Rng | None = None,
    ) -> None:
        raise_for(f"backend {name}: {problem}" for problem in _strangers(servers, persist, check))
        problems: list[str] = []
        asked_persist = tuple(persist) if isinstance(persist, Sequence) else (persist,)
        with collected(problems, f"backend {name}: "):
            balance = named(balance) if isinstance(balance, str) else balance
        again = Retries(
            retries, tuple(retry_on.split() if isinstance(retry_on, str) else map(str, retry_on)), redispatch
        )
        with collected(problems):
            self.config = BackendConfig(
                name=name,
                servers=tuple(server.config for server in servers),
                balance=RoundRobin() if isinstance(balance, str) else balance,
                persist=asked_persist,
                retries=again.retries,
                retry_on=again.retry_on,
                redispatch=redispatch,
                unavailable=unavailable,
                retry_body_limit=retry_body_limit,
                idempotency_key=idempotency_key,
                timeouts=timeouts if timeouts is not None else Timeouts(),
                forward=forward if forward is not None else Forward(),
                check=check,
                on_empty=on_empty,
                panic_threshold=panic_threshold,
                allbackups=allbackups,
                persist_on_down=persist_on_down,
                force_persist=force_persist,
                ignore_persist=ignore_persist,
                use_server=tuple(use_server.items() if isinstance(use_server, Mapping) else use_server),
            )
        self.name = name
        self.servers = tuple(servers)
        self.retries = again
        self.unavailable: Unavailable = unavailable
        self.log = log
        self.clock: Clock = clock if clock is not None else SystemClock()
        # the module rather than an instance: it is re-seeded in a forked child, so that siblings do not draw alike
        self.rng: Rng = rng if rng is not None else random
        self._lock = threading.Lock()
        self._backups = tuple(server for server in servers if server.config.backup)
        problems += (
            f"backend {name}: server {server.name}: belongs to another backend already; "
            "a Server is one place in one backend"
            for server in servers
            if server.belongs
        )
        tracked: dict[Server, Server] = {}
        for server in servers:
            with collected(problems, f"backend {name}: server {server.name}: "):
                if server.config.track is not None:
                    tracked[server] = self._tracked(server, server.config.track)
        persistences: list[Persistence] = []
        for asked in asked_persist:
            with collected(problems, f"backend {name}: "):
                persistences.append(asked.over(name, self.servers, self.clock))
        raise_for(problems)
        for number, server in enumerate(servers, 1):
            server.id = number
        self._balance = self._algorithm()
        self._timed = self._balance if isinstance(self._balance, Timed) else None
        self._backup_balance = self._algorithm(backups=True) if allbackups else None
        self._queue = Queue()
        self._bus = Bus()
        self._due = inf
        self._status: dict[Server, str] = {}  # as it was announced
        #: whether health counts for nothing at the moment
        self.panics = False
        self._empty = False
        #: whose word about the client counts
        self.trusted_proxies = Networks(self.config.forward.trusted_proxies)
        #: whether who comes and goes must be told: to balance, or because a server takes only so many
        self.counts = self._balance.counts or any(server.limit for server in servers)
        #: whether a request may have to be read more than once, or looked after while it waits
        self.rereads = again.rereads or any(server.limit or isinstance(server.config.target, str) for server in servers)
        self.persistence: Persistence | None = None
        if persistences:
            self.persistence = Several(persistences) if len(persistences) > 1 else persistences[0]
        rules = Ruled.of(self.config, self.servers)
        if rules is not None:
            self.persistence = rules(self.persistence)
        idle = 0.0 if self.persistence is None else max(each.idle for each in persistences or (self.persistence,))
        self._kept: dict[object, Kept] = {}
        self._checks_owner: object = None
        now = self.clock.monotonic()
        alone = len(servers) - len(self._backups) == 1  # nginx never leaves the only one alone
        for server in servers:
            server.idle = idle
            server.checking = self._checking(server, check)
            agent = server.config.agent_check
            server.agent = Checking(_agent(agent), self.rng) if agent is not None else None
            if alone and not server.config.backup:
                server.max_fails = 0
            server.tracks = tracked.get(server)
            if server.tracks is not None:
                server.tracks.trackers += server.only
            server.settle(now)
            self._status[server] = server.status
        spread_out([each.checking for each in servers if each.checking is not None])
        spread_out([each.agent for each in servers if each.agent is not None])
        #: whether somebody has to ask the servers how they are
        self.checked = any(server.checking is not None or server.agent is not None for server in servers)
        #: whether it is of interest how requests turn out, and how long they take
        self.observes = self._timed is not None or any(
            server.max_fails or (server.checking is not None and server.checking.check.observe) for server in servers
        )
        #: whether a server that goes down takes with it what is in flight there
        self.shuts_down = any(
            server.checking is not None and server.checking.check.on_marked_down for server in servers
        )
        for server in servers:
            server.belong(self._changed)
            if not server.electable:  # it is down from the start
                self._algorithm_of(server).changed(server)
        self._appoint()
        renewed(self)
        _latest[name] = self

    def _algorithm(self, *, backups: bool = False) -> Algorithm:
        servers = [server for server in self.servers if server.config.backup is backups]
        return self.config.balance.over(servers, self.rng)

    def _algorithm_of(self, server: Server) -> Algorithm | _Nobody:
        if not server.config.backup:
            return self._balance
        return self._backup_balance if self._backup_balance is not None else _nobody

    def _checking(self, server: Server, check: Check | None) -> Checking | None:
        asked = server.config.check
        if asked is False or server.config.track is not None:
            return None
        asked = asked if asked is not None else check
        return Checking(asked, self.rng) if asked is not None else None

    def _tracked(self, server: Server, track: str | Server) -> Server:
        """Whom it tracks. ConfigError if that is nobody."""
        if isinstance(track, str):
            backend_name, _, name = track.rpartition("/")
            backend = _latest.get(backend_name, self) if backend_name and backend_name != self.name else self
            if backend is self and backend_name not in ("", self.name):
                raise ConfigError(f"track {track}: there is no backend {backend_name} yet: make it first")
            try:
                found = backend[name]
            except KeyError:
                raise ConfigError(f"track {track}: there is no such server") from None
        else:
            found = track
        if found is server or found.config.track is not None:
            raise ConfigError(f"track: {found.name} has no health of its own: name the server that is checked")
        return found

    def choose(self, request: Request, tried: Container[Server]) -> Server | None:
        """A server for a request that belongs nowhere: one that balance chooses, else the first backup that can, else
        one that drains.
        """
        if self._due < inf:
            self.tick()
        with self._lock:
            return self._choose(request, tried)

    def _choose(self, request: Request, tried: Container[Server]) -> Server | None:
        server = self._balance.choose(request, tried)
        return server if server is not None else self._otherwise(request, tried)

    def _otherwise(self, request: Request, tried: Container[Server]) -> Server | None:
        """Who takes a request when those cannot who should: a backup, or one that drains."""
        if self._backup_balance is not None:
            server = self._backup_balance.choose(request, tried)
            if server is not None:
                return server
        else:
            for server in self._backups:
                if server.electable and server not in tried:
                    return server
        # HAProxy answers 503 here; a server that lets its clients go is still better than none
        draining = [server for server in self.servers if server.reachable and server not in tried]
        return min(
            (server for server in draining if not server.electable), key=lambda each: len(each.in_flight), default=None
        )

    def place(self, request: Request, bound: Server | None, tried: tuple[Server, ...]) -> Server | Ticket | None:
        """A place for a request where who comes and goes is counted: at the server that it is `bound` to, or at one
        that is chosen; if all that could take it have their `maxconn`, a place in the queue.

        `tried`: who is not to be chosen. None: nobody can take it, or too many wait already.
        """
        if self._due < inf:
            self.tick()
        avoid = tried
        with self._lock:
            if bound is not None:
                place = self._place_at(bound, tried)
                if place is not None or not self.retries.redispatch or self.unavailable == "fail":
                    return place
                avoid += bound.only
            affinity = self._balance.preserve_affinity
            server = self._balance.choose(
                request, avoid if affinity == "always" else _Crowded(avoid, self._queue, affinity)
            )
            if server is not None:
                return self._place_at(server, tried)
            # those that only have no room are waited for: nobody else helps out
            full = [each for each in self.servers if each.electable and not each.config.backup and each not in avoid]
            if full:
                most = sum(each.config.maxqueue for each in full)
                if all(each.config.maxqueue for each in full) and self._queue.waiting >= most:
                    return None
                return self._line_up(Ticket(None, tried))
            server = self._otherwise(request, _Crowded(avoid, self._queue, "maxconn"))
            if server is None:
                server = self._otherwise(request, avoid)
            return self._place_at(server, tried) if server is not None else None

    def _place_at(self, server: Server, tried: tuple[Server, ...]) -> Server | Ticket | None:
        """A place at `server` or in the line before it; None if that is too long."""
        waiting = self._queue.waiting_for(server)
        if not server.limit or not (server.full or waiting):
            return self._take(server)
        if server.config.maxqueue and waiting >= server.config.maxqueue:
            return None
        return self._line_up(Ticket(server, tried))

    def qcur(self, server: Server | None = None) -> int:
        """How many requests wait for `server`, or for whichever has room first (HAProxy `qcur`)."""
        return self._queue.waiting if server is None else self._queue.waiting_for(server)

    def take(self, server: Server) -> None:
        """One more request is at `server`, whoever says so. Told only if `counts`."""
        with self._lock:
            self._take(server)

    def _take(self, server: Server) -> Server:
        server.in_flight.append(None)
        if not server.config.backup:
            self._balance.taken(server)
        elif self._backup_balance is not None:
            self._backup_balance.taken(server)
        return server

    def _line_up(self, ticket: Ticket) -> Ticket:
        self._queue.join(ticket)
        return ticket

    def waits(self, ticket: Ticket, wake: Callable[[], bool]) -> bool:
        """Have `wake` called when there is news about `ticket`. False: there is already."""
        with self._lock:
            if ticket.over:
                return False
            ticket.wake = wake
            return True

    def settle(self, ticket: Ticket) -> Server | None:
        """The waiter has looked up, woken or tired: the server that it has a place at, if one was granted in time."""
        with self._lock:
            self._queue.leave(ticket)
            return ticket.granted

    def left(self, server: Server) -> None:
        """A request has left `server`. Told only if `counts`."""
        with self._lock:
            woken = self._leave(server)
        self._wake(woken)

    def _leave(self, server: Server) -> list[Ticket]:
        server.in_flight.pop()
        if not server.config.backup:
            self._balance.left(server)
        elif self._backup_balance is not None:
            self._backup_balance.left(server)
        return self._grant(server) if server.limit else []

    def _grant(self, server: Server) -> list[Ticket]:
        """Give the free places at `server` to those who wait longest; who they are, to be woken without the lock."""
        granted: list[Ticket] = []
        while server.usable and not server.full:
            ticket = self._queue.next(server)
            if ticket is None:
                break
            ticket.granted = self._take(server)
            granted.append(ticket)
        return granted

    def _wake(self, tickets: list[Ticket]) -> None:
        """Tell waiters to look. A place that was granted to one that is not there any more goes to the next."""
        while tickets:
            again: list[Ticket] = []
            for ticket in tickets:
                # None: the waiter has not lain down yet, and will see
                if ticket.wake is not None and not ticket.wake() and ticket.granted is not None:
                    again += self._give_back(ticket)
            tickets = again

    def _give_back(self, ticket: Ticket) -> list[Ticket]:
        server = ticket.granted
        assert server is not None
        with self._lock:
            ticket.granted = None
            return self._leave(server)

    def _changed(self, server: Server) -> None:
        with self._lock:
            woken = self._settle(server)
            self._appoint()
        self._told(woken, server)

    def _told(self, woken: list[Ticket], *servers: Server) -> None:
        """What follows from a change, without the lock."""
        self._wake(woken)
        self._bus.tell()
        for server in servers:
            for tracker in server.trackers:
                tracker.why = f"via {self.name}/{server.name}"
                tracker.tell()

    def _settle(self, server: Server) -> list[Ticket]:
        """Draw what follows from a change of a server; who is to be woken without the lock."""
        now = self.clock.monotonic()
        before, drained = self._status.get(server, "UP"), server.drained
        server.settle(now, self.panics)
        after = self._status[server] = server.status
        if after != before:
            self._announce(server, before, after)
        if server.drained and not drained:
            self._announce(server, after, "DRAINED")
        woken = self._pass_on(server)
        if after != before:
            woken += self._look_for_panic()
        server.why = ""
        return woken

    def _pass_on(self, server: Server) -> list[Ticket]:
        self._algorithm_of(server).changed(server)
        if self.persistence is not None:
            self.persistence.changed(server)
        woken = self._grant(server)
        if not server.usable:
            # HAProxy moves those who wait for a server in MAINT always, and else only with redispatch
            if self.retries.redispatch or server.state is AdminState.MAINT:
                woken += self._queue.dismiss(server)
        if not server.electable:
            could = [each for each in self.servers if each.electable and not each.config.backup]
            woken += self._queue.dismiss_hopeless(could)
        return woken

    def _look_for_panic(self) -> list[Ticket]:
        """Whether so few servers are up that health is not to count; if that is news, all settle anew."""
        woken: list[Ticket] = []
        usable = any(each.status not in ("DOWN", "MAINT") for each in self.servers)
        panics = False
        if self.config.on_empty == "panic":
            threshold = self.config.panic_threshold or 0.0
            active = [each.status for each in self.servers if not each.config.backup and not each.in_maint]
            up = sum(status != "DOWN" for status in active)
            panics = not usable or (bool(active) and up < threshold * len(active))
        if panics is not self.panics:
            self.panics = panics
            now = self.clock.monotonic()
            for each in self.servers:
                each.settle(now, panics)
                woken += self._pass_on(each)
            if panics:
                _log.error("backend %s: too few servers are up, so all are used, up or not", self.name)
            else:
                _log.warning("backend %s: enough servers are up again", self.name)
        if not usable and not self._empty:
            _log.error("backend %s has no server available!", self.name)
        self._empty = not usable
        return woken

    def _announce(self, server: Server, before: str, after: str) -> None:
        """Log a change in HAProxy's words, and have it told."""
        self._bus.put(StateChange(self.name, server.name, before, after, server.why, self.clock.wall()))
        active, backups = (
            sum(each.status not in ("DOWN", "MAINT") for each in self.servers if each.config.backup is backup)
            for backup in (False, True)
        )
        if after in ("DOWN", "MAINT"):
            level, left = logging.WARNING, "left"
        else:
            level, left = (logging.INFO if after == "UP" else logging.WARNING), "online"
        _log.log(
            level,
            "Server %s/%s %s%s. %d active and %d backup servers %s. %d sessions active, %d remaining in queue.",
            self.name,
            server.name,
            _SAYS[after] if before != "MAINT" or after != "UP" else "is UP/READY (leaving forced maintenance)",
            f", reason: {server.why}" if server.why else "",
            active,
            backups,
            left,
            len(server.in_flight),
            self._queue.waiting_for(server),
        )

    # What time changes

    def tick(self) -> None:
        """Let time have its way with the servers. Faces call it before requests while they are told that it matters."""
        if self._due == inf or self.clock.monotonic() < self._due:
            return
        now = self.clock.monotonic()
        woken: list[Ticket] = []
        with self._lock:
            due = [server for server in self.servers if server.due <= now]
            for server in due:
                woken += self._settle(server)
            self._appoint()
        self._told(woken, *due)

    def appoint(self) -> None:
        """Tell those who keep something beside us anew whether time matters."""
        with self._lock:
            self._appoint()

    def _appoint(self) -> None:
        """When there is something to do next."""
        self._due = min(server.due for server in self.servers)
        for kept in self._kept.values():
            kept.timed(self._due < inf)

    @property
    def timed(self) -> bool:
        """Whether time changes something about the servers."""
        return self._due < inf

    # How the servers are

    def own_checks(self, owner: object) -> bool:
        """Whether `owner` is to run the checks: the first that asks, until it disowns them."""
        with self._lock:
            if self._checks_owner is None:
                self._checks_owner = owner
            return self._checks_owner is owner

    @property
    def checks_are_free(self) -> bool:
        """Whether nobody runs the checks."""
        return self._checks_owner is None

    def disown_checks(self, owner: object) -> None:
        with self._lock:
            if self._checks_owner is owner:
                self._checks_owner = None

    def observed(self, server: Server, result: CheckResult) -> None:
        """A check of `server` has come back."""
        checking = server.checking
        assert checking is not None
        with self._lock:
            checking.observe(result, self.clock.monotonic())
            if server.state is AdminState.MAINT:
                return  # it was on its way when that began
            woken = self._judged(server, str(result))
        self._told(woken, server)

    def _judged(self, server: Server, why: str) -> list[Ticket]:
        if server.status == self._status.get(server, "UP"):
            return []
        server.why = why
        woken = self._settle(server)
        self._appoint()
        return woken

    def heard(self, server: Server, said: agent_check.Said) -> None:
        """What the agent of `server` has said."""
        agent = server.agent
        assert agent is not None
        with self._lock:
            agent.observe(said.result, self.clock.monotonic())
            if said.up is not None:
                server.agent_up = said.up
            woken = self._judged(server, f"agent: {said.result}")
        self._told(woken, server)
        server.why = f"agent: {said.result}"
        if said.admin is not None and server.state.value != said.admin:
            server.state = AdminState(said.admin)
        weight = said.weight
        if said.percent is not None:
            weight = min(server.config.weight * said.percent // 100, 256)
        if weight is not None and weight != server.weight and weight <= 256:
            server.weight = weight
        if said.maxconn is not None and server.config.maxconn and said.maxconn != server.maxconn:
            server.maxconn = said.maxconn
            server.tell()

    def served(self, server: Server, failure: Failure | None, status: int, seconds: float) -> None:
        """A request has turned out so at `server`, so long after it was asked. Told only if `observes`."""
        if self._timed is not None and failure is None and status < 500:
            with self._lock:
                self._timed.observed(server, seconds)
        failed = failure is not None
        checking = server.checking
        observe = checking.check.observe if checking is not None else None
        if observe == "layer4":
            well = failure is None or failure.executed
        else:
            well = not failed and (status < 500 or status in (501, 505))
        listed = failed or (status in self.retries.statuses)
        if well and not listed and server.faultless:
            return
        why = failure.text if failure is not None else f"status {status}"
        with self._lock:
            now = self.clock.monotonic()
            news, reason = False, ""
            if checking is not None and observe is not None and server.status not in ("DOWN", "MAINT"):
                news = checking.served(well, why, now)
                reason = str(checking.result)
            if server.max_fails and server.status != "DOWN":
                if not listed:
                    server.served_at(now)
                elif server.failed_at(now):
                    news, reason = True, server.why
            woken = self._judged(server, reason) if news else []
            if news:
                self._appoint()
        self._told(woken, server)

    def events(self, callback: Callable[[StateChange], object] | None = None) -> Events:
        """What changes about the servers from now on, each change once: told to `callback`, or else to be iterated, by
        `for` in a thread, by `async for` on an event loop. `close()` it, or leave its `with`, when that is enough.
        """
        return Events(self._bus, callback)

    def drained(self, name: str) -> Drained:
        """That the server called `name` is drained: nothing is in flight there, and no client that is bound to it has
        come for as long as marks last, or its deadline is over. `await` it, or `wait()` for it. KeyError if there is no
        such server.
        """
        server = self[name]

        def look() -> bool:
            self.tick()
            return server.drained

        return Drained(look, LOOK)

    def __getitem__(self, name: str) -> Server:
        """The server called `name`; KeyError if there is none."""
        for server in self.servers:
            if server.name == name:
                return server
        raise KeyError(f"backend {self.name} has no server {name}")

    def keep(self, kind: Callable[[Backend], T]) -> T:
        """The one `kind` of this backend, made when first asked for: what a face keeps beside it, such as its apps."""
        with self._lock:
            if kind not in self._kept:
                self._kept[kind] = kind(self)
            return cast(T, self._kept[kind])

    def forked(self) -> None:
        """We are a forked child: the locks of threads that did not come along are let go, and their requests are not
        ours.
        """
        self._lock = threading.Lock()
        for server in self.servers:
            server.counters.renew_lock()
            server.in_flight.clear()
        self._balance = self._algorithm()  # the parent's may have been caught in the middle of a choice
        self._timed = self._balance if isinstance(self._balance, Timed) else None
        if self._backup_balance is not None:
            self._backup_balance = self._algorithm(backups=True)
        self._queue = Queue()
        self._checks_owner = None
        self._bus.forked()
        for server in self.servers:
            for checking in (server.checking, server.agent):
                if checking is not None:
                    checking.wake = None
        for kept in self._kept.values():
            kept.forked()

    def __repr__(self) -> str:
        return f"<Backend {self.name}: {', '.join(server.summary for server in self.servers)}>"


class _Crowded:
    """Who is not to be chosen now: those tried, and those that have their `maxconn` or are waited for."""

    __slots__ = ("_affinity", "_queue", "_tried")

    def __init__(self, tried: Container[Server], queue: Queue, affinity: Affinity) -> None:
        self._tried = tried
        self._queue = queue
        self._affinity = affinity

    def __contains__(self, server: object) -> bool:
        if not isinstance(server, Server):
            return False
        if server in self._tried:
            return True
        if not server.limit:
            return False
        waiting = self._queue.waiting_for(server)
        if self._affinity == "maxqueue":
            return server.full and 0 < server.config.maxqueue <= waiting
        return server.full or waiting > 0


class _Nobody:
    """Backups that stand in a row are nobody's to balance."""

    def changed(self, server: Server) -> None: ...


_nobody = _Nobody()

_SAYS = {
    "UP": "is UP",
    "DOWN": "is DOWN",
    "NOLB": "is stopping",
    "MAINT": "is going DOWN for maintenance",
    "DRAIN": "enters drain state",
    "DRAINED": "is drained",
}


def _agent(asked: agent_check.AgentCheck) -> Check:
    """When an agent is asked (HAProxy `agent-inter`, with rise and fall of 1)."""
    return Check(inter=asked.inter, timeout=asked.timeout, rise=1, fall=1)


def _strangers(servers: object, persist: object, check: object) -> Iterator[str]:
    """What is not of the kind that it stands for. Told before anything is built of it, in words rather than in a
    traceback.
    """
    if isinstance(servers, Server) or not isinstance(servers, Sequence):
        yield f"servers={servers!r} is no list of servers: write servers=[Server(name, app), ...]"
    else:
        for server in cast("Sequence[object]", servers):
            if not isinstance(server, Server):
                yield f"{server!r} is no Server: write Server(name, {server!r})"
    if check is not None and not isinstance(check, Check):
        yield f"check={check!r} is no check: write check=Check('/health')"
    if isinstance(persist, str):
        yield f"persist={persist!r} does not say how to persist: write persist=Cookie({persist!r})"
    else:
        for asked in cast("Sequence[object]", persist) if isinstance(persist, Sequence) else (persist,):
            if not hasattr(asked, "over"):
                yield f"persist={asked!r} is no way to persist: hand a Cookie, or several"


#: by name, the one that was made last
_latest: weakref.WeakValueDictionary[str, Backend] = weakref.WeakValueDictionary()
