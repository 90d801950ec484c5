"""The cookie of ingress-nginx, `nginx.ingress.kubernetes.io/affinity: cookie` (kubernetes/ingress-nginx,
rootfs/etc/nginx/lua/balancer/sticky*.lua and rootfs/etc/nginx/lua/util/nodemap.lua; its ring: openresty/
lua-resty-balancer, chash.c and lib/resty/chash.lua).
"""

from __future__ import annotations

import hashlib
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import cast
from zlib import crc32

from sticky_core.deferred.dataclass import dataclass
from sticky_core.options.spelling import named_options
from sticky_core.options.types import type_problem
from sticky_core.persistence.foreign.cookie import ForeignCookie
from sticky_core.persistence.foreign.servers import (
    parse_old_address,
    problems_without_addresses,
    problems_without_ports,
    texts_of,
)
from sticky_core.persistence.foreign.values import ForeignValues, Reader
from sticky_core.samples.values import key_bytes
from sticky_core.server.server import Server

#: how many points an endpoint has on the ring
_POINTS = 160

#: namespace, service and port, each of which may have hyphens inside
_SERVICE = re.compile(r"[a-z0-9]+(?:-+[a-z0-9]+){2,}")


@named_options
def ingress_nginx(
    name: str = "INGRESSCOOKIE",
    *,
    service: str | None = None,
    endpoints: Sequence[str] | None = None,
    path: str | None = None,
    domain: str | None = None,
) -> ForeignCookie:
    """Return the cookie of ingress-nginx (`affinity: cookie`), for `Cookie(accepts=[...])`.

    - `name`: the name of the cookie (`session-cookie-name`). Default: `INGRESSCOOKIE`, as in ingress-nginx.
    - `service`: for `affinity-mode: persistent`, in which the value is a digest of the service and the address of the
      server: `<namespace>-<service>-<port>`, with the number or the name of the port, `"shop-web-80"`. Default: None,
      the value is of the mode `balanced`, as in ingress-nginx.
    - `endpoints`: for the mode `balanced`, the addresses of all pods of the service, `["10.184.7.40:8080", ...]`, in
      any order. Default: None, the `formerly` of each server, or its URL if there is none.
    - `path`: the attribute Path, with which the cookie is deleted: `session-cookie-path`, else the path of the
      location. Default: None, it is not known, and the cookie is left.
    - `domain`: the attribute Domain (`session-cookie-domain`). Default: none.

    In the mode `balanced` a value names no server: the server follows from the value and the list of all pods, and
    every value has one. With another list than that of ingress-nginx some clients go to a server that does not know
    them. So write `endpoints` where servers come, go or move, and in `formerly` of each server the address that it had
    as a pod. Backups are not in the list by default.

    Raises `ConfigError` with every problem found.
    """
    given: object = endpoints
    listed = tuple(cast("Sequence[str]", given)) if isinstance(given, (list, tuple)) else endpoints
    values = BalancedValues(listed) if service is None else PersistentValues(service, listed)
    return ForeignCookie("ingress_nginx", name, values, path=path, domain=domain)


def persistent_key(service: str, endpoint: str) -> str:
    """Return what names the server at `endpoint` in the mode `persistent`."""
    return hashlib.md5(f"{service}{endpoint}".encode(), usedforsecurity=False).hexdigest()


class Ring:
    """The ring of the mode `balanced`: each endpoint has points, and a value belongs to the next one."""

    def __init__(self, endpoints: Iterable[str]) -> None:
        self._endpoints = sorted({*endpoints})
        # A point in the upper half, the number of its endpoint in the lower half: so equal points are in the order of
        # their endpoints, and many points take little time and memory.
        self._points = array(
            "Q",
            sorted(
                point << 32 | number
                for number, endpoint in enumerate(self._endpoints)
                for point in ring_points(endpoint)
            ),
        )

    def endpoint_of(self, key: str) -> str:
        """Return the endpoint that `key` belongs to; empty if there are no endpoints."""
        points = self._points
        if not points:
            return ""
        at = bisect_left(points, crc32(key_bytes(key)) << 32)
        return self._endpoints[points[at % len(points)] & 0xFFFFFFFF]


