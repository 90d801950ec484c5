"""Balancing: the running algorithm of a backend over its servers, and that of its backups if these share clients."""

from __future__ import annotations

from collections.abc import Container, Sequence

from sticky_core.balance.algorithm import (
    AddressAware,
    Algorithm,
    Balance,
    ClockAware,
    HashAware,
    LatencyAware,
    MembershipAware,
)
from sticky_core.balance.ring import MAX_SERVERS
from sticky_core.clock import Clock, Rng
from sticky_core.http.messages import Request
from sticky_core.server.server import Server


class Balancing:
    """A `Balance` that runs over servers. Snapshots that differ only in other options share it. Snapshots with other
    servers share it where the algorithm can go on: then it chooses among the servers of the snapshot in force, and a
    request of an earlier snapshot avoids those that its snapshot does not have. Called under the backend's lock.

    - `balance`: the configured balance.
    - `servers`: all servers, backups included, in the order in which they were declared.
    - `allbackups`: whether the backups share clients by an algorithm of their own; else they serve in order.
    - `before`: the `Balancing` in force until now; the latencies that it has measured are taken over.
    """

    algorithm: Algorithm  #: over the servers that are no backups
    timed: LatencyAware | None  #: the algorithm, if it uses the latencies of servers
    backup_algorithm: Algorithm | None  #: over the backups; None: they serve in order

    def __init__(
        self,
        balance: Balance,
        servers: Sequence[Server],
        allbackups: bool,
        rng: Rng,
        clock: Clock,
        before: Balancing | None = None,
    ) -> None:
        self._balance = balance
        self._servers = tuple(servers)
        self._allbackups = allbackups
        self._rng = rng
        self._clock = clock
        self._is_backup = {server: server.config.backup for server in servers}
        self._active: tuple[Server, ...] | None = None  # None: not listed since a change
        self._backups: tuple[Server, ...] | None = None
        self._last_turns: dict[Server, int] = {}  # of the servers that `choose_last_resort` has returned
        self._turn = 0
        self._build()
        if before is not None and self.timed is not None and before.timed is not None:
            self.timed.inherit_from(before.timed)

    def _build(self) -> None:
        self.algorithm = self._build_algorithm(self.active)
        self.timed = self.algorithm if isinstance(self.algorithm, LatencyAware) else None
        self.backup_algorithm = self._build_algorithm(self.backups) if self._allbackups else None
        # a backup that serves in order has no algorithm
        algorithms = (
            (server, self.backup_algorithm if is_backup else self.algorithm)
            for server, is_backup in self._is_backup.items()
        )
        self._algorithms = {server: algorithm for server, algorithm in algorithms if algorithm is not None}
        self._addresses = {server: server.config.target for server in self._servers}  # as the algorithms know them

    def _build_algorithm(self, servers: Sequence[Server]) -> Algorithm:
        algorithm = self._balance.build(servers, self._rng)
        if isinstance(algorithm, ClockAware):
            algorithm.use_clock(self._clock)
        return algorithm

    @property
    def active(self) -> tuple[Server, ...]:
        """The servers that are no backups, in the order of declaration."""
        if self._active is None:
            self._active = tuple(server for server in self._servers if not self._is_backup[server])
        return self._active

    @property
    def backups(self) -> tuple[Server, ...]:
        """The backups, in the order of declaration."""
        if self._backups is None:
            self._backups = tuple(server for server in self._servers if self._is_backup[server])
        return self._backups

    def can_replace(self, added: Sequence[Server], removed: Sequence[Server], *, is_last: bool) -> bool:
        """Return whether the algorithms can go on if `added` are added and `removed` are removed. `is_last`: whether
        the added servers come after all others in the order of declaration.
        """
        if 2 * (len(added) + len(removed)) > len(self._servers):
            return False  # to build new ones costs less
        if len(self._servers) + len(added) > MAX_SERVERS:
            return False  # a ring has no space, which is reported when it is built
        has_added = {server.config.backup for server in added}  # True: backups; False: others
        has_changed = has_added | {self._is_backup[server] for server in removed}
        for is_backup, algorithm in ((False, self.algorithm), (True, self.backup_algorithm)):
            if algorithm is not None and is_backup in has_changed:
                if not isinstance(algorithm, MembershipAware):
                    return False
                if is_backup in has_added and algorithm.order_matters and not is_last:
                    return False
        return True

    def replace_servers(self, servers: Sequence[Server], added: Sequence[Server], removed: Sequence[Server]) -> None:
        """Choose among `servers` from now on: `added` are new, and `removed` are no longer among them. Only if
        `can_replace`.
        """
        for server in removed:
            algorithm = self._algorithms.pop(server, None)
            if isinstance(algorithm, MembershipAware):
                algorithm.removed(server)
            del self._is_backup[server], self._addresses[server]
            self._last_turns.pop(server, None)
        for server in added:
            self._is_backup[server] = server.config.backup
            self._addresses[server] = server.config.target
            algorithm = self.backup_algorithm if server.config.backup else self.algorithm
            if isinstance(algorithm, MembershipAware):
                algorithm.added(server)
                self._algorithms[server] = algorithm
        self._servers = tuple(servers)
        if any(server.config.backup for server in (*added, *removed)):
            self._backups = None
        self._active = None

    def fits(self, balance: Balance, servers: Sequence[Server], allbackups: bool) -> bool:
        """Return whether another configuration, with these options, can use it as it is."""
        return (
            self._servers == tuple(servers)
            and self._is_backup == {server: server.config.backup for server in servers}
            and (self._balance, self._allbackups) == (balance, allbackups)
        )

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        """Return the server that the algorithm chooses; None if there is none. If an algorithm of the user raises, one
        of the electable servers with the fewest requests in flight.
        """
        try:
            return self.algorithm.choose(request, avoid)
        except Exception as error:
            return self.choose_after_failure(error, self.active, request, avoid)

    def choose_backup(self, request: Request, avoid: Container[Server]) -> Server | None:
        """Return the backup for a new client: the one that their algorithm chooses, else the first that is usable."""
        if self.backup_algorithm is None:
            return next((server for server in self.backups if server.electable and server not in avoid), None)
        try:
            return self.backup_algorithm.choose(request, avoid)
        except Exception as error:
            return self.choose_after_failure(error, self.backups, request, avoid)

    def choose_after_failure(
        self, error: Exception, servers: Sequence[Server], request: Request, avoid: Container[Server]
    ) -> Server | None:
        """Count that the algorithm over `servers` has raised `error`, and return one of the electable servers with the
        fewest requests in flight; None if there is none.
        """
        request.function_failed("balance", self._balance, error, is_locked=True)
        electable = [server for server in servers if server.electable and server not in avoid]
        return min(electable, key=lambda server: len(server.in_flight), default=None)

    def choose_last_resort(self, request: Request, avoid: Container[Server]) -> Server | None:
        """Return a server for a new client where none is electable: one that drains, has weight 0, or wants no new
        clients; None if there is none either. Such clients are spread evenly. Those past the deadline of their drain
        come last, and backups after the others. If balance hashes, clients with the same key get the same server.
        """
        candidates = [server for server in self._servers if server.reachable and not server.electable]
        candidates = [server for server in candidates if server not in avoid]
        if not candidates:
            return None
        best = min(map(_preference, candidates))
        candidates = [server for server in candidates if _preference(server) == best]
        number = self.algorithm.hash_of(request) if isinstance(self.algorithm, HashAware) else None
        if number is not None:
            return candidates[number % len(candidates)]
        turns = self._last_turns
        chosen = min(candidates, key=lambda server: (len(server.in_flight), turns.get(server, 0)))
        self._turn += 1
        turns[chosen] = self._turn
        return chosen

    def acquired(self, server: Server) -> None:
        algorithm = self._algorithms.get(server)
        if algorithm is not None:
            algorithm.acquired(server)

    def released(self, server: Server) -> None:
        algorithm = self._algorithms.get(server)
        if algorithm is not None:
            algorithm.released(server)

    def state_changed(self, server: Server) -> None:
        algorithm = self._algorithms.get(server)
        if algorithm is not None:
            algorithm.state_changed(server)

    def address_changed(self, server: Server) -> None:
        """Notify the algorithm that `server` has another address. The caller calls `state_changed` next."""
        self._addresses[server] = server.config.target
        algorithm = self._algorithms.get(server)
        if isinstance(algorithm, AddressAware):
            algorithm.address_changed(server)

    def refresh_address(self, server: Server) -> None:
        """Notify the algorithm if the address of `server` was changed while another snapshot was in force."""
        if server in self._addresses and server.config.target != self._addresses[server]:
            self.address_changed(server)

    def record_latency(self, server: Server, seconds: float) -> None:
        """Notify the algorithm that a response of `server` began `seconds` after the request was sent."""
        if self.timed is not None and self._is_backup.get(server) is False:
            self.timed.record_latency(server, seconds)

    def after_fork(self) -> None:
        """Build the algorithms anew in a forked child: the parent may have been in the middle of a choice."""
        self._build()


def _preference(server: Server) -> tuple[bool, bool]:
    """Return the rank of a server where none is electable: the lowest comes first."""
    return not server.usable, server.config.backup
