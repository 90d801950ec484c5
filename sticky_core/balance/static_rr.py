"""Each server in turn, by weight, from a list computed once (HAProxy `balance static-rr`).

The fastest algorithm. HAProxy does not let weights change with it; here the list is rebuilt.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.balance.parser import BalanceSpec
from sticky_core.balance.start import check_start
from sticky_core.balance.static_map import StaticMap
from sticky_core.clock import Rng
from sticky_core.deferred.dataclass import dataclass
from sticky_core.http.messages import Request
from sticky_core.server.server import Server


@dataclass(frozen=True, slots=True)
class StaticRR:
    """`start`: how many turns to skip before the first request, int. None (the default) draws a random number, so that
    many processes do not all begin with the same server.
    """

    start: int | None = None

    def __post_init__(self) -> None:
        check_start("static-rr", self.start)

    @classmethod
    def parse(cls, spec: BalanceSpec) -> StaticRR:
        spec.expect_end()
        return cls()

    def build(self, servers: Sequence[Server], rng: Rng) -> StaticRRAlgorithm:
        return StaticRRAlgorithm(StaticMap(servers, rng, self.start))


class StaticRRAlgorithm:
    """The algorithm of `StaticRR`."""

    counts_requests = False
    order_matters = True
    preserve_affinity: Affinity = "maxconn"

    def __init__(self, table: StaticMap) -> None:
        self._map = table

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        return self._map.next_server(avoid)

    def acquired(self, server: Server) -> None:
        """Nothing to do: bound requests do not use up turns, as in HAProxy."""

    released = acquired

    def state_changed(self, server: Server) -> None:
        self._map.state_changed(server)

    def added(self, server: Server) -> None:
        self._map.added(server)

    def removed(self, server: Server) -> None:
        self._map.removed(server)
