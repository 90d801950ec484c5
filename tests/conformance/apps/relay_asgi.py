"""An ASGI app that only routes to upstreams. RELAY has for each path its servers by name, `server` options that they
share, a `cookie` for persistence, and other options of a Backend. `/look` responds with what is in flight, and the
number of failures; `/drain` drains servers; `/ended` responds with how the WebSockets have ended that are over.
`/replica` is an app in this process.
"""

import asyncio
import json
import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sticky_asgi import Backend, Cookie, Decision, Server, StickyMiddleware, Timeouts
from sticky_core.server.counters import Total
from sticky_core.server.state import AdminState

decisions: list[Decision] = []


def note(decision: Decision) -> None:
    """Keep a decision, and print that about a WebSocket: at the end of the process nothing can ask for it."""
    decisions.append(decision)
    if decision.closed_by is not None:
        print(decision, flush=True)  # noqa: T201


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
        log=note,
        **options,  # type: ignore[arg-type]
    )


backends = {path: backend(path, config) for path, config in json.loads(os.environ["RELAY"]).items()}


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """A replica: accept a WebSocket, and send its messages back."""
    assert scope["type"] == "websocket", "it has no lifespan"
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        match message["text"]:
            case "close":
                return await send({"type": "websocket.close", "code": 4001})
            case "return":
                return
            case text:
                await send({"type": "websocket.send", "text": text})


backends["/replica"] = Backend("replica", servers=[Server("r1", echo)], log=note)


async def drain(request: Request) -> JSONResponse:
    """Drain the servers behind a path, or make them ready again, and return which of them have drained."""
    backend = backends[request.query_params["path"]]
    for server in backend.servers:
        match request.query_params["do"]:
            case "drain":
                server.drain(deadline=0, spread=0)
            case "ready":
                server.state = AdminState.READY
    return JSONResponse([server.name for server in backend.servers if backend.drained(server.name).wait(0)])


async def ended(request: Request) -> JSONResponse:
    """Return which side has ended each WebSocket that is over, and with which code, and forget it."""
    over = [decisions.pop(0) for _ in range(len(decisions))]
    return JSONResponse([(each.closed_by and each.closed_by.name, each.close_code) for each in over])


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


app = Starlette(routes=[Route("/look", look), Route("/drain", drain), Route("/ended", ended)])
app.add_middleware(StickyMiddleware, routes=backends)