@lru_cache(maxsize=8)
def ring_of(endpoints: frozenset[str]) -> Ring:
    """Return the ring of these endpoints. It is made once, however often other servers change."""
    return Ring(endpoints)


def ring_points(endpoint: str) -> Iterator[int]:
    """Yield the points of an endpoint on the ring."""
    begin, point = crc32(endpoint.encode()), 0
    for _ in range(_POINTS):
        point = crc32(point.to_bytes(4, "little"), begin)
        yield point


@dataclass(frozen=True, slots=True)
class PersistentValues(ForeignValues):
    """The values of the mode `persistent`; a key is the part of a value before the `|`."""

    service: str
    endpoints: Sequence[str] | None

    def problems(self) -> Iterator[str]:
        problem = type_problem("service", self.service, str, "<namespace>-<service>-<port>, such as 'shop-web-80'")
        if problem is not None:
            yield problem
        elif not self.service:
            yield "service is empty: write <namespace>-<service>-<port>, or leave it out for the mode balanced"
        elif not _SERVICE.fullmatch(self.service):
            yield (
                f"service={self.service!r} has no namespace or no port, or other characters than names in Kubernetes: "
                "write <namespace>-<service>-<port>, such as 'shop-web-80'"
            )
        if self.endpoints is not None:
            yield "endpoints have no effect with service: a value names the server, whatever others there are"

    def problems_with(self, servers: Sequence[Server], new: Sequence[Server]) -> Iterator[str]:
        yield from problems_without_addresses(servers, new)

    def keys_of(self, server: Server) -> Iterator[str]:
        for text in texts_of(server):
            for address in parse_old_address(text).forms:
                yield persistent_key(self.service, address)

    def keys_in(self, value: str) -> Sequence[str]:
        return (value.partition("|")[0],)


@dataclass(frozen=True, slots=True)
class BalancedValues(ForeignValues):
    """The values of the mode `balanced`; a key is an endpoint."""

    endpoints: Sequence[str] | None

    def problems(self) -> Iterator[str]:
        given: object = self.endpoints
        if given is None:
            return
        if not isinstance(given, tuple):
            yield f"endpoints={given!r} is no list: write ['10.184.7.40:8080', ...]"
            return
        if not given:
            yield "endpoints is empty: write ['10.184.7.40:8080', ...], or leave it out"
        for endpoint in cast("Sequence[object]", given):
            if not isinstance(endpoint, str) or not parse_old_address(endpoint).host:
                yield f"endpoint {endpoint!r} is no address with a port: write '10.184.7.40:8080'"

    def problems_with(self, servers: Sequence[Server], new: Sequence[Server]) -> Iterator[str]:
        if self.endpoints is not None:
            if not self._on_ring.intersection(key for server in servers for key in self.keys_of(server)):
                if not any(server.is_unresolved for server in servers):
                    yield "no server has one of the endpoints: write in formerly= of each server which it was"
            return
        yield from problems_without_ports(new)
        for server in new:
            if not server.config.backup and not server.is_unresolved and not self._has_address(server):
                yield (
                    f"server {server.name} has no IP address, and which server a value stands for follows from the "
                    "addresses of all: write formerly=['10.184.7.40:8080'] with what it had as a pod, or endpoints="
                )

    def _has_address(self, server: Server) -> bool:
        # a name in `formerly` may be meant; that of a URL is none of a pod
        named = any(parse_old_address(text).host for text in server.config.formerly)
        return named or any(parse_old_address(text).ip is not None for text in texts_of(server))

    @property
    def _on_ring(self) -> set[str]:
        return {parse_old_address(each).printed for each in self.endpoints or ()}

    def keys_of(self, server: Server) -> Iterator[str]:
        texts = texts_of(server)
        if self.endpoints is None:
            former = [text for text in server.config.formerly if parse_old_address(text).host]
            texts = former or ([] if server.config.backup else texts)
        return (address.printed for address in map(parse_old_address, texts) if address.host)

    def reader(self, keys: Iterable[str]) -> Reader:
        return partial(_endpoints_in, ring_of(frozenset(keys if self.endpoints is None else self._on_ring)))


def _endpoints_in(ring: Ring, value: str) -> Sequence[str]:
    key = value.partition("|")[0]
    return (ring.endpoint_of(key),) if key else ()
