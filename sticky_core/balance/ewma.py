"""The server that is likely to answer soonest: its response times of late, times the requests it has (least time).

The theory: two servers are drawn by weight, and the one with the lesser product of mean response time and requests
(one, and those in flight for its weight) is chosen. The mean is weighted by age: it falls slowly (`decay`), but rises
at once with a slow answer (peak EWMA, as in Finagle), and wanes while a server is not asked, so that one that was slow
once gets another chance. Who has not answered yet is compared by requests alone.

Neither HAProxy nor nginx's open source had this for long (nginx: `least_time`, from 1.31).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from math import exp, inf

from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.balance.parser import BalanceSpec
from sticky_core.balance.weighted_sample import WeightedSampler
from sticky_core.clock import Clock, Rng, SystemClock
from sticky_core.durations import Duration, problems_of_duration, seconds
from sticky_core.errors import raise_problems
from sticky_core.http.messages import Request
from sticky_core.server.server import Server
from sticky_core.server.slowstart import SCALE


@dataclass(frozen=True, slots=True)
class Ewma:
    """`draws`: how many servers are compared.
    `decay`: in what time a response time comes to weigh a third (1/e).
    `clock`: for tests.
    """

    draws: int = 2
    decay: Duration = 10.0
    clock: Clock = field(default_factory=SystemClock, compare=False, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        raise_problems(self._problems())

    def _problems(self) -> Iterator[str]:
        if self.draws < 1:
            yield f"ewma: {self.draws} draws choose nobody; 2 are usual"
        for problem in problems_of_duration("decay", self.decay):
            yield f"ewma: {problem}"

    @classmethod
    def parse(cls, line: BalanceSpec) -> Ewma:
        line.end()
        return cls()

    def build(self, servers: Sequence[Server], rng: Rng) -> LeastTime:
        return LeastTime(WeightedSampler(servers, rng), self.draws, seconds(self.decay), self.clock)


class LeastTime:
    """Ewma at work."""

    counts_requests = False  # it looks at the requests in flight of those it has drawn
    preserve_affinity: Affinity = "maxconn"

    def __init__(self, urn: WeightedSampler, draws: int, decay: float, clock: Clock) -> None:
        self._urn = urn
        self._draws = draws
        self._decay = decay
        self._now = clock.monotonic
        # the mean of each server's response times, and when it was that
        self._seen: dict[Server, tuple[float, float] | None] = dict.fromkeys(urn.weights)

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        now, decay = self._now(), self._decay
        known = True
        quickest: Server | None = None
        idlest: Server | None = None
        least = fewest = inf
        for server in self._urn.drawn(self._draws, avoid, distinct=True):
            load = 1 + len(server.in_flight) * SCALE / server.eweight
            if load < fewest:
                idlest, fewest = server, load
            seen = self._seen[server]
            if seen is None:
                known = False
            elif known:
                mean, then = seen
                time = load * mean * exp((then - now) / decay)
                if time < least:
                    quickest, least = server, time
        return quickest if known else idlest

    def record_latency(self, server: Server, seconds: float) -> None:
        """`server` has answered after so long."""
        now = self._now()
        mean, then = self._seen[server] or (0.0, now)
        weight = exp((then - now) / self._decay)
        self._seen[server] = max(seconds, mean * weight + seconds * (1 - weight)), now

    def inherit_from(self, before: object) -> None:
        if isinstance(before, LeastTime):
            for server in self._seen:
                self._seen[server] = before._seen.get(server)

    def acquired(self, server: Server) -> None:
        """The load is read off the server."""

    released = acquired

    def state_changed(self, server: Server) -> None:
        self._urn.state_changed(server)
