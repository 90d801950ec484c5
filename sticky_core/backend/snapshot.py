"""Snapshot: the configuration of a backend that is in force, as one value: servers, balance, persistence and limits.

A request keeps the snapshot that it began with until it is over, whatever is changed meanwhile. A snapshot is complete
before it is put in force, and nothing changes it after that. It refers to live objects that go on when it is replaced
(servers, the algorithm, the persistence); it does not refer to its backend.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sticky_core.backend.balancing import Balancing
from sticky_core.backend.config import BackendConfig, Unavailable
from sticky_core.backend.retries import Retries
from sticky_core.clock import Clock, Rng
from sticky_core.decision import Decision
from sticky_core.errors import collect_problems, raise_problems
from sticky_core.http.trusted_proxies import Networks
from sticky_core.persistence.persistence import Persistence
from sticky_core.persistence.persistence_set import PersistenceSet
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
    trusted_proxies: Networks  #: the proxies from which X-Forwarded-For is trusted
    balancing: Balancing
    persistence: Persistence | None
    persistences: PersistenceSet
    max_fails: Mapping[Server, int]  #: `max_fails` of each server; 0: failed requests are not counted
    max_idle: float  #: for how many seconds a client may stay away and is still recognised

    # Copies of options, and what follows from them: requests read these.
    name: str
    unavailable: Unavailable
    counts_requests: bool  #: whether `acquired` and `released` must be called: for balance, or because of `maxconn`
    #: whether a request may have to be read more than once, or whether it matters when its client disconnects
    needs_replay: bool
    checked: bool  #: whether some servers have checks or agents
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
        retries = Retries(config.retries, config.retry_on, config.redispatch)
        max_fails = _max_fails_by_server(servers)
        limited = any(server.config.maxconn for server in servers)
        checks = [(server, check) for server in servers if (check := config.check_of(server.config)) is not None]
        observes = balancing.timed is not None or any(max_fails.values()) or any(check.observe for _, check in checks)
        return cls(
            config=config,
            servers=servers,
            members=frozenset(servers),
            log=log,
            clock=clock,
            retries=retries,
            trusted_proxies=Networks(config.forward.trusted_proxies),
            balancing=balancing,
            persistence=persistences.persistence,
            persistences=persistences,
            max_fails=max_fails,
            max_idle=persistences.max_idle,
            name=config.name,
            unavailable=config.unavailable,
            counts_requests=balancing.algorithm.counts_requests or limited,
            needs_replay=retries.needs_replay or limited or observes or any(server.config.is_url for server in servers),
            checked=bool(checks) or any(server.config.agent_check is not None for server in servers),
            observes=observes,
            shuts_down_sessions=any(check.on_marked_down is not None for _, check in checks),
            shuts_down_backup_sessions=any(
                check.on_marked_up is not None and not server.config.backup for server, check in checks
            ),
        )

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

    def refresh(self) -> None:
        """Notify balance and persistence of the present state and address of every server."""
        for server in self.servers:
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
    if before is not None and servers == before.servers and _has_same_persistence(config, before.config):
        return before.persistences
    return PersistenceSet(config, servers, clock)


def _has_same_persistence(config: BackendConfig, before: BackendConfig) -> bool:
    return (config.persist, config.persist_on_down, config.force_persist, config.ignore_persist, config.use_server) == (
        before.persist,
        before.persist_on_down,
        before.force_persist,
        before.ignore_persist,
        before.use_server,
    ) and [each.cookie_id for each in config.servers] == [each.cookie_id for each in before.servers]


def _max_fails_by_server(servers: tuple[Server, ...]) -> dict[Server, int]:
    """Return `max_fails` of each server. The only server that is no backup has none: like nginx, we never take it out
    because of failed requests.
    """
    alone = sum(not server.config.backup for server in servers) == 1
    return {server: 0 if alone and not server.config.backup else server.config.max_fails for server in servers}
