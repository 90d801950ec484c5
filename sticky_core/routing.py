"""Frontend: which backend a path belongs to."""

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

    Raises `ConfigError` for a route that is no path, and for two backends whose cookies would overwrite each other. A
    backend that is changed later is held to that as well.
    """

    def __init__(self, routes: Mapping[str, Backend]) -> None:
        raise_problems(_problems(routes))
        longest_first = sorted(routes.items(), key=lambda route: -len(route[0]))
        self._routes = [(prefix, f"{prefix}/", backend) for prefix, backend in longest_first if prefix != "/"]
        self._rest = routes.get("/")
        #: the backend that serves every path, if one does
        self.only = self._rest if not self._routes else None
        #: each backend once, in the order of the routes
        self.backends = tuple(dict.fromkeys(routes.values()))
        self.neighbours = [backend.component(Neighbours) for backend in self.backends]
        for each in self.neighbours:
            each.stand_in(self)

    @classmethod
    def of(cls, backend: Backend | None, routes: Mapping[str, Backend] | None) -> Frontend:
        """What a middleware was handed: one backend for every path, or routes."""
        if (backend is None) is (routes is None):
            raise ConfigError("a middleware needs either a backend (for every path) or routes={'/path': backend, ...}")
        return cls({"/": backend} if backend is not None else routes or {})

    def backend(self, path: str) -> Backend | None:
        """The backend that serves `path`; None if none does."""
        for prefix, segment, backend in self._routes:
            if path.startswith(segment) or path == prefix:
                return backend
        return self._rest


class Neighbours(BackendComponent):
    """Who stands beside a backend in the frontends that it is in (`Backend.keep`)."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._frontends: list[weakref.ref[Frontend]] = []
        #: what the backend is about to be
        self.coming: BackendConfig | None = None

    def stand_in(self, frontend: Frontend) -> None:
        self._frontends.append(weakref.ref(frontend, self._frontends.remove))

    def config_problems(self, config: BackendConfig) -> Iterator[str]:
        frontends = [frontend for ref in list(self._frontends) if (frontend := ref()) is not None]
        others = dict.fromkeys(each for frontend in frontends for each in frontend.neighbours if each is not self)
        found = (problem for other in others for asked in other._asked for problem in _clashes(config, asked))
        yield from dict.fromkeys(found)

    @property
    def _asked(self) -> list[BackendConfig]:
        """What the backend is, and what it is about to be. Looked at without its locks: we may be in another's turn."""
        coming = self.coming
        return [self._backend.config, *([coming] if coming is not None else [])]

    def prepare(self, change: Change, on_ready: Callable[[Exception | None], None]) -> None:
        # Once more, now that others see it coming: of two that change at the same moment, one sees the other.
        self.coming = change.config
        problems = tuple(self.config_problems(change.config))
        on_ready(ConfigError(*problems) if problems else None)

    def undo(self, change: Change) -> None:
        self.coming = None

    def after_swap(self, change: Change) -> None:
        self.coming = None

    def after_fork(self) -> None:
        self.coming = None


def _problems(routes: Mapping[str, Backend]) -> Iterator[str]:
    if not routes:
        yield "routes is empty: name at least one path and its backend, such as routes={'/': backend}"
    for prefix in routes:
        if not prefix.startswith("/") or (prefix != "/" and prefix.endswith("/")):
            yield f"route {prefix!r} is no path: it begins with / and does not end with one, but for '/' itself"
    strangers = [each for each in cast("Mapping[str, object]", routes).values() if not isinstance(each, Backend)]
    if strangers:
        yield from (f"{stranger!r} is no Backend: write Backend(name, servers=[...])" for stranger in strangers)
        return
    names: dict[str, Backend] = {}
    backends = dict.fromkeys(routes.values())
    for backend in backends:
        if names.setdefault(backend.name, backend) is not backend:
            yield f"two backends are called {backend.name}: give each a name of its own"
    for one, other in combinations(backends, 2):
        yield from _clashes(one.config, other.config)


def _clashes(one: BackendConfig, other: BackendConfig) -> Iterator[str]:
    """Yield a problem for each cookie that one of these backends would overwrite in the browsers of the other."""
    for cookie, same in product(one.cookie_scopes, other.cookie_scopes):
        if cookie.overlaps(same):
            yield (
                f"backends {one.name} and {other.name} both insert a cookie {cookie.name} where the paths "
                f"{cookie.path} and {same.path} meet, and would overwrite each other's for ever: "
                "give one another name, or each the path of its route"
            )
