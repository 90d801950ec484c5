"""Balance chooses a server for a request that belongs nowhere yet. One file per word that a user writes.

An algorithm owns its index of the servers and is told what changes; nothing is listed per request. It is called under
its backend's lock, so it needs none.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Protocol, runtime_checkable

from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.clock import Rng
from sticky_core.http.messages import Request
from sticky_core.server.server import Server


class Algorithm(Protocol):
    """A way to choose, at work over the servers of one backend."""

    #: whether it wants `taken` and `left`; an algorithm that does not costs a bound request nothing
    counts_requests: bool

    #: how far it insists on a server that is full. Whoever asks puts those into `avoid` that are not worth waiting for:
    #: all who are full (`maxconn`), those whose queue is full as well (`maxqueue`), nobody (`always`).
    preserve_affinity: Affinity

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        """A server that is electable and not in `avoid`; None if there is none."""
        ...

    def acquired(self, server: Server) -> None:
        """One more request is at `server`, chosen here or not."""
        ...

    def released(self, server: Server) -> None:
        """One less."""
        ...

    def state_changed(self, server: Server) -> None:
        """Its weight, its state or its health is another."""
        ...


@runtime_checkable
class LatencyAware(Protocol):
    """An algorithm that also wants to know how long servers take."""

    def record_latency(self, server: Server, seconds: float) -> None:
        """`server` has begun an answer so long after it was asked."""
        ...

    def inherit_from(self, before: LatencyAware) -> None:
        """Go on with what another has seen of the servers that it had as well."""
        ...


@runtime_checkable
class AddressAware(Protocol):
    """An algorithm that also goes by where servers are."""

    def address_changed(self, server: Server) -> None:
        """Its address is another. `changed` comes behind."""
        ...


@runtime_checkable
class HashAware(Protocol):
    """An algorithm that goes by keys, each of which is hashed to a number."""

    def server_for_hash(self, number: int) -> Server | None:
        """Whose keys are they that are hashed to `number` (32 bits); None if there is nobody."""
        ...


class Balance(Protocol):
    """What was asked for: a word with its arguments."""

    def build(self, servers: Sequence[Server], rng: Rng) -> Algorithm:
        """The algorithm at work over `servers`, which are in the order in which they were declared."""
        ...
