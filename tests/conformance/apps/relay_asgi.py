"""An ASGI app that only routes to upstreams. RELAY has for each path its servers by name, `server` options that they
share, a `cookie` for persistence, and other options of a Backend. `/look` responds with what is in flight, and the
number of failures.
"""

import asyncio
import json
import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from sticky_asgi import Backend, Cookie, Server, StickyMiddleware, Timeouts
from sticky_core.server.counters import Total


def backend(path: str, config: dict[str, dict[str, str]]) -> Backend:
    servers, shared, cookie = config.pop("servers"), config.pop("server", {}), config.pop("cookie", None)
    options: dict[str, object] = {**config}
    if "timeouts" in config:
        options["timeouts"] = Timeouts(**config["timeouts"])
    if cookie:
        options["persist"] = Cookie(str(cookie), path=path, signed=False)
    return Backend(
        path.strip("/"),
        servers=[Server(name, url, **shared) for name, url in servers.items()],  # type: ignore[arg-type]
        **options,  # type: ignore[arg-type]
    )


backends = {path: backend(path, config) for path, config in json.loads(os.environ["RELAY"]).items()}


async def look(request: Request) -> JSONResponse:
    servers = [server for each in backends.values() for server in each.servers]
    return JSONResponse(
        {
            "in_flight": sum(len(server.in_flight) for server in servers),
            "blamed": sum(server.counters[Total.ECON] + server.counters[Total.ERESP] for server in servers),
            "tasks": len(asyncio.all_tasks()),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "pid": os.getpid(),
        }
    )


app = Starlette(routes=[Route("/look", look)])
app.add_middleware(StickyMiddleware, routes=backends)
