"""Some servers drawn by weight, and of these the one with the least load for its weight (HAProxy `balance
random(<draws>)`).

Two draws are nearly as good as knowing every load, and many processes that know nothing of each other do not herd onto
the same server ("the power of two random choices").
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import reduce

from sticky_core.balance.hash_balance_factor import HashBalanceFactor
from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.balance.parser import BalanceSpec
from sticky_core.balance.weighted_sample import WeightedSampler
from sticky_core.clock import Rng
from sticky_core.errors import ConfigError
from sticky_core.http.messages import Request
from sticky_core.server.server import Server


@dataclass(frozen=True, slots=True)
class Random:
    """`draws`: how many servers are compared; 1 is chance alone.
    `hash_balance_factor`: who has so many percent of the mean load is not drawn; 0 is no bound.
    """

    draws: int = 2
    hash_balance_factor: int = 0

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ConfigError(f"random: {self.draws} draws choose nobody; 2 are usual")
        if self.hash_balance_factor and self.hash_balance_factor <= 100:
            raise ConfigError(
                f"random: hash_balance_factor {self.hash_balance_factor} is not above 100 percent, nor 0 for none"
            )

    @classmethod
    def parse(cls, line: BalanceSpec) -> Random:
        line.end(argument=True)
        if line.argument is None:
            return cls()
        if not re.fullmatch("[0-9]+", line.argument):
            raise line.refused("random takes a number of draws: random(2)")
        return cls(int(line.argument))

    def build(self, servers: Sequence[Server], rng: Rng) -> Draws:
        bound = HashBalanceFactor(servers, self.hash_balance_factor) if self.hash_balance_factor else None
        return Draws(WeightedSampler(servers, rng), self.draws, bound)


class Draws:
    """Random at work. It looks at the load of those it has drawn, and keeps none in an index."""

    preserve_affinity: Affinity = "maxconn"

    def __init__(
        self, urn: WeightedSampler, draws: int, bound: HashBalanceFactor | None, *, distinct: bool = False
    ) -> None:
        self.counts_requests = bound is not None
        self._urn = urn
        self._draws = draws
        self._bound = bound
        self._distinct = distinct
        self._simple = draws == 2 and bound is None and not distinct

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        urn = self._urn
        if not urn.weight:
            return None
        if self._simple:
            server = urn.less_laden(avoid)
            if server is not None:
                return server
        bound = self._bound
        drawn = urn.drawn(self._draws, avoid if bound is None else _Laden(avoid, bound), distinct=self._distinct)
        if not drawn and bound is not None:
            drawn = urn.drawn(self._draws, avoid)
        return reduce(_less_laden, drawn) if drawn else None

    def acquired(self, server: Server) -> None:
        if self._bound is not None:
            self._bound.acquired()

    def released(self, server: Server) -> None:
        if self._bound is not None:
            self._bound.released()

    def state_changed(self, server: Server) -> None:
        self._urn.state_changed(server)
        if self._bound is not None:
            self._bound.state_changed()


def _less_laden(one: Server, other: Server) -> Server:
    """Who has less for its weight; of equals the first."""
    return other if len(other.in_flight) * one.eweight < len(one.in_flight) * other.eweight else one


class _Laden:
    """Those to be avoided, and those who have as much as they may."""

    def __init__(self, avoid: Container[Server], bound: HashBalanceFactor) -> None:
        self._avoid = avoid
        self._bound = bound

    def __contains__(self, server: object) -> bool:
        return isinstance(server, Server) and (server in self._avoid or not self._bound.allows(server))
