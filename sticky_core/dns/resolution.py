"""The assignment of the addresses of one name to servers (HAProxy `server-template`), without I/O: `delay` returns when
to query next, `record_answer` updates which server has which address.

Two rules: a server keeps an address that is still in the answer, so that no server moves without need; and a failure
counts only once it has repeated and its `hold` time is over.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Container, Hashable, Iterable, Sequence
from itertools import cycle
from typing import Generic, TypeVar

from sticky_core.dns.resolvers import Address, Answer, Endpoint, Resolvers, Status
from sticky_core.durations import seconds

ServerKey = TypeVar("ServerKey", bound=Hashable)


def _order(address: Address) -> tuple[int, bytes, int]:
    """Sort key of an address. Name servers rotate their records; with this order all processes that start from the same
    answer assign alike.
    """
    ip = ipaddress.ip_address(address.address or "")
    return ip.version, ip.packed, address.port or 0


class Resolution(Generic[ServerKey]):
    """One name and the servers that get its addresses. Not thread-safe."""

    def __init__(self, resolvers: Resolvers, servers: Iterable[ServerKey], now: float) -> None:
        self.resolvers = resolvers
        #: the servers, in the order in which they get addresses
        self.servers = tuple(servers)
        #: the address of each server that has one
        self.assigned: dict[ServerKey, Address] = {}
        #: how many addresses of the last answer are not assigned to a server
        self.surplus = 0
        #: the result of the last resolution that counted, and its details
        self.status: Status | None = None
        self.info = ""
        #: whether resolution has failed for longer than its `hold` time, so that servers lost their addresses
        self.has_expired = False
        self._due = now
        self._tries = 0  # failed ones in a row
        self._last_valid = now  # the time of the last valid answer
        self._last_seen: dict[ServerKey, float] = {}  # when the address of each server was last in an answer
        self._last_address: dict[ServerKey, Address] = {}  # the last address of each server that has none

    def delay(self, now: float) -> float:
        """Return the seconds until the next resolution is due."""
        return max(0.0, self._due - now)

    @property
    def timeout(self) -> float:
        """Seconds to wait for an answer."""
        return seconds(self.resolvers.timeout_retry)

    def set_servers(self, servers: Iterable[ServerKey]) -> None:
        """Replace the servers. Those that stay keep their addresses; new ones get one with the next answer."""
        self.servers = tuple(servers)
        for known in (self.assigned, self._last_seen, self._last_address):
            for server in [each for each in known if each not in self.servers]:
                del known[server]

    def record_answer(self, answer: Answer, now: float) -> None:
        """Apply the result of a resolution: update `assigned` and set when the next resolution is due."""
        resolvers = self.resolvers
        if answer.status is Status.VALID:
            self._tries = 0
            self.has_expired = False
            self._last_valid = now
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
        self.has_expired = now - self._last_valid >= resolvers.hold(answer.status)
        if self.has_expired:
            for server in list(self.assigned):
                self._release(server)

    def _assign(self, addresses: Sequence[Address], now: float) -> None:
        listed: dict[Endpoint, Address] = {}
        for each in sorted((each for each in addresses if each.address is not None), key=_order):
            listed.setdefault(each.endpoint, each)
        unassigned = dict(listed)
        for server, current in list(self.assigned.items()):
            same = listed.get(current.endpoint)
            if same is not None:
                self._assign_to(server, same, now)
                unassigned.pop(current.endpoint, None)
        self._follow_hosts(unassigned, now)
        self._release_missing({(each.name, each.port) for each in addresses if each.address is None}, now)
        for server, last in list(self._last_address.items()):  # an address that is back gets its former server
            if last.endpoint in unassigned:
                self._assign_to(server, unassigned.pop(last.endpoint), now)
        free = [server for server in self.servers if server not in self.assigned]
        for server, each in zip(free, unassigned.values(), strict=False):
            self._assign_to(server, each, now)
        self.surplus = max(0, len(unassigned) - len(free))
        if not self.resolvers.prevent_dup_ip and listed:
            for server, each in zip(free[len(unassigned) :], cycle(listed.values()), strict=False):
                self._assign_to(server, each, now)

    def _follow_hosts(self, unassigned: dict[Endpoint, Address], now: float) -> None:
        """Let a host that SRV records name keep its server when its address has changed."""
        for server, current in list(self.assigned.items()):
            if current.name and self._last_seen[server] != now:
                host = current.name, current.port
                endpoints = [endpoint for endpoint, each in unassigned.items() if (each.name, each.port) == host]
                if endpoints:
                    self._assign_to(server, unassigned.pop(endpoints[0]), now)

    def _release_missing(self, unresolved: Container[tuple[str, int | None]], now: float) -> None:
        """Release the servers with an address that has been missing from the answers for its hold time. `unresolved`:
        hosts that the answer names, but without an address.
        """
        for server, current in list(self.assigned.items()):
            missing = now - self._last_seen[server]
            is_named = (current.name, current.port) in unresolved
            hold = self.resolvers.hold(Status.OTHER) if is_named else seconds(self.resolvers.hold_obsolete)
            if missing > 0 and missing >= hold:
                self._release(server)

    def _assign_to(self, server: ServerKey, address: Address, now: float) -> None:
        self.assigned[server] = address
        self._last_seen[server] = now
        self._last_address.pop(server, None)

    def _release(self, server: ServerKey) -> None:
        self._last_address[server] = self.assigned.pop(server)
        del self._last_seen[server]
