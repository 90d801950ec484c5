"""Routing: which backend serves a path."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar, cast
from urllib.parse import quote

from sticky_core.backend.backend import Backend, BackendComponent
from sticky_core.backend.change import Change
from sticky_core.backend.config import BackendConfig
from sticky_core.errors import ConfigError, raise_problems
from sticky_core.http.request_target import problem_of_decoded_path
from sticky_core.persistence.cookie_scope import CookieScope, CookieScopeIndex, covers_route
from sticky_core.persistence.follow import Follow
from sticky_core.persistence.nesting import InsertedCookie
from sticky_core.persistence.persistence import Persist
from sticky_core.server.server import Server

_Value = TypeVar("_Value")
_Other = TypeVar("_Other")


class PathIndex(Generic[_Value]):
    """Values by route: paths of whole segments, of which the longest that matches counts."""

    def __init__(self, values: Mapping[str, _Value]) -> None:
        self._values = values
        self._default = values.get("/")
        # for each prefix of a route: the value, if it is a route itself, and whether longer routes begin with it
        self._by_prefix: dict[str, tuple[_Value | None, bool]] = {}
        for route, value in values.items():
            if route != "/":
                self._add(route, value)

    def _add(self, route: str, value: _Value) -> None:
        _, goes_on = self._by_prefix.get(route, (None, False))
        self._by_prefix[route] = value, goes_on
        end = route.find("/", 1)
        while end >= 0:
            value_there, _ = self._by_prefix.get(route[:end], (None, False))
            self._by_prefix[route[:end]] = value_there, True
            end = route.find("/", end + 1)

    @property
    def only(self) -> _Value | None:
        """The value of every path, if there is one."""
        return self._default if not self._by_prefix else None

    def map_values(self, others: Mapping[_Value, _Other]) -> PathIndex[_Other]:
        """Return an index of the same routes, with another value for each."""
        return PathIndex({route: others[value] for route, value in self._values.items()})

    def find(self, path: str) -> _Value | None:
        """Return the value for `path`, or None if no route matches."""
        found = self._default
        end = path.find("/", 1)
        while True:  # a look-up for each segment, until no longer route begins with it
            entry = self._by_prefix.get(path if end < 0 else path[:end])
            if entry is None:
                return found
            value, goes_on = entry
            if not goes_on:
                return value
            if value is not None:
                found = value
            if end < 0:
                return found
            end = path.find("/", end + 1)


class Frontend:
    """Backends by path. A route matches whole segments, so `/api` is `/api` and `/api/x` but not `/apix`; the longest
    wins.

    Raises `ConfigError` for a route that is no path, and for two backends with cookies that would overwrite each other.
    A later change of a backend is checked against the other backends in the same way.
    """

    def __init__(self, routes: Mapping[str, Backend]) -> None:
        problems = list(_route_problems(routes))
        if not _are_backends(routes) or not all(map(_is_text, routes)):
            raise_problems(problems)
        self.routes = PathIndex(routes)
        #: each backend once, in the order of the routes
        self.backends = tuple(dict.fromkeys(routes.values()))
        #: the cookies that the backends insert
        self.cookie_scopes = CookieScopeIndex[SharedCookieNames]()
        self._routes_of: dict[Backend, list[str]] = {}
        for route, backend in routes.items():
            if _is_route(route):
                self._routes_of.setdefault(backend, []).append(route)
        for backend in self.backends:
            problems += self.path_problems(backend, backend.config)
        cookie_names = [backend.component(SharedCookieNames) for backend in self.backends]
        for each in cookie_names:
            problems += each.attach(self)
        if problems:
            for each in cookie_names:
                each.detach(self)
        raise_problems(problems)

    @classmethod
    def build(cls, backend: Backend | None, routes: Mapping[str, Backend] | None) -> Frontend:
        """Build the frontend from the arguments of a middleware: one backend for every path, or routes."""
        given = cast(object, routes)
        if given is not None and not isinstance(given, Mapping):
            raise ConfigError(
                f"routes={given!r} is no mapping: write routes={{'/path': backend}}, or backend=backend for every path"
            )
        if backend is not None and isinstance(cast(object, backend), Mapping):
            raise ConfigError("backend is a mapping: write routes={'/path': backend, ...}")
        if backend is not None and routes is not None:
            raise ConfigError(
                "a middleware has one backend for every path, or routes: write routes={'/': backend, ...}"
            )
        if backend is None and routes is None:
            raise ConfigError("a middleware needs either a backend (for every path) or routes={'/path': backend, ...}")
        if backend is not None and (problem := _backend_problem(backend)) is not None:
            raise ConfigError(problem)
        return cls({"/": backend} if backend is not None else routes or {})

    def inserted_cookies(self) -> list[InsertedCookie]:
        """Return the cookies that the backends insert."""
        return [cookie for backend in self.backends for cookie in backend.inserted_cookies()]

    def path_problems(self, backend: Backend, config: BackendConfig) -> Iterator[str]:
        """Yield a problem for each cookie that browsers would not send to a route of `backend`, under `config`."""
        scopes = dict.fromkeys(scope for persist in config.persist for scope in _written_scopes(persist))
        for route in self._routes_of.get(backend, ()):
            for scope in scopes:
                if not covers_route(scope.path, route):
                    yield (
                        f"backend {config.name}: browsers would not send cookie {scope.name} with path={scope.path!r} "
                        f"to the route {route!r}, so no client would stay at its server: leave path out, or write "
                        f"path={quote(route)!r}, with what a server or proxy removes from the path before it"
                    )


class SharedCookieNames(BackendComponent):
    """Keeps a backend from inserting a cookie that another backend of the same frontends inserts under the same name,
    where a browser would send both.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._frontends: list[weakref.ref[Frontend]] = []
        self._scopes = backend.config.cookie_scopes  # the cookies of the config in force
        self._prepared_scopes: list[CookieScope] = []  # those that a change adds, which is not in force yet

    @property
    def _live_frontends(self) -> list[Frontend]:
        return [frontend for ref in list(self._frontends) if (frontend := ref()) is not None]

    def attach(self, frontend: Frontend) -> list[str]:
        """Compare the backend with the other backends of `frontend` from now on, as long as the frontend lives. Return
        the problems that there are now.
        """
        with self._backend.reconfigure.change_lock:
            scopes = [*self._scopes, *self._prepared_scopes]
            frontend.cookie_scopes.add(self, scopes)
            self._frontends.append(weakref.ref(frontend, self._frontends.remove))
            name = self._backend.name
            return [_clash(other, same, name, scope) for scope, other, same in self._overlaps(scopes, [frontend])]

    def detach(self, frontend: Frontend) -> None:
        """Compare the backend no longer with those of `frontend`."""
        with self._backend.reconfigure.change_lock:
            self._frontends.remove(weakref.ref(frontend))

    def _overlaps(
        self, scopes: Iterable[CookieScope], frontends: Iterable[Frontend]
    ) -> Iterator[tuple[CookieScope, str, CookieScope]]:
        """Yield each of `scopes` that overlaps a cookie of another backend of `frontends`, with the name of that
        backend and its cookie: once, however many other backends there are.
        """
        for frontend in frontends:
            for scope in scopes:
                found = frontend.cookie_scopes.overlapping(self, scope)
                if found is not None:
                    yield scope, found[0]._backend.name, found[1]

    def config_problems(self, config: BackendConfig) -> Iterator[str]:
        added = [scope for scope in config.cookie_scopes if scope not in self._scopes]
        overlaps = self._overlaps(added, self._live_frontends)
        yield from dict.fromkeys(_clash(config.name, scope, other, same) for scope, other, same in overlaps)
        for frontend in self._live_frontends:
            yield from frontend.path_problems(self._backend, config)

    def prepare(self, change: Change, on_ready: Callable[[Exception | None], None]) -> None:
        # Check again, now that the other backends can see these cookies: of two that change at the same moment, at
        # least one sees the other.
        self._prepared_scopes = [scope for scope in change.config.cookie_scopes if scope not in self._scopes]
        for frontend in self._live_frontends:
            frontend.cookie_scopes.add(self, self._prepared_scopes)
        problems = tuple(self.config_problems(change.config))
        on_ready(ConfigError(*problems) if problems else None)

    def undo(self, change: Change) -> None:
        self._replace_scopes(self._scopes)

    def after_swap(self, change: Change) -> None:
        self._replace_scopes(change.config.cookie_scopes)

    def _replace_scopes(self, scopes: list[CookieScope]) -> None:
        """Compare with these cookies and no others from now on: they are in force."""
        outdated = [scope for scope in (*self._scopes, *self._prepared_scopes) if scope not in scopes]
        added = [scope for scope in scopes if scope not in self._scopes]
        self._scopes, self._prepared_scopes = scopes, []
        for frontend in self._live_frontends:
            frontend.cookie_scopes.discard(self, outdated)
            frontend.cookie_scopes.add(self, added)

    def after_fork(self) -> None:
        self._replace_scopes(self._scopes)
        for frontend in self._live_frontends:
            frontend.cookie_scopes.add(self, self._scopes)


