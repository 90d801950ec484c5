"""The server with the fewest requests in flight for its weight, among equals by smooth round robin (nginx
`least_conn`).

HAProxy also counts the new request, so a server with a low weight gets its first request later there.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from heapq import heappop, heappush

from sticky_core.balance.algorithm import NO_SERVER
from sticky_core.balance.eweight import eweight
from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.balance.nginx.smooth import Member, SmoothSchedule
from sticky_core.balance.parser import BalanceSpec
from sticky_core.balance.start import check_start, initial_turns
from sticky_core.clock import Rng
from sticky_core.deferred.dataclass import dataclass
from sticky_core.http.messages import Request
from sticky_core.server.server import Server
from sticky_core.server.slowstart import SCALE


@dataclass(frozen=True, slots=True)
class NginxLeastConn:
    """`start`: how many turns among equals to skip before the first request, int. None (the default) draws a random
    number.
    """

    start: int | None = None

    def __post_init__(self) -> None:
        check_start("least_conn", self.start)

    @classmethod
    def parse(cls, spec: BalanceSpec) -> NginxLeastConn:
        spec.expect_end()
        return cls()

    def build(self, servers: Sequence[Server], rng: Rng) -> NginxLeastConnAlgorithm:
        return NginxLeastConnAlgorithm(servers, rng, self.start)


class NginxLeastConnAlgorithm:
    """The algorithm of `NginxLeastConn`: a schedule for each load, and a heap of the loads."""

    order_matters = True
    counts_requests = True
    preserve_affinity: Affinity = "maxconn"

    def __init__(self, servers: Sequence[Server], rng: Rng, start: int | None) -> None:
        self._members = {server: Member(server, number) for number, server in enumerate(servers)}
        self._next_number = len(servers)
        self._load: dict[Server, float] = {}
        self._schedules: dict[float, SmoothSchedule] = {}
        self._loads: list[float] = []
        self._rng = rng
        self._start = start
        self._is_started = False
        for server in servers:
            self.state_changed(server)

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        while self._loads and not self._schedules[self._loads[0]].total_weight:
            del self._schedules[heappop(self._loads)]
        if not self._loads:
            return None
        least = self._schedules[self._loads[0]]
        if not self._is_started:
            self._is_started = True
            for _ in range(initial_turns(self._start, least.total_weight // SCALE or 1, self._rng)):
                least.choose(())
        member = least.choose(avoid)
        if member is None:
            for load in sorted(self._loads)[1:]:
                member = self._schedules[load].choose(avoid)
                if member is not None:
                    break
        return None if member is None else member.server

    def acquired(self, server: Server) -> None:
        load = self._load.get(server)
        if load is not None:
            member = self._members[server]
            # two quotients of whole numbers of this size are the same float only if they are the same
            now = len(server.in_flight) / member.weight
            if now != load:
                weight = member.weight
                self._schedules[load].remove(member)
                self._add_to(member, now, weight)

    released = acquired

    def state_changed(self, server: Server) -> None:
        member = self._members[server]
        weight = eweight(server)
        if weight == member.weight:
            return
        load = self._load.pop(server, None)
        if load is not None:
            self._schedules[load].remove(member)
        if weight:
            self._add_to(member, len(server.in_flight) / weight, weight)

    def added(self, server: Server) -> None:
        self._members[server] = Member(server, self._next_number)
        self._next_number += 1
        self.state_changed(server)

    def removed(self, server: Server) -> None:
        member = self._members.pop(server)
        load = self._load.pop(server, None)
        if load is not None:
            self._schedules[load].remove(member)
        member.server = NO_SERVER

    def _add_to(self, member: Member, load: float, weight: int) -> None:
        self._load[member.server] = load
        schedule = self._schedules.get(load)
        if schedule is None:
            schedule = self._schedules[load] = SmoothSchedule()
            heappush(self._loads, load)
        schedule.add(member, weight)
