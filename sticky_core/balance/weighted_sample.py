"""Servers to draw from: each is drawn as often as it weighs.

Those of one weight lie together, so a number names the weight first, then one of them: that takes as long with ten
thousand servers as with two, and so does a change.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Container, Sequence

from sticky_core.balance.eweight import eweight
from sticky_core.clock import Rng
from sticky_core.server.server import Server

_TRIES = 16  # before those are listed who need not be avoided


class WeightedSampler:
    """The servers that may be chosen."""

    def __init__(self, servers: Sequence[Server], rng: Rng) -> None:
        self._rng = rng
        self._random = rng.random
        self.weights = {server: eweight(server) for server in servers}  #: of all servers, 0 of those that are not drawn
        self._together: dict[int, list[Server]] = {}  # by weight
        self._at: dict[Server, int] = {}  # where each lies among those of its weight
        self._reach: list[int] = []  # weights added up: a number below falls to one of this weight
        self._groups: list[tuple[int, int, list[Server]]] = []  # the number they begin with, and their weight
        self.weight = 0  #: of all together
        for server, weight in self.weights.items():
            self._put(server, weight)
        self._add_up()

    def state_changed(self, server: Server) -> None:
        weight = eweight(server)
        before, self.weights[server] = self.weights[server], weight
        if weight == before:
            return
        if before:
            group, at = self._together[before], self._at[server]
            last = group.pop()
            if last is not server:
                group[at] = last
                self._at[last] = at
            if not group:
                del self._together[before]
        self._put(server, weight)
        self._add_up()

    def _put(self, server: Server, weight: int) -> None:
        if weight:
            group = self._together.setdefault(weight, [])
            self._at[server] = len(group)
            group.append(server)

    def _add_up(self) -> None:
        self.weight = 0
        self._reach, self._groups = [], []
        for weight, group in self._together.items():
            self._groups.append((self.weight, weight, group))
            self.weight += weight * len(group)
            self._reach.append(self.weight)

    def draw(self) -> Server:
        """One of them. There has to be one."""
        number = int(self._random() * self.weight)
        begin, weight, group = self._groups[bisect(self._reach, number)]
        return group[(number - begin) // weight]

    def less_laden(self, avoid: Container[Server]) -> Server | None:
        """Of two draws the server that has less to do for its weight, of equals the first; None if one of them is to be
        avoided. There has to be one to draw.
        """
        # This is what nearly every `random` asks, so the draws are in line, and the weight is their group's: each step
        # to another object is felt among ten thousand.
        chance, every, reach, groups = self._random, self.weight, self._reach, self._groups
        number = int(chance() * every)
        begin, weight, group = groups[bisect(reach, number)]
        one = group[(number - begin) // weight]
        number = int(chance() * every)
        begin, other_weight, group = groups[bisect(reach, number)]
        other = group[(number - begin) // other_weight]
        if one in avoid or other in avoid:
            return None
        return other if len(other.in_flight) * weight < len(one.in_flight) * other_weight else one

    def drawn(self, count: int, avoid: Container[Server], *, distinct: bool = False) -> list[Server]:
        """`count` servers that need not be avoided, at least one if there is one at all."""
        drawn: list[Server] = []
        if not self.weight:
            return drawn
        for _ in range(count + _TRIES):
            server = self.draw()
            if server not in avoid and not (distinct and server in drawn):
                drawn.append(server)
                if len(drawn) == count:
                    return drawn
        return drawn or self._rest(count, avoid)

    def _rest(self, count: int, avoid: Container[Server]) -> list[Server]:
        """The same among those few who need not be avoided."""
        return WeightedSampler([server for server in self.weights if server not in avoid], self._rng).drawn(count, ())
