"""Which clients that are bound by a cookie would move under another configuration. No request is needed for that: for
each server a mark is made as the one configuration makes it, and recognised as the other one would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Self

from sticky_core.backend.config import BackendConfig
from sticky_core.clock import Clock
from sticky_core.http import cookies
from sticky_core.http.messages import SharedTable
from sticky_core.persistence.claim import NO_COOKIE, Claim, PersistenceResult, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.follow import Follow
from sticky_core.persistence.persistence import Persist, Persistence
from sticky_core.persistence.persistence_set import AcceptingPersistence, PersistenceSet
from sticky_core.persistence.route import Route, RouteEngine
from sticky_core.persistence.stick.config import group_stick_rules
from sticky_core.samples.request import cook
from sticky_core.server.server import Server
from sticky_core.stores.store import StoreCommand, StoreQuery


class TrialRequest:
    """A request with these cookies, and nothing else."""

    def __init__(self, pairs: Sequence[str]) -> None:
        self._sent: tuple[str, ...] = ("; ".join(pairs),) if pairs else ()
        self.cookie_key: cookies.CookieKey = self._sent or None
        self.forwarded_cookies: tuple[str, ...] | None = None

    @property
    def cookies(self) -> tuple[str, ...]:
        return self._sent if self.forwarded_cookies is None else self.forwarded_cookies

    def set_forwarded_cookies(self, texts: Sequence[str]) -> None:
        self.forwarded_cookies = tuple(texts)

    def header(self, name: str) -> Sequence[str]:
        return ()

    def peek(self, limit: int) -> bytes:
        return b""

    def store_query(self, command: StoreCommand) -> StoreQuery | None:
        return None

    def queue_write(self, table: SharedTable, key: str, command: StoreCommand) -> None:
        """Nothing is written."""

    def function_failed(self, place: str, function: object, error: Exception, *, is_locked: bool = False) -> None:
        """Nothing is counted: there is no client."""

    def note_missing_key(self, why: str) -> None:
        """Nothing is noted: there is no decision."""

    method = "POST"
    peer = src = query = ""
    path = "/"
    scheme = "https"
    secure = replayable = True


class TrialResponse:
    """The head of a response with which the application sets these cookies."""

    def __init__(self, set_cookies: Sequence[str]) -> None:
        self.set_cookies = list(set_cookies)

    @property
    def sets_cookies(self) -> bool:
        return bool(self.set_cookies)

    def edit_cookies(self, new: Callable[[str], str | None]) -> None:
        edited = map(new, self.set_cookies)
        self.set_cookies = [each for each in edited if each is not None]

    def header(self, name: str) -> Sequence[str]:
        return ()

    @property
    def cache_control(self) -> str:
        return ""

    def add(self, name: str, value: str) -> None:
        if name == "set-cookie":
            self.set_cookies.append(value)


class TrialPersistences:
    """The persistences of one configuration that need no table."""

    def __init__(self, config: BackendConfig, servers: Sequence[Server], clock: Clock) -> None:
        built = [(persist, persist.build(config.name, servers, clock)) for persist in config.persist]
        for _, engine in built:
            if isinstance(engine, AcceptingPersistence) and engine.accepted is not None:
                engine.accepted.silence()
        self._use(built)

    @classmethod
    def of(cls, config: BackendConfig, persistences: PersistenceSet) -> Self:
        """Return those of `persistences`, which are those of `config`."""
        used = cls.__new__(cls)
        used._use(zip(group_stick_rules(config.persist), persistences.engines, strict=True))
        return used

    def _use(self, built: Iterable[tuple[Persist, Persistence]]) -> None:
        self._members = [(persist, engine) for persist, engine in built if not engine.tables]

    @property
    def persists(self) -> list[Persist]:
        """Their configurations."""
        return [persist for persist, _ in self._members]

    def marks_of(self, server: Server) -> list[str]:
        """Return the cookies, as `name=value`, of a client that `server` has served."""
        pairs: list[str] = []
        is_former = not server.config.cookie_id and bool(server.recognised_id)  # only its own clients get its id
        result = PersistenceResult(Claim.VALID, Reason.BOUND, server, is_outdated=True) if is_former else NO_COOKIE
        for persist, engine in self._members:
            response = TrialResponse([*_application_cookies(persist, server)])
            with suppress(Exception):  # of a persistence of the user's
                engine.stamp_response(result, server, is_former, TrialRequest(()), response)
                pairs += (text.partition(";")[0] for text in response.set_cookies)
        return pairs

    def route_of(self, server: Server) -> str:
        """Return the route of `server` that the application writes elsewhere than into a cookie; empty if no route is
        read there, or it has none.
        """
        has_routes = any(isinstance(persist, Route) and not _is_in_cookie(persist) for persist, _ in self._members)
        return server.recognised_id if has_routes else ""

    def find(self, pairs: Sequence[str], route: str) -> str | None:
        """Return the name of the server that a client with these marks is bound to, usable or not; None if it is bound
        to none.
        """
        for _, engine in self._members:
            name = self._find_by(engine, pairs, route)
            if name is not None:
                return name
        return None

    def _find_by(self, engine: Persistence, pairs: Sequence[str], route: str) -> str | None:
        with suppress(Exception):  # of a persistence of the user's
            result = engine.recognise(TrialRequest(pairs))
            if result.server is not None and result.claim in (Claim.VALID, Claim.DOWN):
                return result.server.name
        for each in (engine, *_accepted_engines(engine)) if route else ():
            found = each.servers_with_route(route) if isinstance(each, RouteEngine) else ()
            if found:
                return found[0].name
        return None


def _accepted_engines(engine: Persistence) -> Sequence[Persistence]:
    return engine.accepted.engines if isinstance(engine, AcceptingPersistence) and engine.accepted is not None else ()


def servers_with_marks(
    persistences: TrialPersistences, others: TrialPersistences, servers: Sequence[Server]
) -> set[str]:
    """Return the names of the servers that have, under `persistences`, the marks that `servers` have under `others`."""
    found = (persistences.find(others.marks_of(server), others.route_of(server)) for server in servers)
    return {name for name in found if name is not None}


def _application_cookies(persist: Persist, server: Server) -> Iterator[str]:
    """Yield the Set-Cookie values by which the application takes part in a persistence."""
    if isinstance(persist, Follow):
        yield f"{persist.application}=1"
    elif isinstance(persist, Cookie) and persist.mode != "insert" and cookies.is_value(server.recognised_id):
        yield f"{persist.name}={server.recognised_id}"
    elif isinstance(persist, Route) and cookies.is_value(server.recognised_id):
        yield from (f"{each.name}={server.recognised_id}" for each in persist.samples if isinstance(each, cook))


def _is_in_cookie(route: Route) -> bool:
    return any(isinstance(sample, cook) for sample in route.samples)


def moved_marks(
    before: TrialPersistences,
    after: TrialPersistences,
    servers: Sequence[Server],
    gone: set[str],
    renamed: Mapping[str, str],
) -> dict[str, str | None]:
    """Return, for each of `servers` from which the clients that are bound by a cookie would move, the server to which
    they would; None: balance chooses one. `servers`: as before. `gone`: those that are removed or start anew.
    `renamed`: those of them that are the same under another name, with that name.
    """
    moved: dict[str, str | None] = {}
    for server in servers:
        pairs, route = before.marks_of(server), before.route_of(server)
        was = before.find(pairs, route)
        if was is None or was in moved:
            continue
        now = after.find(pairs, route)
        if now is not None and now == renamed.get(was):
            continue
        if was in gone or now != was:
            moved[was] = None if now in gone else now
    return moved
