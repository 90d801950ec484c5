"""Servers for the addresses of a name that is resolved at run time (HAProxy `server-template`)."""

from __future__ import annotations

import re
from dataclasses import replace

from sticky_core import target as targets
from sticky_core.dns.resolvers import Resolvers, is_service
from sticky_core.errors import ConfigError
from sticky_core.http.tls import TLS
from sticky_core.server.config import ServerConfig, TemplateOptions


def expand_template(
    prefix: str, n: int | str, where: str, resolvers: Resolvers | None, options: TemplateOptions
) -> list[ServerConfig]:
    """Return the configurations of the servers of a template. `Server.template` documents the arguments."""
    parsed = re.fullmatch(r"(?:([0-9]+)-)?([0-9]+)", str(n))
    numbers = range(int(parsed[1] or 1), int(parsed[2]) + 1) if parsed is not None else ()
    if not numbers:
        raise ConfigError(f"template {prefix}: {n!r} is not a number of servers: write 3, or a range, '3-7'")
    url = where if targets.has_scheme(where) else f"http://{where}"
    if url.startswith("https:") and targets.target_problem(url, None) is None:
        host = targets.Location.parse(url).host
        tls = options.get("tls") or TLS()
        if tls.sni is None and not is_service(host):
            options["tls"] = replace(tls, sni=host)
    return [ServerConfig(name=f"{prefix}{number}", template=url, resolvers=resolvers, **options) for number in numbers]
