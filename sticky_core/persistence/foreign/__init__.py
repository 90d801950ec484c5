"""Cookies of other balancers, for `Cookie(accepts=[...])`: `accepts.caddy("lb")`, `accepts.traefik("_abc12")`.

Each function returns a cookie that is only read; `of_backend` returns one of ours. A client that has it goes to the
server that it names, if that is known, and gets our cookie; the other one is deleted where its path is known.

What needs no function here: HAProxy's cookie is `Cookie("SERVERID", signed=False)`, with the options of its `cookie`
line; that of nginx's `sticky cookie` is `NginxCookie("srv_id")`; a route in the session of the application (Tomcat,
Apache) is `Route(cook("JSESSIONID"))`. What is encrypted, or names no server (AWS, Google Cloud, Cloudflare, Azure
Application Gateway, ring hashes of Envoy and Istio), can't be accepted.
"""

from sticky_core.persistence.foreign.apache import apache
from sticky_core.persistence.foreign.caddy import caddy
from sticky_core.persistence.foreign.envoy import envoy
from sticky_core.persistence.foreign.ingress_nginx import ingress_nginx
from sticky_core.persistence.foreign.nginx_sticky_module import nginx_sticky_module
from sticky_core.persistence.foreign.of_backend import of_backend
from sticky_core.persistence.foreign.table import table
from sticky_core.persistence.foreign.traefik import traefik
from sticky_core.persistence.foreign.yarp import arr, yarp

__all__ = [
    "apache",
    "arr",
    "caddy",
    "envoy",
    "ingress_nginx",
    "nginx_sticky_module",
    "of_backend",
    "table",
    "traefik",
    "yarp",
]
