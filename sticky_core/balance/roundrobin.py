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

from sticky_core.balance.eweight import MOST, SCALE, eweight
from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.balance.words import Line
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

    @classmethod
    def read(cls, line: Line) -> RoundRobin:
        line.end()
        return cls()

    def over(self, servers: Sequence[Server], rng: Rng) -> Turns:
        return Turns(servers, rng, self.start)


class _Row(Enum):
    """Where a place stands."""

    OUT = "out"  #: nowhere: its server is not electable
    SEATED = "seated"
    DONE = "done"  #: through with a round, and fresh in the next


# Asking an Enum for its member costs as much as a few dict look-ups, and every choice would.
_SEATED, _DONE = _Row.SEATED, _Row.DONE


class _Place:
    """A server's place in the order of turns."""

    __slots__ = ("carried", "due", "last", "round", "row", "server", "stamp", "weight")

    def __init__(self, server: Server) -> None:
        self.server = server
        self.weight = 0  # as it counts now: 0 while the server is not electable
        self.row = _Row.OUT
        self.round = 0  # in which it is fresh
        self.due = 0
        self.last = 0  # when it was due before
        self.carried = 0
        self.stamp = 0  # of its one entry that holds; older entries are passed over when they come up


_Entry = tuple[int, int, _Place]  # the key, the stamp, the place


_TIES = 10  # bits for what breaks a tie, which is below twice the heaviest weight


class Turns:
    """Roundrobin at work. A choice and a change cost the logarithm of the number of servers."""

    counts = False
    preserve_affinity: Affinity = "maxconn"

    def __init__(self, servers: Sequence[Server], rng: Rng, start: int | None) -> None:
        self._places = {server: _Place(server) for server in servers}
        self._rng = rng
        self._start = start
        self._begun = False
        self._stamp = 0
        self._rounds = 0  # begun so far
        self._round = 0  # turns in this round
        self._next_round = 0  # and in the next, where changed weights already count
        self._turn = 0
        self._end = 0  # when a place is through with this round
        self._fresh: list[_Entry] = []
        self._seated: list[_Entry] = []
        self._done: list[_Entry] = []
        for server in servers:
            self.changed(server)

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        if not self._next_round:
            return None
        if not self._begun:
            self._begun = True  # at the first choice, not before: a forked child draws for itself
            self._begin_round()
            turns = self._next_round // SCALE
            for _ in range(self._rng.randrange(turns) if self._start is None else self._start % turns):
                self.choose(request, ())
        turn = self._turn
        # who is overdue, else who is fresh, else who is due next
        entries = self._seated
        place = _top(entries, avoid) if entries else None
        if place is None or place.due > turn:
            first = _top(self._fresh, avoid) if self._fresh else None
            if first is not None:
                entries, place = self._fresh, first
                place.due = turn
                place.carried = 0
        if place is None:
            return self.choose(request, avoid) if self._begin_round() else None
        if entries[0][2] is place:
            heappop(entries)
        every, rest = divmod(self._next_round, place.weight)
        place.last = place.due
        place.due += every
        place.carried += rest
        if place.carried >= place.weight:
            place.carried -= place.weight
            place.due += 1
        self._turn = turn + 1
        self._seat(place)
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
        self._stamp = stamp = place.stamp = self._stamp + 1
        if place.due >= self._end:
            place.row = _DONE
            place.round = self._rounds + 1
            place.due -= self._round
            heappush(self._done, (-place.weight, stamp, place))
        else:
            place.row = _SEATED
            before = (MOST + place.carried - place.weight) // SCALE  # HAProxy breaks ties in whole weights
            heappush(self._seated, (place.due << _TIES | before, stamp, place))

    def taken(self, server: Server) -> None:
        """Bound requests do not move the turns, as in HAProxy."""

    left = taken

    def changed(self, server: Server) -> None:
        place = self._places[server]
        weight = eweight(server)
        before, place.weight = place.weight, weight
        if weight == before:
            return
        self._next_round += weight - before
        self._end = self._round + min(self._round, self._next_round)
        place.stamp = 0
        if weight == 0:
            place.row = _Row.OUT
        elif not self._begun or (place.row is _Row.DONE and place.round <= self._rounds):
            place.row = _Row.DONE
            place.round = self._rounds
            self._stamp = place.stamp = self._stamp + 1
            heappush(self._fresh, (-weight, self._stamp, place))
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
    while entries:
        _, stamp, place = entries[0]
        if stamp != place.stamp:
            heappop(entries)
        elif place.server not in avoid:
            return place
        else:
            return _behind(entries, avoid)
    return None


def _behind(entries: list[_Entry], avoid: Container[Server]) -> _Place | None:
    """The same where the first is to be avoided."""
    aside: list[_Entry] = []
    found: _Place | None = None
    while entries:
        _, stamp, place = entries[0]
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
