"""Least time: the server with the lowest product of recent response time and load.

The theory: two servers are drawn by weight, and the one with the lower product of mean response time and load (one plus
its requests in flight per weight) is chosen. The mean is weighted by age: it falls slowly (`decay`), but rises at once
with a slow response (peak EWMA, as in Finagle), and decays while a server gets no requests, so that a server that was
slow once is tried again. If a drawn server has not responded yet, the servers are compared by load alone.

For a long time neither HAProxy nor nginx's open source version had such an algorithm (nginx: `least_time`, from 1.31).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from math import exp, inf

from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.balance.parser import BalanceSpec
from sticky_core.balance.weighted_sample import WeightedSampler
from sticky_core.clock import Clock, Rng, SystemClock
from sticky_core.deferred.dataclass import dataclass
from sticky_core.durations import Duration, problems_of_duration, seconds
from sticky_core.errors import raise_problems
from sticky_core.http.messages import Request
from sticky_core.server.server import Server
from sticky_core.server.slowstart import SCALE


@dataclass(frozen=True, slots=True)
class Ewma:
    """`draws`: how many servers are compared, int, 2.
    `decay`: the time in which the weight of a response time falls to 1/e (about a third), duration, 10 s.
    """

    draws: int = 2
    decay: Duration = 10.0

    def __post_init__(self) -> None:
        raise_problems(self._problems())

    def _problems(self) -> Iterator[str]:
        if self.draws < 1:
            yield f"ewma: {self.draws} draws choose no server; 2 are usual"
        for problem in problems_of_duration("decay", self.decay):
            yield f"ewma: {problem}"

    @classmethod
    def parse(cls, spec: BalanceSpec) -> Ewma:
        spec.expect_end()
        return cls()

    def build(self, servers: Sequence[Server], rng: Rng) -> EwmaAlgorithm:
        return EwmaAlgorithm(WeightedSampler(servers, rng), self.draws, seconds(self.decay))


class EwmaAlgorithm:
    """The algorithm of `Ewma`."""

    order_matters = False
    counts_requests = False  # it reads the requests in flight of the servers that it has drawn
    preserve_affinity: Affinity = "maxconn"

    def __init__(self, sampler: WeightedSampler, draws: int, decay: float) -> None:
        self._sampler = sampler
        self._draws = draws
        self._decay = decay
        self._now = SystemClock.monotonic
        # the mean response time of each server, and the time of its last update
        self._latencies: dict[Server, tuple[float, float] | None] = dict.fromkeys(sampler.weights)

    def use_clock(self, clock: Clock) -> None:
        self._now = clock.monotonic

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        now, decay = self._now(), self._decay
        all_known = True
        fastest: Server | None = None
        least_loaded: Server | None = None
        lowest_time = lowest_load = inf
        for server in self._sampler.sample(self._draws, avoid, distinct=True):
            load = 1 + len(server.in_flight) * SCALE / server.eweight
            if load < lowest_load:
                least_loaded, lowest_load = server, load
            latency = self._latencies[server]
            if latency is None:
                all_known = False
            elif all_known:
                mean, then = latency
                time = load * mean * exp((then - now) / decay)
                if time < lowest_time:
                    fastest, lowest_time = server, time
        return fastest if all_known else least_loaded

    def record_latency(self, server: Server, seconds: float) -> None:
        """`server` began its response after `seconds`."""
        now = self._now()
        mean, then = self._latencies[server] or (0.0, now)
        weight = exp((then - now) / self._decay)
        self._latencies[server] = max(seconds, mean * weight + seconds * (1 - weight)), now

    def inherit_from(self, before: object) -> None:
        if isinstance(before, EwmaAlgorithm):
            for server in self._latencies:
                self._latencies[server] = before._latencies.get(server)

    def acquired(self, server: Server) -> None:
        """Nothing to do: the load is read from the server."""

    released = acquired

    def state_changed(self, server: Server) -> None:
        self._sampler.state_changed(server)

    def added(self, server: Server) -> None:
        self._latencies[server] = None
        self._sampler.added(server)

    def removed(self, server: Server) -> None:
        self._sampler.removed(server)
        del self._latencies[server]
