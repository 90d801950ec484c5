"""No server has more than so many percent of the mean load (HAProxy `hash-balance-factor`).

Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, arXiv:1608.01350), for servers of unequal
weights: as many places as there are requests, this one included, times the factor, are shared out by weight, at least
one to each. Who has taken all of its own is passed over.
"""

from __future__ import annotations

from collections.abc import Sequence

from sticky_core.balance.eweight import eweight
from sticky_core.server.server import Server


class HashBalanceFactor:
    """The bound at work. It wants to be told of every request."""

    def __init__(self, servers: Sequence[Server], percent: int) -> None:
        self._servers = servers
        self._percent = percent
        self._served = 0
        self._reach: dict[Server, tuple[int, int]] = {}  # the weights of those before it, and with its own
        self._weight = 0
        self._stale = True

    def acquired(self) -> None:
        self._served += 1

    def released(self) -> None:
        self._served -= 1

    def state_changed(self) -> None:
        self._stale = True

    def allows(self, server: Server) -> bool:
        """Whether `server`, which may be chosen, may have one more."""
        if self._stale:
            self._stale = False
            self._served = sum(len(each.in_flight) for each in self._servers)
            self._weight = 0
            for each in self._servers:
                before = self._weight
                self._weight += eweight(each)
                self._reach[each] = before, self._weight
        places = -(-(self._served + 1) * self._percent // 100)
        before, after = self._reach[server]
        share = after * places // self._weight - before * places // self._weight
        return len(server.in_flight) < max(share, 1)
