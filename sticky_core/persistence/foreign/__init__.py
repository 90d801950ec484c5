"""Cookies of other balancers, for `Cookie(accepts=[...])`: `accepts.caddy("lb")`, `accepts.traefik("_abc12")`.

Each function returns a cookie that is only read. A client that has it goes to the server that it names, if that is
known, and gets our cookie; the other one is deleted where its path is known.

Two balancers need no function here. HAProxy: `Cookie("SERVERID", signed=False)`, with the options of its `cookie` line.
nginx's `sticky cookie`: `NginxCookie("srv_id")`. What is encrypted, or names no server (AWS, Google Cloud, Cloudflare,
Azure Application Gateway, ring hashes of Envoy and Istio), can't be accepted.
"""

from sticky_core.persistence.foreign.caddy import caddy
from sticky_core.persistence.foreign.envoy import envoy
from sticky_core.persistence.foreign.table import table
from sticky_core.persistence.foreign.traefik import traefik

__all__ = [
    "caddy",
    "envoy",
    "table",
    "traefik",
]
