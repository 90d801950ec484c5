"""Servers drawn at random in proportion to their weight.

Servers of one weight form a group, so a random number selects first the group, then a server in it: a draw and a change
cost the number of different weights, not the number of servers.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Container, Sequence

from sticky_core.balance.eweight import eweight
from sticky_core.clock import Rng
from sticky_core.server.server import Server

_TRIES = 16  # draws beyond the wanted number, before the allowed servers are listed


class WeightedSampler:
    """The electable servers with their weights."""

    def __init__(self, servers: Sequence[Server], rng: Rng) -> None:
        self._rng = rng
        self._random = rng.random
        self.weights = {server: eweight(server) for server in servers}  #: of all servers; 0: never drawn
        self._by_weight: dict[int, list[Server]] = {}  # by weight
        self._index: dict[Server, int] = {}  # the position of each server in its group
        self._bounds: list[int] = []  # the sum of weights up to each group: a random number below it selects the group
        self._groups: list[
            tuple[int, int, list[Server]]
        ] = []  # of each group: the number where it begins, the weight of its servers, the servers
        self.total_weight = 0  #: the sum of all weights
        for server, weight in self.weights.items():
            self._add(server, weight)
        self._update_bounds()

    def added(self, server: Server) -> None:
        self.weights[server] = 0
        self.state_changed(server)

    def removed(self, server: Server) -> None:
        self._set_weight(server, 0)
        del self.weights[server]
        self._index.pop(server, None)

    def state_changed(self, server: Server) -> None:
        self._set_weight(server, eweight(server))

    def _set_weight(self, server: Server, weight: int) -> None:
        before, self.weights[server] = self.weights[server], weight
        if weight == before:
            return
        if before:
            group, at = self._by_weight[before], self._index[server]
            last = group.pop()
            if last is not server:
                group[at] = last
                self._index[last] = at
            if not group:
                del self._by_weight[before]
        self._add(server, weight)
        self._update_bounds()

    def _add(self, server: Server, weight: int) -> None:
        if weight:
            group = self._by_weight.setdefault(weight, [])
            self._index[server] = len(group)
            group.append(server)

    def _update_bounds(self) -> None:
        self.total_weight = 0
        self._bounds, self._groups = [], []
        for weight, group in self._by_weight.items():
            self._groups.append((self.total_weight, weight, group))
            self.total_weight += weight * len(group)
            self._bounds.append(self.total_weight)

    def draw(self) -> Server:
        """Draw one server. There has to be one."""
        number = int(self._random() * self.total_weight)
        begin, weight, group = self._groups[bisect(self._bounds, number)]
        return group[(number - begin) // weight]

    def less_loaded_of_two(self, avoid: Container[Server]) -> Server | None:
        """Draw two servers and return the one with the lower load for its weight, of equals the first; None if one of
        them is to be avoided. There has to be one to draw.
        """
        # Nearly every choice of `random` calls this, so the draws are written out, and the weight is taken from the
        # group: with ten thousand servers each access to another object costs a cache miss.
        random, total, bounds, groups = self._random, self.total_weight, self._bounds, self._groups
        number = int(random() * total)
        begin, weight, group = groups[bisect(bounds, number)]
        one = group[(number - begin) // weight]
        number = int(random() * total)
        begin, other_weight, group = groups[bisect(bounds, number)]
        other = group[(number - begin) // other_weight]
        if one in avoid or other in avoid:
            return None
        return other if len(other.in_flight) * weight < len(one.in_flight) * other_weight else one

    def sample(self, count: int, avoid: Container[Server], *, distinct: bool = False) -> list[Server]:
        """Draw `count` servers that are not to be avoided, or fewer, but at least one if there is one."""
        drawn: list[Server] = []
        if not self.total_weight:
            return drawn
        for _ in range(count + _TRIES):
            server = self.draw()
            if server not in avoid and not (distinct and server in drawn):
                drawn.append(server)
                if len(drawn) == count:
                    return drawn
        return drawn or self._sample_allowed(count, avoid)

    def _sample_allowed(self, count: int, avoid: Container[Server]) -> list[Server]:
        """Draw from the list of servers that are not to be avoided."""
        return WeightedSampler([server for server in self.weights if server not in avoid], self._rng).sample(count, ())
