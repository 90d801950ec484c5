"""Each server in turn, by weight, in HAProxy's own sequence (`balance roundrobin`).

The theory: time is counted in turns, and a round has as many as all weights together. A server is due every
round/weight turns; what the division leaves is carried, so that a round comes out even. Servers that have had a turn
are `seated`, in the order in which they are due; those without a turn in this round are `fresh`, the heaviest first;
those that are through with it are `done` until the next. A seat that is overdue goes before a fresh server.

Weights count sixteenfold, as in HAProxy: what a division leaves is carried over that many times all weights before a
new round begins, which decides the sequence where weights do not divide each other.

nginx's smooth turns give the same shares, but look at every server for each choice.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from enum import Enum
from heapq import heappop, heappush

from sticky_core.clock import Rng
from sticky_core.errors import ConfigError
from sticky_core.request import Request
from sticky_core.server import Server


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """`start`: how many turns are taken before the first request. None (the default) draws it, so that many processes
    do not all begin with the same server.
    """

    start: int | None = None

    def __post_init__(self) -> None:
        if self.start is not None and self.start < 0:
            raise ConfigError(f"roundrobin: start {self.start} is below 0")

    def over(self, servers: Sequence[Server], rng: Rng) -> Turns:
        return Turns(servers, rng, self.start)


# HAProxy's scales of weights (BE_WEIGHT_SCALE, SRV_EWGHT_MAX): they shape its sequence, ties being broken in whole
# weights.
_SCALE = 16
_HEAVIEST = 256 * _SCALE


class _Row(Enum):
    """Where a place stands."""

    FRESH = "fresh"
    SEATED = "seated"
    DONE = "done"
    OUT = "out"  #: nowhere: its server is not electable


class _Place:
    """A server's place in the order of turns."""

    __slots__ = ("carried", "due", "last", "row", "server", "stamp", "weight")

    def __init__(self, server: Server) -> None:
        self.server = server
        self.weight = 0  # as it counts now: 0 while the server is not electable
        self.row = _Row.OUT
        self.due = 0
        self.last = 0  # when it was due before
        self.carried = 0
        self.stamp = 0  # of its one entry that holds; older entries are passed over when they come up


_Entry = tuple[int, int, int, _Place]  # two keys, the stamp, the place


class Turns:
    """Roundrobin at work. A choice and a change cost the logarithm of the number of servers."""

    counts = False

    def __init__(self, servers: Sequence[Server], rng: Rng, start: int | None) -> None:
        self._places = {server: _Place(server) for server in servers}
        self._rng = rng
        self._start = start
        self._begun = False
        self._stamp = 0
        self._round = 0  # turns in this round
        self._next_round = 0  # and in the next, where changed weights already count
        self._turn = 0
        self._fresh: list[_Entry] = []
        self._seated: list[_Entry] = []
        self._done: list[_Entry] = []
        for server in servers:
            self.changed(server)

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        if not self._begun and self._next_round:
            self._begun = True  # at the first choice, not before: a forked child draws for itself
            turns = self._next_round // _SCALE
            skip = self._rng.randrange(turns) if self._start is None else self._start % turns
            for _ in range(skip):
                self._choose(())
        return self._choose(avoid)

    def _choose(self, avoid: Container[Server]) -> Server | None:
        if not self._next_round:
            return None
        if not self._round:
            self._turn = self._round = self._next_round
        place = self._first(avoid)
        if place is None:
            if not self._done:
                return None
            for entry in self._done:
                if entry[2] == entry[3].stamp:
                    entry[3].row = _Row.FRESH
                    heappush(self._fresh, entry)
            self._done = []
            self._turn = self._round = self._next_round
            place = self._first(avoid)
            if place is None:
                return None
        every, rest = divmod(self._next_round, place.weight)
        place.last = place.due or self._turn
        place.due = place.last + every
        place.carried += rest
        if place.carried >= place.weight:
            place.carried -= place.weight
            place.due += 1
        self._turn += 1
        self._seat(place)
        return place.server

    def _first(self, avoid: Container[Server]) -> _Place | None:
        """Who is overdue, else who is fresh, else who is due next."""
        seated = _top(self._seated, avoid)
        if seated is not None and seated.due <= self._turn:
            return seated
        fresh = _top(self._fresh, avoid)
        if fresh is not None:
            fresh.due = fresh.carried = 0
            return fresh
        return seated

    def _seat(self, place: _Place) -> None:
        if place.due >= self._round + min(self._round, self._next_round):
            place.row = _Row.DONE
            place.due -= self._round
            self._done.append(self._entry(-place.weight, 0, place))
        else:
            place.row = _Row.SEATED
            heappush(self._seated, self._entry(place.due, (_HEAVIEST + place.carried - place.weight) // _SCALE, place))

    def _entry(self, first: int, second: int, place: _Place) -> _Entry:
        self._stamp = place.stamp = self._stamp + 1
        return (first, second, self._stamp, place)

    def taken(self, server: Server) -> None:
        """Bound requests do not move the turns, as in HAProxy."""

    left = taken

    def changed(self, server: Server) -> None:
        place = self._places[server]
        weight = server.weight * _SCALE if server.electable else 0
        before, place.weight = place.weight, weight
        self._next_round += weight - before
        if weight == before:
            return
        place.stamp = 0
        if weight == 0:
            place.row = _Row.OUT
        elif not self._begun or place.row is _Row.FRESH:
            place.row = _Row.FRESH
            heappush(self._fresh, self._entry(-weight, 0, place))
        elif place.row is _Row.OUT:  # back again: its turn comes as if it had just had one (fwrr_set_server_status_up)
            place.due = self._turn + (self._round + self._next_round - self._turn) // weight
            self._seat(place)
        else:  # fwrr_update_server_weight
            if place.row is _Row.DONE:
                place.due += self._round
            every = self._next_round // weight
            place.carried = 0
            place.due = min(place.due, place.last + every)
            if place.due < self._turn + 2:
                place.due = self._turn + every
            self._seat(place)


def _top(entries: list[_Entry], avoid: Container[Server]) -> _Place | None:
    """The first place in a heap whose server is not to be avoided; it stays where it is until its next entry outdates
    this one.
    """
    aside: list[_Entry] = []
    found: _Place | None = None
    while entries:
        _, _, stamp, place = entries[0]
        if stamp != place.stamp:
            heappop(entries)
        elif place.server in avoid:
            aside.append(heappop(entries))
        else:
            found = place
            break
    for entry in aside:
        heappush(entries, entry)
    return found
