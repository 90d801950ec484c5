"""The server with the fewest requests in flight for its weight (HAProxy `balance leastconn`).

Servers stand in rows by load, and a heap knows which rows there are; within a row they take turns, so that equals
share. A choice looks at the first row only, unless it must avoid somebody.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from sticky_core.balance.eweight import eweight
from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.balance.parser import BalanceSpec
from sticky_core.clock import Rng
from sticky_core.http.messages import Request
from sticky_core.server.server import Server


@dataclass(frozen=True, slots=True)
class LeastConn:
    """No arguments."""

    @classmethod
    def parse(cls, line: BalanceSpec) -> LeastConn:
        line.end()
        return cls()

    def build(self, servers: Sequence[Server], rng: Rng) -> Rows:
        return Rows(servers, rng)


class _Place:
    """Where a server stands."""

    __slots__ = ("load", "server", "weight")

    def __init__(self, server: Server) -> None:
        self.server = server
        self.weight = 0  # 0 while it may not be chosen
        self.load = -1.0  # of its row; below 0: it stands in none


# An ordered dictionary rather than a plain one: whose first is often taken out, that one looks through the gaps.
_Row = OrderedDict[_Place, None]


class Rows:
    """Leastconn at work."""

    counts_requests = True
    preserve_affinity: Affinity = "maxconn"

    def __init__(self, servers: Sequence[Server], rng: Rng) -> None:
        self._rng = rng
        self._begun = False
        self._places = {server: _Place(server) for server in servers}
        self._rows: dict[float, _Row] = {}
        self._loads: list[float] = []
        for server in servers:
            self.state_changed(server)

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        if not self._begun and self._places:
            self._begin()
        rows, loads = self._rows, self._loads
        while loads:
            row = rows[loads[0]]
            if row:
                break
            del rows[heappop(loads)]
        else:
            return None
        for place in row:
            if place.server not in avoid:
                row.move_to_end(place)
                return place.server
        for load in sorted(loads)[1:]:
            row = rows[load]
            for place in row:
                if place.server not in avoid:
                    row.move_to_end(place)
                    return place.server
        return None

    def _begin(self) -> None:
        """Who is first among equals differs from process to process."""
        self._begun = True  # not before: a forked child draws for itself
        places = list(self._places.values())
        start = self._rng.randrange(len(places))
        for place in (*places[start:], *places[:start]):
            if place.load >= 0:
                self._rows[place.load].move_to_end(place)

    def acquired(self, server: Server) -> None:
        place = self._places[server]
        if place.weight:
            in_flight = len(server.in_flight)
            # two quotients of whole numbers of this size are the same float only if they are the same
            load = (in_flight + 1) / place.weight if in_flight else 0.0
            if load != place.load:
                self._move(place, load)

    released = acquired

    def state_changed(self, server: Server) -> None:
        place = self._places[server]
        place.weight = eweight(server)
        if place.weight:
            self.acquired(server)
        elif place.load >= 0:
            del self._rows[place.load][place]
            place.load = -1.0

    def _move(self, place: _Place, load: float) -> None:
        """Into the row of its load, at the end."""
        if place.load >= 0:
            del self._rows[place.load][place]
        place.load = load
        row = self._rows.get(load)
        if row is None:
            row = self._rows[load] = OrderedDict()
            heappush(self._loads, load)
        row[place] = None
