"""Persistence says to whom a client belongs, and marks the answer. Two verbs: `recognise` and `mark`.

It knows nothing of balance; what it proposes is taken if the server is usable.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol

from sticky_core.cache import TwoGenerationCache
from sticky_core.clock import Clock
from sticky_core.http.messages import Request, ResponseHead
from sticky_core.persistence.claim import Mark, PersistenceResult
from sticky_core.server.server import Server


class Persistence(Protocol):
    """A way to know a client again, at work over the servers of one backend."""

    #: What was recognised of late and holds whatever the time, as long as the server is usable: by `cookie_key`, the
    #: server, what was presented, and what is kept of the Cookie headers. Found here, a request needs no `recognise`.
    fast_path: TwoGenerationCache[Hashable, tuple[Server, PersistenceResult, Sequence[object] | None]]

    #: for how many seconds a client may stay away and is still known
    max_idle: float

    def recognise(self, request: Request, *, accept_down: bool = False) -> PersistenceResult:
        """What the client claims. Takes out of `request` what the server is not to see. `accept_down`: a server that is
        down will do (HAProxy `option persist`).
        """
        ...

    def stamp_response(
        self, presented: PersistenceResult, server: Server, direct: bool, request: Request, reply: ResponseHead
    ) -> Mark:
        """Tell the client, in `reply`, that it belongs to `server`, which answered; `direct` if persistence had sent it
        there.
        """
        ...

    def state_changed(self, server: Server) -> None:
        """Its state, its health or its life is another."""
        ...


class Persist(Protocol):
    """What was asked for."""

    def build(self, backend: str, servers: Sequence[Server], clock: Clock) -> Persistence:
        """The persistence at work over `servers`; `ConfigError` if it can't be."""
        ...
