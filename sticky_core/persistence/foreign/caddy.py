"""Caddy's `lb_policy cookie`: the value is a digest of the server's dial address (caddyserver/caddy,
modules/caddyhttp/reverseproxy/selectionpolicies.go).
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Sequence
from dataclasses import field

from sticky_core.deferred.dataclass import dataclass
from sticky_core.http import cookies
from sticky_core.options.spelling import named_options
from sticky_core.options.types import type_problem
from sticky_core.persistence.foreign.cookie import ForeignCookie
from sticky_core.persistence.foreign.servers import parse_old_address, texts_of
from sticky_core.persistence.foreign.values import ForeignValues
from sticky_core.server.server import Server


@named_options
def caddy(name: str = "lb", secret: str = "") -> ForeignCookie:
    """Return the cookie of Caddy: `lb_policy cookie [<name> [<secret>]]`, for `Cookie(accepts=[...])`.

    - `name`: the name of the cookie. Default: `lb`, as in Caddy.
    - `secret`: Caddy's secret, text. Default: empty, as in Caddy; then clients can make values. Caddy replaces
      `{$LB_SECRET}` in a Caddyfile, but not `{env.LB_SECRET}`: there the secret is these characters.

    The value names the address that Caddy dials, as it is written in the Caddyfile. A server is found by the host and
    port of its URL, and by what its `formerly` lists: `"10.0.0.1:80"`, `"app"` for `app:80`, `"unix//run/a.sock"`; for
    an upstream with a placeholder, the placeholder. Deleted with path `/`.

    Raises `ConfigError` with every problem found.
    """
    return ForeignCookie("caddy", name, CaddyValues(secret), path="/")


def dial_addresses(text: str) -> Iterator[str]:
    """Yield the dial addresses that a URL or another text may be in a Caddyfile."""
    address = parse_old_address(text)
    if address.socket:
        yield f"unix/{address.socket}"
    elif address.host:
        yield from address.forms  # host names keep their case
    else:
        yield from (text, f"{text}:80")


def caddy_value(secret: str, dial: str) -> str:
    """Return the value of the cookie for the server at the address `dial`."""
    return hmac.digest(secret.encode(), dial.encode(), "sha256").hex()


@dataclass(frozen=True, slots=True)
class CaddyValues(ForeignValues):
    """The values of Caddy's cookie; a key is a value."""

    secret: str = field(repr=False)

    def problems(self) -> Iterator[str]:
        problem = type_problem("secret", self.secret, str, "the secret as in the Caddyfile, a text")
        if problem is not None:
            yield problem

    def keys_of(self, server: Server) -> Iterator[str]:
        for text in texts_of(server):
            for dial in dial_addresses(text):
                yield caddy_value(self.secret, dial)

    def keys_in(self, value: str) -> Sequence[str]:
        return (cookies.unquote(value),)  # Caddy reads quoted values as well
