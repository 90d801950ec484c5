"""The cookies of Microsoft's proxies in which the value is a hash of an id: YARP (microsoft/reverse-proxy,
src/ReverseProxy/SessionAffinity/) and Application Request Routing for IIS.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from sticky_core.deferred.dataclass import dataclass
from sticky_core.options.spelling import named_options
from sticky_core.persistence.foreign.cookie import ForeignCookie
from sticky_core.persistence.foreign.servers import ids_of, parse_old_address, texts_of
from sticky_core.persistence.foreign.values import ForeignValues
from sticky_core.persistence.xxh64 import xxh64
from sticky_core.server.server import Server


@named_options
def yarp(name: str, *, path: str | None = "/", domain: str | None = None) -> ForeignCookie:
    """Return the cookie of YARP with the policy `HashCookie` or `ArrCookie`, for `Cookie(accepts=[...])`.

    - `name`: the name of the cookie (`AffinityKeyName`).
    - `path`: the attribute Path, with which the cookie is deleted; None: do not delete it. Default: `/`, as in YARP.
    - `domain`: the attribute Domain. Default: none, as in YARP.

    The value names the id of a destination. A server is found by its name, its `cookie=` and what its `formerly` lists.
    Values of the policies `Cookie` and `CustomHeader` are encrypted, and can't be read.

    Raises `ConfigError` with every problem found.
    """
    return ForeignCookie("yarp", name, YarpValues(), path=path, domain=domain)


@named_options
def arr(name: str = "ARRAffinity", *, path: str | None = "/", domain: str | None = None) -> ForeignCookie:
    """Return the cookie of Application Request Routing for IIS, for `Cookie(accepts=[...])`.

    - `name`: the name of the cookie. Default: `ARRAffinity`.
    - `path`, `domain`: as with `yarp`.

    The value names the host of a server: by the formula of YARP's policy `ArrCookie`, which was made to be compatible.
    Microsoft has published no other. A server is found by the host of its URL, its name, its `cookie=` and what its
    `formerly` lists. In the App Service of Azure the cookies `ARRAffinity` and `ARRAffinitySameSite` contain the id of
    an instance (`WEBSITE_INSTANCE_ID`): write those into an `accepts.table`. Those of the Application Gateway can't be
    read.

    Raises `ConfigError` with every problem found.
    """
    return ForeignCookie("arr", name, ArrValues(), path=path, domain=domain)


def hash_cookie_value(destination: str) -> str:
    """Return the value of YARP's policy `HashCookie` for the id of a destination."""
    # .NET changes the case of single characters: `ß` stays, which is `SS` in Python
    upper = "".join(each.upper() if len(each.upper()) == 1 else each for each in destination)
    return f"{xxh64(upper.encode('utf-16-le')):016x}"


def arr_value(host: str) -> str:
    """Return the value of YARP's policy `ArrCookie` for the id of a destination, and of ARR for a host."""
    lower = "".join(each.lower() if len(each.lower()) == 1 else each for each in host)
    return hashlib.sha256(lower.encode("utf-16-le")).hexdigest().upper()


@dataclass(frozen=True, slots=True)
class YarpValues(ForeignValues):
    """The values of YARP's cookie; a key is a value."""

    def keys_of(self, server: Server) -> Iterator[str]:
        for each in ids_of(server):
            yield hash_cookie_value(each)
            yield arr_value(each)


@dataclass(frozen=True, slots=True)
class ArrValues(ForeignValues):
    """The values of the cookie of ARR; a key is a value in upper case."""

    def keys_of(self, server: Server) -> Iterator[str]:
        hosts = [parse_old_address(text).host for text in texts_of(server)]
        return (arr_value(each) for each in (*ids_of(server), *hosts) if each)

    def keys_in(self, value: str) -> Sequence[str]:
        return (value.upper(),)
