"""The server with the fewest requests in flight for its weight, among equals in smooth turns (nginx `least_conn`).

HAProxy counts the request to come as well, so a light server gets its first one later there.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from sticky_core.balance.eweight import eweight
from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.balance.nginx.smooth import Place, Turns
from sticky_core.balance.parser import BalanceSpec
from sticky_core.balance.start import begun, check_start
from sticky_core.clock import Rng
from sticky_core.http.messages import Request
from sticky_core.server.server import Server
from sticky_core.server.slowstart import SCALE


@dataclass(frozen=True, slots=True)
class NginxLeastConn:
    """`start`: how many turns are taken among equals before the first request. None (the default) draws it."""

    start: int | None = None

    def __post_init__(self) -> None:
        check_start("least_conn", self.start)

    @classmethod
    def parse(cls, line: BalanceSpec) -> NginxLeastConn:
        line.end()
        return cls()

    def build(self, servers: Sequence[Server], rng: Rng) -> TurnsByLoad:
        return TurnsByLoad(servers, rng, self.start)


class TurnsByLoad:
    """least_conn at work: turns for each load, and a heap of the loads that there are."""

    counts_requests = True
    preserve_affinity: Affinity = "maxconn"

    def __init__(self, servers: Sequence[Server], rng: Rng, start: int | None) -> None:
        self._places = {server: Place(server, number) for number, server in enumerate(servers)}
        self._load: dict[Server, float] = {}
        self._turns: dict[float, Turns] = {}
        self._loads: list[float] = []
        self._rng = rng
        self._start = start
        self._begun = False
        for server in servers:
            self.state_changed(server)

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        while self._loads and not self._turns[self._loads[0]].total:
            del self._turns[heappop(self._loads)]
        if not self._loads:
            return None
        least = self._turns[self._loads[0]]
        if not self._begun:
            self._begun = True
            for _ in range(begun(self._start, least.total // SCALE or 1, self._rng)):
                least.next(())
        place = least.next(avoid)
        if place is None:
            for load in sorted(self._loads)[1:]:
                place = self._turns[load].next(avoid)
                if place is not None:
                    break
        return None if place is None else place.server

    def acquired(self, server: Server) -> None:
        load = self._load.get(server)
        if load is not None:
            place = self._places[server]
            # two quotients of whole numbers of this size are the same float only if they are the same
            now = len(server.in_flight) / place.weight
            if now != load:
                weight = place.weight
                self._turns[load].leave(place)
                self._join(place, now, weight)

    released = acquired

    def state_changed(self, server: Server) -> None:
        place = self._places[server]
        weight = eweight(server)
        if weight == place.weight:
            return
        load = self._load.pop(server, None)
        if load is not None:
            self._turns[load].leave(place)
        if weight:
            self._join(place, len(server.in_flight) / weight, weight)

    def _join(self, place: Place, load: float, weight: int) -> None:
        self._load[place.server] = load
        turns = self._turns.get(load)
        if turns is None:
            turns = self._turns[load] = Turns()
            heappush(self._loads, load)
        turns.join(place, weight)
