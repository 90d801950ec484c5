"""Steps: what a transaction returns when the dispatch loop asks where the request goes next. A step is a server, or
what has to be waited for before the server is known, or that no server can take the request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from sticky_core.backend.queue import Ticket
from sticky_core.server.server import Server
from sticky_core.stores.store import StoreQuery

__all__ = ["UNAVAILABLE", "Need", "NeedBody", "NeedSlot", "NeedStores", "Step", "Unavailable"]


class NeedSlot(NamedTuple):
    """Wait for a slot at a server that has reached its `maxconn`, or for the end of a pause (`Transaction.resume`)."""

    until: float  #: when to give up, by the backend's monotonic clock
    ticket: Ticket | None  #: the place in the queue; None: a pause before the same server is tried again
    server: Server | None  #: the server that the request is bound to, or that is tried again


class NeedBody(NamedTuple):
    """Read the beginning of the body (`Transaction.body_read`)."""

    limit: int  #: how many bytes are needed
    then: Callable[[], Step]  #: returns the next step


class NeedStores(NamedTuple):
    """Send queries to stores (`Transaction.stores_replied`)."""

    queries: tuple[StoreQuery, ...]
    then: Callable[[], Step]  #: returns the next step
    server: Server | None  #: the server at which a slot is held meanwhile


class Unavailable(NamedTuple):
    """No server can take the request, or it may not be replayed."""


#: what has to be waited for
Need: TypeAlias = NeedSlot | NeedBody | NeedStores
Step: TypeAlias = Server | Need | Unavailable

UNAVAILABLE: Final = Unavailable()
