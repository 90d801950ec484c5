"""Rules of persistence: to whom the usual does not apply (HAProxy `option persist`, `force-persist`, `ignore-persist`,
`use-server`). They stand around what was asked for, so that a backend without rules pays nothing for them.

In HAProxy's order: force-persist or ignore-persist, use-server, and then what the client claims.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Protocol

from sticky_core.cache import TwoGenerationCache
from sticky_core.http.messages import Request, ResponseHead
from sticky_core.persistence.claim import NO_PERSISTENCE, Claim, Mark, PersistenceResult, Reason
from sticky_core.persistence.persistence import Persistence
from sticky_core.server.server import Server

#: told the request: whether a rule is for it
Condition = Callable[[Request], object]


class RuleOptions(Protocol):
    """The rules as a backend is told them."""

    @property
    def persist_on_down(self) -> bool: ...
    @property
    def force_persist(self) -> Condition | None: ...
    @property
    def ignore_persist(self) -> Condition | None: ...
    @property
    def use_server(self) -> Sequence[tuple[str, Condition]]: ...


class RuledPersistence:
    """A persistence, or none, under rules."""

    fast_path: TwoGenerationCache[Hashable, tuple[Server, PersistenceResult, Sequence[object] | None]]

    def __init__(self, asked: RuleOptions, servers: Sequence[Server], persistence: Persistence | None) -> None:
        by_name = {server.name: server for server in servers}
        self._always = asked.persist_on_down
        self._force = asked.force_persist
        self._use = [(by_name[name], condition) for name, condition in asked.use_server]
        self._persistence = persistence
        self.max_idle = 0.0 if persistence is None else persistence.max_idle
        # where conditions have to be asked, nothing is settled by what a client says
        self._asks = bool(self._force or self._use)
        self._none: TwoGenerationCache[Hashable, tuple[Server, PersistenceResult, Sequence[object] | None]] = (
            TwoGenerationCache(0)
        )
        self._renew()

    @classmethod
    def of(
        cls, asked: RuleOptions, servers: Sequence[Server]
    ) -> Callable[[Persistence | None], RuledPersistence] | None:
        """The rules, to be put around a persistence; None if there are none."""
        if not (asked.persist_on_down or asked.force_persist or asked.use_server):
            return None
        return lambda persistence: cls(asked, servers, persistence)

    def _renew(self) -> None:
        self.fast_path = self._none if self._asks or self._persistence is None else self._persistence.fast_path

    def recognise(self, request: Request, *, accept_down: bool = False) -> PersistenceResult:
        forced = self._force is not None and bool(self._force(request))
        accept_down = self._always or forced
        presented = NO_PERSISTENCE
        if self._persistence is not None:
            presented = self._persistence.recognise(request, accept_down=accept_down)
        for server, condition in self._use:
            if (server.usable or accept_down) and condition(request):
                return replace(_unused(presented), server=server, overrides_claim=True, is_forced=forced)
        return replace(presented, is_forced=True, needs_no_mark=False) if forced else presented

    def stamp_response(
        self, presented: PersistenceResult, server: Server, direct: bool, request: Request, reply: ResponseHead
    ) -> Mark:
        if self._persistence is None:
            return Mark.NONE
        return self._persistence.stamp_response(presented, server, direct, request, reply)

    def state_changed(self, server: Server) -> None:
        if self._persistence is not None:
            self._persistence.state_changed(server)
            self._renew()


class IgnorablePersistence:
    """A persistence whose word does not count for some requests, and which tells them nothing (`ignore-persist`). It is
    for cookies: stick rules are worked through all the same, as in HAProxy.
    """

    def __init__(self, asked: RuleOptions, persistence: Persistence) -> None:
        self._force = asked.force_persist
        self._ignore = asked.ignore_persist
        self._persistence = persistence
        self.max_idle = persistence.max_idle
        self.fast_path: TwoGenerationCache[Hashable, tuple[Server, PersistenceResult, Sequence[object] | None]] = (
            TwoGenerationCache(0)
        )

    def recognise(self, request: Request, *, accept_down: bool = False) -> PersistenceResult:
        presented = self._persistence.recognise(request, accept_down=accept_down)
        if self._ignore is None or not self._ignore(request) or (self._force is not None and self._force(request)):
            return presented
        return replace(_unused(presented), server=None, is_ignored=True)

    def stamp_response(
        self, presented: PersistenceResult, server: Server, direct: bool, request: Request, reply: ResponseHead
    ) -> Mark:
        if presented.is_ignored:
            return Mark.NONE
        return self._persistence.stamp_response(presented, server, direct, request, reply)

    def state_changed(self, server: Server) -> None:
        self._persistence.state_changed(server)


def _unused(presented: PersistenceResult) -> PersistenceResult:
    """A claim that a rule has overtaken."""
    parts = tuple(_unused(part) for part in presented.results)
    claim, reason = presented.claim, presented.reason
    if claim is not Claim.NONE:
        claim, reason = Claim.UNUSED, Reason.RULE
    return replace(
        presented, claim=claim, reason=reason, needs_no_mark=False, results=parts, queries=(), reservations=()
    )