def require_backend(given: object, around: str) -> None:
    """Raise a ConfigError unless `given`, which is passed to `around`, such as "Dispatcher", is a Backend."""
    if isinstance(given, Mapping):
        raise ConfigError(
            f"{around}: routes are an option of StickyMiddleware: write StickyMiddleware(app, routes=...)"
        )
    problem = _backend_problem(given)
    raise_problems([f"{around}: {problem}"] if problem is not None else ())


def _backend_problem(given: object) -> str | None:
    """Return what to write if `given` is no Backend; None if it is one."""
    if isinstance(given, Backend):
        return None
    servers = "[...]"
    if _has_backends(given):
        return f"{given!r} are several: give one, or routes={{'/path': backend}} to StickyMiddleware(app, ...)"
    if isinstance(given, str):
        servers = f"[Server(name, {given!r})]"
    elif isinstance(given, Server):
        servers = "[server]"
    elif callable(given):
        servers = "[Server(name, app)]"
    return f"{given!r} is no Backend: write Backend(name, servers={servers})"


def _has_backends(given: object) -> bool:
    if not isinstance(given, (list, tuple)):
        return False
    return any(isinstance(each, Backend) for each in cast("list[object]", given))


def _route_problems(routes: Mapping[str, Backend]) -> Iterator[str]:
    if not routes:
        yield "routes is empty: name at least one path and its backend, such as routes={'/': backend}"
    for prefix in routes:
        if not _is_text(prefix):
            yield f"route {prefix!r} is no path: write a text such as '/cart'"
            continue
        if not _is_route(prefix):
            yield (
                f"route {prefix!r} is no path: it begins with / and does not end with one, but for '/' itself: "
                f"write {'/' + _ORIGIN.sub('', prefix).strip('/')!r}"
            )
        elif (pattern := _PATTERN.search(prefix)) is not None:
            yield (
                f"route {prefix!r} is no pattern: it matches every path below it: "
                f"write {prefix[: pattern.start()] or '/'!r}"
            )
        if (problem := problem_of_decoded_path(prefix)) is not None:
            yield f"route {prefix!r}: {problem}"
    if not _are_backends(routes):
        for prefix, given in cast("Mapping[str, object]", routes).items():
            if (problem := _backend_problem(given)) is not None:
                yield f"route {prefix!r}: {problem}"
        return
    names: dict[str, Backend] = {}
    for backend in dict.fromkeys(routes.values()):
        if names.setdefault(backend.name, backend) is not backend:
            yield f"two backends are called {backend.name}: give each a name of its own"


