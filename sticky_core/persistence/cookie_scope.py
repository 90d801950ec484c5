"""Where browsers send a cookie, and whether they would send two cookies of one name together (RFC 6265, 5.1.3 and
5.1.4).

The theory: some request matches two paths if one contains the other, segment by segment; some host matches two domains
if one ends with the other, label by label. So a cookie is stored under its own path and under each path that contains
it, and likewise under domains. The cookies that overlap another one are those that are stored under its own path, and
those with an own path that contains it. Storing and searching take as many steps as a path has segments and a domain
has labels, however many cookies there are.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Iterator
from itertools import product
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import unquote

from sticky_core import fork

T = TypeVar("T", bound=Hashable)


class CookieScope(NamedTuple):
    """A cookie that a persistence inserts or edits, and the path and domains to which browsers send it."""

    name: str
    path: str = "/"
    domains: tuple[str, ...] = ()  #: empty: browsers send it only to the host that has set it
    is_inserted: bool = True  #: True: the persistence sets the cookie; False: the application does, and we edit it


def is_sent_to(cookie_path: str, path: str) -> bool:
    """Return whether browsers send a cookie with `cookie_path` to `path` and all paths below it (RFC 6265, 5.1.4)."""
    if cookie_path == path:
        return True
    return path.startswith(cookie_path) and (cookie_path.endswith("/") or path[len(cookie_path)] == "/")


def covers_route(cookie_path: str, route: str) -> bool:
    """Return whether browsers send a cookie with `cookie_path` to the route `route`, which is percent-decoded, at the
    root of the host or behind another path: what a server or an app around this one puts before the route
    (`root_path`, SCRIPT_NAME) may be in the cookie's path only. Where the route is `/` that may be all of it.
    """
    if route == "/":
        return True
    decoded = unquote(cookie_path)
    if is_sent_to(decoded, route):
        return True
    # Behind another path: the end of the cookie's path is the route, or a path that contains it.
    return any(containing and decoded.endswith(containing) for containing in _containing_paths(route))


# The name; a path and whether it is the cookie's own rather than one that contains it; a domain likewise.
_Key = tuple[str, str, bool, str, bool]


def _own_keys(scope: CookieScope) -> set[_Key]:
    """Return the keys under which a scope is stored; none if it is not inserted."""
    if not scope.is_inserted:
        return set()
    paths = [*((path, False) for path in _containing_paths(scope.path)), (scope.path.rstrip("/"), True)]
    hosts = [(each, False) for domain in scope.domains or ("",) for each in _containing_domains(domain)]
    hosts += ((_normal(domain), True) for domain in scope.domains or ("",))
    return {(scope.name, *path, *host) for path, host in product(paths, hosts)}


def _keys_of_overlapping(scope: CookieScope) -> Iterator[_Key]:
    """Yield the keys under which the scopes that overlap `scope` are stored."""
    if scope.is_inserted:
        paths = [*((path, True) for path in _containing_paths(scope.path)), (scope.path.rstrip("/"), False)]
        for domain in scope.domains or ("",):
            hosts = [*((each, True) for each in _containing_domains(domain)), (_normal(domain), False)]
            yield from ((scope.name, *path, *host) for path, host in product(paths, hosts))


def _containing_paths(path: str) -> Iterator[str]:
    """Yield the paths that contain `path`, the shortest first, and `path` itself, without a slash at the end."""
    path = path.rstrip("/")
    for at, character in enumerate(path):
        if character == "/":
            yield path[:at]
    yield path


def _containing_domains(domain: str) -> Iterator[str]:
    """Yield the domains that contain `domain`, the shortest first, and `domain` itself; the first is empty, which is
    any host.
    """
    domain = _normal(domain)
    yield ""
    for at in range(len(domain) - 1, 0, -1):
        if domain[at] == ".":
            yield domain[at + 1 :]
    if domain:
        yield domain


def _normal(domain: str) -> str:
    """Return a domain as it is compared: case and a leading dot do not count (RFC 6265, 5.1.3 and 5.2.3)."""
    return domain.lower().lstrip(".")


class CookieScopeIndex(Generic[T]):
    """The cookies of several owners, to find those that overlap a cookie. Safe to use from any thread."""

    def __init__(self) -> None:
        self._reset()
        fork.register(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._stored: dict[_Key, dict[tuple[T, CookieScope], None]] = {}

    def add(self, owner: T, scopes: Iterable[CookieScope]) -> None:
        """Store cookies of `owner`. Those that are stored already stay stored once."""
        with self._lock:
            for scope in scopes:
                for key in _own_keys(scope):
                    self._stored.setdefault(key, {})[owner, scope] = None

    def discard(self, owner: T, scopes: Iterable[CookieScope]) -> None:
        """Remove cookies of `owner`."""
        with self._lock:
            for scope in scopes:
                for key in _own_keys(scope):
                    stored = self._stored.get(key, {})
                    stored.pop((owner, scope), None)
                    if not stored:
                        self._stored.pop(key, None)

    def overlapping(self, owner: T, scope: CookieScope) -> tuple[T, CookieScope] | None:
        """Return a stored cookie of another owner that overlaps `scope`, with that owner; None if there is none."""
        with self._lock:
            for key in _keys_of_overlapping(scope):
                for other, other_scope in self._stored.get(key, ()):
                    if other != owner:
                        return other, other_scope
        return None

    def after_fork(self) -> None:
        """Forget all cookies in a forked child, where another thread may have stopped in the middle of a change. The
        owners store theirs again.
        """
        self._reset()
