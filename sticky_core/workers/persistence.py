"""How a worker recognises its clients: by a key that has a known owner, and by a cookie that names a worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

from sticky_core.clock import Clock
from sticky_core.deferred.dataclass import dataclass
from sticky_core.http.messages import Request, ResponseHead
from sticky_core.persistence.claim import NO_ENTRY, NO_KEY, Claim, Mark, PersistenceResult, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.cookie.engine import CookieEngine
from sticky_core.persistence.cookie_scope import CookieScope
from sticky_core.persistence.persistence import FastPath, UsedTable, no_fast_path
from sticky_core.server import instance
from sticky_core.server.server import Server
from sticky_core.stores.store import StoreCommand, StoreQuery
from sticky_core.workers.keys import KeyTable


@dataclass(frozen=True, slots=True)
class RefreshedCookie:
    """A cookie that names a worker. `refresh` is called before the cookie is read, to find out which workers run."""

    cookie: Cookie
    refresh: Callable[[], None]

    def cookie_scopes(self) -> Sequence[CookieScope]:
        return ()

    def build(self, backend: str, servers: Sequence[Server], clock: Clock) -> RefreshedCookieRuntime:
        return RefreshedCookieRuntime(self.cookie.build(backend, servers, clock), self.refresh)


class RefreshedCookieRuntime:
    """`RefreshedCookie` over the servers of one backend. Nearly all cookies are recognised on the fast path, without a
    refresh.
    """

    fast_path: FastPath
    tables: Sequence[UsedTable] = ()

    def __init__(self, persistence: CookieEngine, refresh: Callable[[], None]) -> None:
        self._persistence = persistence
        self._refresh = refresh
        self.accepted = persistence.accepted
        self.max_idle = persistence.max_idle
        self.fast_path = persistence.fast_path

    def recognise(self, request: Request, *, accept_down: bool = False) -> PersistenceResult:
        if request.cookie_key is not None or self.accepted is not None:  # what is accepted may be no cookie
            self._refresh()
        return self._persistence.recognise(request, accept_down=accept_down)

    def stamp_response(
        self, result: PersistenceResult, server: Server, is_bound: bool, request: Request, response: ResponseHead
    ) -> Mark:
        return self._persistence.stamp_response(result, server, is_bound, request, response)

    def state_changed(self, server: Server) -> None:
        self._persistence.state_changed(server)
        self.fast_path = self._persistence.fast_path


@dataclass(frozen=True, slots=True, eq=False)
class LearnedKeys:
    """Persistence by keys that workers learn. `reports_lost`: whether a client gets a 410 instead of another worker
    when its worker has ended.
    """

    keys: KeyTable
    reports_lost: bool

    def cookie_scopes(self) -> Sequence[CookieScope]:
        return ()

    def build(self, backend: str, servers: Sequence[Server], clock: Clock) -> LearnedKeysRuntime:
        return LearnedKeysRuntime(self.keys, self.reports_lost)


class LearnedKeysRuntime:
    """`LearnedKeys` over the servers of one backend. The `persistence_state` of a result is the key."""

    tables: Sequence[UsedTable] = ()

    def __init__(self, keys: KeyTable, reports_lost: bool) -> None:
        self._keys = keys
        self._reports_lost = reports_lost
        self.max_idle = keys.table.expire
        self.fast_path = no_fast_path()

    def recognise(self, request: Request, *, accept_down: bool = False) -> PersistenceResult:
        keys = self._keys
        try:
            key = keys.table_key(keys.sample(request))
        except Exception as error:
            request.function_failed("the key of StickyWorkers", keys.sample, error)
            return NO_KEY
        if key is None:
            keys.refused_keys.count_without_key()
            return NO_KEY
        last_owner = keys.last_owner(key)
        server = keys.live_server(last_owner) if last_owner is not None else None
        if server is not None:
            if server is keys.own_server and (reason := keys.pop_claim_reason(key)) is not None:
                claim = Claim.NONE if reason is Reason.NO_ENTRY else Claim.INVALID
                return PersistenceResult(claim, reason, server, overrides_claim=True, persistence_state=key)
            return PersistenceResult(Claim.VALID, Reason.BOUND, server, persistence_state=key)
        if self._reports_lost and last_owner is not None:
            return PersistenceResult(Claim.INVALID, Reason.OTHER_INSTANCE, persistence_state=key)
        command = StoreCommand(keys, (key,))
        if request.store_query(command) is None:
            return replace(NO_ENTRY, queries=(StoreQuery(command, 0),), persistence_state=key)
        return replace(NO_ENTRY, persistence_state=key)  # the owner was found, and has just ended

    def stamp_response(
        self, result: PersistenceResult, server: Server, is_bound: bool, request: Request, response: ResponseHead
    ) -> Mark:
        keys = self._keys
        if result.persistence_state is not None:
            key, owner = cast(str, result.persistence_state), instance.id_with_instance(server.name, server.instance)
            keys.learn(key, owner)
            keys.begin_use(request, key, owner)  # `KeyTransaction` ends it
        keys.learn_from_response(response, server)
        return Mark.NONE

    def state_changed(self, server: Server) -> None:
        """Do nothing: each request looks up the state of the owner."""
