"""Backend: servers, how to balance them, how to persist, when to give up."""

from __future__ import annotations

import os
import random
import threading
import weakref
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar, cast

from sticky_core.balance import Affinity, Algorithm, Balance, RoundRobin, named
from sticky_core.clock import Clock, Rng, SystemClock
from sticky_core.decision import Decision
from sticky_core.errors import check, collected
from sticky_core.forwarding import Forward
from sticky_core.persistence import Cookie, Persist, Persistence
from sticky_core.persistence.several import Several
from sticky_core.proxies import Networks
from sticky_core.queue import Queue, Ticket
from sticky_core.request import Request
from sticky_core.retries import Retries
from sticky_core.server import NAME, AdminState, Server, ServerConfig
from sticky_core.timeouts import Timeouts

Unavailable = Literal["redispatch", "fail"]


class Kept(Protocol):
    """What a face keeps beside a backend."""

    def forked(self) -> None:
        """We are a forked child: what was made in the parent is not ours."""
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

    def __post_init__(self) -> None:
        check(f"backend {self.name}: {problem}" for problem in self._problems())

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


class Backend:
    """A set of servers that serve the same thing, and the rules by which requests reach them.

    `balance`: who gets a client that belongs nowhere yet: `"roundrobin"` (default), `"leastconn"`, `"random"`,
    `"random(3)"`, or one of `RoundRobin`, `LeastConn`, `Random` with arguments.
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
        log: Callable[[Decision], None] | None = None,
        clock: Clock | None = None,
        rng: Rng | None = None,
    ) -> None:
        check(f"backend {name}: {problem}" for problem in _strangers(servers, persist))
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
        persistences: list[Persistence] = []
        for asked in asked_persist:
            with collected(problems, f"backend {name}: "):
                persistences.append(asked.over(name, self.servers, self.clock))
        check(problems)
        self._balance = self._algorithm()
        self._queue = Queue()
        #: whose word about the client counts
        self.trusted_proxies = Networks(self.config.forward.trusted_proxies)
        #: whether who comes and goes must be told: to balance, or because a server takes only so many
        self.counts = self._balance.counts or any(server.limit for server in servers)
        #: whether a request may have to be read more than once, or looked after while it waits
        self.rereads = again.rereads or any(server.limit or isinstance(server.config.target, str) for server in servers)
        self.persistence: Persistence | None = None
        if persistences:
            self.persistence = Several(persistences) if len(persistences) > 1 else persistences[0]
        for server in servers:
            server.belong(self._changed)
        self._kept: dict[object, Kept] = {}
        _everywhere.add(self)

    def _algorithm(self) -> Algorithm:
        return self.config.balance.over([server for server in self.servers if not server.config.backup], self.rng)

    def choose(self, request: Request, tried: Container[Server]) -> Server | None:
        """A server for a request that belongs nowhere: one that balance chooses, else the first backup that can, else
        one that drains.
        """
        with self._lock:
            return self._choose(request, tried)

    def _choose(self, request: Request, tried: Container[Server]) -> Server | None:
        server = self._balance.choose(request, tried)
        if server is not None:
            return server
        for server in self._backups:
            if server.electable and server not in tried:
                return server
        # HAProxy answers 503 here; a server that lets its clients go is still better than none
        draining = [server for server in self.servers if server.usable and server not in tried and not server.electable]
        return min(draining, key=lambda server: len(server.in_flight), default=None)

    def place(self, request: Request, bound: Server | None, tried: Container[Server]) -> Server | Ticket | None:
        """A place for a request where who comes and goes is counted: at the server that it is `bound` to, or at one
        that is chosen; if all that could take it have their `maxconn`, a place in the queue.

        `tried`: who is not to be chosen. None: nobody can take it, or too many wait already.
        """
        with self._lock:
            if bound is not None:
                waiting = self._queue.waiting_for(bound)
                if not bound.full and not waiting:
                    return self._take(bound)
                if not bound.config.maxqueue or waiting < bound.config.maxqueue:
                    return self._line_up(Ticket(bound, tried))
                if not self.retries.redispatch:
                    return None
            affinity = self._balance.preserve_affinity
            server = self._choose(request, tried if affinity == "always" else _Crowded(tried, self._queue, affinity))
            if server is not None:
                waiting = self._queue.waiting_for(server)
                if not server.limit or not (server.full or waiting):
                    return self._take(server)
                if server.config.maxqueue and waiting >= server.config.maxqueue:
                    return None
                return self._line_up(Ticket(server, tried))
            could = [
                server for server in self.servers if server is not bound and server.electable and server not in tried
            ]
            if not could:
                return None
            most = sum(server.config.maxqueue for server in could)
            if all(server.config.maxqueue for server in could) and self._queue.waiting >= most:
                return None
            return self._line_up(Ticket(None, tried))

    def take(self, server: Server) -> None:
        """One more request is at `server`, whoever says so. Told only if `counts`."""
        with self._lock:
            self._take(server)

    def _take(self, server: Server) -> Server:
        server.in_flight.append(None)
        if not server.config.backup:
            self._balance.taken(server)
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
            server.in_flight.pop()
            if not server.config.backup:
                self._balance.left(server)
            if not server.limit:
                return
            woken = self._grant(server)
        self._wake(woken)

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
        for ticket in tickets:
            # None: the waiter has not lain down yet, and will see
            if ticket.wake is not None and not ticket.wake():
                server = ticket.granted
                if server is not None:
                    ticket.granted = None
                    self.left(server)

    def _changed(self, server: Server) -> None:
        with self._lock:
            server.settle()
            if not server.config.backup:
                self._balance.changed(server)
            if self.persistence is not None:
                self.persistence.changed(server)
            woken = self._grant(server)
            if not server.usable:
                # HAProxy moves those who wait for a server in MAINT always, and else only with redispatch
                if self.retries.redispatch or server.state is AdminState.MAINT:
                    woken += self._queue.dismiss(server)
                if not any(each.usable for each in self.servers):
                    woken += self._queue.dismiss_all()
        self._wake(woken)

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
        self._queue = Queue()
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
        if server in self._tried:
            return True
        if not isinstance(server, Server) or not server.limit:
            return False
        waiting = self._queue.waiting_for(server)
        if self._affinity == "maxqueue":
            return server.full and 0 < server.config.maxqueue <= waiting
        return server.full or waiting > 0


def _strangers(servers: object, persist: object) -> Iterator[str]:
    """What is not of the kind that it stands for. Told before anything is built of it, in words rather than in a
    traceback.
    """
    if isinstance(servers, Server) or not isinstance(servers, Sequence):
        yield f"servers={servers!r} is no list of servers: write servers=[Server(name, app), ...]"
    else:
        for server in cast("Sequence[object]", servers):
            if not isinstance(server, Server):
                yield f"{server!r} is no Server: write Server(name, {server!r})"
    if isinstance(persist, str):
        yield f"persist={persist!r} does not say how to persist: write persist=Cookie({persist!r})"
    else:
        for asked in cast("Sequence[object]", persist) if isinstance(persist, Sequence) else (persist,):
            if not hasattr(asked, "over"):
                yield f"persist={asked!r} is no way to persist: hand a Cookie, or several"


_everywhere: weakref.WeakSet[Backend] = weakref.WeakSet()


def _after_fork() -> None:
    for backend in list(_everywhere):
        backend.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
