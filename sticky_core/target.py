"""The target of a server: a URL, an app, or a factory that returns an app; and how to tell them apart."""

from __future__ import annotations

import inspect
import ipaddress
import re
from collections.abc import Callable
from typing import Any, Literal
from urllib.parse import urlsplit

from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import raise_problems
from sticky_core.options.callables import argument_counts, is_async

#: An ASGI or a WSGI application. The core never calls one, so the type is left open here; the faces check it.
App = Callable[..., Any]
Factory = Callable[[], App]
Kind = Literal["asgi", "wsgi", "factory"]

#: the package that serves apps of the other kind
OTHER_FACE: dict[Kind, str] = {"asgi": "sticky_wsgi", "wsgi": "sticky_asgi"}

_ARGUMENT_COUNTS: dict[Kind, int] = {"factory": 0, "wsgi": 2, "asgi": 3}  # how many arguments each is called with
#: the attribute that holds the app of a framework's object, for middleware around it: Quart's, Flask's
_OWN_APP: dict[Kind, str] = {"asgi": "asgi_app", "wsgi": "wsgi_app"}
_SCHEMES = ("http://", "https://", "unix:")
_PORTS = {"http": 80, "https": 443}


class ForwardingApp:
    """An app that forwards every request to `url` and responds by itself: an `Upstream`."""

    url: str


def forwarding_problem(app: object) -> str | None:
    """Return why `app` can't be the app of a server if it is an `Upstream`, and how to fix it; None if it is none."""
    upstream = getattr(app, "__self__", app)  # or a method of one
    if not isinstance(upstream, ForwardingApp):
        return None
    return (
        f"{upstream!r} responds by itself if its URL fails, so no other server would be tried and no check would find "
        f"that out: write the URL, Server(name, {upstream.url!r}); tls, pool_max_conn and pool_purge_delay are options "
        "of Server, timeouts and forward of Backend"
    )


def possible_kinds(callee: object) -> frozenset[Kind]:
    """Return what `callee` may be: an ASGI app, a WSGI app, a factory; all three if it takes any arguments."""
    fits = argument_counts(callee, _ARGUMENT_COUNTS.values())
    if _ARGUMENT_COUNTS["asgi"] in fits and (is_async(callee) or _wraps_asgi(callee)):
        return frozenset(("asgi",))
    return frozenset(kind for kind, count in _ARGUMENT_COUNTS.items() if count in fits)


def _wraps_asgi(callee: object) -> bool:
    """Return whether `callee` is a wrapper of an ASGI app."""
    wrapped: object = getattr(callee, "__wrapped__", None)
    return is_async(wrapped) and _ARGUMENT_COUNTS["asgi"] in argument_counts(wrapped, _ARGUMENT_COUNTS.values())


def target_problem(target: object, factory: object) -> str | None:
    """Return what is wrong with a server's target or factory and how to fix it, or None if both are valid."""
    if target is not None and factory is not None:
        return "has both a target and a factory: give one"
    if target is None and factory is None:
        return "has neither a target (an app or a URL) nor a factory"
    if isinstance(target, str):
        try:
            Location.parse(target)
        except ValueError as error:
            return str(error)
        return None
    if (problem := forwarding_problem(target)) is not None:
        return problem
    if target is not None:
        kinds = possible_kinds(target)
        if kinds == frozenset(("factory",)):
            return (
                f"{target!r} takes no arguments, so it is a factory rather than an app: write factory={_name(target)}"
            )
        if not kinds & {"asgi", "wsgi"}:
            return f"{target!r} is neither an app nor a URL"
    if is_async(factory) and 0 in argument_counts(factory, (0,)):
        return (
            f"factory={factory!r} is async: a factory returns an app; put what it has to await into the app's lifespan"
        )
    if factory is not None and "factory" not in possible_kinds(factory):
        if possible_kinds(factory) & {"asgi", "wsgi"}:
            return f"factory={factory!r} needs arguments, so it is an app rather than a factory: pass it as the target"
        return f"factory={factory!r} cannot be called without arguments"
    return None


