"""Backend: servers that serve the same thing, and the rules by which requests reach them.

Its parts: `Snapshot`, the configuration in force; `Placement`, which chooses the server of a request; `Monitor`, which
follows the states of the servers; `Reconfigure`, which puts another configuration in force.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Self, TypeVar, cast

from sticky_core.backend.change import Change
from sticky_core.backend.change_lock import ChangeLock
from sticky_core.backend.component import BackendComponent
from sticky_core.backend.config import BackendConfig, OnEmpty, Unavailable
from sticky_core.backend.events import Events, StateChange
from sticky_core.backend.function_failures import FunctionFailures
from sticky_core.backend.invalid_marks import InvalidMarks
from sticky_core.backend.milestone import Drained, Milestone
from sticky_core.backend.monitor import Monitor
from sticky_core.backend.placement import Placement
from sticky_core.backend.reconfigure import Reconfigure
from sticky_core.backend.retries import Retries, RetryBudget
from sticky_core.backend.snapshot import Snapshot
from sticky_core.backend.tracking import find_tracked, register
from sticky_core.backend.validation import (
    attach_problems,
    retry_and_rule_problems,
    runtime_problems,
    type_problems,
)
from sticky_core.balance import RoundRobin, parse_balance
from sticky_core.balance.algorithm import Balance
from sticky_core.clock import Clock, Rng, SystemClock
from sticky_core.decision import Decision
from sticky_core.errors import ConfigError, collect_problems, raise_problems
from sticky_core.fork import register as register_at_fork
from sticky_core.health.check import Check
from sticky_core.http.forwarding import Forward
from sticky_core.http.timeouts import Timeouts
from sticky_core.persistence.nesting import InsertedCookie
from sticky_core.persistence.persistence import Persist, Persistence
from sticky_core.persistence.rules import Condition
from sticky_core.server.drain import POLL_INTERVAL
from sticky_core.server.server import Server
from sticky_core.stores.shared_store import SharedStore

if TYPE_CHECKING:
    from sticky_core.backend.granted_retries import GrantedRetries
    from sticky_core.backend.plan import Plan
    from sticky_core.persistence.accepted import AcceptedCount

__all__ = ["Backend", "BackendComponent", "BackendConfig", "OnEmpty", "Unavailable"]

T = TypeVar("T", bound=BackendComponent)


class Backend:
    """Servers that serve the same thing, and the rules by which requests reach them. One option a line: meaning,
    default, the name in HAProxy or Envoy:

    - `name`: its name: letters, digits and `- _ . :`. Required.
    - `servers`: its servers, each a `Server`. Required.
    - `balance`: how a server is chosen for a client that is bound to none: HAProxy's `balance` as text, such as
      `"leastconn"`, `"random(3)"` or `"uri depth 2"`, or a value, such as `RoundRobin`, `Uri`, `Hash`. Default
      `"roundrobin"`.
    - `persist`: how clients are recognised: a `Cookie`, `Stick`, `Learn`, `Token` …, or several, of which the first
      that recognises a client counts. Default `()`: clients are not recognised.
    - `retries`: how many further attempts may be made after a failure. Default 3. HAProxy `retries`.
    - `retry_on`: after which failures, in HAProxy's words, as text or a list. Default `"conn-failure"`, after which it
      is known that no server has executed the request. The others (`empty-response`, `junk-response`,
      `response-timeout`, statuses such as `503`, `all-retryable-errors`) lead to a further attempt only if the method
      is idempotent and the body can be replayed. HAProxy `retry-on`.
    - `retry_budget`: how many of the requests in flight may be retries: a number such as 0.2, for at most a fifth of
      them and always 10 a second, or a `RetryBudget`. A request that is denied a retry ends with its failure, or with
      the response that it has. Default None: all retries that `retries` allows are made. Envoy `retry_budget`, Linkerd
      `retryBudget`.
    - `redispatch`: which server gets a further attempt: another one at once (True), the same one after a pause (False),
      another one at every nth retry (n), or at the nth before the last (-n). Default True. HAProxy `option redispatch`.
    - `retry_body_limit`: how many bytes of a request body are kept to be replayed. Default 65536 (HAProxy: 16384).
    - `idempotency_key`: whether a request with the header Idempotency-Key may be replayed, whatever its method. Default
      False.
    - `unavailable`: what happens to a client if its server is down, in maintenance or does not respond: `"redispatch"`
      binds it to another server; `"fail"` responds 503, for applications that must not lose a session silently. Default
      `"redispatch"`.
    - `timeouts`: how long to wait for servers, a `Timeouts`. Default None: the defaults of `Timeouts`. HAProxy
      `timeout`.
    - `forward`: which headers describe the client to URLs, a `Forward`. Default None: the defaults of `Forward`.
      HAProxy `option forwardfor`.
    - `check`: how servers are checked, a `Check`. Default None: they are not checked. HAProxy `check`, `option
      httpchk`.
    - `on_empty`: what happens if no server is up: `"fail"` responds 503; `"panic"` uses every server that is not in
      maintenance, and bound clients stay bound. Default `"fail"`. Envoy `panic mode`.
    - `panic_threshold`: panic begins when less than this share of the servers is up, 0 to 1. Default None: when no
      server is up. Envoy `healthy_panic_threshold`.
    - `max_ejected`: the share of the servers that failed requests may keep down at once (`observe` of a check, and
      `max_fails` and `fail_rate` of a server), 0 to 1, rounded down to whole servers: 0.5 of three servers is one, and
      0.1 of five is none. It is a share of the servers that are up otherwise: those in maintenance, and those that an
      active check, an agent or the operator has taken down, count neither as servers nor as ejected, and may be any
      number. Backups are counted among themselves. A server that stays up for this goes on counting: the next request
      that fails there takes it down if others are back by then. If fewer may be down than are, as others have gone,
      those that have been down longest are set up again. Default None: any number. Envoy `max_ejection_percent`.
    - `allbackups`: whether clients are spread over all backups; otherwise the first usable backup gets them all.
      Default False. HAProxy `option allbackups`.
    - `persist_on_down`: whether clients are sent to the server that they are bound to even if it is down. Default
      False. HAProxy `option persist`.
    - `force_persist`: a function of the request; if it returns true, the request is treated as with `persist_on_down`.
      Default None. HAProxy `force-persist`.
    - `ignore_persist`: a function of the request; if it returns true, cookies are ignored, unless `force_persist`
      returns true as well. Default None. HAProxy `ignore-persist`.
    - `use_server`: `{"name": function}`, functions of the request: the first usable server for which its function
      returns true gets the request, whatever the client claims. Default `()`: no rules. HAProxy `use-server`.
    - `log`: called with the `Decision` of each request when it is over, in the thread that served it. Default None.
    - `clock`, `rng`: time and random numbers, for tests. Default None: those of the system.

    `add`, `remove` and `apply` change the configuration at run time; `plan` shows beforehand what that would move.

    There are two locks, acquired in this order: `Reconfigure.change_lock`, for changes of the configuration;
    `Placement.lock`, for balance, the queue and the states of servers; locks of components come after them. Callbacks,
    the log, and the servers of other backends are notified of a change while none of them is held, so a callback may
    change something in turn, or wait for a thread that does. Factories are called under the change lock; the functions
    that balance calls with a request, such as samples, are called under `Placement.lock`.

    A function that raises (a sample, a condition, a key of balance, `log`) fails no request: there is no key, the
    condition is false. The first exception of each is logged, and `function_failures.counts` has their numbers.

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
        retry_budget: RetryBudget | float | None = None,
        redispatch: bool | int = True,
        retry_body_limit: int = 65536,
        idempotency_key: bool = False,
        unavailable: Unavailable = "redispatch",
        timeouts: Timeouts | None = None,
        forward: Forward | None = None,
        check: Check | None = None,
        on_empty: OnEmpty = "fail",
        panic_threshold: float | None = None,
        max_ejected: float | None = None,
        allbackups: bool = False,
        persist_on_down: bool = False,
        force_persist: Condition | None = None,
        ignore_persist: Condition | None = None,
        use_server: Mapping[str, Condition] | Sequence[tuple[str, Condition]] = (),
        log: Callable[[Decision], None] | None = None,
        clock: Clock | None = None,
        rng: Rng | None = None,
    ) -> None:
        wrong = [*type_problems(servers, persist, check), *retry_and_rule_problems(retry_on, use_server)]
        raise_problems(f"backend {name}: {problem}" for problem in wrong)
        problems: list[str] = []
        persists = tuple(persist) if isinstance(persist, Sequence) else (persist,)
        with collect_problems(problems, f"backend {name}: "):
            balance = parse_balance(balance) if isinstance(balance, str) else balance
        config: BackendConfig | None = None
        try:
            config = BackendConfig(
                name=name,
                servers=tuple(server.requested for server in servers),
                balance=RoundRobin() if isinstance(balance, str) else balance,
                persist=persists,
                retries=retries,
                retry_on=tuple(retry_on.split() if isinstance(retry_on, str) else map(str, retry_on)),
                retry_budget=retry_budget,
                redispatch=redispatch,
                unavailable=unavailable,
                retry_body_limit=retry_body_limit,
                idempotency_key=idempotency_key,
                timeouts=timeouts if timeouts is not None else Timeouts(),
                forward=forward if forward is not None else Forward(),
                check=check,
                on_empty=on_empty,
                panic_threshold=panic_threshold,
                max_ejected=max_ejected,
                allbackups=allbackups,
                persist_on_down=persist_on_down,
                force_persist=force_persist,
                ignore_persist=ignore_persist,
                use_server=tuple(use_server.items() if isinstance(use_server, Mapping) else use_server),
            )
        except ConfigError as error:
            problems += error.problems
            for each in persists:  # problems of the rest are reported along with it
                with collect_problems(problems, f"backend {name}: "):
                    each.build(name, servers, SystemClock())
        self._start(name, config, servers, log, clock, rng, problems)

    @classmethod
    def of(
        cls,
        config: BackendConfig,
        *,
        log: Callable[[Decision], None] | None = None,
        clock: Clock | None = None,
        rng: Rng | None = None,
    ) -> Self:
        """Return a new backend with this configuration, and with new servers."""
        backend = cls.__new__(cls)
        backend._start(config.name, config, [Server.of(each) for each in config.servers], log, clock, rng, [])
        return backend

    def _start(
        self,
        name: str,
        config: BackendConfig | None,
        servers: Sequence[Server],
        log: Callable[[Decision], None] | None,
        clock: Clock | None,
        rng: Rng | None,
        problems: list[str],
    ) -> None:
        raise_problems([*problems, *(f"backend {name}: {problem}" for problem in runtime_problems(log, clock, rng))])
        self.name = name
        self.log = log
        self.clock: Clock = clock if clock is not None else SystemClock()
        # the module rather than an instance: it is re-seeded in a forked child, so that workers do not draw alike
        self.rng: Rng = rng if rng is not None else random
        self.servers_by_name: dict[str, Server] = {}
        self.components: dict[object, BackendComponent] = {}
        #: how often functions of the configuration have raised (`counts`); requests go on without them
        self.function_failures = FunctionFailures(name)
        self._granted_retries: GrantedRetries | None = None
        #: marks of clients that name no server, or are not signed by us (`unknown_marks`, `forged_marks`)
        self.invalid_marks = InvalidMarks(name)
        self._checks_owner: object = None

        problems += (f"backend {name}: {problem}" for problem in attach_problems(servers))
        for number, server in enumerate(servers, 1):
            server.id = number
        named = {server.name: server for server in servers}.get
        tracked = find_tracked(self, servers, named, problems)
        if config is not None:
            with collect_problems(problems):
                #: the snapshot in force
                self.snapshot = Snapshot.build(config, servers, clock=self.clock, rng=self.rng, log=log)
        raise_problems(problems)
        #: the configuration applied last; the address and weight of servers may have been assigned since
        self.config = self.snapshot.config
        change_lock = ChangeLock()
        self.placement = Placement(self)
        self.monitor = Monitor(self, self.placement, change_lock)
        self.reconfigure = Reconfigure(self, self.placement, self.monitor, change_lock)
        self.reconfigure.start(tracked)
        register_at_fork(self)
        register(self)

    # What is in force

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
    def stores(self) -> tuple[SharedStore, ...]:
        """The stores through which its stick tables are shared."""
        return self.snapshot.stores

    @property
    def has_checks(self) -> bool:
        """Whether some servers have checks or agents."""
        return self.snapshot.has_checks

    @property
    def unknown_marks(self) -> int:
        """How many requests came with a mark that names no server of the backend, such as one that was renamed. The log
        has each name once.
        """
        return self.invalid_marks.unknown

    @property
    def forged_marks(self) -> int:
        """How many requests came with a mark that is not signed with a secret of the backend. The log has the first."""
        return self.invalid_marks.forged

    @property
    def accepted_marks(self) -> list[AcceptedCount]:
        """How many requests came with each mark that a cookie of the configuration in force accepts
        (`Cookie(accepts=...)`), in its order. What no request comes with any more can be removed from `accepts`. Only
        the requests of this process are counted. The counts go on under another configuration if the cookie has the
        same name there and accepts the same.
        """
        return [count for each in self.snapshot.persistences.accepted for count in each.counts()]

    def qcur(self, server: Server | None = None) -> int:
        """Return how many requests wait for `server`; None: for whichever server has a free slot first (HAProxy
        `qcur`).
        """
        queue = self.placement.queue
        return queue.waiting if server is None else queue.waiting_for(server)

    @property
    def granted_retries(self) -> GrantedRetries:
        """The retries in flight (`in_flight`), if there is a `retry_budget`, and how many it has denied (`denied`)."""
        if self._granted_retries is None:
            from sticky_core.backend.granted_retries import GrantedRetries  # most backends have no budget

            with self.placement.lock:
                if self._granted_retries is None:
                    self._granted_retries = GrantedRetries(self.name, self.clock)
        return self._granted_retries

    def __getitem__(self, name: str) -> Server:
        """Return the server called `name`; KeyError if there is none."""
        try:
            return self.servers_by_name[name]
        except KeyError:
            raise KeyError(f"backend {self.name} has no server {name}") from None

    # Another configuration

    def add(self, *servers: Server) -> Change:
        """Add servers. See `apply` for the steps, and for what it raises."""
        with self.reconfigure.change_lock:
            raise_problems(f"backend {self.name}: {problem}" for problem in list(attach_problems(servers)))
            requested = (*self.config.servers, *(server.requested for server in servers))
            return self.reconfigure.apply(
                replace(self.config, servers=requested), {server.name: server for server in servers}
            )

    def remove(self, *names: str) -> Change:
        """Remove servers: they get no new requests, those in flight are finished, and then the servers are ended. Their
        clients get other servers: a mark that names a removed server is ignored (claim INVALID), also with
        `unavailable="fail"`, since that server does not come back. See `apply` for the steps, and for what it raises.
        """
        with self.reconfigure.change_lock:
            raise_problems(
                f"backend {self.name}: there is no server {name} to be removed"
                for name in names
                if name not in self.servers_by_name
            )
            gone = set(names)
            remaining = [server for server in self.config.servers if server.name not in gone]
            return self.reconfigure.apply(replace(self.config, servers=tuple(remaining)), {})

    def apply(self, new: BackendConfig) -> Change:
        """Replace the configuration in force by `new`, under load.

        What is added is started first, and if that fails nothing has changed. From the swap on, new requests use the
        new configuration; those in flight keep the one that they began with. Servers that keep their name keep their
        health, counters, requests in flight and clients; what was changed about them at run time (weight, state,
        address) stays unless `new` differs there from the configuration before. A server with another app is started
        anew, with an empty memory. A removed server is ended when its last request is over.

        The change is in force when this returns, unless lifespans have to be run on an event loop for it: then `await`
        the `Change`, or `wait()` for it in another thread. Raises `ConfigError` with every problem found, also if
        another change is still being prepared, and RuntimeError if an added server can't be started.
        """
        with self.reconfigure.change_lock:
            return self.reconfigure.apply(new, {})

    def plan(self, new: BackendConfig, *, keys: int = 2_500) -> Plan:
        """Return what `apply` would do, and how many clients would move from which server to which. Nothing is changed.
        `keys`: with how many random hash keys the share of moved keys is estimated, if balance hashes and the share is
        not computed (`Plan.keys`); the standard error is at most 0.5 divided by their square root, which is 1 % by
        default. Raises `ConfigError` as `apply` does.
        """
        from sticky_core.backend.plan import moved_keys, plan_of

        with self.reconfigure.change_lock:
            before, change = self.snapshot, self.reconfigure.draft(new, {})
            moved = moved_keys(before, change, keys, self.placement.lock, self.rng)
        return plan_of(before, change, self.servers_by_name, moved)

    # What happens to the servers

    def events(self, callback: Callable[[StateChange], object] | None = None) -> Events:
        """Return the state changes of servers from now on. With `callback`, it is called with each; without, iterate
        over them: `for` in a thread, `async for` on an event loop. `close()`, or the end of its `with`, ends it.
        """
        return Events(self.monitor.announcements.bus, callback)

    @property
    def checked(self) -> Milestone:
        """What is reached once every server has been checked, since checks were started in this process: `await` it on
        an event loop, or `wait()` for it in a thread; `reached` is whether it is reached. A check that has failed
        counts. Servers without a check of their own, in maintenance or without an address are not waited for, so it is
        reached at once where there are no checks.

        It stays reached, and `checked` is another one as soon as a server is not checked yet: after a change that adds
        servers, or after maintenance that has begun before the server's first check. So `await backend.add(...)`, then
        `await backend.checked`.
        """
        return self.monitor.first_checks.checked

    def drained(self, name: str) -> Drained:
        """Return a `Drained`, to `await` or `wait()` for, that waits until the server called `name` is drained. It is
        drained

        - when no request is in flight there, and no client bound to it has sent a request for as long as marks last; or
        - when its deadline has passed, and no request is in flight there: WebSockets are closed, and what else is in
          progress ends by itself; or
        - when it was removed, and no request is in flight there.

        Where tables are shared, the clients of all processes that share them count, and marks last up to a quarter
        longer; while a store does not reply, only the clients of this process count. KeyError if there is no such
        server.
        """
        server = self[name]

        def is_drained() -> bool:
            self.monitor.run_due_timers()
            return server.drained or (server.removed and not server.in_flight)

        return Drained(is_drained, POLL_INTERVAL)

    # The checks have one owner, which runs them

    def acquire_checks(self, owner: object) -> bool:
        """Return whether `owner` has to run the checks: the first caller has, until it calls `release_checks`."""
        with self.placement.lock:
            if self._checks_owner is None:
                self._checks_owner = owner
            return self._checks_owner is owner

    @property
    def checks_are_free(self) -> bool:
        """Whether the checks have no owner."""
        return self._checks_owner is None

    def release_checks(self, owner: object) -> None:
        """Let another caller acquire the checks, if `owner` has acquired them."""
        with self.placement.lock:
            if self._checks_owner is owner:
                self._checks_owner = None

    def inserted_cookies(self) -> list[InsertedCookie]:
        """Return the cookies that the persistences of the configuration in force insert."""
        where = f"backend {self.name}"
        return [InsertedCookie(self, where, scope) for scope in self.config.cookie_scopes if scope.is_inserted]

    def component(self, kind: Callable[[Backend], T]) -> T:
        """Return the component of this kind, made by the first call: what a face attaches to a backend, such as its
        apps.
        """
        with self.reconfigure.change_lock:  # not the other lock: a component may make further ones
            if kind not in self.components:
                component = kind(self)
                with self.placement.lock:
                    self.components[kind] = component
            return cast(T, self.components[kind])

    def after_fork(self) -> None:
        """Renew locks, and discard requests in flight, in a forked child: they are the parent's."""
        self.reconfigure.after_fork()
        self.placement.after_fork()
        self.monitor.after_fork()
        self.function_failures.after_fork()
        if self._granted_retries is not None:
            self._granted_retries.after_fork()
        self.invalid_marks.after_fork()
        self._checks_owner = None
        for component in self.components.values():
            component.after_fork()

    def __repr__(self) -> str:
        return f"<Backend {self.name}: {', '.join(server.summary for server in self.servers)}>"
