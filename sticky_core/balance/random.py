"""Servers drawn at random by weight, and of these the one with the lowest load for its weight (HAProxy `balance
random(<draws>)`).

Two draws are nearly as good as comparing all loads, and independent processes do not all choose the same server at the
same time ("the power of two random choices").
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from functools import reduce

from sticky_core.balance.hash_balance_factor import HashBalanceFactor
from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.balance.parser import BalanceSpec
from sticky_core.balance.weighted_sample import WeightedSampler
from sticky_core.clock import Rng
from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import ConfigError
from sticky_core.http.messages import Request
from sticky_core.server.server import Server


@dataclass(frozen=True, slots=True)
class Random:
    """`draws`: how many servers are compared, int, 2; 1 chooses at random.
    `hash_balance_factor`: a server with this many percent of the mean load is not drawn, int, 0 for no limit.
    """

    draws: int = 2
    hash_balance_factor: int = 0

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ConfigError(f"random: {self.draws} draws choose no server; 2 are usual")
        if self.hash_balance_factor and self.hash_balance_factor <= 100:
            raise ConfigError(
                f"random: hash_balance_factor {self.hash_balance_factor} is not above 100 percent, nor 0 for none"
            )

    @classmethod
    def parse(cls, spec: BalanceSpec) -> Random:
        spec.expect_end(argument=True)
        if spec.argument is None:
            return cls()
        if not re.fullmatch("[0-9]+", spec.argument):
            raise spec.error("random takes a number of draws: random(2)")
        return cls(int(spec.argument))

    def build(self, servers: Sequence[Server], rng: Rng) -> RandomAlgorithm:
        bound = HashBalanceFactor(servers, self.hash_balance_factor) if self.hash_balance_factor else None
        return RandomAlgorithm(WeightedSampler(servers, rng), self.draws, bound)


class RandomAlgorithm:
    """The algorithm of `Random`. It reads the load of the drawn servers, and keeps no index of loads."""

    preserve_affinity: Affinity = "maxconn"

    def __init__(
        self, sampler: WeightedSampler, draws: int, bound: HashBalanceFactor | None, *, distinct: bool = False
    ) -> None:
        self.counts_requests = bound is not None
        self._sampler = sampler
        self._draws = draws
        self._bound = bound
        self._distinct = distinct
        # the shares that `hash_balance_factor` allows are rounded in the order of declaration
        self.order_matters = bound is not None
        self._simple = draws == 2 and bound is None and not distinct

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        sampler = self._sampler
        if not sampler.total_weight:
            return None
        if self._simple:
            server = sampler.less_loaded_of_two(avoid)
            if server is not None:
                return server
        bound = self._bound
        drawn = sampler.sample(
            self._draws, avoid if bound is None else _AvoidedOrFull(avoid, bound), distinct=self._distinct
        )
        if not drawn and bound is not None:
            drawn = sampler.sample(self._draws, avoid)
        return reduce(_less_loaded, drawn) if drawn else None

    def acquired(self, server: Server) -> None:
        if self._bound is not None:
            self._bound.acquired()

    def released(self, server: Server) -> None:
        if self._bound is not None:
            self._bound.released()

    def state_changed(self, server: Server) -> None:
        self._sampler.state_changed(server)
        if self._bound is not None:
            self._bound.state_changed()

    def added(self, server: Server) -> None:
        self._sampler.added(server)
        if self._bound is not None:
            self._bound.added(server)

    def removed(self, server: Server) -> None:
        self._sampler.removed(server)
        if self._bound is not None:
            self._bound.removed(server)


def _less_loaded(one: Server, other: Server) -> Server:
    """Return the server with the lower load for its weight, of equals the first."""
    return other if len(other.in_flight) * one.eweight < len(one.in_flight) * other.eweight else one


class _AvoidedOrFull:
    """The servers to avoid, and those that have reached the bound."""

    def __init__(self, avoid: Container[Server], bound: HashBalanceFactor) -> None:
        self._avoid = avoid
        self._bound = bound

    def __contains__(self, server: object) -> bool:
        return isinstance(server, Server) and (server in self._avoid or not self._bound.allows(server))
