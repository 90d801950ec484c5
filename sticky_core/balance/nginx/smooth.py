"""nginx's round robin: smooth weighted turns.

The theory, as nginx has it: with each choice every server gains its weight, the one with the most is chosen (of equals
the first declared), and pays the weights of all. nginx looks at every server for that. Here those of one weight share
one clock: what a server has is its weight times the choices so far, less what it has paid, so among those of one weight
the order never changes but for the one that pays. A choice compares the foremost of each weight. Of those to be avoided
only these are met; they stand still meanwhile, as in nginx, while the others gain.

A request that persistence has sent counts as a turn too, unless its server has paid ahead already (nginx 1.29.6).
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace

from sticky_core.balance.eweight import eweight
from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.balance.parser import BalanceSpec
from sticky_core.balance.start import begun, check_start
from sticky_core.clock import Rng
from sticky_core.http.messages import Request
from sticky_core.server.server import Server
from sticky_core.server.slowstart import SCALE


@dataclass(frozen=True, slots=True)
class Smooth:
    """`start`: how many turns are taken before the first request. None (the default) draws it, so that many processes
    do not all begin with the same server.
    """

    start: int | None = None

    def __post_init__(self) -> None:
        check_start("smooth", self.start)

    @classmethod
    def parse(cls, line: BalanceSpec) -> Smooth:
        line.end()
        return cls()

    def build(self, servers: Sequence[Server], rng: Rng) -> SmoothTurns:
        return SmoothTurns(servers, rng, self.start)


class Place:
    """A server among turns."""

    __slots__ = ("current", "entry", "number", "server", "unseen", "weight")

    def __init__(self, server: Server, number: int) -> None:
        self.server = server
        self.number = number  # in the order of declaration
        self.weight = 0  # 0 while it is not among any
        self.current = 0  # what it has, while it is not among any
        self.entry: Entry | None = None  # the one that holds, while it is
        self.unseen = 0  # times that it was chosen, but has not been told to have been taken


Entry = tuple[int, int, Place]  # what it has paid, its number


class _Peers:
    """Servers of one weight, the one that has paid least first."""

    __slots__ = ("count", "heap")

    def __init__(self) -> None:
        self.heap: list[Entry] = []  # an entry that is not its place's any more is passed over
        self.count = 0

    def put(self, place: Place, paid: int) -> None:
        place.entry = (paid, place.number, place)
        heappush(self.heap, place.entry)
        if len(self.heap) > 2 * self.count + 32:
            self.heap = [entry for entry in self.heap if entry[2].entry is entry]
            heapify(self.heap)


class Turns:
    """Smooth turns among places that come and go. A choice costs the number of different weights, and the logarithm of
    the number of places.
    """

    def __init__(self) -> None:
        self._time = 0  # choices so far
        self.total = 0  #: all weights together; 0: nobody is here
        self._peers: dict[int, _Peers] = {}

    def join(self, place: Place, weight: int) -> None:
        place.weight = weight
        self.total += weight
        peers = self._peers.get(weight)
        if peers is None:
            peers = self._peers[weight] = _Peers()
        peers.count += 1
        peers.put(place, self._time * weight - place.current)

    def leave(self, place: Place) -> None:
        place.current = self.current(place)
        self.total -= place.weight
        peers = self._peers[place.weight]
        peers.count -= 1
        if not peers.count:
            del self._peers[place.weight]
        place.entry = None
        place.weight = 0

    def current(self, place: Place) -> int:
        """What a place that is here has."""
        assert place.entry is not None
        return self._time * place.weight - place.entry[0]

    def next(self, avoid: Container[Server]) -> Place | None:
        """Whose turn it is; it is taken."""
        time = self._time + 1
        total = self.total
        best: Place | None = None
        most = 0
        aside: list[Entry] = []
        for weight, peers in self._peers.items():
            heap = peers.heap
            while heap:
                entry = heap[0]
                place = entry[2]
                if place.entry is not entry:
                    heappop(heap)
                elif place.server in avoid:
                    aside.append(heappop(heap))
                    total -= weight
                else:
                    current = time * weight - entry[0]
                    if best is None or current > most or (current == most and place.number < best.number):
                        best, most = place, current
                    break
        if best is None:
            for paid, _, place in aside:
                self._peers[place.weight].put(place, paid)
            return None
        self._time = time
        assert best.entry is not None
        best.entry = (best.entry[0] + total, best.number, best)
        heapreplace(self._peers[best.weight].heap, best.entry)
        for paid, _, place in aside:  # who is passed over stands still while the others gain
            self._peers[place.weight].put(place, paid + place.weight)
        return best

    def charge(self, place: Place) -> None:
        """Count a turn that it had without being chosen."""
        assert place.entry is not None
        if self.current(place) > place.weight - self.total:
            self._time += 1
            self._peers[place.weight].put(place, place.entry[0] + self.total)


class SmoothTurns:
    """Smooth turns at work."""

    counts_requests = True
    preserve_affinity: Affinity = "maxconn"

    def __init__(self, servers: Sequence[Server], rng: Rng, start: int | None) -> None:
        self._places = {server: Place(server, number) for number, server in enumerate(servers)}
        self._turns = Turns()
        self._rng = rng
        self._start = start
        self._begun = False
        for server in servers:
            self.state_changed(server)

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        if not self._begun and self._turns.total:
            self._begun = True
            for _ in range(begun(self._start, self._turns.total // SCALE or 1, self._rng)):
                self._turns.next(())
        place = self._turns.next(avoid)
        if place is None:
            return None
        place.unseen += 1
        return place.server

    def acquired(self, server: Server) -> None:
        place = self._places[server]
        if place.unseen:
            place.unseen -= 1
        elif place.weight:
            self._turns.charge(place)

    def released(self, server: Server) -> None:
        """Turns are not given back."""

    def state_changed(self, server: Server) -> None:
        place = self._places[server]
        weight = eweight(server)
        if weight != place.weight:
            if place.weight:
                self._turns.leave(place)
            if weight:
                self._turns.join(place, weight)
