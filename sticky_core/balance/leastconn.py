"""The server with the fewest requests in flight for its weight (HAProxy `balance leastconn`).

Servers are grouped by load, and a heap holds the loads; within a group they take turns, so that equal servers share
the requests. A choice looks at the first group only, unless it has to avoid servers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Sequence
from heapq import heappop, heappush

from sticky_core.balance.eweight import eweight
from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.balance.parser import BalanceSpec
from sticky_core.clock import Rng
from sticky_core.deferred.dataclass import dataclass
from sticky_core.http.messages import Request
from sticky_core.server.server import Server


@dataclass(frozen=True, slots=True)
class LeastConn:
    """No arguments."""

    @classmethod
    def parse(cls, spec: BalanceSpec) -> LeastConn:
        spec.expect_end()
        return cls()

    def build(self, servers: Sequence[Server], rng: Rng) -> LeastConnAlgorithm:
        return LeastConnAlgorithm(servers, rng)


class _Entry:
    """A server with its weight and the load of its group."""

    __slots__ = ("load", "server", "weight")

    def __init__(self, server: Server) -> None:
        self.server = server
        self.weight = 0  # 0 while the server must not be chosen
        self.load = -1.0  # the load of its group; below 0: it is in none


# An ordered dictionary rather than a plain one: a plain one from which the first entry is often removed has to search
# through the gaps that are left.
_Group = OrderedDict[_Entry, None]


class LeastConnAlgorithm:
    """The algorithm of `LeastConn`."""

    counts_requests = True
    order_matters = False
    preserve_affinity: Affinity = "maxconn"

    def __init__(self, servers: Sequence[Server], rng: Rng) -> None:
        self._rng = rng
        self._is_started = False
        self._entries = {server: _Entry(server) for server in servers}
        self._groups: dict[float, _Group] = {}
        self._loads: list[float] = []
        for server in servers:
            self.state_changed(server)

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        if not self._is_started and self._entries:
            self._start()
        groups, loads = self._groups, self._loads
        while loads:
            group = groups[loads[0]]
            if group:
                break
            del groups[heappop(loads)]
        else:
            return None
        for entry in group:
            if entry.server not in avoid:
                group.move_to_end(entry)
                return entry.server
        for load in sorted(loads)[1:]:
            group = groups[load]
            for entry in group:
                if entry.server not in avoid:
                    group.move_to_end(entry)
                    return entry.server
        return None

    def _start(self) -> None:
        """Rotate the groups by a random number, so that the first among equals differs between processes."""
        self._is_started = True  # at the first choice, so that a forked child draws its own number
        entries = list(self._entries.values())
        start = self._rng.randrange(len(entries))
        for entry in (*entries[start:], *entries[:start]):
            if entry.load >= 0:
                self._groups[entry.load].move_to_end(entry)

    def acquired(self, server: Server) -> None:
        entry = self._entries[server]
        if entry.weight:
            in_flight = len(server.in_flight)
            # two quotients of whole numbers of this size are the same float only if they are the same
            load = (in_flight + 1) / entry.weight if in_flight else 0.0
            if load != entry.load:
                self._move(entry, load)

    released = acquired

    def state_changed(self, server: Server) -> None:
        entry = self._entries[server]
        entry.weight = eweight(server)
        if entry.weight:
            self.acquired(server)
        elif entry.load >= 0:
            del self._groups[entry.load][entry]
            entry.load = -1.0

    def added(self, server: Server) -> None:
        self._entries[server] = _Entry(server)
        self.state_changed(server)

    def removed(self, server: Server) -> None:
        entry = self._entries.pop(server)
        if entry.load >= 0:
            del self._groups[entry.load][entry]

    def _move(self, entry: _Entry, load: float) -> None:
        """Move the entry to the end of the group of its load."""
        if entry.load >= 0:
            del self._groups[entry.load][entry]
        entry.load = load
        group = self._groups.get(load)
        if group is None:
            group = self._groups[load] = OrderedDict()
            heappush(self._loads, load)
        group[entry] = None
