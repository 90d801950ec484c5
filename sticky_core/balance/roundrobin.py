"""Each server in turn, by weight, in HAProxy's own sequence (`balance roundrobin`).

The theory: time is counted in turns, and a round has as many as all weights together. A server is due every
round/weight turns; what the division leaves is carried, so that a round comes out even. Servers that have had a turn
are `seated`, in the order in which they are due; those without a turn in this round are `fresh`, the heaviest first;
those that are through with it are `done` until the next. A seat that is overdue goes before a fresh server.

Weights count sixteenfold, as in HAProxy: what a division leaves is carried over that many times all weights before a
new round begins, which decides the sequence where weights do not divide each other.

nginx's smooth turns give the same shares in another order (`sticky_core.balance.nginx.smooth`).
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace

from sticky_core.balance.eweight import MOST, eweight
from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.balance.parser import BalanceSpec
from sticky_core.balance.start import begun, check_start
from sticky_core.clock import Rng
from sticky_core.http.messages import Request
from sticky_core.server.server import Server
from sticky_core.server.slowstart import SCALE


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """`start`: how many turns are taken before the first request. None (the default) draws it, so that many processes
    do not all begin with the same server.
    """

    start: int | None = None

    def __post_init__(self) -> None:
        check_start("roundrobin", self.start)

    @classmethod
    def parse(cls, line: BalanceSpec) -> RoundRobin:
        line.end()
        return cls()

    def build(self, servers: Sequence[Server], rng: Rng) -> Turns:
        return Turns(servers, rng, self.start)


class _Place:
    """A server's place in the order of turns."""

    __slots__ = ("carried", "due", "entry", "last", "number", "round", "server", "weight")

    def __init__(self, server: Server, number: int) -> None:
        self.server = server
        self.number = number
        self.weight = 0  # as it counts now: 0 while the server is not electable
        self.round: int | None = None  # in which it is fresh; None while it is seated
        self.due = 0
        self.last = 0  # when it was due before
        self.carried = 0
        self.entry = -1  # the one that holds; older entries are passed over when they come up


# An entry in a heap is one number, since tuples take longer among ten thousand: the key, a count of entries made (so
# that equals stay in order), the number of the place.
_KEY, _NUMBER = 64, 20
_ONE, _WHOSE = 1 << _NUMBER, (1 << _NUMBER) - 1
_TIES = 10  # bits for what breaks a tie in the key: less than the heaviest weight, to either side


