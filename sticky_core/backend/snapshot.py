"""Snapshot: the configuration of a backend that is in force, as one value: servers, balance, persistence and limits.

A request keeps the snapshot that it began with until it is over, whatever is changed meanwhile. A snapshot is complete
before it is put in force, and nothing changes it after that. It refers to live objects that go on when it is replaced
(servers, the algorithm, the persistence); it does not refer to its backend.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from sticky_core.backend.balancing import Balancing
from sticky_core.backend.config import BackendConfig, Unavailable
from sticky_core.backend.difference import ServerDifference
from sticky_core.backend.retries import Retries, RetryBudget
from sticky_core.clock import Clock, Rng
from sticky_core.decision import Decision
from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import ConfigError, collect_problems, raise_problems
from sticky_core.http.trusted_proxies import Networks
from sticky_core.persistence.persistence import Persistence
from sticky_core.persistence.persistence_set import PersistenceSet
from sticky_core.server.config import ServerConfig
from sticky_core.server.server import Server
from sticky_core.stick_table.table import StickTable
from sticky_core.stores.shared_store import SharedStore


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class Snapshot:
    """A configuration in force over servers. Made by `build`."""

    config: BackendConfig
    servers: tuple[Server, ...]
    members: frozenset[Server]  #: the same servers, to look one up
    log: Callable[[Decision], None] | None
    clock: Clock
    retries: Retries
    retry_budget: RetryBudget | None  #: None: each retry that `retries` allows is made
    total_timeout: float | None  #: how long all attempts of a request may take, in seconds; None: there is no limit
    trusted_proxies: Networks | None  #: the proxies that are trusted about the client; None: there are none
    balancing: Balancing
    persistence: Persistence | None
    persistences: PersistenceSet
    kinds: Counter[str]  #: how many servers are of each kind that decides an option below (`_kinds_of`)
    max_idle: float  #: for how many seconds a client may stay away and is still recognised

    # Copies of options, and what follows from them: requests read these.
    name: str
    unavailable: Unavailable
    counts_requests: bool  #: whether `acquired` and `released` must be called: for balance, or because of `maxconn`
    #: whether a request may have to be read more than once, or whether it matters when its client disconnects
    needs_replay: bool
    has_checks: bool  #: whether some servers have checks or agents
    observes: bool  #: whether results and latencies of requests must be recorded
    shuts_down_sessions: bool  #: whether requests in flight at a server that goes down are ended (`on_marked_down`)
    shuts_down_backup_sessions: bool  #: whether a server that is back ends those at backups (`on_marked_up`)

    @classmethod
    def build(
        cls,
        config: BackendConfig,
        servers: Sequence[Server],
        *,
        clock: Clock,
        rng: Rng,
        log: Callable[[Decision], None] | None = None,
        before: Snapshot | None = None,
    ) -> Snapshot:
        """Build the snapshot of `config` over `servers`. Raises `ConfigError` with every problem found.

        `before`: the snapshot in force until now. Parts that have not changed are taken over as they are.
        """
        servers = tuple(servers)
        problems: list[str] = []
        persistences: PersistenceSet | None = None
        balancing: Balancing | None = None
        with collect_problems(problems, f"backend {config.name}: "):
            persistences = _build_persistences(config, servers, clock, before)
        with collect_problems(problems, f"backend {config.name}: "):
            balancing = _build_balancing(config, servers, rng, clock, before)
        raise_problems(problems)
        assert persistences is not None
        assert balancing is not None
        for table in persistences.tables:
            if table.namespace is not None:
                table.namespace.presence.extend_expiry(persistences.max_idle)
        kinds = _count_kinds(config, config.servers)
        return cls._assemble(
            config, servers, frozenset(servers), kinds, balancing, persistences, log, clock, before=before
        )

    def can_derive(self, config: BackendConfig, difference: ServerDifference) -> bool:
        """Return whether `derive` can build the snapshot of `config`. Only before servers are changed."""
        has_same_servers = not (difference.added or difference.removed or difference.changed)
        return (
            difference.keeps_order
            and not difference.changes_backups
            and _has_same_persistence(config, self.config)
            and (has_same_servers or self.persistences.is_reusable)
            and (config.balance, config.allbackups) == (self.config.balance, self.config.allbackups)
            and self.balancing.can_replace(difference.added, tuple(difference.removed), is_last=difference.is_last)
        )

    def try_persistences(
        self, config: BackendConfig, difference: ServerDifference, copies: Sequence[Server]
    ) -> PersistenceSet:
        """Return the persistences that `derive` would build, with `copies` of the servers that are changed, as they
        would be. Raise ConfigError if they can't work with the servers that are added and changed.
        """
        added, removed = (*difference.added, *copies), (*difference.removed, *difference.changed)
        if not added and not removed:
            return self.persistences
        copy_of = dict(zip(difference.changed, copies, strict=True))
        servers = tuple(map(copy_of.get, difference.servers, difference.servers)) if copies else difference.servers
        problems: list[str] = []
        with collect_problems(problems, f"backend {config.name}: "):
            return self.persistences.with_servers(config, servers, added, removed)
        raise ConfigError(*problems)

    def derive(self, config: BackendConfig, difference: ServerDifference, changes_ids: Sequence[Server]) -> Snapshot:
        """Build the snapshot of `config`, which differs from this one by `difference` and perhaps in other options, in
        proportion to what differs. The balancing is the same: `Balancing.replace_servers` is still to be called.

        `changes_ids`: the servers that have got other ids.
        """
        added, removed = difference.added, tuple(difference.removed)
        persistences, members = self.persistences, self.members
        if added or removed or changes_ids:
            persistences = persistences.with_servers(
                config, difference.servers, (*added, *changes_ids), (*removed, *changes_ids)
            )
            members = members.difference(removed).union(added)
        if config.check == self.config.check:
            kinds = Counter(self.kinds)
            kinds.subtract(_count_kinds(config, difference.before))
            kinds.update(_count_kinds(config, difference.after))
        else:
            kinds = _count_kinds(config, config.servers)
        return self._assemble(
            config,
            difference.servers,
            members,
            kinds,
            self.balancing,
            persistences,
            self.log,
            self.clock,
            before=self,
        )

    @classmethod
    def _assemble(
        cls,
        config: BackendConfig,
        servers: tuple[Server, ...],
        members: frozenset[Server],
        kinds: Counter[str],
        balancing: Balancing,
        persistences: PersistenceSet,
        log: Callable[[Decision], None] | None,
        clock: Clock,
        *,
        before: Snapshot | None,
    ) -> Snapshot:
        retries = Retries(config.retries, config.retry_on, config.redispatch)
        is_limited = kinds["maxconn"] > 0
        counts_failures = kinds["backup that counts failures"] > 0 or (
            kinds["counts failures"] > 0 and not _is_alone(kinds)
        )
        observes = balancing.timed is not None or counts_failures or kinds["observe"] > 0
        forward = config.forward
        return cls(
            config=config,
            servers=servers,
            members=members,
            log=log,
            clock=clock,
            retries=retries,
            retry_budget=RetryBudget.of(config.retry_budget),
            total_timeout=config.timeouts.in_seconds.total,
            trusted_proxies=before.trusted_proxies
            if before is not None and before.config.forward is forward
            else Networks(forward.trusted_proxies)
            if forward.trusted_proxies
            else None,
            balancing=balancing,
            persistence=persistences.persistence,
            persistences=persistences,
            kinds=kinds,
            max_idle=persistences.max_idle,
            name=config.name,
            unavailable=config.unavailable,
            counts_requests=balancing.algorithm.counts_requests or is_limited,
            needs_replay=retries.needs_replay or is_limited or observes or kinds["url"] > 0,
            has_checks=kinds["check"] > 0 or kinds["agent"] > 0,
            observes=observes,
            shuts_down_sessions=kinds["on_marked_down"] > 0,
            shuts_down_backup_sessions=kinds["on_marked_up"] > 0,
        )

    @property
    def has_single_server(self) -> bool:
        """Whether only one server is no backup."""
        return _is_alone(self.kinds)

    def counts_failures_of(self, server: Server) -> bool:
        """Return whether failed requests may take a server down, if its options say so. Like nginx, we never take the
        only server that is no backup out because of them.
        """
        return server.config.backup or not self.has_single_server

    @property
    def tables(self) -> tuple[StickTable, ...]:
        """The stick tables in use, each once."""
        return self.persistences.tables

    @property
    def stores(self) -> tuple[SharedStore, ...]:
        """The stores through which these tables are shared, each once."""
        return self.persistences.stores

    def sessions(self) -> Counter[Server]:
        """Count the entries of stick tables by server. This reads every entry."""
        return self.persistences.sessions()

    def has_clients_elsewhere(self, server: Server) -> bool:
        """Return whether a process may still serve clients of `server`, according to the stores of shared tables."""
        return self.persistences.has_clients_elsewhere(server)

    # Live objects that the snapshot refers to are notified. Under the backend's lock.

    def state_changed(self, server: Server) -> None:
        """Notify balance and persistence that `server` has another state, health, weight or instance."""
        self.balancing.state_changed(server)
        if self.persistence is not None:
            self.persistence.state_changed(server)

    def refresh(self, servers: Iterable[Server] | None = None) -> None:
        """Notify balance and persistence of the present state and address of these servers, or of all."""
        for server in self.servers if servers is None else servers:
            self.balancing.refresh_address(server)
            self.state_changed(server)


def _build_balancing(
    config: BackendConfig, servers: tuple[Server, ...], rng: Rng, clock: Clock, before: Snapshot | None
) -> Balancing:
    running = before.balancing if before is not None else None
    if running is not None and running.fits(config.balance, servers, config.allbackups):
        return running
    return Balancing(config.balance, servers, config.allbackups, rng, clock, running)


def _build_persistences(
    config: BackendConfig, servers: tuple[Server, ...], clock: Clock, before: Snapshot | None
) -> PersistenceSet:
    if (
        before is not None
        and servers == before.servers
        and _has_same_persistence(config, before.config)
        and [each.id_options for each in config.servers] == [each.id_options for each in before.config.servers]
    ):
        return before.persistences
    persistences = PersistenceSet(config, servers, clock)
    if before is not None:
        persistences.take_over_counts(before.persistences)
    return persistences


def _has_same_persistence(config: BackendConfig, before: BackendConfig) -> bool:
    return (config.persist, config.persist_on_down, config.force_persist, config.ignore_persist, config.use_server) == (
        before.persist,
        before.persist_on_down,
        before.force_persist,
        before.ignore_persist,
        before.use_server,
    )


def _count_kinds(config: BackendConfig, servers: Iterable[ServerConfig]) -> Counter[str]:
    return Counter(kind for server in servers for kind in _kinds_of(config, server))


def _kinds_of(config: BackendConfig, server: ServerConfig) -> Iterator[str]:
    """Yield what a server is, as far as it decides what requests need: the names of its options."""
    if not server.backup:
        yield "active"
    if server.maxconn:
        yield "maxconn"
    if server.is_url:
        yield "url"
    if server.template is not None:
        yield "template"
    if server.counts_failures:
        yield "backup that counts failures" if server.backup else "counts failures"
    if server.agent_check is not None:
        yield "agent"
    check = config.check_of(server)
    if check is not None:
        yield "check"
        if check.observe:
            yield "observe"
        if check.on_marked_down is not None:
            yield "on_marked_down"
        if check.on_marked_up is not None and not server.backup:
            yield "on_marked_up"


def _is_alone(kinds: Counter[str]) -> bool:
    """Return whether only one server is no backup."""
    return kinds["active"] == 1
