"""The cookie of nginx-sticky-module-ng, a module for nginx by third parties (Refinitiv/nginx-sticky-module-ng,
ngx_http_sticky_module.c and ngx_http_sticky_misc.c). That of nginx itself is `NginxCookie`.
"""

from __future__ import annotations

import hashlib
import hmac as hmacs
from collections.abc import Iterator
from dataclasses import field
from ipaddress import IPv4Address
from types import NoneType
from typing import Literal, cast, get_args

from sticky_core.deferred.dataclass import dataclass
from sticky_core.options.spelling import named_options, problem_of_word
from sticky_core.options.types import type_problem
from sticky_core.options.unset import UNSET, NotGiven, value_or
from sticky_core.persistence.foreign.cookie import ForeignCookie
from sticky_core.persistence.foreign.servers import parse_old_address, texts_of
from sticky_core.persistence.foreign.values import ForeignValues
from sticky_core.samples.values import Address
from sticky_core.server.server import Server

Digest = Literal["md5", "sha1"]
Text = Literal["raw", "md5", "sha1"]


@named_options
def nginx_sticky_module(
    name: str = "route",
    *,
    hash: Digest | None = None,
    hmac: Digest | None = None,
    hmac_key: str | None = None,
    text: Text | None = None,
    transfer: bool = False,
    delimiter: str | None = None,
    path: str | NotGiven | None = UNSET,
    domain: str | None = None,
) -> ForeignCookie:
    """Return the cookie of nginx-sticky-module-ng (`sticky;` in an `upstream` of nginx), for `Cookie(accepts=[...])`.
    The options are those of its `sticky` line; one of `hash`, `hmac` and `text`:

    - `name`: the name of the cookie. Default: `route`, as in the module.
    - `hash`: `"md5"` or `"sha1"`. Default: `"md5"` if there is neither `hmac` nor `text`. For `hash=index` write
      `accepts.table("route", {"0": "s1", "1": "s2"})`: it counts the servers.
    - `hmac`: `"md5"` or `"sha1"`, with a key. Default: None.
    - `hmac_key`: the key of `hmac`, text. Default: None.
    - `text`: `"raw"`, `"md5"` or `"sha1"`. Default: None.
    - `transfer`: whether the cookie is the application's, with the server in front of its value. Then the server gets
      the application's value, and the cookie is not deleted. Default: False.
    - `delimiter`: with `transfer`, the text between the two. Default: a space.
    - `path`: the attribute Path, with which the cookie is deleted; None: do not delete it. Default: `/`, as in the
      module.
    - `domain`: the attribute Domain. Default: none.

    Versions up to 1.2.6 hash the IP address and port of a server, later ones the text of its `server` line; both are
    read. A server is found by its URL and what its `formerly` lists, `"10.0.0.1:8080"`; if nginx has a host name there,
    write that and the address.

    Raises `ConfigError` with every problem found.
    """
    values = StickyModuleValues(
        hash=hash or ("md5" if hmac is None and text is None else None),
        hmac=hmac,
        hmac_key=hmac_key,
        text=text,
        transfer=transfer,
        delimiter=delimiter,
    )
    return ForeignCookie(
        "nginx_sticky_module",
        name,
        values,
        path=value_or(path, None if transfer else "/"),
        domain=domain,
        delimiter=(delimiter or " ") if transfer else "",
    )


def socket_address(address: Address, port: int) -> bytes:
    """Return an address as Linux has it in memory (`struct sockaddr_in` and `sockaddr_in6`)."""
    family = 2 if isinstance(address, IPv4Address) else 10
    head = family.to_bytes(2, "little") + port.to_bytes(2, "big")
    return head + address.packed + bytes(8) if family == 2 else head + bytes(4) + address.packed + bytes(4)


def typed_forms(text: str) -> Iterator[str]:
    """Yield what a URL or an address may be in a `server` line of nginx."""
    address = parse_old_address(text)
    if address.socket:
        yield f"unix:{address.socket}"
        return
    yield from address.forms
    if address.host and address.port == 80:
        yield address.printed.removesuffix(":80")


@dataclass(frozen=True, slots=True, kw_only=True)
class StickyModuleValues(ForeignValues):
    """The values of the cookie of nginx-sticky-module-ng; a key is a value."""

    hash: Digest | None
    hmac: Digest | None
    hmac_key: str | None = field(repr=False)
    text: Text | None
    transfer: bool
    delimiter: str | None

    def problems(self) -> Iterator[str]:
        words = {"hash": self.hash, "hmac": self.hmac, "text": self.text}
        given = [option for option, value in words.items() if value is not None]
        if len(given) > 1:
            yield f"{' and '.join(given)} exclude each other: give the one of the sticky line"
        if cast(object, self.hash) == "index":
            yield "hash='index' counts the servers: write accepts.table(name, {'0': 'the first server', ...})"
        elif self.hash is not None and self.hash not in get_args(Digest):
            yield problem_of_word("hash", self.hash, get_args(Digest))
        if self.hmac is not None and self.hmac not in get_args(Digest):
            yield problem_of_word("hmac", self.hmac, get_args(Digest))
        if self.text is not None and self.text not in get_args(Text):
            yield problem_of_word("text", self.text, get_args(Text))
        yield from self._problems_of_key()
        yield from self._problems_of_transfer()

    def _problems_of_key(self) -> Iterator[str]:
        problem = type_problem("hmac_key", self.hmac_key, (str, NoneType), "the key as in nginx.conf, a text")
        if problem is not None:
            yield problem
        elif self.hmac is not None and not self.hmac_key:
            yield "hmac needs its key: write hmac_key="
        elif self.hmac is None and self.hmac_key is not None:
            yield "hmac_key has no effect without hmac"

    def _problems_of_transfer(self) -> Iterator[str]:
        problem = type_problem("delimiter", self.delimiter, (str, NoneType), "a text")
        if problem is not None:
            yield problem
        elif self.delimiter is not None and not self.transfer:
            yield "delimiter has no effect without transfer"
        elif self.delimiter is not None and (not self.delimiter or set(self.delimiter) & set(';,"')):
            yield f"delimiter {self.delimiter!r} can't be in a cookie: leave it out for a space"

    def keys_of(self, server: Server) -> Iterator[str]:
        for text in texts_of(server):
            forms = [*typed_forms(text)]
            if self.text == "raw":
                yield from forms
                continue
            inputs = [each.encode() for each in forms]
            address = parse_old_address(text)
            if self.text is None and address.ip is not None:
                inputs.append(socket_address(address.ip, address.port))
            yield from map(self._digest, inputs)

    def _digest(self, data: bytes) -> str:
        if self.hmac is not None:
            return hmacs.digest((self.hmac_key or "").encode(), data, self.hmac).hex()
        return hashlib.new(self.text or self.hash or "md5", data, usedforsecurity=False).hexdigest()