_ORIGIN = re.compile("[a-z]+://[^/]*")
#: what other routers have in the place of a segment: `*`, `{id}`, `<id>`, `:id`
_PATTERN = re.compile(r"/(\*+|\{[^/]*\}|<[^/]*>|:[a-z_]+)(?=/|$)")


def _is_text(prefix: object) -> bool:
    return isinstance(prefix, str)


def _is_route(prefix: str) -> bool:
    return prefix == "/" or (prefix.startswith("/") and not prefix.endswith("/"))


def _written_scopes(persist: Persist) -> Iterable[CookieScope]:
    """Return the scopes of the cookies that `persist` inserts, wherever their attributes come from."""
    scopes = persist.written_scopes() if isinstance(persist, Follow) else persist.cookie_scopes()
    return [scope for scope in scopes if scope.is_inserted]


def _are_backends(routes: Mapping[str, object]) -> bool:
    return all(isinstance(each, Backend) for each in routes.values())


def _clash(one: str, scope: CookieScope, other: str, same: CookieScope) -> str:
    """Return the problem of two backends, by name, with cookies that overlap."""
    return (
        f"backends {one} and {other} both insert a cookie {scope.name} where the paths {scope.path} and {same.path} "
        "meet, and would overwrite each other's for ever: give one another name, or each the path of its route"
    )
