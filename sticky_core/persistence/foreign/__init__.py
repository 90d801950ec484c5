"""Cookies of other balancers, for `Cookie(accepts=[...])`: `accepts.caddy("lb")`, `accepts.traefik("_abc12")`.

Each function returns a cookie that is only read; `of_backend` returns one of ours. A client that has it goes to the
server that it names, if that is known, and gets our cookie; the other one is deleted where its path is known.

What needs no function here: HAProxy's cookie is `Cookie("SERVERID", signed=False)`, with the options of its `cookie`
line; that of nginx's `sticky cookie` is `NginxCookie("srv_id")`; a route in the session of the application (Tomcat,
Apache) is `Route(cook("JSESSIONID"))`. What is encrypted, or names no server (AWS, Google Cloud, Cloudflare, Azure
Application Gateway, ring hashes of Envoy and Istio), can't be accepted.
"""

from typing import TYPE_CHECKING

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

#: what to write for a balancer that has no function here
_INSTEAD = {
    "haproxy": "write Cookie('SERVERID', signed=False), with the options of its cookie line",
    "nginx": "write NginxCookie('srv_id') for sticky cookie",
    "istio": "write accepts.envoy(name)",
    "tomcat": "write Route(cook('JSESSIONID'))",
    "jetty": "write Route(cook('JSESSIONID'))",
    "azure": "write accepts.table(name, {value: server}) for the App Service",
    "alb": "write alb() for a cookie of ours; the values of AWS can't be read",
    "elb": "write elb() for a cookie of ours; the values of AWS can't be read",
    **dict.fromkeys(("aws", "google", "cloudflare"), "its values can't be read: let both balancers run for a while"),
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Raise AttributeError with what to write: the page "Move from another balancer" has each of them."""
        from sticky_core.options.spelling import nearest  # for a mistake only

        instead = _INSTEAD.get(name.lower())
        if instead is None and not name.startswith("_"):
            near = nearest(name, __all__)
            instead = f"write accepts.{near}" if near is not None else f"there are {', '.join(__all__)}"
        raise AttributeError(f"accepts has no {name}" + (f": {instead}" if instead else ""), name=name)
