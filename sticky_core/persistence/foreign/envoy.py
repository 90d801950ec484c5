"""Envoy's stateful session: the value contains the address of the server (envoyproxy/envoy,
source/extensions/http/stateful_session/cookie/). It is the cookie of Envoy Gateway, and of Istio's label
`istio.io/persistent-session`.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Iterator, Sequence

from sticky_core.deferred.dataclass import dataclass
from sticky_core.http import cookies
from sticky_core.options.spelling import named_options
from sticky_core.persistence.foreign.cookie import ForeignCookie
from sticky_core.persistence.foreign.servers import parse_old_address, problems_without_addresses, texts_of
from sticky_core.persistence.foreign.values import ForeignValues
from sticky_core.server.server import Server


@named_options
def envoy(name: str, *, path: str | None = None, domain: str | None = None) -> ForeignCookie:
    """Return the cookie of a stateful session of Envoy (`envoy.http.stateful_session.cookie`), for
    `Cookie(accepts=[...])`.

    - `name`: the name of the cookie.
    - `path`: the attribute Path, with which the cookie is deleted: `path` of Envoy's cookie, or the path of the route
      in Envoy Gateway. Default: None, it is not known, and the cookie is left.
    - `domain`: the attribute Domain, where one is configured. Default: none.

    The value is the IP address and port of the server: no connection is made to it, it is only looked up. A server is
    found by its URL and what its `formerly` lists, `"10.0.0.1:80"`; if its URL has a host name, write the address in
    `formerly`. The date in the value is ignored, as versions of Envoy disagree on it. The cookie of a ring hash
    (Istio `consistentHash.httpCookie`) contains no server and can't be accepted.

    Raises `ConfigError` with every problem found.
    """
    return ForeignCookie("envoy", name, EnvoyValues(), path=path, domain=domain)


def address_in(value: str) -> str:
    """Return the address in a value, `ip:port`; empty if there is none."""
    try:
        data = b64decode(cookies.unquote(value), validate=True)
    except (binascii.Error, ValueError):
        return ""
    # the first byte tells them apart: an address is also a message, with an empty address
    address = _address_of_message(data) if data[:1] == b"\n" else data
    return address.decode("latin-1")


def _address_of_message(data: bytes) -> bytes:
    """Return field 1 of a protobuf message; empty if it is malformed. Envoy's message has that and a date in field 2.

    A varint is in at most ten bytes.
    """
    address = b""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag & 7 == 0:
            _, at = _varint(data, at)
        elif tag & 7 == 2:
            length, at = _varint(data, at)
            if tag >> 3 == 1:
                address = data[at : at + length]
            at += length
        else:
            return b""
    return address if at == len(data) else b""


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the varint at `at`, and where it ends; a position behind the data if it does not end."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    return 0, len(data) + 1


@dataclass(frozen=True, slots=True)
class EnvoyValues(ForeignValues):
    """The values of Envoy's cookie; a key is an address."""

    def problems_with(self, servers: Sequence[Server], new: Sequence[Server]) -> Iterator[str]:
        yield from problems_without_addresses(servers, new)

    def keys_of(self, server: Server) -> Iterator[str]:
        for text in texts_of(server):
            yield from parse_old_address(text).forms

    def keys_in(self, value: str) -> Sequence[str]:
        return (address_in(value),)
