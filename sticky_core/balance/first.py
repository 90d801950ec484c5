"""The first server that has room, in the order in which they were declared (HAProxy `balance first`).

The others stay idle, and can be switched off, until the first are full: it needs `maxconn`. Weights do not count.

Who is full is not known here, only whom to avoid. Who is avoided stands aside until one of its requests is over, so
that each choice need not ask all those again who were full a moment ago. One that is avoided for another reason, since
it has failed this very request, stands aside with them if it has others in flight; so before there is nobody, all who
stand aside are asked once more.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from enum import Enum
from heapq import heappop, heappush

from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.balance.parser import BalanceSpec
from sticky_core.clock import Rng
from sticky_core.http.messages import Request
from sticky_core.server.server import Server


@dataclass(frozen=True, slots=True)
class First:
    """No arguments."""

    @classmethod
    def parse(cls, line: BalanceSpec) -> First:
        line.end()
        return cls()

    def build(self, servers: Sequence[Server], rng: Rng) -> Row:
        return Row(servers)


class _Stands(Enum):
    OUT = "out"  #: may not be chosen
    OPEN = "open"  #: may have room
    ASIDE = "aside"  #: was avoided when last asked, with requests in flight


class Row:
    """First at work. A choice and a change cost the logarithm of the number of servers; finding that nobody has room
    costs asking all.
    """

    counts_requests = True
    preserve_affinity: Affinity = "maxconn"

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = servers
        self._numbers = {server: number for number, server in enumerate(servers)}
        self._stands = [_Stands.OUT] * len(servers)
        self._open: list[int] = []  # a heap; who does not stand open any more is passed over
        self._queued = [False] * len(servers)  # whether it is in there
        self._aside: set[int] = set()
        for server in servers:
            self.state_changed(server)

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        queue, stands = self._open, self._stands
        idle: list[int] = []  # avoided, but without a request whose end would bring it back
        found: Server | None = None
        while queue:
            number = queue[0]
            if stands[number] is _Stands.OPEN:
                server = self._servers[number]
                if server not in avoid:
                    found = server
                    break
                if not server.in_flight:
                    idle.append(number)
                else:
                    stands[number] = _Stands.ASIDE
                    self._aside.add(number)
            heappop(queue)
            self._queued[number] = False
        for number in idle:
            self._enter(number)
        return found if found is not None else self._ask_again(avoid)

    def _ask_again(self, avoid: Container[Server]) -> Server | None:
        for number in sorted(self._aside):
            if self._servers[number] not in avoid:
                self._enter(number)
                return self._servers[number]
        return None

    def _enter(self, number: int) -> None:
        self._aside.discard(number)
        self._stands[number] = _Stands.OPEN
        if not self._queued[number]:
            self._queued[number] = True
            heappush(self._open, number)

    def acquired(self, server: Server) -> None:
        """Whether that was its last place, the next choice will see."""

    def released(self, server: Server) -> None:
        number = self._numbers[server]
        if self._stands[number] is _Stands.ASIDE:
            self._enter(number)

    def state_changed(self, server: Server) -> None:
        number = self._numbers[server]
        if server.electable:
            self._enter(number)
        else:
            self._aside.discard(number)
            self._stands[number] = _Stands.OUT
