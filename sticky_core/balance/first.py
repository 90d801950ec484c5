"""The first server with a free slot, in the order of declaration (HAProxy `balance first`).

The other servers stay idle, and can be switched off, until the first ones are full: it needs `maxconn`. Weights do not
count.

The algorithm does not know which servers are full, only which to avoid. An avoided server is skipped until one of its
requests ends, so that a choice need not test all servers again that were full a moment ago. A server that is avoided
for another reason (it has failed this very request) is skipped too if it has requests in flight; so before `choose`
returns None, all skipped servers are tested once more.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from enum import Enum
from heapq import heappop, heappush

from sticky_core.balance.algorithm import NO_SERVER
from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.balance.parser import BalanceSpec
from sticky_core.clock import Rng
from sticky_core.deferred.dataclass import dataclass
from sticky_core.http.messages import Request
from sticky_core.server.server import Server


@dataclass(frozen=True, slots=True)
class First:
    """No arguments."""

    @classmethod
    def parse(cls, spec: BalanceSpec) -> First:
        spec.expect_end()
        return cls()

    def build(self, servers: Sequence[Server], rng: Rng) -> FirstAlgorithm:
        return FirstAlgorithm(servers)


class _Status(Enum):
    UNUSABLE = "unusable"  #: must not be chosen
    CANDIDATE = "candidate"  #: may have a free slot
    SKIPPED = "skipped"  #: was avoided when last tested, with requests in flight


class FirstAlgorithm:
    """The algorithm of `First`. A choice and a change cost the logarithm of the number of servers; finding that no
    server has a free slot costs a test of all.
    """

    counts_requests = True
    order_matters = True
    preserve_affinity: Affinity = "maxconn"

    def __init__(self, servers: Sequence[Server]) -> None:
        self._build(servers)

    def _build(self, servers: Iterable[Server]) -> None:
        self._servers = list(servers)  # those that were removed included: no other server may take their place
        self._numbers = {server: number for number, server in enumerate(self._servers)}
        self._statuses = [_Status.UNUSABLE] * len(self._servers)
        self._heap: list[int] = []  # a heap of numbers; those of servers that are no candidates any more are ignored
        self._in_heap = [False] * len(self._servers)  # whether the number of each server is in the heap
        self._skipped: set[int] = set()
        for server in self._servers:
            self.state_changed(server)

    def added(self, server: Server) -> None:
        self._numbers[server] = len(self._servers)
        self._servers.append(server)
        self._statuses.append(_Status.UNUSABLE)
        self._in_heap.append(False)
        self.state_changed(server)

    def removed(self, server: Server) -> None:
        number = self._numbers.pop(server)
        self._servers[number] = NO_SERVER
        self._skipped.discard(number)
        self._statuses[number] = _Status.UNUSABLE
        if 2 * len(self._numbers) < len(self._servers):
            self._build(self._numbers)

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        heap, statuses = self._heap, self._statuses
        idle: list[int] = []  # avoided, but without a request that would make it a candidate again when it ends
        found: Server | None = None
        while heap:
            number = heap[0]
            if statuses[number] is _Status.CANDIDATE:
                server = self._servers[number]
                if server not in avoid:
                    found = server
                    break
                if not server.in_flight:
                    idle.append(number)
                else:
                    statuses[number] = _Status.SKIPPED
                    self._skipped.add(number)
            heappop(heap)
            self._in_heap[number] = False
        for number in idle:
            self._make_candidate(number)
        return found if found is not None else self._choose_skipped(avoid)

    def _choose_skipped(self, avoid: Container[Server]) -> Server | None:
        for number in sorted(self._skipped):
            if self._servers[number] not in avoid:
                self._make_candidate(number)
                return self._servers[number]
        return None

    def _make_candidate(self, number: int) -> None:
        self._skipped.discard(number)
        self._statuses[number] = _Status.CANDIDATE
        if not self._in_heap[number]:
            self._in_heap[number] = True
            heappush(self._heap, number)

    def acquired(self, server: Server) -> None:
        """Nothing to do: the next choice tests whether that was its last free slot."""

    def released(self, server: Server) -> None:
        number = self._numbers[server]
        if self._statuses[number] is _Status.SKIPPED:
            self._make_candidate(number)

    def state_changed(self, server: Server) -> None:
        number = self._numbers[server]
        if server.electable:
            self._make_candidate(number)
        else:
            self._skipped.discard(number)
            self._statuses[number] = _Status.UNUSABLE
