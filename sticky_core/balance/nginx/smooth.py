"""nginx's round robin: smooth weighted turns.

The theory, as in nginx: with each choice the credit of every server grows by its weight, the server with the highest
credit is chosen (of equals the first declared), and pays the sum of all weights. nginx visits every server for that.
Here servers of one weight share one clock: the credit of a server is its weight times the number of choices, minus what
it has paid, so the order among servers of one weight changes only for the one that pays. A choice compares the first
server of each weight. Of the servers to be avoided only those at the front are visited; their credit does not grow
meanwhile, as in nginx, while that of the others does.

A request assigned by persistence counts as a turn too, unless its server has already paid in advance (nginx 1.29.6).
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from heapq import heapify, heappop, heappush, heapreplace

from sticky_core.balance.algorithm import NO_SERVER
from sticky_core.balance.eweight import eweight
from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.balance.parser import BalanceSpec
from sticky_core.balance.start import check_start, initial_turns
from sticky_core.clock import Rng
from sticky_core.deferred.dataclass import dataclass
from sticky_core.http.messages import Request
from sticky_core.server.server import Server
from sticky_core.server.slowstart import SCALE


@dataclass(frozen=True, slots=True)
class Smooth:
    """`start`: how many turns to skip before the first request, int. None (the default) draws a random number, so that
    many processes do not all begin with the same server.
    """

    start: int | None = None

    def __post_init__(self) -> None:
        check_start("smooth", self.start)

    @classmethod
    def parse(cls, spec: BalanceSpec) -> Smooth:
        spec.expect_end()
        return cls()

    def build(self, servers: Sequence[Server], rng: Rng) -> SmoothAlgorithm:
        return SmoothAlgorithm(servers, rng, self.start)


class Member:
    """A server with its credit."""

    __slots__ = ("current", "entry", "number", "pending", "server", "weight")

    def __init__(self, server: Server, number: int) -> None:
        self.server = server
        self.number = number  # in the order of declaration
        self.weight = 0  # 0 while it is in no schedule
        self.current = 0  # its credit while it is in no schedule
        self.entry: Entry | None = None  # its valid entry while it is in a schedule
        self.pending = 0  # how often it was chosen without `acquired` having been called yet


Entry = tuple[int, int, Member]  # what it has paid, its number, the server


class _WeightGroup:
    """Servers of one weight, the one that has paid least first."""

    __slots__ = ("count", "heap")

    def __init__(self) -> None:
        self.heap: list[Entry] = []  # a heap; entries that are not valid any more are ignored
        self.count = 0

    def put(self, member: Member, paid: int) -> None:
        member.entry = (paid, member.number, member)
        heappush(self.heap, member.entry)
        if len(self.heap) > 2 * self.count + 32:
            self.heap = [entry for entry in self.heap if entry[2].entry is entry]
            heapify(self.heap)


class SmoothSchedule:
    """Smooth weighted turns among servers that can be added and removed. A choice costs the number of different
    weights, and the logarithm of the number of servers.
    """

    def __init__(self) -> None:
        self._time = 0  # the number of choices so far
        self.total_weight = 0  #: the sum of all weights; 0: the schedule is empty
        self._groups: dict[int, _WeightGroup] = {}

    def add(self, member: Member, weight: int) -> None:
        member.weight = weight
        self.total_weight += weight
        group = self._groups.get(weight)
        if group is None:
            group = self._groups[weight] = _WeightGroup()
        group.count += 1
        group.put(member, self._time * weight - member.current)

    def remove(self, member: Member) -> None:
        member.current = self.current(member)
        self.total_weight -= member.weight
        group = self._groups[member.weight]
        group.count -= 1
        if not group.count:
            del self._groups[member.weight]
        member.entry = None
        member.weight = 0

    def current(self, member: Member) -> int:
        """Return the credit of a server in this schedule."""
        assert member.entry is not None
        return self._time * member.weight - member.entry[0]

    def choose(self, avoid: Container[Server]) -> Member | None:
        """Return the server that has the turn, and charge it; None if there is none that is not to be avoided."""
        time = self._time + 1
        total = self.total_weight
        best: Member | None = None
        highest = 0
        avoided: list[Entry] = []
        for weight, group in self._groups.items():
            heap = group.heap
            while heap:
                entry = heap[0]
                member = entry[2]
                if member.entry is not entry:
                    heappop(heap)
                elif member.server in avoid:
                    avoided.append(heappop(heap))
                    total -= weight
                else:
                    current = time * weight - entry[0]
                    if best is None or current > highest or (current == highest and member.number < best.number):
                        best, highest = member, current
                    break
        if best is None:
            for paid, _, member in avoided:
                self._groups[member.weight].put(member, paid)
            return None
        self._time = time
        assert best.entry is not None
        best.entry = (best.entry[0] + total, best.number, best)
        heapreplace(self._groups[best.weight].heap, best.entry)
        for paid, _, member in avoided:  # the credit of skipped servers does not grow while that of the others does
            self._groups[member.weight].put(member, paid + member.weight)
        return best

    def charge(self, member: Member) -> None:
        """Charge a server for a turn that it had without being chosen."""
        assert member.entry is not None
        if self.current(member) > member.weight - self.total_weight:
            self._time += 1
            self._groups[member.weight].put(member, member.entry[0] + self.total_weight)


class SmoothAlgorithm:
    """The algorithm of `Smooth`."""

    order_matters = True
    counts_requests = True
    preserve_affinity: Affinity = "maxconn"

    def __init__(self, servers: Sequence[Server], rng: Rng, start: int | None) -> None:
        self._members = {server: Member(server, number) for number, server in enumerate(servers)}
        self._next_number = len(servers)
        self._schedule = SmoothSchedule()
        self._rng = rng
        self._start = start
        self._is_started = False
        for server in servers:
            self.state_changed(server)

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        if not self._is_started and self._schedule.total_weight:
            self._is_started = True
            for _ in range(initial_turns(self._start, self._schedule.total_weight // SCALE or 1, self._rng)):
                self._schedule.choose(())
        member = self._schedule.choose(avoid)
        if member is None:
            return None
        member.pending += 1
        return member.server

    def acquired(self, server: Server) -> None:
        member = self._members[server]
        if member.pending:
            member.pending -= 1
        elif member.weight:
            self._schedule.charge(member)

    def released(self, server: Server) -> None:
        """Nothing to do: turns are not given back."""

    def state_changed(self, server: Server) -> None:
        member = self._members[server]
        weight = eweight(server)
        if weight != member.weight:
            if member.weight:
                self._schedule.remove(member)
            if weight:
                self._schedule.add(member, weight)

    def added(self, server: Server) -> None:
        self._members[server] = Member(server, self._next_number)
        self._next_number += 1
        self.state_changed(server)

    def removed(self, server: Server) -> None:
        member = self._members.pop(server)
        if member.weight:
            self._schedule.remove(member)
        member.server = NO_SERVER
