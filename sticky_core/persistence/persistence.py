"""Persistence finds the server that a client belongs to (`recognise`) and marks the response (`stamp_response`).

It does not know the balance algorithm. The server that it proposes is used if it is usable.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol

from sticky_core.cache import TwoGenerationCache
from sticky_core.clock import Clock
from sticky_core.http.messages import Request, ResponseHead
from sticky_core.persistence.claim import Mark, PersistenceResult
from sticky_core.persistence.cookie_scope import CookieScope
from sticky_core.server.server import Server
from sticky_core.stick_table.table import StickTable

#: Results that do not depend on the time, by `cookie_key`: the server, the result, and the Cookie headers to forward
#: (`Request.forwarded_cookies`).
FastPath = TwoGenerationCache[Hashable, tuple[Server, PersistenceResult, Sequence[object] | None]]


def no_fast_path() -> FastPath:
    """Return the fast path of a persistence that has to look at each request: it is always empty."""
    return FastPath(0)


class UsedTable(Protocol):
    """A stick table as one backend uses it: the table, and the texts by which it names the backend's servers."""

    @property
    def table(self) -> StickTable: ...

    def text_of(self, server: Server) -> str:
        """Return the text that stands for `server` in the table."""
        ...

    def server_of(self, text: str) -> Server | None:
        """Return the server that `text` stands for, or None if this backend has none."""
        ...


class Persistence(Protocol):
    """The run-time object of one persistence, for the servers of one backend."""

    #: Recent results that hold as long as their server is usable. A request that is found here is not recognised again.
    fast_path: FastPath

    #: for how many seconds a client may stay away and is still recognised
    max_idle: float

    @property
    def tables(self) -> Sequence[UsedTable]:
        """The stick tables in use. A persistence by tables is exempt from `ignore_persist`, as in HAProxy."""
        ...

    def recognise(self, request: Request, *, accept_down: bool = False) -> PersistenceResult:
        """Return what the client claims, and remove from `request` what the server is not to see. With `accept_down`
        a server that is down is good enough (HAProxy `option persist`).
        """
        ...

    def stamp_response(
        self, result: PersistenceResult, server: Server, is_bound: bool, request: Request, response: ResponseHead
    ) -> Mark:
        """Write to `response` that the client belongs to `server`, which has sent it. `is_bound`: `result` had bound
        the request to that server.
        """
        ...

    def state_changed(self, server: Server) -> None:
        """React to another state, health, address or instance of `server`."""
        ...


class Persist(Protocol):
    """The configuration of one persistence."""

    def cookie_scopes(self) -> Sequence[CookieScope]:
        """Return the cookies that it writes, as far as the configuration tells where browsers send them."""
        ...

    def build(self, backend: str, servers: Sequence[Server], clock: Clock) -> Persistence:
        """Return the persistence for `servers`. ConfigError if these servers don't fit."""
        ...
