"""A map of slots, in which each server stands as often as its weight says, evenly spread (HAProxy `lb_map.c`).

The theory: a round has as many slots as all weights together. A server of weight w is owed one from the start, and one
more whenever round/w slots have passed; the next slot is for whom most is owed, among equals for who was declared
first. HAProxy compares all servers for each slot; here a server is looked at when it is owed another.

After a change the map is made anew, all of it, when it is next asked. A choice is one look.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from heapq import heappop, heappush

from sticky_core.balance.avalanche import avalanche
from sticky_core.balance.start import begun
from sticky_core.clock import Rng
from sticky_core.server.server import Server

# The keys of a server that is to be avoided are hashed again, as nginx does, so that they scatter over the others.
_TRIES = 8


class StaticMap:
    """The servers that may be chosen, in slots. `start`: how many turns are taken before the first; None draws it."""

    def __init__(self, servers: Sequence[Server], rng: Rng, start: int | None) -> None:
        self._rng = rng
        self._start = start
        self._begun = False
        self._turn = 0
        self._weights = dict.fromkeys(servers, 0)
        self._slots: list[Server] = []
        for server in servers:
            self.state_changed(server)
        self._renew()

    def state_changed(self, server: Server) -> None:
        weight = server.weight if server.electable else 0
        if weight != self._weights[server]:
            self._weights[server] = weight
            self._stale = True

    def address_changed(self, server: Server) -> None:
        """Where it is means nothing here."""

    def _renew(self) -> None:
        self._stale = False
        members = [server for server, weight in self._weights.items() if weight]
        self._slots = [members[number] for number in slots([self._weights[server] for server in members])]

    def find(self, digest: int, avoid: Container[Server]) -> Server | None:
        """The server that a hash names. If that one is to be avoided, another that the same hash always names."""
        if self._stale:
            self._renew()
        slots = self._slots
        if not slots:
            return None
        server = slots[digest % len(slots)]
        if server not in avoid:
            return server
        for _ in range(_TRIES):
            digest = avalanche(digest)
            server = slots[digest % len(slots)]
            if server not in avoid:
                return server
        at = self._next(digest % len(slots), avoid)
        return None if at is None else slots[at]

    def turn(self, avoid: Container[Server]) -> Server | None:
        """The server whose turn it is."""
        if self._stale:
            self._renew()
        slots = self._slots
        if not slots:
            return None
        if not self._begun:
            self._begun = True
            self._turn = begun(self._start, len(slots), self._rng)
        at = self._turn if self._turn < len(slots) else 0
        server = slots[at]
        if server in avoid:
            another = self._next(at, avoid)
            if another is None:
                return None
            at, server = another, slots[another]
        self._turn = at + 1
        return server

    def _next(self, begin: int, avoid: Container[Server]) -> int | None:
        """The next slot whose server is not to be avoided."""
        slots = self._slots
        for at in range(begin, begin + len(slots)):
            if slots[at % len(slots)] not in avoid:
                return at % len(slots)
        return None


def slots(weights: Sequence[int]) -> list[int]:
    """The numbers of servers of these weights, in the order of the slots that they take in a round."""
    common = math.gcd(*weights)
    weights = [weight // common for weight in weights]
    size = sum(weights)
    if size == len(weights):
        return list(range(size))
    owed = [1] * len(weights)
    given = [1] * len(weights)
    waiting = [[], list(range(len(weights)))]  # by what is owed; who is owed another by now is passed over
    gains: list[list[int]] = [[] for _ in range(size + 1)]  # who is owed one more after so many slots
    for number, weight in enumerate(weights):
        gains[-(-size // weight)].append(number)
    order: list[int] = []
    for slot in range(1, size + 1):
        for number in gains[slot]:
            owed[number] += 1
            if owed[number] == len(waiting):
                waiting.append([])
            heappush(waiting[owed[number]], number)
            given[number] += 1
            if given[number] <= weights[number]:
                gains[-(-given[number] * size // weights[number])].append(number)
        owing = len(waiting) - 1
        while not waiting[owing] or owed[waiting[owing][0]] != owing:
            if waiting[owing]:
                heappop(waiting[owing])
            else:
                owing -= 1
        number = heappop(waiting[owing])
        owed[number] -= 1
        if owed[number]:
            heappush(waiting[owed[number]], number)
        order.append(number)
    return order
