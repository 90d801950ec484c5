"""Rules that overrule the client's claim (HAProxy `option persist`, `force-persist`, `ignore-persist`, `use-server`).

The rules wrap the persistences of a backend, so they cost nothing in a backend without rules. The order is HAProxy's:
first force-persist or ignore-persist, then use-server, then the client's claim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from sticky_core.http.messages import Request, ResponseHead
from sticky_core.persistence.claim import NO_PERSISTENCE, Claim, Mark, PersistenceResult, Reason
from sticky_core.persistence.persistence import FastPath, Persistence, UsedTable, no_fast_path
from sticky_core.server.server import Server

#: returns, as true or false, whether a rule applies to a request
Condition = Callable[[Request], object]


def holds(condition: Condition, request: Request, place: str) -> bool:
    """Return whether `condition`, which the user has passed as `place`, returns true; it is false if it raises."""
    try:
        return bool(condition(request))
    except Exception as error:
        request.function_failed(place, condition, error)
        return False


class RuleOptions(Protocol):
    """The options of a backend that are rules."""

    @property
    def persist_on_down(self) -> bool: ...
    @property
    def force_persist(self) -> Condition | None: ...
    @property
    def ignore_persist(self) -> Condition | None: ...
    @property
    def use_server(self) -> Sequence[tuple[str, Condition]]: ...


def with_rules(options: RuleOptions, servers: Sequence[Server], persistence: Persistence | None) -> Persistence | None:
    """Return `persistence` with the rules of `options`, or `persistence` itself if there are no rules."""
    if options.persist_on_down or options.force_persist or options.use_server:
        return RuledPersistence(options, servers, persistence)
    return persistence


class RuledPersistence:
    """A persistence, or None, with the rules `persist_on_down`, `force_persist` and `use_server`."""

    fast_path: FastPath

    def __init__(self, options: RuleOptions, servers: Sequence[Server], persistence: Persistence | None) -> None:
        by_name = {server.name: server for server in servers}
        self._persist_on_down = options.persist_on_down
        self._force_persist = options.force_persist
        self._use_server = [(by_name[name], condition, f"use_server {name}") for name, condition in options.use_server]
        self._persistence = persistence
        self.max_idle = 0.0 if persistence is None else persistence.max_idle
        # conditions are evaluated for each request, so the fast path can't be used
        self._has_conditions = bool(self._force_persist or self._use_server)
        self._no_fast_path = no_fast_path()
        self._update_fast_path()

    def _update_fast_path(self) -> None:
        if self._persistence is None or self._has_conditions:
            self.fast_path = self._no_fast_path
        else:
            self.fast_path = self._persistence.fast_path

    @property
    def tables(self) -> Sequence[UsedTable]:
        return () if self._persistence is None else self._persistence.tables

    def recognise(self, request: Request, *, accept_down: bool = False) -> PersistenceResult:
        is_forced = self._force_persist is not None and holds(self._force_persist, request, "force_persist")
        accept_down = self._persist_on_down or is_forced
        result = NO_PERSISTENCE
        if self._persistence is not None:
            result = self._persistence.recognise(request, accept_down=accept_down)
        for server, condition, place in self._use_server:
            if (server.usable or accept_down) and holds(condition, request, place):
                return replace(_unused(result), server=server, overrides_claim=True, is_forced=is_forced)
        return replace(result, is_forced=True, needs_no_mark=False) if is_forced else result

    def stamp_response(
        self, result: PersistenceResult, server: Server, is_bound: bool, request: Request, response: ResponseHead
    ) -> Mark:
        if self._persistence is None:
            return Mark.NONE
        return self._persistence.stamp_response(result, server, is_bound, request, response)

    def state_changed(self, server: Server) -> None:
        if self._persistence is not None:
            self._persistence.state_changed(server)
            self._update_fast_path()


class IgnorablePersistence:
    """A persistence with the rule `ignore_persist`: for a request that the rule matches, the claim does not count and
    the response gets no mark. The rule concerns cookies only; stick rules apply nevertheless, as in HAProxy.
    """

    tables: Sequence[UsedTable] = ()

    def __init__(self, options: RuleOptions, persistence: Persistence) -> None:
        self._force_persist = options.force_persist
        self._ignore_persist = options.ignore_persist
        self._persistence = persistence
        self.max_idle = persistence.max_idle
        self.fast_path = no_fast_path()

    def recognise(self, request: Request, *, accept_down: bool = False) -> PersistenceResult:
        result = self._persistence.recognise(request, accept_down=accept_down)
        if self._ignore_persist is None or not holds(self._ignore_persist, request, "ignore_persist"):
            return result
        if self._force_persist is not None and holds(self._force_persist, request, "force_persist"):
            return result
        return replace(_unused(result), server=None, is_ignored=True)

    def stamp_response(
        self, result: PersistenceResult, server: Server, is_bound: bool, request: Request, response: ResponseHead
    ) -> Mark:
        if result.is_ignored:
            return Mark.NONE
        return self._persistence.stamp_response(result, server, is_bound, request, response)

    def state_changed(self, server: Server) -> None:
        self._persistence.state_changed(server)


def _unused(result: PersistenceResult) -> PersistenceResult:
    """Return `result` with its claim, if there is one, marked as unused because of a rule."""
    claim, reason = result.claim, result.reason
    if claim is not Claim.NONE:
        claim, reason = Claim.UNUSED, Reason.RULE
    return replace(
        result,
        claim=claim,
        reason=reason,
        needs_no_mark=False,
        results=tuple(map(_unused, result.results)),
        queries=(),
        reservations=(),
    )
