"""A backend with health checks at /site, for each face; /look responds with the states of its servers."""

from __future__ import annotations

import json
import os
from types import ModuleType
from typing import Any


def backend(package: ModuleType) -> Any:
    urls: dict[str, str] = json.loads(os.environ["CHECKED"])
    limits: dict[str, dict[str, Any]] = json.loads(os.environ.get("CHECKED_LIMITS", '{"server": {}, "backend": {}}'))
    options: dict[str, Any] = json.loads(os.environ.get("CHECK_OPTIONS", "{}"))
    return package.Backend(
        "site",
        [package.Server(name, url, slowstart="2s", **limits["server"]) for name, url in urls.items()],
        persist=package.Cookie("SERVERID", signed=False),
        check=package.Check("/health", **({"inter": 0.2, "fall": 2, "rise": 2} | options)),
        balance=package.RoundRobin(start=0),
        timeouts=package.Timeouts(connect=1, server=5),
        **limits["backend"],
    )


def look(site: Any) -> bytes:
    return json.dumps(
        {
            server.name: {
                "status": server.status,
                "check": server.checking.result.status.name,
                "code": server.checking.result.code,
                "throttle": server.throttle,
                "ejected": server.is_ejected,
                "counts": server.max_fails.rate and server.max_fails.rate.counts,
            }
            for server in site.servers
        }
    ).encode()
