"""A server drawn at random by weight, or of two the one with fewer requests in flight for its weight (nginx `random
[two]`).
"""

from __future__ import annotations

from collections.abc import Sequence

from sticky_core.balance.random import RandomAlgorithm
from sticky_core.balance.weighted_sample import WeightedSampler
from sticky_core.clock import Rng
from sticky_core.deferred.dataclass import dataclass
from sticky_core.server.server import Server


@dataclass(frozen=True, slots=True)
class NginxRandom:
    """`two`: whether to draw two different servers and compare them, bool, False."""

    two: bool = False

    def build(self, servers: Sequence[Server], rng: Rng) -> RandomAlgorithm:
        return RandomAlgorithm(WeightedSampler(servers, rng), 2 if self.two else 1, None, distinct=True)
