"""Dispatchers inside each other that insert cookies of one name: each would overwrite the cookie of the other, or
remove it from requests, so that no client would stay at its server.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from types import MethodType
from typing import NamedTuple, cast

from sticky_core.persistence.cookie_scope import CookieScope, CookieScopeIndex

#: the attributes in which middleware and frameworks keep the apps that they call
_INNER = ("app", "_app", "wsgi_app", "asgi_app", "application", "router", "routes", "mounts")
#: that in which bound methods and partial functions keep theirs
_OF_CALLABLES: dict[type, str] = {MethodType: "__self__", functools.partial: "func"}
#: how many apps are looked at
_MOST = 1000


class InsertedCookie(NamedTuple):
    """A cookie that a dispatcher inserts. `owner`: the object that is compared by identity: its backend, or itself."""

    owner: object
    where: str  #: the owner in words, such as "backend cart"
    scope: CookieScope


class InsertsCookies(ABC):
    """A dispatcher, as far as it inserts cookies."""

    @abstractmethod
    def inserted_cookies(self) -> Iterable[InsertedCookie]:
        """Return the cookies that are inserted in its responses."""


#: the cookies of the middleware that the request in flight has passed without having been dispatched there, on WSGI,
#: which has no lifespan to show them beforehand
AROUND: ContextVar[tuple[Sequence[InsertedCookie], ...]] = ContextVar("sticky cookies around", default=())


def nested_problems(outer: Sequence[InsertedCookie], inner: Sequence[InsertedCookie]) -> list[str]:
    """Return a problem for each of the cookies `inner` that overlaps one of `outer`, which are inserted around it."""
    if not outer or not inner:
        return []
    around = {id(each.owner): each.where for each in outer}
    index = CookieScopeIndex[int]()
    for each in outer:
        index.add(id(each.owner), [each.scope])
    problems: dict[str, None] = {}
    for each in inner:
        found = index.overlapping(id(each.owner), each.scope) if id(each.owner) not in around else None
        if found is not None:
            outer_name = around[found[0]]
            problems[
                f"{each.where} and {outer_name} around it both insert a cookie {each.scope.name} where the paths "
                f"{each.scope.path} and {found[1].path} meet, so no client would stay at its server: "
                + ("leave one of them out" if each.where == outer_name else "give one another name")
            ] = None
    return list(problems)


def cookies_inside(app: object) -> tuple[InsertedCookie, ...]:
    """Return the cookies of the dispatchers inside `app`, or of `app` itself, as far as attributes show them: a closure
    keeps its app to itself.
    """
    return tuple(
        cookie for each in _apps_inside(app) if isinstance(each, InsertsCookies) for cookie in each.inserted_cookies()
    )


def _apps_inside(app: object) -> Iterator[object]:
    seen: dict[int, object] = {}
    rest: list[object] = [app]
    while rest and len(seen) < _MOST:
        each = rest.pop()
        if id(each) in seen or isinstance(each, type):
            continue
        seen[id(each)] = each
        yield each
        attributes: dict[str, object] = getattr(each, "__dict__", {})
        rest += _callables(getattr(each, _OF_CALLABLES.get(type(each), ""), None))
        for name in _INNER:
            rest += _callables(attributes.get(name))


def _callables(value: object) -> Iterator[Callable[..., object]]:
    """Yield an app, or the apps of a list or a mapping of them. A route of Starlette is an app as well."""
    if isinstance(value, dict):
        values: Iterable[object] = cast("dict[object, object]", value).values()
    else:
        values = cast("list[object]", value) if isinstance(value, list) else (value,)
    for each in values:
        if callable(each):
            yield each