def app_problem(app: object, kind: Kind, around: str) -> str | None:
    """Return why `app` can't be the app inside the middleware `around`, such as "StickyWorkers", which serves apps of
    `kind`, and how to fix it; None if it may be one.
    """
    kinds = possible_kinds(app)
    if kind in kinds:
        return None
    if kinds & {"asgi", "wsgi"}:
        other = OTHER_FACE[kind]
        article, has = ("an", "ASGI") if kind == "wsgi" else ("a", "WSGI")
        return f"{app!r} is {article} {has} app: write `from {other} import {around}`"
    if "factory" in kinds:
        return f"{app!r} takes no arguments, so it is a factory rather than an app: write {around}({_name(app)}())"
    return f"{app!r} is no {kind.upper()} app: pass the app itself"


def own_app_problem(app: object, kind: Kind, around: str) -> str | None:
    """Return what to write instead of `around(app)` if `app`, such as a Flask object, calls its attribute `wsgi_app` or
    `asgi_app`: with the middleware in that place, the two would call each other. The same for a Dash object: what is
    served is the Flask object in its attribute `server`. None for other apps.
    """
    own = _OWN_APP[kind]
    served = "app"
    if not callable(getattr(type(app), own, None)):
        server: object = getattr(app, "server", None)
        if not callable(getattr(type(server), own, None)):
            return None
        served = "app.server"
    place = f"{served}.{own}"
    return (
        f"{around}: {app!r} has its app in {place.removeprefix('app.')}: write {place} = {around}({place}), and serve "
        f"{served}"
    )


def require_app(app: object, kind: Kind, around: str) -> None:
    """Raise a ConfigError if `app` can't be the app inside the middleware `around`."""
    problem = app_problem(app, kind, around)
    raise_problems([f"{around}: {problem}"] if problem is not None else ())


def has_scheme(text: str) -> bool:
    """Whether `text` begins with a scheme that a server's URL may have."""
    return text.startswith(_SCHEMES)


def name_problem(url: str) -> str | None:
    """Return why the host of the valid URL `url` can't be resolved to several addresses, or None if it can."""
    location = Location.parse(url)
    if location.socket is not None:
        return f"{url}: a UNIX socket has no name to resolve: write Server(name, {url!r})"
    try:
        ipaddress.ip_address(location.host)
    except ValueError:
        return None
    return f"{url}: {location.host} is an address already: write Server(name, {url!r})"


def require_factory(factory: object, where: str, call: str) -> None:
    """Raise a ConfigError that begins with `where` unless `factory` is a valid factory. `call`: how it is passed, such
    as `Cluster(create_app)`.
    """
    problem = target_problem(None, factory)
    if isinstance(factory, str):
        problem = f"{factory!r} is no function: write {call}, with a function that returns an app"
        if has_scheme(factory):
            problem += f"; a server at a URL is Server(name, {factory!r})"
    elif not callable(factory):
        problem = f"{factory!r} is no function: write {call}, with a function that returns an app"
    elif "factory" not in possible_kinds(factory) and possible_kinds(factory):
        problem = (
            f"{factory!r} needs arguments, so it is an app rather than a factory, and each replica needs an app of its "
            f"own: make it in a function, `def create_app(): ... return app`, and write {call}"
        )
    raise_problems([f"{where}: {problem}"] if problem is not None else ())


def require_made_app(app: object, factory: object, kind: Kind, other: str = "") -> None:
    """Raise a ConfigError unless `app`, which `factory` has returned, is an app of `kind`. `other`: where an app of the
    other kind is served; by default, the package.
    """
    raise_problems(filter(None, [_problem_of_made_app(app, _name(factory), kind, other)]))


def _problem_of_made_app(app: object, factory: str, kind: Kind, other: str) -> str | None:
    if app is None:
        return f"factory {factory} returned None: it has to end with `return app`"
    if inspect.iscoroutine(app):
        app.close()
        return (
            f"factory {factory} returned a coroutine: a factory returns an app; put what it has to await into the "
            "app's lifespan"
        )
    kinds = possible_kinds(app)
    if kind in kinds:
        return forwarding_problem(app)
    problem = f"factory {factory} returned {app!r}, which is no {kind.upper()} app"
    if kinds & {"asgi", "wsgi"}:
        return f"{problem}: {other or f'import from {OTHER_FACE[kind]}'}"
    if "factory" in kinds:
        return f"{problem}, but takes no arguments: write `return {_name(app)}()`"
    return f"{problem}: it has to end with `return app`"


