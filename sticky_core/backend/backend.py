"""Backend: servers, how to balance them, how to persist, when to give up. What lives, whatever is in force."""

from __future__ import annotations

import logging
import random
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from heapq import heapify, heappop, heappush
from math import inf
from typing import Self, TypeVar, cast

from sticky_core.backend.change import Change, ChangeLock
from sticky_core.backend.config import BackendConfig, OnEmpty, Unavailable
from sticky_core.backend.events import Bus, Drained, Events, StateChange
from sticky_core.backend.plan import Plan, moved_keys, moved_sessions
from sticky_core.backend.queue import Queue, Ticket
from sticky_core.backend.retries import Retries
from sticky_core.backend.snapshot import Snapshot
from sticky_core.balance import RoundRobin, parse_balance
from sticky_core.balance.algorithm import Balance
from sticky_core.clock import Clock, Rng, SystemClock
from sticky_core.decision import Decision
from sticky_core.errors import ConfigError, Failure, collect_problems, raise_problems
from sticky_core.fork import register
from sticky_core.health import agent as agent_check
from sticky_core.health.check import Check, CheckResult
from sticky_core.health.runtime import CheckRuntime, stagger_first_checks
from sticky_core.http.forwarding import Forward
from sticky_core.http.messages import Request
from sticky_core.http.timeouts import Timeouts
from sticky_core.persistence.persistence import Persist, Persistence
from sticky_core.persistence.rules import Condition
from sticky_core.server.server import LOOK, AdminState, Server, ServerConfig
from sticky_core.stores.redis import Redis

__all__ = ["Backend", "BackendComponent", "BackendConfig", "OnEmpty", "Unavailable"]

_log = logging.getLogger("sticky_sessions")


class BackendComponent:
    """What is kept beside a backend, such as a face's apps (`Backend.keep`). What it does not care for, it leaves."""

    def set_has_timers(self, timed: bool) -> None:
        """Whether time changes something about the servers, so that requests must `tick` first. Under the lock."""

    def after_fork(self) -> None:
        """We are a forked child."""

    def problems_of(self, servers: Iterable[ServerConfig]) -> Iterator[str]:
        """Why it can't serve these."""
        yield from ()

    def clashes(self, config: BackendConfig) -> Iterator[str]:
        """Why the backend can't be as `config` asks, for others' sake."""
        yield from ()

    def prepare(self, change: Change, ready: Callable[[Exception | None], None]) -> None:
        """Begin what `change` brings; `ready` is to be called once it has, at once or later, from whatever thread, with
        what has failed if something has.
        """
        ready(None)

    def undo(self, change: Change) -> None:
        """It was prepared, and nothing comes of it."""

    def swap(self, change: Change, snapshot: Snapshot) -> None:
        """It is in force. Under the lock."""

    def swapped(self, change: Change) -> None:
        """The same, without the lock: what is not used any more may be let go."""

    def unlist(self, server: Server) -> None:
        """Nobody is sent to `server` any more, and nobody is there; who was on the way is to be refused."""

    def retire(self, server: Server, over: Callable[[], None]) -> None:
        """Really nobody: end what stands behind it; `over` is to be called when that has ended."""
        over()

    def moving(self, server: Server, config: ServerConfig) -> object:
        """What `moved` will want, made beforehand, where it may fail."""
        return None

    def moved(self, server: Server, made: object) -> None:
        """`server` has another address. Under the lock."""

    def has_moved(self, server: Server) -> None:
        """The same, without the lock."""


