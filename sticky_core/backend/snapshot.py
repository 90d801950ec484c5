"""What of a backend's configuration is in force: its servers, balance, persistence and limits, as one snapshot. Each
request keeps the one that it began with to its end, whatever is changed meanwhile.

What lives on from one to the next is the backend's: servers, lock, queue, health (`sticky_core.backend.backend`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING

from sticky_core.backend.config import BackendConfig, Unavailable
from sticky_core.backend.queue import Queue, Ticket
from sticky_core.backend.retries import Retries
from sticky_core.balance.algorithm import AddressAware, Algorithm, LatencyAware
from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.errors import Failure, collect_problems, raise_problems
from sticky_core.http.messages import Request
from sticky_core.http.trusted_proxies import Networks
from sticky_core.persistence.chain import PersistenceChain
from sticky_core.persistence.persistence import Persistence
from sticky_core.persistence.rules import IgnorablePersistence, RuledPersistence
from sticky_core.persistence.stick import StickRules, grouped
from sticky_core.server.server import Server
from sticky_core.stick_table.table import StickTable
from sticky_core.stores.redis import Redis

if TYPE_CHECKING:
    from sticky_core.backend.backend import Backend


class Snapshot:
    """A configuration at work over servers. ConfigError, with every problem found, if it can't be.

    `before`: what was in force until then. What nothing has changed about goes on as it stands.
    """

    def __init__(
        self, alive: Backend, config: BackendConfig, servers: Sequence[Server], before: Snapshot | None = None
    ) -> None:
        self._alive = alive
        self.name = config.name
        self.config = config
        self.servers = tuple(servers)
        #: the same, to look one up in
        self.members = frozenset(servers)
        self.retries = Retries(config.retries, config.retry_on, config.redispatch)
        self.unavailable: Unavailable = config.unavailable
        self.log = alive.log
        self.clock = alive.clock
        #: whose word about the client counts
        self.trusted_proxies = Networks(config.forward.trusted_proxies)
        self._backup_of: Mapping[Server, bool] = {server: server.config.backup for server in servers}
        self._backups = tuple(server for server in servers if server.config.backup)
        problems: list[str] = []
        self._persistences: Sequence[Persistence] = ()
        self.persistence: Persistence | None = None
        if before is not None and self._persists_as(before):
            self._persistences, self.persistence = before._persistences, before.persistence
        else:
            self._persist(problems)
        self._balance: Algorithm
        self._backup_balance: Algorithm | None
        #: where balance knows servers to be
        self._places: dict[Server, object]
        with collect_problems(problems, f"backend {self.name}: "):
            if before is not None and self._balances_as(before):
                self._balance, self._backup_balance = before._balance, before._backup_balance
                self._places = before._places
            else:
                self._begin_to_balance()
                if (
                    before is not None
                    and isinstance(self._balance, LatencyAware)
                    and isinstance(before._balance, LatencyAware)
                ):
                    self._balance.inherit_from(before._balance)
        raise_problems(problems)
        #: for how many seconds a client may stay away and is still known
        self.max_idle = 0.0
        if self.persistence is not None:
            self.max_idle = max(each.max_idle for each in self._persistences or (self.persistence,))
        for table in self.tables:
            if table.namespace is not None:
                table.namespace.presence.extend_expiry(self.max_idle)
        # a backup that stands in a row is nobody's to balance
        self._algorithms: Mapping[Server, Algorithm] = {}
        self._assign()
        self.draw()

    def _assign(self) -> None:
        algorithms = (
            (each, self._backup_balance if backup else self._balance) for each, backup in self._backup_of.items()
        )
        self._algorithms = {server: algorithm for server, algorithm in algorithms if algorithm is not None}

    def _persists_as(self, before: Snapshot) -> bool:
        asked, then = self.config, before.config
        return self.servers == before.servers and (
            (asked.persist, asked.persist_on_down, asked.force_persist, asked.ignore_persist, asked.use_server)
            == (then.persist, then.persist_on_down, then.force_persist, then.ignore_persist, then.use_server)
            and [each.cookie_id for each in asked.servers] == [each.cookie_id for each in then.servers]
        )

    def _balances_as(self, before: Snapshot) -> bool:
        return (
            self.servers == before.servers
            and self._backup_of == before._backup_of
            and (self.config.balance, self.config.allbackups) == (before.config.balance, before.config.allbackups)
        )

    def _persist(self, problems: list[str]) -> None:
        persistences: list[Persistence] = []
        for asked in grouped(self.config.persist):
            with collect_problems(problems, f"backend {self.name}: "):
                persistence = asked.build(self.name, self.servers, self.clock)
                if self.config.ignore_persist is not None and not isinstance(persistence, StickRules):
                    persistence = IgnorablePersistence(self.config, persistence)
                persistences.append(persistence)
        self._persistences = persistences
        names = [table.name for table in self.tables if table.store is not None]
        problems += (
            f"backend {self.name}: {names.count(name)} shared tables are called {name}: give each a name= of its own"
            for name in sorted({name for name in names if names.count(name) > 1})
        )
        if persistences:
            self.persistence = PersistenceChain(persistences) if len(persistences) > 1 else persistences[0]
        rules = RuledPersistence.of(self.config, self.servers)
        if rules is not None:
            self.persistence = rules(self.persistence)

    @property
    def tables(self) -> tuple[StickTable, ...]:
        """The stick tables in use, each once."""
        sticky = (each for each in self._persistences if isinstance(each, StickRules))
        return tuple(dict.fromkeys(table for each in sticky for table in each.tables))

    def sessions(self) -> Counter[Server]:
        """How many of the sessions that stick tables know of belong to each server. This looks at every entry."""
        sessions: Counter[Server] = Counter()
        seen: set[StickTable] = set()
        for rules in self._persistences:
            if isinstance(rules, StickRules):
                for table in set(rules.tables) - seen:
                    seen.add(table)
                    for text, count in table.per_server().items():
                        server = rules.server_of(text)
                        if server is not None:
                            sessions[server] += count
        return sessions

    @property
    def stores(self) -> tuple[Redis, ...]:
        """The stores that these tables are shared through, each once."""
        return tuple(dict.fromkeys(table.store for table in self.tables if table.store is not None))

    def bound_somewhere(self, server: Server) -> bool:
        """Whether a process may still serve clients of `server`, as far as the stores of shared tables say."""
        sticky = [each for each in self._persistences if isinstance(each, StickRules)]
        spaces = [(table.namespace, each.server_text(server, table)) for each in sticky for table in each.tables]
        return any(space.presence.has_clients(text) for space, text in spaces if space is not None)

    def _begin_to_balance(self) -> None:
        balance, rng = self.config.balance, self._alive.rng
        backups = self._backup_of
        self._balance = balance.build([each for each in self.servers if not backups[each]], rng)
        self._backup_balance = balance.build(self._backups, rng) if self.config.allbackups else None
        self._places = {server: server.config.target for server in self.servers}

    def draw(self) -> None:
        """What follows from how the servers are checked and limited now. Under the lock."""
        servers = self.servers
        self._timed = self._balance if isinstance(self._balance, LatencyAware) else None
        checks = [server.checking.check for server in servers if server.checking is not None]
        #: whether who comes and goes must be told: to balance, or because a server takes only so many
        self.counts_requests = self._balance.counts_requests or any(
            server.limit or server.maxconn for server in servers
        )
        #: whether a request may have to be read more than once, or looked after while it waits
        self.needs_replay = self.retries.needs_replay or any(
            server.maxconn or server.config.is_url for server in servers
        )
        #: whether somebody has to ask the servers how they are
        self.checked = bool(checks) or any(server.agent is not None for server in servers)
        #: whether it is of interest how requests turn out, and how long they take
        self.observes = (
            self._timed is not None
            or any(server.max_fails for server in servers)
            or any(check.observe for check in checks)
        )
        #: whether a server that goes down takes with it what is in flight there
        self.shuts_down = any(server.shuts_down for server in servers)
        #: whether one that comes back ends what is in flight at the backups
        self.shuts_backups = any(server.shuts_backups for server in servers)

    def begin(self) -> None:
        """All servers stand as they do now, and where they are. Under the lock."""
        for server in self.servers:
            if server.config.target != self._places[server]:
                self.moved(server)
            self.changed(server)

    def changed(self, server: Server) -> None:
        """A server is in another state. Under the lock."""
        algorithm = self._algorithm_of(server)
        if algorithm is not None:
            algorithm.state_changed(server)
        if self.persistence is not None:
            self.persistence.state_changed(server)

    def moved(self, server: Server) -> None:
        """A server has another address; `changed` comes behind. Under the lock."""
        self._places[server] = server.config.target
        algorithm = self._algorithm_of(server)
        if isinstance(algorithm, AddressAware):
            algorithm.address_changed(server)

    def _algorithm_of(self, server: Server) -> Algorithm | None:
        """Who balances it: nobody if it is a backup that stands in a row, or none of these servers."""
        return self._algorithms.get(server)

    # A request asks

    def choose(self, request: Request, tried: Container[Server]) -> Server | None:
        """A server for a request that belongs nowhere: one that balance chooses, else the first backup that can, else
        one that drains.
        """
        alive = self._alive
        if alive.next_deadline < inf:
            alive.run_due_timers()
        with alive.lock:
            if alive.snapshot is not self:
                self.begin()
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

    def acquire_or_enqueue(
        self, request: Request, bound: Server | None, tried: tuple[Server, ...]
    ) -> Server | Ticket | None:
        """A place for a request where who comes and goes is counted: at the server that it is `bound` to, or at one
        that is chosen; if all that could take it have their `maxconn`, a place in the queue.

        `tried`: who is not to be chosen. None: nobody can take it, or too many wait already.
        """
        alive = self._alive
        if alive.next_deadline < inf:
            alive.run_due_timers()
        avoid = tried
        with alive.lock:
            if alive.snapshot is not self:
                self.begin()
            if bound is not None:
                place = self._place_at(bound, tried)
                if place is not None or not self.retries.redispatch or self.unavailable == "fail":
                    return place
                avoid += bound.only
            affinity = self._balance.preserve_affinity
            server = self._balance.choose(
                request, avoid if affinity == "always" else _Crowded(avoid, alive.queue, affinity)
            )
            if server is not None:
                return self._place_at(server, tried)
            # those that only have no room are waited for: nobody else helps out
            full = [each for each in self.servers if each.electable and not self._backup_of[each] and each not in avoid]
            if full:
                most = sum(each.config.maxqueue for each in full)
                if all(each.config.maxqueue for each in full) and alive.queue.waiting >= most:
                    return None
                return alive.enqueue(Ticket(None, tried, self.members))
            server = self._otherwise(request, _Crowded(avoid, alive.queue, "maxconn"))
            if server is None:
                server = self._otherwise(request, avoid)
            return self._place_at(server, tried) if server is not None else None

    def _place_at(self, server: Server, tried: tuple[Server, ...]) -> Server | Ticket | None:
        """A place at `server` or in the line before it; None if that is too long."""
        waiting = self._alive.queue.waiting_for(server)
        if not server.limit or not (server.full or waiting):
            return self._alive.acquire_locked(server)
        if server.config.maxqueue and waiting >= server.config.maxqueue:
            return None
        return self._alive.enqueue(Ticket(server, tried, self.members))

    def subscribe(self, ticket: Ticket, wake: Callable[[], bool]) -> bool:
        """Have `wake` called when there is news about `ticket`. False: there is already."""
        return self._alive.subscribe(ticket, wake)

    def redeem(self, ticket: Ticket) -> Server | None:
        """The waiter has looked up, woken or tired: the server that it has a place at, if one was granted in time."""
        return self._alive.redeem(ticket)

    def release(self, server: Server) -> None:
        """A request has left `server`. Told only if `counts`."""
        self._alive.release(server)

    def record_request(self, server: Server, failure: Failure | None, status: int, seconds: float) -> None:
        """A request has turned out so at `server`, so long after it was asked. Told only if `observes`."""
        self._alive.record_request(server, failure, status, seconds)

    # And balance is told

    def acquired(self, server: Server) -> None:
        algorithm = self._algorithm_of(server)
        if algorithm is not None:
            algorithm.acquired(server)

    def released(self, server: Server) -> None:
        algorithm = self._algorithm_of(server)
        if algorithm is not None:
            algorithm.released(server)

    def record_latency(self, server: Server, seconds: float) -> None:
        """`server` has begun an answer so long after it was asked."""
        if self._timed is not None and self._backup_of.get(server) is False:
            with self._alive.lock:
                self._timed.record_latency(server, seconds)

    @property
    def electable(self) -> list[Server]:
        """Who can be waited for by whom balance is to choose for."""
        return [each for each in self.servers if each.electable and not self._backup_of[each]]

    def after_fork(self) -> None:
        """We are a forked child: the parent may have been caught in the middle of a choice."""
        self._begin_to_balance()
        self._assign()
        self._timed = self._balance if isinstance(self._balance, LatencyAware) else None


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
