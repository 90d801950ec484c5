"""Lots with servers on them, to draw from: each server is drawn as often as it weighs.

Those of one weight lie together, so a number names the weight first, then one of them: that takes as long with ten
thousand servers as with two, and so does a change.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Container, Sequence

from sticky_core.balance.eweight import eweight
from sticky_core.clock import Rng
from sticky_core.server import Server

_TRIES = 16  # before those are listed who need not be avoided


class Lot:
    """A server, its effective weight, where it lies among those of that weight, and what `ewma` has seen of it."""

    __slots__ = ("at", "in_flight", "seen", "server", "weight")

    def __init__(self, server: Server) -> None:
        self.server = server
        self.in_flight = server.in_flight  # at hand: among ten thousand servers each step to another object costs
        self.weight = 0
        self.at = 0
        self.seen: tuple[float, float] | None = None  # the mean of its response times, and when it was that


class Urn:
    """The servers that may be chosen."""

    def __init__(self, servers: Sequence[Server], rng: Rng) -> None:
        self._rng = rng
        self._random = rng.random
        self.lots = {server: Lot(server) for server in servers}  #: of all servers, drawn or not
        self._together: dict[int, list[Lot]] = {}  # by weight
        self._reach: list[int] = []  # weights added up: a number below falls to one of this weight
        self._groups: list[tuple[int, int, list[Lot]]] = []  # the number they begin with, and their weight
        self.weight = 0  #: of all together
        for lot in self.lots.values():
            self._put(lot)
        self._add_up()

    def changed(self, server: Server) -> None:
        lot = self.lots[server]
        if lot.weight == eweight(server):
            return
        if lot.weight:
            group = self._together[lot.weight]
            last = group.pop()
            if last is not lot:
                group[lot.at] = last
                last.at = lot.at
            if not group:
                del self._together[lot.weight]
        self._put(lot)
        self._add_up()

    def _put(self, lot: Lot) -> None:
        lot.weight = eweight(lot.server)
        if lot.weight:
            group = self._together.setdefault(lot.weight, [])
            lot.at = len(group)
            group.append(lot)

    def _add_up(self) -> None:
        self.weight = 0
        self._reach, self._groups = [], []
        for weight, group in self._together.items():
            self._groups.append((self.weight, weight, group))
            self.weight += weight * len(group)
            self._reach.append(self.weight)

    def draw(self) -> Lot:
        """One of them. There has to be one."""
        number = int(self._random() * self.weight)
        begin, weight, group = self._groups[bisect(self._reach, number)]
        return group[(number - begin) // weight]

    def drawn(self, count: int, avoid: Container[Server], *, distinct: bool = False) -> list[Lot]:
        """`count` lots of servers that need not be avoided, at least one if there is one at all."""
        drawn: list[Lot] = []
        if not self.weight:
            return drawn
        for _ in range(count + _TRIES):
            lot = self.draw()
            if lot.server not in avoid and not (distinct and lot in drawn):
                drawn.append(lot)
                if len(drawn) == count:
                    return drawn
        return drawn or self._rest(count, avoid)

    def _rest(self, count: int, avoid: Container[Server]) -> list[Lot]:
        """The same among those few who need not be avoided."""
        rest = Urn([lot.server for lot in self.lots.values() if lot.weight and lot.server not in avoid], self._rng)
        return [self.lots[lot.server] for lot in rest.drawn(count, ())]
