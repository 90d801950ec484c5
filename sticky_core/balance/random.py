"""Some servers drawn by weight, and of these the one with the least load for its weight (HAProxy `balance
random(<draws>)`).

Two draws are nearly as good as knowing every load, and many processes that know nothing of each other do not herd onto
the same server ("the power of two random choices").
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import accumulate

from sticky_core.clock import Rng
from sticky_core.errors import ConfigError
from sticky_core.request import Request
from sticky_core.server import Server


@dataclass(frozen=True, slots=True)
class Random:
    """`draws`: how many servers are compared; 1 is chance alone."""

    draws: int = 2

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ConfigError(f"random: {self.draws} draws choose nobody; 2 are usual")

    def over(self, servers: Sequence[Server], rng: Rng) -> Draws:
        return Draws(servers, rng, self.draws)


class Draws:
    """Random at work."""

    counts = False  # it looks at the load of those it has drawn, and keeps none in an index

    def __init__(self, servers: Sequence[Server], rng: Rng, draws: int) -> None:
        self._servers = servers
        self._rng = rng
        self._draws = draws
        self._stale = True
        self._electable: list[Server] = []
        self._reach: list[int] = []  # weights added up: a number below the last falls to the server that it reaches

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        if self._stale:
            self._stale = False
            self._electable = [server for server in self._servers if server.electable]
            self._reach = list(accumulate(server.weight for server in self._electable))
        servers, reach = self._electable, self._reach
        best = self._drawn(servers, reach, avoid)
        if best is None:
            # few are left that need not be avoided: draw among these
            servers = [server for server in servers if server not in avoid]
            reach = list(accumulate(server.weight for server in servers))
            best = self._drawn(servers, reach, ())
        return best

    def _drawn(self, servers: Sequence[Server], reach: Sequence[int], avoid: Container[Server]) -> Server | None:
        best: Server | None = None
        if servers:
            for _ in range(self._draws):
                server = servers[bisect(reach, self._rng.randrange(reach[-1]))]
                if server not in avoid and (best is None or _less_loaded(server, best)):
                    best = server
        return best

    def taken(self, server: Server) -> None:
        """The load is read off the server."""

    left = taken

    def changed(self, server: Server) -> None:
        self._stale = True


def _less_loaded(one: Server, other: Server) -> bool:
    return len(one.in_flight) * other.weight < len(other.in_flight) * one.weight