class Turns:
    """Roundrobin at work. A choice and a change cost the logarithm of the number of servers."""

    counts_requests = False
    preserve_affinity: Affinity = "maxconn"

    def __init__(self, servers: Sequence[Server], rng: Rng, start: int | None) -> None:
        self._places = [_Place(server, number) for number, server in enumerate(servers)]
        self._place = dict(zip(servers, self._places, strict=True))
        self._rng = rng
        self._start = start
        self._begun = False
        self._made = 0  # entries so far, in the middle of the number
        self._rounds = 0  # begun so far
        self._round = 0  # turns in this round
        self._next_round = 0  # and in the next, where changed weights already count
        self._turn = 0
        self._end = 0  # when a place is through with this round
        self._fresh: list[int] = []
        self._seated: list[int] = []
        self._done: list[int] = []
        for server in servers:
            self.state_changed(server)

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        if not self._next_round:
            return None
        if not self._begun:
            self._begun = True
            self._begin_round()
            for _ in range(begun(self._start, self._next_round // SCALE or 1, self._rng)):
                self.choose(request, ())
        # who is overdue, else who is fresh, else who is due next
        turn, seated = self._turn, self._seated
        place = self._places[seated[0] & _WHOSE] if seated else None
        if place is not None and (place.entry != seated[0] or place.server in avoid):
            place = self._top(seated, avoid)
        if place is None or place.due > turn:
            fresh = self._top(self._fresh, avoid) if self._fresh else None
            if fresh is not None:
                place = fresh
                place.round = None
                place.due = turn
                place.carried = 0
        if place is None:
            return self.choose(request, avoid) if self._begin_round() else None
        self._turn = turn + 1
        turns, weight = self._next_round, place.weight
        place.last = due = place.due
        due += turns // weight
        carried = place.carried + turns % weight
        if carried >= weight:
            carried -= weight
            due += 1
        place.due, place.carried = due, carried
        if due >= self._end:
            self._seat(place)
        else:  # `_seat` in line, for a call would be felt; its former entry is most often the first, and gives way
            self._made = made = self._made + _ONE
            entry = (due << _TIES) + (carried - weight) // SCALE << _KEY | made | place.number
            if seated and seated[0] == place.entry:
                heapreplace(seated, entry)
            else:
                heappush(seated, entry)
            place.entry = entry
        return place.server

    def _begin_round(self) -> bool:
        """Those who are through with a round are fresh. False if there are none."""
        if self._round and not self._done:
            return False
        self._rounds += 1
        for entry in self._fresh:  # those who have been avoided
            heappush(self._done, entry)
        self._fresh, self._done = self._done, []
        self._turn = self._round = self._next_round
        self._end = 2 * self._round
        return True

    def _seat(self, place: _Place) -> None:
        if place.due >= self._end:
            place.round = self._rounds + 1
            place.due -= self._round
            heappush(self._done, self._waiting(place))
        else:
            place.round = None
            lighter = (place.carried - place.weight) // SCALE  # HAProxy breaks ties in whole weights
            self._made = made = self._made + _ONE
            place.entry = (place.due << _TIES) + lighter << _KEY | made | place.number
            heappush(self._seated, place.entry)

    def _waiting(self, place: _Place) -> int:
        """Its entry among those who are fresh, or will be: the heaviest first."""
        self._made = made = self._made + _ONE
        place.entry = entry = (MOST - place.weight) << _KEY | made | place.number
        return entry

    def acquired(self, server: Server) -> None:
        """Bound requests do not move the turns, as in HAProxy."""

    released = acquired

    def state_changed(self, server: Server) -> None:
        place = self._place[server]
        weight = eweight(server)
        before, place.weight = place.weight, weight
        if weight == before:
            return
        self._next_round += weight - before
        self._end = self._round + min(self._round, self._next_round)
        place.entry = -1
        if weight == 0:
            return
        if not self._begun or (before and place.round is not None and place.round <= self._rounds):
            place.round = self._rounds
            heappush(self._fresh, self._waiting(place))
        elif before == 0:  # back again: its turn comes as if it had just had one (fwrr_set_server_status_up)
            place.due = self._turn + (self._round + self._next_round - self._turn) // weight
            self._seat(place)
        else:  # fwrr_update_server_weight
            if place.round is not None:
                place.due += self._round
            every = self._next_round // weight
            place.carried = 0
            place.due = min(place.due, place.last + every)
            if place.due < self._turn + 2:
                place.due = self._turn + every
            self._seat(place)

    def _top(self, entries: list[int], avoid: Container[Server]) -> _Place | None:
        """The first place in a heap whose server is not to be avoided; it stays where it is until its next entry
        outdates this one.
        """
        while entries:
            entry = entries[0]
            place = self._places[entry & _WHOSE]
            if entry != place.entry:
                heappop(entries)
            elif place.server not in avoid:
                return place
            else:
                return self._behind(entries, avoid)
        return None

    def _behind(self, entries: list[int], avoid: Container[Server]) -> _Place | None:
        """The same where the first is to be avoided."""
        aside: list[int] = []
        found: _Place | None = None
        while entries:
            place = self._places[entries[0] & _WHOSE]
            if entries[0] != place.entry:
                heappop(entries)
            elif place.server in avoid:
                aside.append(heappop(entries))
            else:
                found = place
                break
        for entry in aside:
            heappush(entries, entry)
        return found