T = TypeVar("T", bound=BackendComponent)


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

    What is asked may be something else later: `add`, `remove`, `apply`, and `plan` to see before what that would move.

    Locks, in the order in which they are taken: `turn`, for changes of what is asked; `lock`, for balance, queue and
    states; then those that others have for themselves. Callbacks, the log, and other backends are told of a change
    when none of them is held, so whoever is told may change something in turn, or wait for a thread that does.
    Factories make what a change brings, and so run in its turn; what balance asks of a request is a function of that,
    and runs under `lock`.

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
        raise_problems(f"backend {name}: {problem}" for problem in _type_problems(servers, persist, check))
        problems: list[str] = []
        asked_persist = tuple(persist) if isinstance(persist, Sequence) else (persist,)
        with collect_problems(problems, f"backend {name}: "):
            balance = parse_balance(balance) if isinstance(balance, str) else balance
        config: BackendConfig | None = None
        try:
            config = BackendConfig(
                name=name,
                servers=tuple(server.requested for server in servers),
                balance=RoundRobin() if isinstance(balance, str) else balance,
                persist=asked_persist,
                retries=retries,
                retry_on=tuple(retry_on.split() if isinstance(retry_on, str) else map(str, retry_on)),
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
        except ConfigError as error:
            problems += error.problems
            for asked in asked_persist:  # what is wrong with the rest is told along with it
                with collect_problems(problems, f"backend {name}: "):
                    asked.build(name, servers, SystemClock())
        self._begin(name, config, servers, log, clock, rng, problems)

    @classmethod
    def of(
        cls,
        config: BackendConfig,
        *,
        log: Callable[[Decision], None] | None = None,
        clock: Clock | None = None,
        rng: Rng | None = None,
    ) -> Self:
        """A backend as `config` asks, with servers of its own."""
        backend = cls.__new__(cls)
        backend._begin(config.name, config, [Server.of(each) for each in config.servers], log, clock, rng, [])
        return backend

    def _begin(
        self,
        name: str,
        config: BackendConfig | None,
        servers: Sequence[Server],
        log: Callable[[Decision], None] | None,
        clock: Clock | None,
        rng: Rng | None,
        problems: list[str],
    ) -> None:
        self.name = name
        self.log = log
        self.clock: Clock = clock if clock is not None else SystemClock()
        # the module rather than an instance: it is re-seeded in a forked child, so that siblings do not draw alike
        self.rng: Rng = rng if rng is not None else random
        #: One for balance, the queue, and changes of servers. A bound request takes it only where who comes and goes is
        #: counted.
        self.lock = threading.Lock()
        #: who waits for a place
        self.queue = Queue()
        self._bus = Bus()
        #: whether health counts for nothing at the moment
        self.panics = False
        self._empty = False
        self._kept: dict[object, BackendComponent] = {}
        self._checks_owner: object = None
        #: when there is something to do next, by the clock
        self.next_deadline = inf
        self._dues: dict[Server, float] = {}  # of those about which time changes something
        self._agenda: list[tuple[float, int, Server]] = []  # the same as a heap, outdated entries among them
        self._status: dict[Server, str] = {}  # as it was announced
        self._census: Counter[tuple[bool, str]] = Counter()  # how many backups, and others, are in which state
        self._by_name: dict[str, Server] = {}
        #: One change at a time. Held while it is prepared, as far as that takes no event loop.
        self.turn = ChangeLock()
        self._lines: deque[tuple[int, str, tuple[object, ...]]] = deque()  # to be logged without the lock
        self._change: Change | None = None
        self._leaving: dict[Server, Change] = {}  # removed, with requests in flight

        problems += (f"backend {name}: {problem}" for problem in self._attach_problems(servers))
        for number, server in enumerate(servers, 1):
            server.id = number
        tracked = self._all_tracked(servers, problems)
        if config is not None:
            with collect_problems(problems):
                self.snapshot = Snapshot(self, config, servers)
        raise_problems(problems)
        #: what was asked; of the servers too, which may have been moved and weighed anew by hand since
        self.config = self.snapshot.config
        now = self.clock.monotonic()
        for server in servers:
            self._register(server)
        self._set_up(self.snapshot, tracked, now)
        for server in servers:
            server.refresh_state(now)
            self._status[server] = server.status
            if not server.electable:  # it is down from the start
                self.snapshot.changed(server)
            self._note_due(server)
        self._take_census()
        self._schedule_timers()
        register(self)
        _latest[name] = self

    # What of it is in force

    @property
    def servers(self) -> tuple[Server, ...]:
        return self.snapshot.servers

    @property
    def persistence(self) -> Persistence | None:
        return self.snapshot.persistence

    @property
    def retries(self) -> Retries:
        return self.snapshot.retries

    @property
    def stores(self) -> tuple[Redis, ...]:
        """Where its tables are shared."""
        return self.snapshot.stores

    @property
    def checked(self) -> bool:
        return self.snapshot.checked

    def choose(self, request: Request, tried: Container[Server]) -> Server | None:
        return self.snapshot.choose(request, tried)

    def acquire_or_enqueue(
        self, request: Request, bound: Server | None, tried: tuple[Server, ...]
    ) -> Server | Ticket | None:
        return self.snapshot.acquire_or_enqueue(request, bound, tried)

    # Servers come, change and go

    def add(self, *servers: Server) -> Change:
        """Have more servers, beside those that there are. `apply` says how, and what it raises."""
        with self.turn:
            strangers = list(self._attach_problems(servers))
            raise_problems(f"backend {self.name}: {problem}" for problem in strangers)
            asked = (*self.config.servers, *(server.requested for server in servers))
            return self._apply(replace(self.config, servers=asked), {server.name: server for server in servers})

    def remove(self, *names: str) -> Change:
        """Do without these servers: they get no requests from here on, those in flight end in peace, and then the
        servers do. Their clients are given others: a mark that names none counts for nothing (claim INVALID), with
        `unavailable="fail"` too, since it will not come back. `apply` says how, and what it raises.
        """
        with self.turn:
            raise_problems(
                f"backend {self.name}: there is no server {name} to be removed"
                for name in names
                if name not in self._by_name
            )
            return self._apply(
                replace(self.config, servers=tuple(each for each in self.config.servers if each.name not in names)), {}
            )

    def apply(self, new: BackendConfig) -> Change:
        """Put `new` in the place of what is in force, under load.

        What comes is begun first, and if that fails nothing has changed. From the swap on, requests find the new
        configuration; those on their way keep the one that they began with. Servers that keep their name keep their
        health, counters, requests in flight and clients, and what was changed about them by hand (weight, state,
        address) where nothing else is asked than before; a server whose app is another is begun anew, with an empty
        memory. What went is ended when its last request is over.

        It is in force when this returns, but where lifespans have to be run on an event loop for it: `await` the
        `Change`, or from another thread, `wait()` for it. Raises `ConfigError` with every problem found, one of which
        is that another change is still being prepared, and RuntimeError if what comes can't be begun.
        """
        with self.turn:
            return self._apply(new, {})

    def plan(self, new: BackendConfig, *, keys: int = 10_000) -> Plan:
        """What `apply` would do, and how many clients would move, from where to where. Nothing is changed, and nobody's
        turn is taken. `keys`: how many hash keys are tried. Raises `ConfigError` as `apply` does.
        """
        with self.turn:
            change = self._draft(new, {})
        gone = {server.name: heir for server, heir in change.went.items()}
        return Plan(
            added=tuple(server.name for server in change.came if server not in change.went.values()),
            removed=tuple(name for name, heir in gone.items() if heir is None),
            restarted=tuple(name for name, heir in gone.items() if heir is not None),
            changed=tuple(server.name for server in change.asked),
            sessions=moved_sessions(self.snapshot.sessions(), change.went),
            keys=moved_keys(
                self.config,
                [server.trial_copy(server.requested) for server in self.servers],
                new,
                self._shadows(change),
                keys,
            ),
        )

    def _draft(self, new: BackendConfig, given: Mapping[str, Server]) -> Change:
        """What has to be done for it. ConfigError with every problem found; nothing has changed."""
        problems: list[str] = []
        where = f"backend {self.name}: "
        if self._change is not None:
            raise ConfigError(f"{where}another change is being prepared: await it first")
        if new.name != self.name:
            problems.append(f"{where}the configuration is another backend's, {new.name}'s")
        servers: list[Server] = []
        came: list[Server] = []
        heirs: dict[Server, Server | None] = {}
        changed: dict[Server, ServerConfig] = {}
        for asked in new.servers:
            server = self._by_name.get(asked.name)
            if server is None or asked.is_another_app(server.requested):
                heir = given.get(asked.name) or Server.of(asked)
                if server is not None:
                    heirs[server] = heir
                came.append(heir)
                server = heir
            elif asked != server.requested:
                with collect_problems(problems, where):
                    server.effective_config(asked)
                    changed[server] = asked
            servers.append(server)
        stay = set(servers)
        went = {server: heirs.get(server) for server in self.servers if server not in stay}
        change = Change(new, servers, came, went, changed, self._look_who_left)
        self._number(change)
        problems += (
            f"{where}server {server.name} is tracked by {tracker.name}: remove that first, or both"
            for server in went
            for tracker in server.trackers
            if tracker not in went and tracker not in stay
        )
        self._all_tracked(servers, problems)
        beginning = [*(server.requested for server in came), *changed.values()]
        for kept in self._kept.values():
            problems += (where + problem for problem in kept.problems_of(beginning))
            problems += kept.clashes(new)
        if not problems:
            with collect_problems(problems):
                trial = Snapshot(
                    self, new, self._shadows(change) if changed else servers, None if changed else self.snapshot
                )
                change.snapshot = None if changed else trial
        raise_problems(problems)
        return change

    def _number(self, change: Change) -> None:
        """New servers take the lowest numbers that are free (HAProxy `id`), so that others keep theirs, and with that
        their points on a ring.
        """
        for server, heir in change.went.items():
            if heir is not None:
                heir.id = server.id
        heirs = set(change.went.values())
        used = {server.id for server in change.servers if server not in change.came or server in heirs}
        number = 0
        for server in change.came:
            if server not in heirs:
                number += 1
                while number in used:
                    number += 1
                server.id = number

    def _shadows(self, change: Change) -> list[Server]:
        """How the servers would stand."""
        came = set(change.came)
        shadows: list[Server] = []
        for server, asked in zip(change.servers, change.config.servers, strict=True):
            if server in came:
                shadow = Server.of(asked)
                shadow.id = server.id
            else:
                shadow = server.trial_copy(asked)
            shadows.append(shadow)
        return shadows

    def _apply(self, new: BackendConfig, given: Mapping[str, Server]) -> Change:
        change = self._draft(new, given)
        kept = list(self._kept.values())
        change.prepares(kept)
        self._change = change
        for each in kept:
            try:
                each.prepare(change, self._ready(change, each))
            except BaseException as error:
                if self._change is change:
                    self._failed(change, error)
                raise
            if change.failure is not None:
                raise change.failure
        if not kept:
            self._swap(change)
        return change

    def _ready(self, change: Change, who: BackendComponent) -> Callable[[Exception | None], None]:
        def ready(failure: Exception | None) -> None:
            with self.turn:
                if self._change is not change:
                    who.undo(change)  # it has failed elsewhere meanwhile
                elif failure is not None:
                    self._say(logging.ERROR, "%s, so nothing has changed", failure)
                    self._failed(change, failure)
                elif change.is_ready(who):
                    self._swap(change)

        return ready

    def _failed(self, change: Change, failure: BaseException) -> None:
        self._change = None
        for kept in self._kept.values():
            kept.undo(change)
        change.fail(failure)
        self._told([])

    def _swap(self, change: Change) -> None:
        """Put it in force. In our turn."""
        self._change = None
        before = self.snapshot
        for server, asked in change.asked.items():
            self._become(server, asked)
        snapshot = change.snapshot
        if snapshot is None:
            snapshot = Snapshot(self, change.config, change.servers, before)
        tracked = self._all_tracked(change.servers, [])
        woken: list[Ticket] = []
        kept = list(self._kept.values())
        with self.lock:
            now = self.clock.monotonic()
            heirs = {heir for heir in change.went.values() if heir is not None}
            for server, heir in change.went.items():
                if heir is not None:
                    heir.inherit_from(server)
            for server in change.came:
                self._register(server)
            self._set_up(snapshot, tracked, now)
            snapshot.begin()
            self.snapshot = snapshot
            self.config = change.config
            before.counts_requests = True  # those who are on their way by it say when they leave
            for server in change.went:
                woken += self._unregister(server)
            for server in snapshot.servers:
                server.refresh_state(now, self.panics)
                self._note_due(server)
            self._take_census()
            for server in change.came:
                if server not in heirs:
                    self._announce(server, "NEW", server.status)
                self._status[server] = server.status
            for server, heir in change.went.items():
                if heir is None:
                    self._announce(server, self._status.pop(server), server.status)
                else:
                    self._status.pop(server)
            for server in snapshot.servers:
                woken += self._pass_on(server)
            woken += self._look_for_panic()
            for each in kept:
                each.swap(change, snapshot)
            self._schedule_timers()
            self._leaving.update(dict.fromkeys(change.went, change))
            change.retires((server, each) for server in change.went for each in (*kept, self))
        self._say(logging.INFO, "backend %s: %s", self.name, change.signs)
        self._told(woken)
        for each in kept:
            each.swapped(change)
        change.succeed()
        self._look_who_left()

    def _become(self, server: Server, asked: ServerConfig) -> None:
        """Change a server in place."""
        with self.lock:
            target = server.config.target
            server.update(asked)
            if server.config.target != target:
                self.snapshot.moved(server)
            woken = self._settle(server)
            self._schedule_timers()
        self._told(woken, server)

    def _register(self, server: Server) -> None:
        """Let it belong here."""
        self._by_name[server.name] = server
        server.attach(self._changed, self._move)

    def _unregister(self, server: Server) -> list[Ticket]:
        """Let it belong nowhere."""
        if self._by_name.get(server.name) is server:
            del self._by_name[server.name]
        if server.tracks is not None:
            server.tracks.trackers = tuple(each for each in server.tracks.trackers if each is not server)
        self._dues.pop(server, None)
        server.remove()
        return self.queue.dismiss(server)

    def _set_up(self, snapshot: Snapshot, tracked: Mapping[Server, Server], now: float) -> None:
        """What servers have of their backend. Under the lock, but for the first time."""
        config, servers = snapshot.config, snapshot.servers
        alone = sum(not server.config.backup for server in servers) == 1  # nginx never leaves the only one alone
        fresh: tuple[list[CheckRuntime], list[CheckRuntime]] = [], []
        for server in servers:
            server.max_idle = snapshot.max_idle
            server.bound_somewhere = snapshot.bound_somewhere
            server.max_fails = 0 if alone and not server.config.backup else server.config.max_fails
            tracks = tracked.get(server)
            if tracks is not server.tracks:
                if server.tracks is not None:
                    server.tracks.trackers = tuple(each for each in server.tracks.trackers if each is not server)
                if tracks is not None:
                    tracks.trackers += server.only
                server.tracks = tracks
            agent = server.config.agent_check
            for name, asked, group in (
                ("checking", _check_of(config, server), fresh[0]),
                ("agent", _agent(agent) if agent is not None else None, fresh[1]),
            ):
                checking: CheckRuntime | None = getattr(server, name)
                if asked is None or checking is None or checking.check != asked:
                    made = CheckRuntime(asked, self.rng) if asked is not None else None
                    if made is not None:
                        if checking is not None:
                            made.inherit_from(checking)
                        group.append(made)
                    if checking is not None and checking.wake is not None:
                        checking.wake()
                    setattr(server, name, made)
        for group in fresh:
            stagger_first_checks(group)
        snapshot.draw()

    def _take_census(self) -> None:
        self._census = Counter((server.config.backup, server.status) for server in self.servers)

    def _move(self, server: Server, config: ServerConfig) -> None:
        """`server` has another address, or none."""
        kept = list(self._kept.values())
        made = [each.moving(server, config) for each in kept]
        with self.lock:
            if server.removed:
                return
            before = server.config.target
            server.move(config)
            self.snapshot.moved(server)
            if not server.why:
                server.why = "resolution" if server.unresolved else f"address {config.target}"
            for each, its in zip(kept, made, strict=True):
                each.moved(server, its)
            woken = self._settle(server)
            self._schedule_timers()
        where = before or "nowhere", config.target or "nowhere"
        self._say(logging.INFO, "%s/%s moved from %s to %s", self.name, server.name, *where)
        self._told(woken, server)
        for each in kept:
            each.has_moved(server)

    def _look_who_left(self) -> None:
        """End the servers that were removed and have no request in flight any more."""
        for server in list(self._leaving):
            self._retire(server)

    def _retire(self, server: Server) -> None:
        if server.in_flight:
            return
        kept = list(self._kept.values())
        for each in kept:
            each.unlist(server)
        if server.in_flight:
            return  # somebody came in just before, and will come by here when leaving
        with self.lock:
            change = self._leaving.pop(server, None)
            self.queue.forget(server)
        if change is None:
            return
        for each in kept:
            each.retire(server, partial(change.gone, server, each))
        change.gone(server, self)

    def _attach_problems(self, servers: Iterable[Server]) -> Iterator[str]:
        """Why these can't belong here."""
        for server in servers:
            if not isinstance(cast(object, server), Server):
                yield f"{server!r} is no Server: write Server(name, {server!r})"
            elif server.belongs or server.removed:
                yield (
                    f"server {server.name}: belongs to another backend already; a Server is one place in one backend"
                    if server.belongs
                    else f"server {server.name}: was removed, and does not come back: add Server.of(its config)"
                )

    def _all_tracked(self, servers: Sequence[Server], problems: list[str]) -> dict[Server, Server]:
        """By whom tracks, whom it tracks."""
        by_name = {server.name: server for server in servers}
        tracked: dict[Server, Server] = {}
        for server in servers:
            with collect_problems(problems, f"backend {self.name}: server {server.name}: "):
                if server.requested.track is not None:
                    tracked[server] = self._tracked(server, server.requested.track, by_name)
        return tracked

    def _tracked(self, server: Server, track: str | Server, by_name: Mapping[str, Server]) -> Server:
        """Whom it tracks. ConfigError if that is nobody."""
        if isinstance(track, str):
            backend_name, _, name = track.rpartition("/")
            if backend_name and backend_name != self.name:
                backend = _latest.get(backend_name)
                if backend is None:
                    raise ConfigError(f"track {track}: there is no backend {backend_name} yet: make it first")
                by_name = backend._by_name
            found = by_name.get(name)
            if found is None:
                raise ConfigError(f"track {track}: there is no such server")
        else:
            found = track
        if self._by_name.get(found.name) is found and by_name.get(found.name) is not found:
            raise ConfigError(f"track: {found.name} is to go: name another server, or leave track out")
        if found is server or found.config.track is not None:
            raise ConfigError(f"track: {found.name} has no health of its own: name the server that is checked")
        if found.removed:
            raise ConfigError(f"track: {found.name} was removed")
        return found

    # Requests come and go

    def qcur(self, server: Server | None = None) -> int:
        """How many requests wait for `server`, or for whichever has room first (HAProxy `qcur`)."""
        return self.queue.waiting if server is None else self.queue.waiting_for(server)

    def acquire(self, server: Server) -> None:
        """One more request is at `server`, whoever says so. Told only if `counts`."""
        with self.lock:
            self.acquire_locked(server)

    def acquire_locked(self, server: Server) -> Server:
        """The same under the lock."""
        server.in_flight.append(None)
        self.snapshot.acquired(server)
        return server

    def enqueue(self, ticket: Ticket) -> Ticket:
        """Let it wait. Under the lock."""
        self.queue.join(ticket)
        return ticket

    def subscribe(self, ticket: Ticket, wake: Callable[[], bool]) -> bool:
        """Have `wake` called when there is news about `ticket`. False: there is already."""
        with self.lock:
            if ticket.over:
                return False
            ticket.wake = wake
            return True

    def redeem(self, ticket: Ticket) -> Server | None:
        """The waiter has looked up, woken or tired: the server that it has a place at, if one was granted in time."""
        with self.lock:
            self.queue.leave(ticket)
            return ticket.granted

    def release(self, server: Server) -> None:
        """A request has left `server`. Told only if `counts`."""
        with self.lock:
            woken = self._leave(server)
        self._wake(woken)
        if self._leaving:
            self._look_who_left()

    def _leave(self, server: Server) -> list[Ticket]:
        server.in_flight.pop()
        self.snapshot.released(server)
        return self._grant(server) if server.limit else []

    def _grant(self, server: Server) -> list[Ticket]:
        """Give the free places at `server` to those who wait longest; who they are, to be woken without the lock."""
        granted: list[Ticket] = []
        while server.usable and not server.full:
            ticket = self.queue.next(server)
            if ticket is None:
                break
            ticket.granted = self.acquire_locked(server)
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
        with self.lock:
            ticket.granted = None
            return self._leave(server)

    # Servers are in another state

    def _changed(self, server: Server) -> None:
        with self.lock:
            woken = self._settle(server)
            self._schedule_timers()
        self._told(woken, server)

    def _told(self, woken: list[Ticket], *servers: Server) -> None:
        """What follows from a change. Without the lock; who is told of it is told when it is nobody's turn in this
        thread any more.
        """
        self._wake(woken)
        self.turn.afterwards(partial(self._tell, servers))

    def _tell(self, servers: Iterable[Server]) -> None:
        while self._lines:
            try:
                level, text, values = self._lines.popleft()
            except IndexError:  # another thread has written it
                break
            _log.log(level, text, *values)
        self._bus.tell()
        for server in servers:
            for tracker in server.trackers:
                tracker.why = f"via {self.name}/{server.name}"
                tracker.notify()

    def _settle(self, server: Server) -> list[Ticket]:
        """Draw what follows from a change of a server; who is to be woken without the lock."""
        if server.removed:
            return []
        now = self.clock.monotonic()
        before, drained = self._status.get(server, "UP"), server.drained
        server.refresh_state(now, self.panics)
        self._note_due(server)
        after = self._status[server] = server.status
        if after != before:
            backup = server.config.backup
            self._census[backup, before] -= 1
            self._census[backup, after] += 1
            self._announce(server, before, after)
        if server.drained and not drained:
            self._announce(server, after, "DRAINED")
        woken = self._pass_on(server)
        if after != before:
            woken += self._look_for_panic()
        server.why = ""
        return woken

    def _pass_on(self, server: Server) -> list[Ticket]:
        self.snapshot.changed(server)
        woken = self._grant(server)
        if not server.usable:
            # HAProxy moves those who wait for a server in MAINT always, and else only with redispatch
            if self.snapshot.retries.redispatch or server.in_maint:
                woken += self.queue.dismiss(server)
        if not server.electable and self.queue.waiting:
            woken += self.queue.dismiss_hopeless(self.snapshot.electable)
        return woken

    def _up(self, backup: bool) -> int:
        return sum(
            count for (is_backup, status), count in self._census.items() if is_backup is backup and status in _SERVE
        )

    def _look_for_panic(self) -> list[Ticket]:
        """Whether so few servers are up that health is not to count; if that is news, all settle anew."""
        woken: list[Ticket] = []
        active = self._up(False)
        usable = bool(active or self._up(True))
        panics = False
        config = self.snapshot.config
        if config.on_empty == "panic":
            threshold = config.panic_threshold or 0.0
            asked = active + self._census[False, "DOWN"]
            panics = not usable or (bool(asked) and active < threshold * asked)
        if panics is not self.panics:
            self.panics = panics
            now = self.clock.monotonic()
            for each in self.servers:
                each.refresh_state(now, panics)
                self._note_due(each)
                woken += self._pass_on(each)
            if panics:
                self._say(logging.ERROR, "backend %s: too few servers are up, so all are used, up or not", self.name)
            else:
                self._say(logging.WARNING, "backend %s: enough servers are up again", self.name)
        if not usable and not self._empty:
            self._say(logging.ERROR, "backend %s has no server available!", self.name)
        self._empty = not usable
        return woken

    def _say(self, level: int, text: str, *values: object) -> None:
        """To be logged with what is told next."""
        self._lines.append((level, text, values))

    def _announce(self, server: Server, before: str, after: str) -> None:
        """A change, to be told, and logged in HAProxy's words."""
        self._bus.put(StateChange(self.name, server.name, before, after, server.why, self.clock.wall()))
        if after in ("DOWN", "MAINT", "REMOVED"):
            level, left = logging.WARNING, "left"
        else:
            level, left = (logging.INFO if after == "UP" else logging.WARNING), "online"
        says = _SAYS[after] if before != "MAINT" or after != "UP" else "is UP/READY (leaving forced maintenance)"
        if before == "NEW" or after == "REMOVED":
            level = logging.INFO
            says = f"is new, and {says}" if before == "NEW" else says
        self._say(
            level,
            "Server %s/%s %s%s. %d active and %d backup servers %s. %d sessions active, %d remaining in queue.",
            self.name,
            server.name,
            says,
            f", reason: {server.why}" if server.why else "",
            self._up(False),
            self._up(True),
            left,
            len(server.in_flight),
            self.queue.waiting_for(server),
        )

    # What time changes

    def run_due_timers(self) -> None:
        """Let time have its way with the servers. Faces call it before requests while they are told that it matters."""
        if self.next_deadline == inf or self.clock.monotonic() < self.next_deadline:
            return
        now = self.clock.monotonic()
        woken: list[Ticket] = []
        due: list[Server] = []
        with self.lock:
            agenda = self._agenda
            while agenda and agenda[0][0] <= now:
                when, _, server = heappop(agenda)
                if self._dues.get(server) == when:
                    del self._dues[server]
                    due.append(server)
            for server in due:
                woken += self._settle(server)
            self._schedule_timers()
        self._told(woken, *due)

    def schedule_timers(self) -> None:
        """Tell those who keep something beside us anew whether time matters."""
        with self.lock:
            self._schedule_timers()

    def _note_due(self, server: Server) -> None:
        """When time changes something about it next."""
        due = server.due
        if due == self._dues.get(server, inf):
            return
        if due == inf:
            del self._dues[server]
            return
        self._dues[server] = due
        heappush(self._agenda, (due, server.id, server))
        if len(self._agenda) > 2 * len(self._dues) + 32:
            self._agenda = [(when, each.id, each) for each, when in self._dues.items()]
            heapify(self._agenda)

    def _schedule_timers(self) -> None:
        """When there is something to do next."""
        agenda = self._agenda
        while agenda and self._dues.get(agenda[0][2]) != agenda[0][0]:
            heappop(agenda)
        self.next_deadline = agenda[0][0] if agenda else inf
        for kept in self._kept.values():
            kept.set_has_timers(self.next_deadline < inf)

    @property
    def has_timers(self) -> bool:
        """Whether time changes something about the servers."""
        return self.next_deadline < inf

    # How the servers are

    def own_checks(self, owner: object) -> bool:
        """Whether `owner` is to run the checks: the first that asks, until it disowns them."""
        with self.lock:
            if self._checks_owner is None:
                self._checks_owner = owner
            return self._checks_owner is owner

    @property
    def checks_are_free(self) -> bool:
        """Whether nobody runs the checks."""
        return self._checks_owner is None

    def disown_checks(self, owner: object) -> None:
        with self.lock:
            if self._checks_owner is owner:
                self._checks_owner = None

    def record_check(self, server: Server, result: CheckResult, checking: CheckRuntime | None = None) -> None:
        """A check of `server` has come back: of `checking`, which need not be the one at work over it any more."""
        with self.lock:
            at_work = server.checking
            if at_work is None or server.removed or (checking is not None and checking is not at_work):
                return
            at_work.record_check(result, self.clock.monotonic())
            if server.in_maint:
                return  # it was on its way when that began
            woken = self._judged(server, str(result))
        self._told(woken, server)

    def _judged(self, server: Server, why: str) -> list[Ticket]:
        if server.status == self._status.get(server, "UP"):
            return []
        server.why = why
        woken = self._settle(server)
        self._schedule_timers()
        return woken

    def on_agent_reply(self, server: Server, said: agent_check.AgentReply, asked: CheckRuntime | None = None) -> None:
        """What the agent of `server` has said: to `asked`, which need not be who asks it now."""
        agent = server.agent
        if agent is None or server.removed or (asked is not None and asked is not agent):
            return
        with self.lock:
            agent.record_check(said.result, self.clock.monotonic())
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
            server.notify()

    def record_request(self, server: Server, failure: Failure | None, status: int, seconds: float) -> None:
        """A request has turned out so at `server`, so long after it was asked. Told only if `observes`."""
        if server.removed:
            return
        snapshot = self.snapshot
        if failure is None and status < 500:
            snapshot.record_latency(server, seconds)
        failed = failure is not None
        checking = server.checking
        observe = checking.check.observe if checking is not None else None
        if observe == "layer4":
            well = failure is None or failure.maybe_executed
        else:
            well = not failed and (status < 500 or status in (501, 505))
        listed = failed or (status in snapshot.retries.statuses)
        if well and not listed and server.faultless:
            return
        why = failure.text if failure is not None else f"status {status}"
        with self.lock:
            now = self.clock.monotonic()
            news, reason = False, ""
            if checking is not None and observe is not None and server.status not in ("DOWN", "MAINT"):
                news = checking.record_request(well, why, now)
                reason = str(checking.result)
            if server.max_fails and server.status != "DOWN":
                if not listed:
                    server.served_at(now)
                elif server.failed_at(now):
                    news, reason = True, server.why
            woken = self._judged(server, reason) if news else []
            if news:
                self._note_due(server)
                self._schedule_timers()
        self._told(woken, server)

    def events(self, callback: Callable[[StateChange], object] | None = None) -> Events:
        """What changes about the servers from now on, each change once: told to `callback`, or else to be iterated, by
        `for` in a thread, by `async for` on an event loop. `close()` it, or leave its `with`, when that is enough.
        """
        return Events(self._bus, callback)

    def drained(self, name: str) -> Drained:
        """That the server called `name` is drained: nothing is in flight there, and no client that is bound to it has
        come for as long as marks last, or its deadline is over; or that it was removed, and nothing is in flight there.
        Where tables are shared, no client may have come to any process that shares them, for up to a quarter longer;
        while a store does not answer, what is known here has to do. `await` it, or `wait()` for it. KeyError if there
        is no such server.
        """
        server = self[name]

        def look() -> bool:
            self.run_due_timers()
            return server.drained or (server.removed and not server.in_flight)

        return Drained(look, LOOK)

    def __getitem__(self, name: str) -> Server:
        """The server called `name`; KeyError if there is none."""
        try:
            return self._by_name[name]
        except KeyError:
            raise KeyError(f"backend {self.name} has no server {name}") from None

    def component(self, kind: Callable[[Backend], T]) -> T:
        """The one `kind` of this backend, made when first asked for: what a face keeps beside it, such as its apps."""
        with self.turn:  # not the other lock: what is kept may keep something by itself
            if kind not in self._kept:
                kept = kind(self)
                with self.lock:
                    self._kept[kind] = kept
            return cast(T, self._kept[kind])

    def after_fork(self) -> None:
        """We are a forked child: the locks of threads that did not come along are let go, and their requests are not
        ours.
        """
        self.lock = threading.Lock()
        self.turn = ChangeLock()
        self._change = None
        self._leaving.clear()
        for server in self.servers:
            server.counters.renew_lock()
            server.in_flight.clear()
        self.snapshot.after_fork()
        self.queue = Queue()
        self._checks_owner = None
        self._bus.after_fork()
        self._lines.clear()
        for server in self.servers:
            for checking in (server.checking, server.agent):
                if checking is not None:
                    checking.wake = None
        for kept in self._kept.values():
            kept.after_fork()

    def __repr__(self) -> str:
        return f"<Backend {self.name}: {', '.join(server.summary for server in self.servers)}>"


#: in which states a server serves somebody
_SERVE = ("UP", "NOLB", "DRAIN")

_SAYS = {
    "UP": "is UP",
    "DOWN": "is DOWN",
    "NOLB": "is stopping",
    "MAINT": "is going DOWN for maintenance",
    "DRAIN": "enters drain state",
    "DRAINED": "is drained",
    "REMOVED": "is removed",
}


def _check_of(config: BackendConfig, server: Server) -> Check | None:
    """How it is to be checked."""
    asked = server.config.check
    if asked is False or server.config.track is not None:
        return None
    return asked if asked is not None else config.check


def _agent(asked: agent_check.AgentCheck) -> Check:
    """When an agent is asked (HAProxy `agent-inter`, with rise and fall of 1)."""
    return Check(inter=asked.inter, timeout=asked.timeout, rise=1, fall=1)


def _type_problems(servers: object, persist: object, check: object) -> Iterator[str]:
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
        yield (
            f"persist={persist!r} does not say how to persist: write persist=Cookie({persist!r}) for a cookie of ours, "
            f"Learn.cookie({persist!r}) for the application's, or Stick.on({persist!r}) for a sample"
        )
    else:
        for asked in cast("Sequence[object]", persist) if isinstance(persist, Sequence) else (persist,):
            if isinstance(asked, type):
                yield f"persist={asked.__name__} does not say by what: call it, as Cookie('SERVERID') or Stick.on(src)"
            elif not hasattr(asked, "build"):
                yield f"persist={asked!r} is no way to persist: hand a Cookie, Stick, Learn, Token, or several"


#: by name, the one that was made last
_latest: weakref.WeakValueDictionary[str, Backend] = weakref.WeakValueDictionary()