@dataclass(frozen=True, slots=True)
class Location:
    """Where an upstream listens, parsed from its URL."""

    scheme: Literal["http", "https"]
    host: str  #: a name or an IP address without brackets; "localhost" for a UNIX socket
    port: int
    socket: str | None  #: the path of a UNIX socket, used instead of host and port
    base_path: str  #: prefix of every request target, without a slash at its end; empty for none

    @classmethod
    def parse(cls, url: str) -> Location:
        """Parse `http://host:port/base`, `https://host`, `unix:/run/app.sock`, or nginx's form
        `unix:/run/app.sock:/base` with or without `http://` before it. Raise a ValueError that says what is wrong.
        """
        if not url.startswith(_SCHEMES):
            meant = _url_meant(url)
            remedy = f"a URL begins with one of {', '.join(_SCHEMES)}" if meant is None else f"write {meant!r}"
            raise ValueError(f"{url!r} is no URL: {remedy}")
        scheme: Literal["http", "https"] = "https" if url.startswith("https:") else "http"
        rest = url.removeprefix(f"{scheme}://")
        if rest.startswith("unix:"):
            path, _, base = rest.removeprefix("unix:").partition(":")
            if not path:
                raise ValueError(f"{url!r} names no socket: write unix:/path/of.sock")
            return cls(scheme, "localhost", _PORTS[scheme], path, _base(url, base))
        try:
            split = urlsplit(url)
            host, port = split.hostname, split.port
        except ValueError as error:
            raise ValueError(f"{url!r} is no URL: {error}") from None
        if not host:
            raise ValueError(f"{url!r} names no host")
        if split.username is not None:
            raise ValueError(
                f"{url!r} contains a user name: leave it out; the client sends credentials, or you set a header"
            )
        if port == 0:
            raise ValueError(f"{url!r}: no server can listen at port 0")
        if not _HOST.fullmatch(host):
            raise ValueError(f"{url!r}: host {host!r} can't be written in a Host header")
        if split.query or split.fragment:
            raise ValueError(f"{url!r} has a query or a fragment: the URL of a server ends with its base path")
        return cls(scheme, host, port if port is not None else _PORTS[scheme], None, _base(url, split.path))

    def url_at(self, address: str, port: int | None = None) -> str:
        """Return the URL of the same location at `address`, one of the addresses of its host."""
        host = f"[{address}]" if ":" in address else address
        return f"{self.scheme}://{host}:{self.port if port is None else port}{self.base_path}"

    @property
    def authority(self) -> str:
        """Return the value of a Host header for this location (RFC 9110, 7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


_HOST = re.compile(r"[!-.0-;=?-Z_a-z~]+")  # printable, and nothing that would end the authority of a URL
_PATH = re.compile(r"/[!\"$->@-~]*")  # printable, and nothing that would end the path of one


_ADDRESS = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?(?:/\S*)?")  # host, port, path
#: the scheme of a server's URL by the scheme that may be written instead
_SCHEMES_MEANT = {"http": "http", "https": "https", "ws": "http", "wss": "https"}


def _url_meant(text: str) -> str | None:
    """Return the URL that `text`, which has no scheme of a server's URL, probably means; None if there is none."""
    scheme, separator, rest = text.partition("://")
    if separator:
        meant = _SCHEMES_MEANT.get(scheme.lower())
        return f"{meant}://{rest}" if meant is not None else None
    if text.startswith("/"):
        return f"unix:{text}"
    return f"http://{text}" if _ADDRESS.fullmatch(text) else None


def _base(url: str, path: str) -> str:
    if path and not _PATH.fullmatch(path):
        raise ValueError(f"{url!r}: base path {path!r} is not valid: it begins with a slash and is percent-encoded")
    return path.rstrip("/")


def host_and_port(url: str) -> tuple[str, int] | None:
    """Return host and port of an upstream's URL, or None for a UNIX socket. Raise ValueError if it is no URL."""
    location = Location.parse(url)
    return None if location.socket is not None else (location.host, location.port)


def _name(callee: object) -> str:
    return getattr(callee, "__name__", repr(callee))
