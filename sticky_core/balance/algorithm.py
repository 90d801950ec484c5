"""The protocols of balance: a configuration (`Balance`) builds an `Algorithm` over the servers of one backend."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Protocol, cast, runtime_checkable

from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.clock import Clock, Rng
from sticky_core.http.messages import Request
from sticky_core.server.server import Server

#: stands in an index for a server that was removed, so that the index does not hold it; it is never read
NO_SERVER = cast(Server, None)


class Algorithm(Protocol):
    """Chooses among the servers of one backend. Called with the backend's lock held."""

    #: whether `acquired` and `released` have to be called; if not, bound requests (assigned by persistence) cost
    #: nothing
    counts_requests: bool

    #: whether a request waits for its server if that is full. The caller puts the servers into `avoid` that must not be
    #: waited for: all full ones (`maxconn`), those with a full queue too (`maxqueue`), none (`always`).
    preserve_affinity: Affinity

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        """Return an electable server that is not in `avoid`, or None if there is none."""
        ...

    def acquired(self, server: Server) -> None:
        """One more request is in flight at `server`, whether `choose` returned it or not."""
        ...

    def released(self, server: Server) -> None:
        """One request less is in flight at `server`."""
        ...

    def state_changed(self, server: Server) -> None:
        """The weight, the state or the health of `server` has changed."""
        ...


@runtime_checkable
class LatencyAware(Protocol):
    """An algorithm that uses the response times of servers."""

    def record_latency(self, server: Server, seconds: float) -> None:
        """`server` began its response `seconds` after the request was sent."""
        ...

    def inherit_from(self, before: LatencyAware) -> None:
        """Take over the measurements of `before` for the servers that both have."""
        ...


@runtime_checkable
class ClockAware(Protocol):
    """An algorithm that reads a clock."""

    def use_clock(self, clock: Clock) -> None:
        """Read `clock`, the backend's, from now on. Called once, before the first choice."""
        ...


@runtime_checkable
class MembershipAware(Protocol):
    """An algorithm that goes on when servers are added and removed. Without this, it is built anew."""

    @property
    def order_matters(self) -> bool:
        """Whether its choices depend on the order of declaration. If so, a server that is not added as the last one
        needs a new algorithm.
        """
        ...

    def added(self, server: Server) -> None:
        """`server` may be chosen from now on; it comes after all others."""
        ...

    def removed(self, server: Server) -> None:
        """`server` must not be chosen any more, and no method is called for it any more."""
        ...


@runtime_checkable
class AddressAware(Protocol):
    """An algorithm that uses the addresses of servers."""

    def address_changed(self, server: Server) -> None:
        """The address of `server` has changed. `state_changed` is called afterwards."""
        ...


@runtime_checkable
class HashAware(Protocol):
    """An algorithm that maps the hash of a key to a server."""

    def hash_of(self, request: Request) -> int | None:
        """Return the hash of the key of `request`, or None if it has no key."""
        ...

    def server_for_hash(self, number: int) -> Server | None:
        """Return the server of the keys with the hash `number` (32 bits), or None if there is no usable server."""
        ...


class Balance(Protocol):
    """The configuration of an algorithm: a word with its arguments."""

    def build(self, servers: Sequence[Server], rng: Rng) -> Algorithm:
        """Build the algorithm for `servers`, which are in the order of declaration."""
        ...
