"""Routing: which backend serves a path."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations, product
from typing import cast

from sticky_core.backend.backend import Backend, BackendComponent
from sticky_core.backend.change import Change
from sticky_core.backend.config import BackendConfig
from sticky_core.errors import ConfigError, raise_problems


class Frontend:
    """Backends by path. A route matches whole segments, so `/api` is `/api` and `/api/x` but not `/apix`; the longest
    wins.

    Raises `ConfigError` for a route that is no path, and for two backends with cookies that would overwrite each other.
    A later change of a backend is checked against the other backends in the same way.
    """

    def __init__(self, routes: Mapping[str, Backend]) -> None:
        raise_problems(_route_problems(routes))
        longest_first = sorted(routes.items(), key=lambda route: -len(route[0]))
        self._routes = [(prefix, f"{prefix}/", backend) for prefix, backend in longest_first if prefix != "/"]
        self._default = routes.get("/")
        #: the backend that serves every path, if one does
        self.only = self._default if not self._routes else None
        #: each backend once, in the order of the routes
        self.backends = tuple(dict.fromkeys(routes.values()))
        self.cookie_names = [backend.component(SharedCookieNames) for backend in self.backends]
        for each in self.cookie_names:
            each.attach(self)

    @classmethod
    def build(cls, backend: Backend | None, routes: Mapping[str, Backend] | None) -> Frontend:
        """Build the frontend from the arguments of a middleware: one backend for every path, or routes."""
        if (backend is None) is (routes is None):
            raise ConfigError("a middleware needs either a backend (for every path) or routes={'/path': backend, ...}")
        return cls({"/": backend} if backend is not None else routes or {})

    def backend(self, path: str) -> Backend | None:
        """Return the backend that serves `path`, or None if no route matches."""
        for prefix, segment, backend in self._routes:
            if path.startswith(segment) or path == prefix:
                return backend
        return self._default


class SharedCookieNames(BackendComponent):
    """Keeps a backend from inserting a cookie that another backend of the same frontends inserts under the same name,
    where a browser would send both.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._frontends: list[weakref.ref[Frontend]] = []
        #: the config that a change of the backend prepares
        self.prepared_config: BackendConfig | None = None

    def attach(self, frontend: Frontend) -> None:
        """Compare the backend with the other backends of `frontend` from now on, as long as the frontend lives."""
        self._frontends.append(weakref.ref(frontend, self._frontends.remove))

    def config_problems(self, config: BackendConfig) -> Iterator[str]:
        frontends = [frontend for ref in list(self._frontends) if (frontend := ref()) is not None]
        others = dict.fromkeys(each for frontend in frontends for each in frontend.cookie_names if each is not self)
        problems = (problem for each in others for other in each.configs for problem in _cookie_clashes(config, other))
        yield from dict.fromkeys(problems)

    @property
    def configs(self) -> list[BackendConfig]:
        """The backend's config, and the one that is prepared. Read without the backend's locks: the caller may hold the
        change lock of another backend.
        """
        prepared = self.prepared_config
        return [self._backend.config, *([prepared] if prepared is not None else [])]

    def prepare(self, change: Change, on_ready: Callable[[Exception | None], None]) -> None:
        # Check again, now that the other backends can see this config: of two that change at the same moment, at least
        # one sees the other.
        self.prepared_config = change.config
        problems = tuple(self.config_problems(change.config))
        on_ready(ConfigError(*problems) if problems else None)

    def undo(self, change: Change) -> None:
        self.prepared_config = None

    def after_swap(self, change: Change) -> None:
        self.prepared_config = None

    def after_fork(self) -> None:
        self.prepared_config = None


def _route_problems(routes: Mapping[str, Backend]) -> Iterator[str]:
    if not routes:
        yield "routes is empty: name at least one path and its backend, such as routes={'/': backend}"
    for prefix in routes:
        if not prefix.startswith("/") or (prefix != "/" and prefix.endswith("/")):
            yield f"route {prefix!r} is no path: it begins with / and does not end with one, but for '/' itself"
    not_backends = [each for each in cast("Mapping[str, object]", routes).values() if not isinstance(each, Backend)]
    if not_backends:
        yield from (f"{each!r} is no Backend: write Backend(name, servers=[...])" for each in not_backends)
        return
    names: dict[str, Backend] = {}
    backends = dict.fromkeys(routes.values())
    for backend in backends:
        if names.setdefault(backend.name, backend) is not backend:
            yield f"two backends are called {backend.name}: give each a name of its own"
    for one, other in combinations(backends, 2):
        yield from _cookie_clashes(one.config, other.config)


def _cookie_clashes(one: BackendConfig, other: BackendConfig) -> Iterator[str]:
    """Yield a problem for each cookie that one of these backends would overwrite in the browsers of the other."""
    for cookie, same in product(one.cookie_scopes, other.cookie_scopes):
        if cookie.overlaps(same):
            yield (
                f"backends {one.name} and {other.name} both insert a cookie {cookie.name} where the paths "
                f"{cookie.path} and {same.path} meet, and would overwrite each other's for ever: "
                "give one another name, or each the path of its route"
            )
