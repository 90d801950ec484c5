"""A signed cookie of a backend that had another name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from sticky_core.clock import Clock
from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import raise_problems
from sticky_core.options.spelling import named_options
from sticky_core.options.unset import UNSET
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.cookie.engine import CookieEngine
from sticky_core.persistence.cookie_scope import CookieScope
from sticky_core.persistence.persistence import label_of
from sticky_core.server.server import Server


@named_options
def of_backend(backend: str, cookie: Cookie) -> CookieOfBackend:
    """Return a `Cookie` of a backend with another name, for `Cookie(accepts=[...])`:
    `accepts.of_backend("shop", Cookie("SRV", secret=...))`.

    - `backend`: the name that the backend had, text.
    - `cookie`: the cookie that it had. What is signed is valid for the backend of that name only; a plain cookie needs
      no such call.

    Raises `ConfigError` with every problem found.
    """
    return CookieOfBackend(backend, cookie)


@dataclass(frozen=True, slots=True)
class CookieOfBackend:
    """`cookie` as the backend with the name `backend` has written it."""

    backend: str
    cookie: Cookie

    def __post_init__(self) -> None:
        raise_problems(f"accepts.of_backend {self.backend}: {problem}" for problem in self._problems())

    def _problems(self) -> Iterator[str]:
        backend, cookie = cast(object, self.backend), cast(object, self.cookie)
        if not isinstance(backend, str) or not backend:
            yield f"{backend!r} is no name of a backend: write accepts.of_backend('old name', Cookie(...))"
        if not isinstance(cookie, Cookie):
            yield f"{cookie!r} is no Cookie: only what a Cookie signs depends on the name of the backend"
            return
        if not cookie.settings().keys:
            yield f"{label_of(cookie)} is not signed, so the name of the backend has no effect: write it alone"
        if cookie.accepts is not UNSET:
            yield f"{label_of(cookie)} has accepts of its own, which would have no effect: put all in one list"

    @property
    def label(self) -> str:
        """The cookie in logs and counts: `accepts.of_backend('shop', Cookie('SRV'))`."""
        return f"accepts.of_backend({self.backend!r}, {label_of(self.cookie)})"

    def cookie_scopes(self) -> Sequence[CookieScope]:
        return self.cookie.cookie_scopes()

    def deletions(self, *, is_tls: bool) -> Sequence[tuple[CookieScope, str]]:
        """Return what deletes the cookie; see `Cookie.deletions`."""
        return self.cookie.deletions(is_tls=is_tls)

    def build(self, backend: str, servers: Sequence[Server], clock: Clock) -> CookieEngine:
        """Return the persistence of the cookie, for the servers of the backend that is called `backend` now."""
        return self.cookie.build(self.backend, servers, clock)
