"""Doors: what a transaction may have to wait for before it knows its next server. Faces open them, and hand in what
they found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sticky_core.backend.queue import Ticket
from sticky_core.server.server import Server
from sticky_core.stores.store import StoreQuery

__all__ = ["Need", "NeedBody", "NeedSlot", "NeedStores"]


class NeedSlot(NamedTuple):
    """Why there is no candidate yet: it is in a queue, or a server that failed is given a pause."""

    until: float  #: by the backend's monotonic clock
    ticket: Ticket | None  #: None: it is a pause
    server: Server | None  #: where it belongs, or is to be told again


class NeedBody(NamedTuple):
    """The beginning of the body has to be read."""

    limit: int  #: so many bytes of it
    then: Callable[[], Server | None]  #: who asks


class NeedStores(NamedTuple):
    """Stores have to be asked."""

    queries: tuple[StoreQuery, ...]
    then: Callable[[], Server | None]
    server: Server | None  #: whose place is held meanwhile


Need = NeedSlot | NeedBody | NeedStores
