"""R."""

from __future__ import annotations

import ipaddress
from collections.abc import Container, Hashable, Iterable, Sequence
from itertools import cycle
from typing import Generic, TypeVar

from sticky_core.dns.resolvers import Address, Answer, Endpoint, Resolvers, Status
from sticky_core.durations import seconds

ServerKey = TypeVar("ServerKey", bound=Hashable)


def _order(found: Address) -> tuple[int, bytes, int]:
    """Name servers rotate what they tell. In this order, processes that begin with the same answer agree."""
    address = ipaddress.ip_address(found.address or "")
    return address.version, address.packed, found.port or 0


class Resolution(Generic[ServerKey]):
    """One name, and the servers that are filled from it. Not to be used by two threads at once."""

    def __init__(self, resolvers: Resolvers, slots: Iterable[ServerKey], now: float) -> None:
        self.resolvers = resolvers
        #: the servers, in order
        self.servers = tuple(slots)
        #: who is where; who is missing is nowhere
        self.assigned: dict[ServerKey, Address] = {}
        #: addresses that the last answer had and no server has
        self.surplus = 0
        #: how the last resolution turned out that counted
        self.status: Status | None = None
        self.info = ""
        #: whether names have failed for so long that servers do not stay where they are
        self.has_expired = False
        self._due = now
        self._tries = 0
        self._valid = now  # when there was an answer last
        self._seen: dict[ServerKey, float] = {}  # when the address of each was in one
        self._former: dict[ServerKey, Address] = {}  # where those were last that are nowhere

    def delay(self, now: float) -> float:
        """For how many seconds there is nothing to ask."""
        return max(0.0, self._due - now)

    @property
    def timeout(self) -> float:
        """For how many seconds an answer is waited for."""
        return seconds(self.resolvers.timeout_retry)

    def set_servers(self, slots: Iterable[ServerKey]) -> None:
        """These are the servers now. Who stays keeps its place; who is new gets one with the next answer."""
        self.servers = tuple(slots)
        for known in (self.assigned, self._seen, self._former):
            for slot in [each for each in known if each not in self.servers]:
                del known[slot]

    def record_answer(self, answer: Answer, now: float) -> None:
        """What came of asking: changes `places`."""
        resolvers = self.resolvers
        if answer.status is Status.VALID:
            self._tries = 0
            self.has_expired = False
            self._valid = now
            self._due = now + seconds(resolvers.timeout_resolve)
            self.status, self.info = answer.status, answer.info
            self._assign(answer.addresses, now)
            return
        self._tries += 1
        if self._tries < resolvers.resolve_retries:
            self._due = now + seconds(resolvers.timeout_retry)
            return
        self._tries = 0
        self._due = now + seconds(resolvers.timeout_resolve)
        self.status, self.info = answer.status, answer.info
        self.has_expired = now - self._valid >= resolvers.hold(answer.status)
        if self.has_expired:
            for slot in list(self.assigned):
                self._empty(slot)

    def _assign(self, found: Sequence[Address], now: float) -> None:
        listed: dict[Endpoint, Address] = {}
        for each in sorted((each for each in found if each.address is not None), key=_order):
            listed.setdefault(each.endpoint, each)
        left = dict(listed)  # those that no server has yet
        for slot, held in list(self.assigned.items()):
            again = listed.get(held.endpoint)
            if again is not None:
                self._fill(slot, again, now)
                left.pop(held.endpoint, None)
        self._follow(left, now)
        self._let_go({(each.name, each.port) for each in found if each.address is None}, now)
        for slot, held in list(self._former.items()):  # who is back is back where it was
            if held.endpoint in left:
                self._fill(slot, left.pop(held.endpoint), now)
        free = [slot for slot in self.servers if slot not in self.assigned]
        for slot, each in zip(free, left.values(), strict=False):
            self._fill(slot, each, now)
        self.surplus = max(0, len(left) - len(free))
        if not self.resolvers.prevent_dup_ip and listed:
            for slot, each in zip(free[len(left) :], cycle(listed.values()), strict=False):
                self._fill(slot, each, now)

    def _follow(self, left: dict[Endpoint, Address], now: float) -> None:
        """A host that SRV records name keeps its server when it has moved."""
        for slot, held in list(self.assigned.items()):
            if held.name and self._seen[slot] != now:
                there = [place for place, each in left.items() if (each.name, each.port) == (held.name, held.port)]
                if there:
                    self._fill(slot, left.pop(there[0]), now)

    def _let_go(self, unlearnt: Container[tuple[str, int | None]], now: float) -> None:
        """Who is not in the answer any more loses its place, in time; `unlearnt`: hosts of which it only does not say
        where they are.
        """
        for slot, held in list(self.assigned.items()):
            missing = now - self._seen[slot]
            known = (held.name, held.port) in unlearnt
            hold = self.resolvers.hold(Status.OTHER) if known else seconds(self.resolvers.hold_obsolete)
            if missing > 0 and missing >= hold:
                self._empty(slot)

    def _fill(self, slot: ServerKey, found: Address, now: float) -> None:
        self.assigned[slot] = found
        self._seen[slot] = now
        self._former.pop(slot, None)

    def _empty(self, slot: ServerKey) -> None:
        self._former[slot] = self.assigned.pop(slot)
        del self._seen[slot]
