"""Each server in turn, by weight, in HAProxy's own sequence (`balance roundrobin`).

The theory: time is counted in turns, and a round has as many turns as the sum of the weights. A server is due every
round/weight turns; the remainder of the division is carried over to its next turn, so that a round comes out even.
Servers that have had a turn in this round are `scheduled`, in the order in which they are due; servers without a turn
in this round are `fresh`, the heaviest first; servers that have had all their turns wait for the next round. A
scheduled server that is overdue comes before a fresh one.

Weights are multiplied by 16, as in HAProxy: remainders accumulate over that many times the sum of the weights before a
new round begins, which decides the sequence where weights do not divide each other.

nginx's smooth round robin gives the same shares in another order (`sticky_core.balance.nginx.smooth`).
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from heapq import heappop, heappush, heapreplace

from sticky_core.balance.algorithm import NO_SERVER
from sticky_core.balance.eweight import MAX_EWEIGHT, eweight
from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.balance.parser import BalanceSpec
from sticky_core.balance.start import check_start, initial_turns
from sticky_core.clock import Rng
from sticky_core.deferred.dataclass import dataclass
from sticky_core.http.messages import Request
from sticky_core.server.server import Server
from sticky_core.server.slowstart import SCALE


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """`start`: how many turns to skip before the first request, int. None (the default) draws a random number, so that
    many processes do not all begin with the same server.
    """

    start: int | None = None

    def __post_init__(self) -> None:
        check_start("roundrobin", self.start)

    @classmethod
    def parse(cls, spec: BalanceSpec) -> RoundRobin:
        spec.expect_end()
        return cls()

    def build(self, servers: Sequence[Server], rng: Rng) -> RoundRobinAlgorithm:
        return RoundRobinAlgorithm(servers, rng, self.start)


class _Member:
    """A server with its next turn."""

    __slots__ = ("due", "entry", "fresh_round", "last_due", "number", "remainder", "server", "weight")

    def __init__(self, server: Server, number: int) -> None:
        self.server = server
        self.number = number
        self.weight = 0  # the current weight, 0 while the server is not electable
        self.fresh_round: int | None = None  # the round in which it is fresh; None while it is scheduled
        self.due = 0
        self.last_due = 0  # its former due turn
        self.remainder = 0
        self.entry = -1  # its valid entry; older entries in the heaps are ignored


# An entry of a heap is one number, since comparing tuples takes longer with ten thousand servers: the key, a count of
# entries (so that equal keys stay in order), the number of the server.
_KEY_SHIFT, _NUMBER_BITS = 64, 20
_ENTRY_STEP, _NUMBER_MASK = 1 << _NUMBER_BITS, (1 << _NUMBER_BITS) - 1
_TIE_BITS = 10  # bits of the tie-breaker in the key; its absolute value is below the largest weight


class RoundRobinAlgorithm:
    """The algorithm of `RoundRobin`. A choice and a change cost the logarithm of the number of servers."""

    counts_requests = False
    preserve_affinity: Affinity = "maxconn"

    def __init__(self, servers: Sequence[Server], rng: Rng, start: int | None) -> None:
        self._members = [_Member(server, number) for number, server in enumerate(servers)]
        self._member_of = dict(zip(servers, self._members, strict=True))
        self._free_numbers: list[int] = []  # of servers that were removed
        self._rng = rng
        self._start = start
        self._is_started = False
        self._entry_count = 0  # the count of entries so far, shifted to its bits
        self._round_number = 0  # the number of the current round
        self._round_turns = 0  # turns in the current round
        self._next_round_turns = 0  # turns in the next round, with the current weights
        self._turn = 0
        self._round_end = 0  # a server due at this turn or later has had all its turns of this round
        self._fresh: list[int] = []
        self._scheduled: list[int] = []
        self._next_round_heap: list[int] = []
        for server in servers:
            self.state_changed(server)

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        if not self._next_round_turns:
            return None
        if not self._is_started:
            self._is_started = True
            self._begin_round()
            for _ in range(initial_turns(self._start, self._next_round_turns // SCALE or 1, self._rng)):
                self.choose(request, ())
        # an overdue server, else a fresh one, else the one that is due next
        turn, scheduled = self._turn, self._scheduled
        member = self._members[scheduled[0] & _NUMBER_MASK] if scheduled else None
        if member is not None and (member.entry != scheduled[0] or member.server in avoid):
            member = self._first(scheduled, avoid)
        if member is None or member.due > turn:
            fresh = self._first(self._fresh, avoid) if self._fresh else None
            if fresh is not None:
                member = fresh
                member.fresh_round = None
                member.due = turn
                member.remainder = 0
        if member is None:
            return self.choose(request, avoid) if self._begin_round() else None
        self._turn = turn + 1
        turns, weight = self._next_round_turns, member.weight
        member.last_due = due = member.due
        due += turns // weight
        remainder = member.remainder + turns % weight
        if remainder >= weight:
            remainder -= weight
            due += 1
        member.due, member.remainder = due, remainder
        if due >= self._round_end:
            self._schedule(member)
        else:  # `_schedule` written out, since a call would cost time; it most often replaces the first entry
            self._entry_count = made = self._entry_count + _ENTRY_STEP
            entry = (due << _TIE_BITS) + (remainder - weight) // SCALE << _KEY_SHIFT | made | member.number
            if scheduled and scheduled[0] == member.entry:
                heapreplace(scheduled, entry)
            else:
                heappush(scheduled, entry)
            member.entry = entry
        return member.server

    def _begin_round(self) -> bool:
        """Make the servers that wait for the next round fresh. Return False if there are none."""
        if self._round_turns and not self._next_round_heap:
            return False
        self._round_number += 1
        for entry in self._fresh:  # servers that were avoided
            heappush(self._next_round_heap, entry)
        self._fresh, self._next_round_heap = self._next_round_heap, []
        self._turn = self._round_turns = self._next_round_turns
        self._round_end = 2 * self._round_turns
        return True

    def _schedule(self, member: _Member) -> None:
        if member.due >= self._round_end:
            member.fresh_round = self._round_number + 1
            member.due -= self._round_turns
            heappush(self._next_round_heap, self._new_fresh_entry(member))
        else:
            member.fresh_round = None
            tie = (member.remainder - member.weight) // SCALE  # HAProxy breaks ties by whole weights
            self._entry_count = made = self._entry_count + _ENTRY_STEP
            member.entry = (member.due << _TIE_BITS) + tie << _KEY_SHIFT | made | member.number
            heappush(self._scheduled, member.entry)

    def _new_fresh_entry(self, member: _Member) -> int:
        """Return a new entry for the fresh servers of this or the next round: the heaviest first."""
        self._entry_count = made = self._entry_count + _ENTRY_STEP
        member.entry = entry = (MAX_EWEIGHT - member.weight) << _KEY_SHIFT | made | member.number
        return entry

    def acquired(self, server: Server) -> None:
        """Nothing to do: bound requests do not use up turns, as in HAProxy."""

    released = acquired

    def state_changed(self, server: Server) -> None:
        self._set_weight(self._member_of[server], eweight(server))

    def _set_weight(self, member: _Member, weight: int) -> None:
        before, member.weight = member.weight, weight
        if weight == before:
            return
        self._next_round_turns += weight - before
        self._round_end = self._round_turns + min(self._round_turns, self._next_round_turns)
        member.entry = -1
        if weight == 0:
            return
        if not self._is_started or (
            before and member.fresh_round is not None and member.fresh_round <= self._round_number
        ):
            member.fresh_round = self._round_number
            heappush(self._fresh, self._new_fresh_entry(member))
        elif before == 0:  # electable again: its turn comes as if it had just had one (fwrr_set_server_status_up)
            member.due = self._turn + (self._round_turns + self._next_round_turns - self._turn) // weight
            self._schedule(member)
        else:  # fwrr_update_server_weight
            if member.fresh_round is not None:
                member.due += self._round_turns
            period = self._next_round_turns // weight
            member.remainder = 0
            member.due = min(member.due, member.last_due + period)
            if member.due < self._turn + 2:
                member.due = self._turn + period
            self._schedule(member)

    @property
    def order_matters(self) -> bool:
        """Whether no server has had a turn yet: then the order of declaration is that of the first turns."""
        return not self._is_started

    def added(self, server: Server) -> None:
        number = self._free_numbers.pop() if self._free_numbers else len(self._members)
        member = self._member_of[server] = _Member(server, number)
        self._members[number : number + 1] = [member]
        self.state_changed(server)

    def removed(self, server: Server) -> None:
        member = self._member_of.pop(server)
        self._set_weight(member, 0)
        member.server = NO_SERVER
        self._free_numbers.append(member.number)

    def _first(self, entries: list[int], avoid: Container[Server]) -> _Member | None:
        """Return the first server in a heap that is not to be avoided. Its entry stays in the heap until its next entry
        replaces it.
        """
        while entries:
            entry = entries[0]
            member = self._members[entry & _NUMBER_MASK]
            if entry != member.entry:
                heappop(entries)
            elif member.server not in avoid:
                return member
            else:
                return self._first_allowed(entries, avoid)
        return None

    def _first_allowed(self, entries: list[int], avoid: Container[Server]) -> _Member | None:
        """Return the same where the first server is to be avoided."""
        avoided: list[int] = []
        first: _Member | None = None
        while entries:
            member = self._members[entries[0] & _NUMBER_MASK]
            if entries[0] != member.entry:
                heappop(entries)
            elif member.server in avoid:
                avoided.append(heappop(entries))
            else:
                first = member
                break
        for entry in avoided:
            heappush(entries, entry)
        return first
