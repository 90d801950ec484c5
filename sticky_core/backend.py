"""Backend: servers, how to balance them, how to persist, when to give up."""

from __future__ import annotations

import os
import random
import threading
import weakref
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, cast

from sticky_core.balance import Algorithm, Balance, RoundRobin, named
from sticky_core.clock import Clock, Rng, SystemClock
from sticky_core.decision import Decision
from sticky_core.errors import check, collected
from sticky_core.persistence import Cookie, Persist, Persistence
from sticky_core.persistence.several import Several
from sticky_core.request import Request
from sticky_core.server import NAME, Server, ServerConfig

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
    unavailable: Unavailable = "redispatch"

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
        if self.retries < 0:
            yield f"retries {self.retries} is below 0"
        if self.unavailable not in ("redispatch", "fail"):
            yield f"unavailable {self.unavailable!r} is neither 'redispatch' nor 'fail'"


class Backend:
    """A set of servers that serve the same thing, and the rules by which requests reach them.

    `balance`: who gets a client that belongs nowhere yet: `"roundrobin"` (default), `"leastconn"`, `"random"`,
    `"random(3)"`, or one of `RoundRobin`, `LeastConn`, `Random` with arguments.
    `persist`: how clients are known again: a `Cookie`, or several; the first that speaks wins.
    `retries`: how many further servers may be tried when one fails without having executed the request.
    `unavailable`: what becomes of a client whose own server is down, in maintenance or silent: `"redispatch"` (default)
    gives it another one and tells it so; `"fail"` answers 503, for applications that must not lose a session silently.
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
        unavailable: Unavailable = "redispatch",
        log: Callable[[Decision], None] | None = None,
        clock: Clock | None = None,
        rng: Rng | None = None,
    ) -> None:
        check(f"backend {name}: {problem}" for problem in _strangers(servers, persist))
        problems: list[str] = []
        asked_persist = tuple(persist) if isinstance(persist, Sequence) else (persist,)
        with collected(problems, f"backend {name}: "):
            balance = named(balance) if isinstance(balance, str) else balance
        with collected(problems):
            self.config = BackendConfig(
                name=name,
                servers=tuple(server.config for server in servers),
                balance=RoundRobin() if isinstance(balance, str) else balance,
                persist=asked_persist,
                retries=retries,
                unavailable=unavailable,
            )
        self.name = name
        self.servers = tuple(servers)
        self.retries = retries
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
        self.counts = self._balance.counts
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
            server = self._balance.choose(request, tried)
        if server is not None:
            return server
        for server in self._backups:
            if server.electable and server not in tried:
                return server
        # HAProxy answers 503 here; a server that lets its clients go is still better than none
        draining = [server for server in self.servers if server.usable and server not in tried and not server.electable]
        return min(draining, key=lambda server: len(server.in_flight), default=None)

    def taken(self, server: Server) -> None:
        """One more request is at `server`. Told only if `counts`."""
        if not server.config.backup:
            with self._lock:
                self._balance.taken(server)

    def left(self, server: Server) -> None:
        """One less."""
        if not server.config.backup:
            with self._lock:
                self._balance.left(server)

    def _changed(self, server: Server) -> None:
        with self._lock:
            server.settle()
            if not server.config.backup:
                self._balance.changed(server)
            if self.persistence is not None:
                self.persistence.changed(server)

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
        for kept in self._kept.values():
            kept.forked()

    def __repr__(self) -> str:
        return f"<Backend {self.name}: {', '.join(server.summary for server in self.servers)}>"


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
