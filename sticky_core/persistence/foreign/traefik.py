"""Traefik's sticky cookie: the value is the URL of a server, or a hash of it that differs between versions
(traefik/traefik, pkg/server/service/loadbalancer/sticky.go and pkg/server/cookie/cookie.go; vulcand/oxy,
roundrobin/stickycookie).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import raise_problems
from sticky_core.http import cookies
from sticky_core.options.spelling import named_options
from sticky_core.persistence.foreign.cookie import ForeignCookie
from sticky_core.persistence.foreign.servers import ids_of, texts_of
from sticky_core.persistence.foreign.values import ForeignValues
from sticky_core.server.server import Server

_SCHEMES = ("http", "https")
_PORTS = {"http": ":80", "https": ":443"}


@named_options
def traefik(
    name: str | None = None, *, service: str | None = None, path: str | None = "/", domain: str | None = None
) -> ForeignCookie:
    """Return the sticky cookie of Traefik, of any version, for `Cookie(accepts=[...])`. Give `name` or `service`.

    - `name`: the name of the cookie as it is configured. Traefik writes `_` for what a cookie's name can't contain, and
      so is it read.
    - `service`: the name of the service, from Traefik 2 on with its provider: `"shop@docker"`. Traefik makes the name
      of the cookie from it where none is configured: `default_name(service)`.
    - `path`: the attribute Path, with which the cookie is deleted; None: do not delete it. Default: `/`, as in Traefik.
    - `domain`: the attribute Domain. Default: none, as in Traefik.

    The value names the URL as it is written in Traefik. A server is found by its URL and what its `formerly` lists, in
    each case with and without a slash at the end and with and without the port of the scheme; `"10.0.0.1:80"` stands
    for `http://` and `https://`. A service with weights names its children: a server is also found by its name and its
    `cookie=`.

    Raises `ConfigError` with every problem found.
    """
    raise_problems(f"accepts.traefik: {problem}" for problem in _problems(name, service))
    written = cookie_name(name) if name is not None else default_name(service or "")
    return ForeignCookie("traefik", written, TraefikValues(), path=path, domain=domain)


def _problems(name: object, service: object) -> Iterator[str]:
    if (name is None) is (service is None):
        yield "give the name of the cookie, or service= if Traefik has made the name"
    for option, given in (("name", name), ("service", service)):
        if given is not None and (not isinstance(given, str) or not given):
            yield f"{option}={given!r} is no name: write a text"


def default_name(service: str) -> str:
    """Return the name of the cookie of a service for which none is configured: `_76eb3` for `backend`."""
    digest = hashlib.sha1(f"_TRAEFIK_BACKEND_{service}".encode(), usedforsecurity=False)
    return f"_{digest.hexdigest()[:5]}"


def cookie_name(name: str) -> str:
    """Return the name that Traefik writes for the configured `name`."""
    return "".join(each if cookies.is_token(each) else "_" for each in name)


def fnv1(text: str) -> int:
    """Return the hash FNV-1 of 64 bits of a text."""
    result = _FNV_START
    for byte in text.encode():
        result = (result * _FNV_PRIME & _FNV_MASK) ^ byte
    return result


def fnv1a(text: str) -> int:
    """Return the hash FNV-1a of 64 bits of a text."""
    result = _FNV_START
    for byte in text.encode():
        result = (result ^ byte) * _FNV_PRIME & _FNV_MASK
    return result


_FNV_START, _FNV_PRIME, _FNV_MASK = 0xCBF29CE484222325, 0x100000001B3, 0xFFFFFFFFFFFFFFFF


def traefik_values(name: str) -> Iterator[str]:
    """Yield the values that name the server with the URL `name`, or the child `name` of a service with weights."""
    hash_1a, hash_1 = fnv1a(name), fnv1(name)
    yield name  # 1, and 2.0 to 2.4; children to 2.10
    yield f"{hash_1a:x}"  # 2.5 to 2.11
    yield f"{hash_1a:016x}"  # read by 3.0 to 3.3.3
    yield f"{fnv1(f'{hash_1a:016x}'):x}"  # 3.0 to 3.3.3
    yield f"{hash_1:x}"  # children, 2.11 to 3.3.3
    yield f"{fnv1(f'{hash_1:x}'):x}"  # read by 3.3.4 and later
    yield hashlib.sha256(name.encode()).hexdigest()[:16]  # 3.3.4 and later


def configured_urls(text: str) -> Iterator[str]:
    """Yield the URLs that a URL, or a host with or without a port, may be in the configuration of Traefik."""
    scheme, separator, rest = text.partition("://")
    for each in (scheme,) if separator else _SCHEMES:
        url = f"{each}://{rest if separator else text}".rstrip("/")
        authority, slash, path = url.removeprefix(f"{each}://").partition("/")
        port = _PORTS.get(each.lower(), ":80")
        # of an IPv6 address in brackets, what follows them is the port
        if authority.endswith(port) and not authority.removesuffix(port).endswith(":"):
            other = authority.removesuffix(port)
        elif ":" not in authority.rpartition("]")[2]:
            other = authority + port
        else:
            other = authority
        for host in dict.fromkeys((authority, other)):
            yield f"{each}://{host}{slash}{path}"
            yield f"{each}://{host}{slash}{path}/"


@dataclass(frozen=True, slots=True)
class TraefikValues(ForeignValues):
    """The values of Traefik's cookie; a key is a value."""

    def keys_of(self, server: Server) -> Iterator[str]:
        for text in texts_of(server):
            for url in configured_urls(text):
                yield from traefik_values(url)
        for child in ids_of(server):
            yield from traefik_values(child)

    def keys_in(self, value: str) -> Sequence[str]:
        return (cookies.unquote(value),)  # Traefik reads quoted values as well
