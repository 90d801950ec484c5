"""Persistence finds the server that a client belongs to (`recognise`) and marks the response (`stamp_response`).

Persistence does not know the balance algorithm. The server that it finds gets the request if that server is usable.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, Protocol, runtime_checkable

from sticky_core.cache import TwoGenerationCache
from sticky_core.clock import Clock
from sticky_core.http.cookies import CookieKey
from sticky_core.http.messages import Request, ResponseHead
from sticky_core.persistence.claim import Mark, PersistenceResult
from sticky_core.persistence.cookie_scope import CookieScope
from sticky_core.server.server import Server
from sticky_core.stick_table.table import StickTable

#: Results that do not depend on the time, by `cookie_key`: the server, the result, and the Cookie headers to forward
#: (`Request.forwarded_cookies`).
FastPath = TwoGenerationCache[CookieKey, tuple[Server, PersistenceResult, Sequence[object] | None]]


def no_fast_path() -> FastPath:
    """Return a fast path that stays empty, for a persistence that has to recognise every request anew."""
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

    def former_texts_of(self, server: Server) -> Sequence[str]:
        """Return the texts that stood for `server` formerly, or still do in other processes."""
        ...


class Persistence(Protocol):
    """The run-time object of one persistence, for the servers of one backend."""

    #: Recent results, each valid as long as its server is usable. For a request with a result in here `recognise` is
    #: not called.
    fast_path: FastPath

    #: how many seconds after its last request a client is still recognised
    max_idle: float

    @property
    def tables(self) -> Sequence[UsedTable]:
        """The stick tables in use. A persistence that uses tables is exempt from `ignore_persist`, as in HAProxy."""
        ...

    def recognise(self, request: Request, *, accept_down: bool = False) -> PersistenceResult:
        """Return what the client claims, and remove from `request` the cookies that servers must not get. With
        `accept_down` the request goes to the claimed server even if that server is down (HAProxy `option persist`).
        """
        ...

    def stamp_response(
        self, result: PersistenceResult, server: Server, is_bound: bool, request: Request, response: ResponseHead
    ) -> Mark:
        """Write to `response`, which `server` has sent, that the client belongs to `server`. `is_bound`: whether
        `result` had bound the request to this server.
        """
        ...

    def state_changed(self, server: Server) -> None:
        """Update what depends on the state, health, address or instance of `server`: one of them has changed."""
        ...


@runtime_checkable
class ReusablePersistence(Protocol):
    """A persistence that makes a copy of itself for other servers, in less time than it takes to build one."""

    def with_servers(
        self, servers: Sequence[Server], added: Sequence[Server], removed: Sequence[Server]
    ) -> Persistence:
        """Return a copy for `servers`: without `removed`, and with `added`, which `Persist.build` accepts. A server
        with another id is in both. This persistence stays as it is, for the requests of the snapshot that has it.
        """
        ...


class Persist(Protocol):
    """The configuration of one persistence."""

    def cookie_scopes(self) -> Sequence[CookieScope]:
        """Return the scopes of the cookies that the persistence writes, except those of which the application decides
        where browsers send them.
        """
        ...

    def build(self, backend: str, servers: Sequence[Server], clock: Clock) -> Persistence:
        """Return the persistence for `servers`. Raise ConfigError if it can't work with one of them."""
        ...


@runtime_checkable
class AcceptsCookies(Protocol):
    """The configuration of a persistence that accepts cookies beside its own."""

    def accepted_names(self) -> Collection[str]:
        """Return the names of the cookies that it accepts, and removes from requests and from clients."""
        ...


@runtime_checkable
class NamesCookies(Protocol):
    """The configuration of a persistence by cookies of which the scopes may not be known."""

    @property
    def cookie_names(self) -> Collection[str]:
        """The names of its cookies, without those of the application."""
        ...


@runtime_checkable
class OnlyAccepted(Protocol):
    """The configuration of a persistence that marks no response: it has an effect in `Cookie(accepts=...)` only."""

    @property
    def is_only_accepted(self) -> Literal[True]: ...


def cookie_names(persist: Persist) -> set[str]:
    """Return the names of the cookies of a persistence, without those of which it writes nothing."""
    return inserted_names(persist).union(scope.name for scope in persist.cookie_scopes())


def inserted_names(persist: Persist) -> set[str]:
    """Return the names of the cookies of a persistence, without those of the application."""
    names = {scope.name for scope in persist.cookie_scopes() if scope.is_inserted}
    return names.union(persist.cookie_names) if isinstance(persist, NamesCookies) else names


def label_of(persist: Persist) -> str:
    """Return a persistence as text, without its options: `Cookie('SERVERID')`."""
    label: object = getattr(persist, "label", None)
    if isinstance(label, str):
        return label
    name: object = getattr(persist, "name", None)
    return type(persist).__name__ if name is None else f"{type(persist).__name__}({name!r})"
