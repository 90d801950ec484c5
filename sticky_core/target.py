"""What stands behind a server: a URL, an application, or a factory that makes one; and telling them apart."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal
from urllib.parse import urlsplit

from sticky_core.errors import check

#: An ASGI or a WSGI application. The core never calls one, so it does not say more of it than the faces can check.
App = Callable[..., Any]
Factory = Callable[[], App]
Kind = Literal["asgi", "wsgi", "factory"]

#: where an app of this kind is not served, and one of the other kind is
OTHER_FACE: dict[Kind, str] = {"asgi": "sticky_wsgi", "wsgi": "sticky_asgi"}

_CALLS: dict[Kind, int] = {"factory": 0, "wsgi": 2, "asgi": 3}  # by how many arguments each is called with
_SCHEMES = ("http://", "https://", "unix:")
_PORTS = {"http": 80, "https": 443}


def kinds(callee: object) -> frozenset[str]:
    """What `callee` may be ("asgi", "wsgi", "factory"), as far as its signature tells: all three where it does not."""
    if not callable(callee):
        return frozenset()
    try:
        signature = inspect.signature(callee)
    except (TypeError, ValueError):  # some builtins have none
        return frozenset(_CALLS)
    fits: set[str] = set()
    for kind, count in _CALLS.items():
        try:
            signature.bind(*[None] * count)
        except TypeError:
            continue
        fits.add(kind)
    return frozenset(fits)


def problem_of(target: object, factory: object) -> str | None:
    """What is wrong with a server's target or factory, and the way out; None if nothing is."""
    if target is not None and factory is not None:
        return "has both a target and a factory: give one"
    if target is None and factory is None:
        return "has neither a target (an app or a URL) nor a factory"
    if isinstance(target, str):
        return (
            None
            if target.startswith(_SCHEMES)
            else f"{target!r} is no URL: it begins with one of {', '.join(_SCHEMES)}"
        )
    if target is not None and kinds(target) == frozenset(("factory",)):
        return f"{target!r} takes no arguments, so it is a factory rather than an app: write factory={_name(target)}"
    if target is not None and not kinds(target) & {"asgi", "wsgi"}:
        return f"{target!r} is neither an app nor a URL"
    if inspect.iscoroutinefunction(factory):
        return (
            f"factory={factory!r} is async: a factory hands an app over, and what must wait belongs into its lifespan"
        )
    if factory is not None and "factory" not in kinds(factory):
        if kinds(factory) & {"asgi", "wsgi"}:
            return f"factory={factory!r} needs arguments, so it is an app rather than a factory: hand it as the target"
        return f"factory={factory!r} cannot be called without arguments"
    return None


def expect_factory(factory: object, where: str) -> None:
    """ConfigError, beginning with `where`, unless `factory` is one."""
    problem = problem_of(None, factory)
    check([f"{where}: {problem}"] if problem is not None else ())


def address(url: str) -> tuple[str, int] | None:
    """Host and port of an upstream's URL; None for a UNIX socket. ValueError if the port is none."""
    if url.startswith("unix:"):
        return None
    split = urlsplit(url)
    if not split.hostname:
        raise ValueError(f"{url!r} names no host")
    return split.hostname, split.port or _PORTS[split.scheme]


def _name(callee: object) -> str:
    return getattr(callee, "__name__", repr(callee))
