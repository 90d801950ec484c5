"""What stands behind a server: a URL, an application, or a factory that makes one; and telling them apart."""

from __future__ import annotations

import inspect
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from sticky_core.errors import raise_problems

#: An ASGI or a WSGI application. The core never calls one, so it does not say more of it than the faces can check.
App = Callable[..., Any]
Factory = Callable[[], App]
Kind = Literal["asgi", "wsgi", "factory"]

#: where an app of this kind is not served, and one of the other kind is
OTHER_FACE: dict[Kind, str] = {"asgi": "sticky_wsgi", "wsgi": "sticky_asgi"}

_CALLS: dict[Kind, int] = {"factory": 0, "wsgi": 2, "asgi": 3}  # by how many arguments each is called with
_SCHEMES = ("http://", "https://", "unix:")
_PORTS = {"http": 80, "https": 443}


def possible_kinds(callee: object) -> frozenset[str]:
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


def target_problem(target: object, factory: object) -> str | None:
    """What is wrong with a server's target or factory, and the way out; None if nothing is."""
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
    if target is not None and possible_kinds(target) == frozenset(("factory",)):
        return f"{target!r} takes no arguments, so it is a factory rather than an app: write factory={_name(target)}"
    if target is not None and not possible_kinds(target) & {"asgi", "wsgi"}:
        return f"{target!r} is neither an app nor a URL"
    if inspect.iscoroutinefunction(factory):
        return (
            f"factory={factory!r} is async: a factory hands an app over, and what must wait belongs into its lifespan"
        )
    if factory is not None and "factory" not in possible_kinds(factory):
        if possible_kinds(factory) & {"asgi", "wsgi"}:
            return f"factory={factory!r} needs arguments, so it is an app rather than a factory: hand it as the target"
        return f"factory={factory!r} cannot be called without arguments"
    return None


def has_scheme(text: str) -> bool:
    """Whether `text` says by which scheme, as URLs of ours do."""
    return text.startswith(_SCHEMES)


def name_problem(url: str) -> str | None:
    """Why the host of `url`, which is one, can't be resolved to several addresses; None if it can."""
    location = Location.parse(url)
    if location.socket is not None:
        return f"{url}: a UNIX socket has no name to resolve: write Server(name, {url!r})"
    try:
        ipaddress.ip_address(location.host)
    except ValueError:
        return None
    return f"{url}: {location.host} is an address already: write Server(name, {url!r})"


def require_factory(factory: object, where: str) -> None:
    """ConfigError, beginning with `where`, unless `factory` is one."""
    problem = target_problem(None, factory)
    raise_problems([f"{where}: {problem}"] if problem is not None else ())


@dataclass(frozen=True, slots=True)
class Location:
    """Where an upstream listens, read from its URL."""

    scheme: Literal["http", "https"]
    host: str  #: a name or an IP address without brackets; "localhost" for a UNIX socket
    port: int
    socket: str | None  #: the path of a UNIX socket, which then stands for host and port
    base_path: str  #: what every request target begins with; no slash at its end, empty for none

    @classmethod
    def parse(cls, url: str) -> Location:
        """`http://host:port/base`, `https://host`, `unix:/run/app.sock`, and as nginx writes it,
        `unix:/run/app.sock:/base` with or without `http://` before it. ValueError says what is wrong.
        """
        if not url.startswith(_SCHEMES):
            raise ValueError(f"{url!r} is no URL: it begins with one of {', '.join(_SCHEMES)}")
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
            raise ValueError(f"{url!r} carries a user name: credentials are the client's to send, or yours in a header")
        if port == 0:
            raise ValueError(f"{url!r}: nobody listens at port 0")
        if not _HOST.fullmatch(host):
            raise ValueError(f"{url!r}: host {host!r} can't be written in a Host header")
        if split.query or split.fragment:
            raise ValueError(
                f"{url!r} has a query or a fragment: a server is a place, with a path to begin with at most"
            )
        return cls(scheme, host, port if port is not None else _PORTS[scheme], None, _base(url, split.path))

    def url_at(self, address: str, port: int | None = None) -> str:
        """The same at an address of its host, as a URL."""
        host = f"[{address}]" if ":" in address else address
        return f"{self.scheme}://{host}:{self.port if port is None else port}{self.base_path}"

    @property
    def authority(self) -> str:
        """What a Host header calls it (RFC 9110, 7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


_HOST = re.compile(r"[!-.0-;=?-Z_a-z~]+")  # printable, and nothing that would end the authority of a URL
_PATH = re.compile(r"/[!\"$->@-~]*")  # printable, and nothing that would end the path of one


def _base(url: str, path: str) -> str:
    if path and not _PATH.fullmatch(path):
        raise ValueError(f"{url!r}: base path {path!r} is not one: it begins with a slash, and is percent-encoded")
    return path.rstrip("/")


def host_and_port(url: str) -> tuple[str, int] | None:
    """Host and port of an upstream's URL; None for a UNIX socket. ValueError if it is none."""
    location = Location.parse(url)
    return None if location.socket is not None else (location.host, location.port)


def _name(callee: object) -> str:
    return getattr(callee, "__name__", repr(callee))
