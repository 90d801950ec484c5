"""A list in which each server occurs as often as its weight, evenly spread (HAProxy `lb_map.c`).

The theory: a round has as many positions as the sum of the weights. A server of weight w has a credit of one at the
start, and gains one more whenever round/w positions have been given out; the next position goes to the server with the
highest credit, among equals to the one declared first. HAProxy compares all servers for each position; here a server is
looked at only when its credit rises.

After a change the whole list is rebuilt at the next request. A choice is one look-up.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from heapq import heappop, heappush

from sticky_core.balance.avalanche import avalanche
from sticky_core.balance.start import initial_turns
from sticky_core.clock import Rng
from sticky_core.server.server import Server

# The keys of a server to be avoided are hashed again, as nginx does, so that they spread over the other servers.
_TRIES = 8


class StaticMap:
    """The electable servers as a list by weight. `start`: how many turns to skip before the first; None draws a random
    number.
    """

    def __init__(self, servers: Sequence[Server], rng: Rng, start: int | None) -> None:
        self._rng = rng
        self._start = start
        self._is_started = False
        self._position = 0
        self._weights = dict.fromkeys(servers, 0)
        self._map: list[Server] = []
        for server in servers:
            self.state_changed(server)
        self._rebuild()

    def state_changed(self, server: Server) -> None:
        weight = server.weight if server.electable else 0
        if weight != self._weights[server]:
            self._weights[server] = weight
            self._stale = True

    def added(self, server: Server) -> None:
        self._weights[server] = 0
        self.state_changed(server)

    def removed(self, server: Server) -> None:
        if self._weights.pop(server):
            self._stale = True

    def address_changed(self, server: Server) -> None:
        """Nothing to do: addresses are not used."""

    def _rebuild(self) -> None:
        self._stale = False
        members = [server for server, weight in self._weights.items() if weight]
        self._map = [members[number] for number in weighted_order([self._weights[server] for server in members])]

    def find(self, digest: int, avoid: Container[Server]) -> Server | None:
        """Return the server of a hash. If it is to be avoided, return another that is always the same for this hash."""
        if self._stale:
            self._rebuild()
        servers = self._map
        if not servers:
            return None
        server = servers[digest % len(servers)]
        if server not in avoid:
            return server
        for _ in range(_TRIES):
            digest = avalanche(digest)
            server = servers[digest % len(servers)]
            if server not in avoid:
                return server
        at = self._next(digest % len(servers), avoid)
        return None if at is None else servers[at]

    def find_all(self, digests: Sequence[int]) -> list[Server | None]:
        """Return the server of each hash."""
        if self._stale:
            self._rebuild()
        servers = self._map
        return [servers[digest % len(servers)] for digest in digests] if servers else [None] * len(digests)

    def next_server(self, avoid: Container[Server]) -> Server | None:
        """Return the next server in turn."""
        if self._stale:
            self._rebuild()
        servers = self._map
        if not servers:
            return None
        if not self._is_started:
            self._is_started = True
            self._position = initial_turns(self._start, len(servers), self._rng)
        at = self._position if self._position < len(servers) else 0
        server = servers[at]
        if server in avoid:
            another = self._next(at, avoid)
            if another is None:
                return None
            at, server = another, servers[another]
        self._position = at + 1
        return server

    def _next(self, begin: int, avoid: Container[Server]) -> int | None:
        """Return the next position, from `begin` on, with a server that is not to be avoided."""
        servers = self._map
        for at in range(begin, begin + len(servers)):
            if servers[at % len(servers)] not in avoid:
                return at % len(servers)
        return None


def weighted_order(weights: Sequence[int]) -> list[int]:
    """Return the numbers of servers with these weights in the order of their turns in one round."""
    common = math.gcd(*weights)
    weights = [weight // common for weight in weights]
    size = sum(weights)
    if size == len(weights):
        return list(range(size))
    credit = [1] * len(weights)
    given = [1] * len(weights)
    waiting = [[], list(range(len(weights)))]  # numbers by credit; those with a changed credit are ignored
    gains: list[list[int]] = [[] for _ in range(size + 1)]  # the numbers that gain credit before each position
    for number, weight in enumerate(weights):
        gains[-(-size // weight)].append(number)
    order: list[int] = []
    for position in range(1, size + 1):
        for number in gains[position]:
            credit[number] += 1
            if credit[number] == len(waiting):
                waiting.append([])
            heappush(waiting[credit[number]], number)
            given[number] += 1
            if given[number] <= weights[number]:
                gains[-(-given[number] * size // weights[number])].append(number)
        highest = len(waiting) - 1
        while not waiting[highest] or credit[waiting[highest][0]] != highest:
            if waiting[highest]:
                heappop(waiting[highest])
            else:
                highest -= 1
        number = heappop(waiting[highest])
        credit[number] -= 1
        if credit[number]:
            heappush(waiting[credit[number]], number)
        order.append(number)
    return order
