"""Persistence by a route that the application writes: after the session id, as in `JSESSIONID=abc123.s1` (Tomcat's
`jvmRoute`, Apache's `route=`), or as the whole value (nginx `sticky route`). We only read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from math import inf

from sticky_core.clock import Clock
from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import raise_problems
from sticky_core.http import cookies
from sticky_core.http.messages import Request, ResponseHead
from sticky_core.persistence.claim import (
    GIVE_FORMERLY,
    NO_COOKIE,
    Claim,
    InvalidMark,
    Mark,
    PersistenceResult,
    Reason,
    unusable_reason,
)
from sticky_core.persistence.cookie_scope import CookieScope
from sticky_core.persistence.groups import FormerIds, group_by_id, regroup, renew_results, valid_results
from sticky_core.persistence.persistence import UsedTable, no_fast_path
from sticky_core.samples.request import Sample
from sticky_core.samples.values import key_text
from sticky_core.server.server import Server


@dataclass(frozen=True, slots=True, init=False)
class Route:
    """Persistence by a route that the application writes: `Route(cook("JSESSIONID"), path_param("jsessionid"))`.

    - `samples`: the samples that may contain a route. The first that is not empty counts, even if its route names no
      server (as in nginx).
    - `separator`: the text before the route. Default: `.` (Apache `stickysessionsep`). A sample without the separator
      is a route as a whole. A route may contain the separator: of several routes that match, the longest counts.

    The route of a server is its `cookie=`, by default its name; a backup without `cookie=` has no route. Several
    servers may have the same route: the first that is usable gets the request. Responses are not changed, so the
    application has to write the route of its server. Nothing is signed, so a client can choose its server.

    Raises `ConfigError` without samples, or without a separator.
    """

    samples: tuple[Sample, ...]
    separator: str

    def __init__(self, *samples: Sample, separator: str = ".") -> None:
        raise_problems(_problems(samples, separator))
        object.__setattr__(self, "samples", samples)
        object.__setattr__(self, "separator", separator)

    def cookie_scopes(self) -> tuple[CookieScope, ...]:
        return ()

    def build(self, backend: str, servers: Sequence[Server], clock: Clock) -> RouteEngine:
        return RouteEngine(self, servers)


def _problems(samples: Sequence[object], separator: str) -> Iterator[str]:
    if not samples:
        yield 'route: there are no samples: name at least one, as in Route(cook("JSESSIONID"))'
    for sample in samples:
        if not callable(sample):
            yield f'route: {sample!r} is no sample: pass a callable, Request -> key | None, such as cook("JSESSIONID")'
    if not separator:
        yield "route: separator is empty: leave it out, the whole text may be a route as well"


def _former_routes(server: Server) -> Sequence[str]:
    return server.config.formerly


class RouteEngine:
    """`Route` for the servers of one backend."""

    max_idle = inf
    tables: Sequence[UsedTable] = ()

    def __init__(self, route: Route, servers: Sequence[Server]) -> None:
        self._samples = route.samples
        self._separator = route.separator
        self.fast_path = no_fast_path()  # samples may look at more than the Cookie header
        self._routes = {server: server.recognised_id for server in servers}
        self._groups = group_by_id((route_of_server, server) for server, route_of_server in self._routes.items())
        self._former = FormerIds(_former_routes, servers)
        self._valid = valid_results(servers)
        self._longest = max(max(map(len, self._groups), default=0), self._former.longest)

    def with_servers(
        self, servers: Sequence[Server], added: Sequence[Server], removed: Sequence[Server]
    ) -> RouteEngine:
        engine = copy(self)
        engine._routes = dict(self._routes)
        lost = [(engine._routes.pop(server), server) for server in removed]
        engine._routes.update((server, server.recognised_id) for server in added)
        gained = [(engine._routes[server], server) for server in added]
        engine._groups = regroup(self._groups, servers, gained, lost)
        engine._former = self._former.with_servers(servers, added, removed)
        former = (route for server in added for route in engine._former.of(server))
        engine._longest = max((self._longest, *(len(route) for route, _ in gained), *map(len, former)))
        engine._valid = renew_results(self._valid, added, removed)
        return engine

    def recognise(self, request: Request, *, accept_down: bool = False) -> PersistenceResult:
        for sample in self._samples:
            try:
                key = sample(request)
                text = "" if key is None else cookies.unquote(key_text(key))
            except Exception as error:
                request.function_failed("the route", sample, error)
                continue
            if text:
                group = self.servers_with_route(text)
                return self._choose(group, accept_down) if group else self._unknown(text)
        return NO_COOKIE

    def servers_with_route(self, text: str) -> Sequence[Server]:
        """Return the servers with the route at the end of `text`. A longer text than the longest route is searched only
        in its last characters.
        """
        if group := self._groups.get(text) or self._former.servers(text):
            return group
        at = max(0, len(text) - self._longest - len(self._separator))
        while (found := text.find(self._separator, at)) >= 0:
            at = found + len(self._separator)
            route = text[at:]
            if group := self._groups.get(route) or self._former.servers(route):
                return group
        return ()

    def _choose(self, group: Sequence[Server], accept_down: bool) -> PersistenceResult:
        for server in group:
            if server.usable:
                return self._valid[server]
            if accept_down:
                return PersistenceResult(Claim.DOWN, unusable_reason(server), server, overrides_claim=True)
        return PersistenceResult(Claim.DOWN, unusable_reason(group[0]), group[0])

    def _unknown(self, text: str) -> InvalidMark:
        """Return the result for a text with a route that no server has. What precedes the route is a session id, and so
        may be a text without a separator.
        """
        name = text.rpartition(self._separator)[2] if self._separator in text else ""
        return InvalidMark(
            Claim.INVALID, Reason.UNKNOWN, place="the route of a client", name=name, remedy=GIVE_FORMERLY
        )

    def stamp_response(
        self, result: PersistenceResult, server: Server, is_bound: bool, request: Request, response: ResponseHead
    ) -> Mark:
        return Mark.NONE

    def state_changed(self, server: Server) -> None:
        """Nothing to do: a route does not depend on the state of its server."""
