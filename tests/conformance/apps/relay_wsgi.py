"""A WSGI app that only routes to upstreams. RELAY has for each path its servers by name, `server` options that they
share, a `cookie` for persistence, and other options of a Backend. `/look` responds with what is in flight, and the
number of failures.
"""

import json
import os
import threading
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIEnvironment

from sticky_core.server.counters import Total
from sticky_wsgi import Backend, Cookie, Server, StickyMiddleware, Timeouts


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


def look(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    servers = [server for each in backends.values() for server in each.servers]
    body = json.dumps(
        {
            "in_flight": sum(len(server.in_flight) for server in servers),
            "blamed": sum(server.counters[Total.ECON] + server.counters[Total.ERESP] for server in servers),
            "tasks": sum(not thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate()),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "pid": os.getpid(),
        }
    ).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", f"{len(body)}")])
    return [body]


app = StickyMiddleware(look, routes=backends)
