"""No server gets more than a percentage of the mean load (HAProxy `hash-balance-factor`).

Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, arXiv:1608.01350), for servers of unequal
weights: the number of requests in flight, this one included, times the factor, is the total capacity; each server gets
a share of it by weight, at least 1. A server that has used its share is passed over.
"""

from __future__ import annotations

from collections.abc import Sequence

from sticky_core.balance.eweight import eweight
from sticky_core.server.server import Server


class HashBalanceFactor:
    """Limits the load of each server to `percent` of the mean. Has to be notified of every request."""

    def __init__(self, servers: Sequence[Server], percent: int) -> None:
        self._servers = dict.fromkeys(servers)  # in order
        self._percent = percent
        self._in_flight = 0
        self._weight_ranges: dict[
            Server, tuple[int, int]
        ] = {}  # the sum of the weights before each server, and with its own
        self._total_weight = 0
        self._stale = True

    def acquired(self) -> None:
        self._in_flight += 1

    def released(self) -> None:
        self._in_flight -= 1

    def state_changed(self) -> None:
        self._stale = True

    def added(self, server: Server) -> None:
        self._servers[server] = None
        self._stale = True

    def removed(self, server: Server) -> None:
        del self._servers[server]
        self._weight_ranges.pop(server, None)
        self._stale = True

    def allows(self, server: Server) -> bool:
        """Whether the electable `server` may get one more request."""
        if self._stale:
            self._stale = False
            self._in_flight = sum(len(each.in_flight) for each in self._servers)
            self._total_weight = 0
            for each in self._servers:
                before = self._total_weight
                self._total_weight += eweight(each)
                self._weight_ranges[each] = before, self._total_weight
        capacity = -(-(self._in_flight + 1) * self._percent // 100)
        before, after = self._weight_ranges[server]
        share = after * capacity // self._total_weight - before * capacity // self._total_weight
        return len(server.in_flight) < max(share, 1)
