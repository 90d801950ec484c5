"""Persistence says to whom a client belongs, and marks the answer. Two verbs: `recognise` and `mark`.

It knows nothing of balance; what it proposes is taken if the server is usable.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol

from sticky_core.claim import Mark, Presented
from sticky_core.clock import Clock
from sticky_core.persistence.cookie import Cookie
from sticky_core.recent import Recent
from sticky_core.request import Reply, Request
from sticky_core.server import Server

__all__ = ["Cookie", "Persist", "Persistence"]


class Persistence(Protocol):
    """A way to know a client again, at work over the servers of one backend."""

    #: What was recognised of late and holds whatever the time, as long as the server is usable: by `cookie_key`, the
    #: server, what was presented, and what is kept of the Cookie headers. Found here, a request needs no `recognise`.
    settled: Recent[Hashable, tuple[Server, Presented, Sequence[object] | None]]

    #: for how many seconds a client may stay away and is still known
    idle: float

    def recognise(self, request: Request, *, stopped: bool = False) -> Presented:
        """What the client claims. Takes out of `request` what the server is not to see. `stopped`: a server that is
        down will do (HAProxy `option persist`).
        """
        ...

    def mark(self, presented: Presented, server: Server, direct: bool, request: Request, reply: Reply) -> Mark:
        """Tell the client, in `reply`, that it belongs to `server`, which answered; `direct` if persistence had sent it
        there.
        """
        ...

    def changed(self, server: Server) -> None:
        """Its state, its health or its life is another."""
        ...


class Persist(Protocol):
    """What was asked for."""

    def over(self, backend: str, servers: Sequence[Server], clock: Clock) -> Persistence:
        """The persistence at work over `servers`; `ConfigError` if it can't be."""
        ...
