"""An app that counts the requests of its clients in memory, behind StickyWorkers. STICKY: its options as JSON; `null`
leaves StickyWorkers out.
"""

import asyncio
import json
import os
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from sticky_asgi import StickyWorkers

counts: dict[str, int] = {}
events: dict[str, asyncio.Event] = {}


@asynccontextmanager
async def lifespan(app):
    yield {"pid": os.getpid()}


def counted(client: str) -> int:
    """Count one more request of a client, and return the number."""
    counts[client] = counts.get(client, 0) + 1
    return counts[client]


def decision_of(scope) -> dict[str, object]:
    """Return the decision that the app finds."""
    decision = scope.get("sticky")
    if decision is None:
        return {}
    return {"server": decision.server, "claim": decision.claim.name, "reason": decision.reason.value}


async def count(request: Request) -> Response:
    client = request.query_params["client"]
    return JSONResponse({"n": counted(client), "pid": os.getpid(), **decision_of(request.scope)})


async def room(request: Request) -> Response:
    return JSONResponse({"n": counted(request.path_params["name"]), "pid": os.getpid()})


async def stream(request: Request) -> Response:
    """Send three events, each with the number of events that the client has received."""
    client = request.query_params["client"]

    async def events_of_client():
        for _ in range(3):
            yield f"data: {counted(client)}\n\n"
            await asyncio.sleep(0)

    return StreamingResponse(events_of_client(), media_type="text/event-stream")


async def forever(request: Request) -> Response:
    """Send events until the client disconnects, which `/left` shows."""
    client = request.query_params["client"]
    counts[f"{client} open"] = 1

    async def events_of_client():
        try:
            while True:
                yield b": here\n\n"
                await asyncio.sleep(0.05)
        finally:
            counts[f"{client} left"] = 1

    return StreamingResponse(events_of_client(), media_type="text/event-stream")


async def left(request: Request) -> Response:
    client = request.query_params["client"]
    return JSONResponse({"open": counts.get(f"{client} open", 0), "left": counts.get(f"{client} left", 0)})


async def hold(request: Request) -> Response:
    """Respond when `/release` is called."""
    client = request.query_params["client"]
    event = events.setdefault(client, asyncio.Event())
    counts[f"{client} open"] = 1
    await event.wait()
    return JSONResponse({"pid": os.getpid()})


async def release(request: Request) -> Response:
    events.setdefault(request.query_params["client"], asyncio.Event()).set()
    return PlainTextResponse("released")


async def length(request: Request) -> Response:
    size = 0
    async for piece in request.stream():
        size += len(piece)
    return JSONResponse({"size": size, "pid": os.getpid(), "rss": rss()})


async def large(request: Request) -> Response:
    size = int(request.query_params["size"])

    async def pieces():
        piece = b"x" * 65536
        for _ in range(size // len(piece)):
            yield piece

    return StreamingResponse(pieces(), headers={"content-length": str(size // 65536 * 65536)})


async def echo(request: Request) -> Response:
    scope = request.scope
    return JSONResponse(
        {
            "raw_path": (scope.get("raw_path") or b"").decode("latin-1"),
            "query": scope["query_string"].decode("latin-1"),
            "root_path": scope["root_path"],
            "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]],
            "client": scope["client"],
            "server": scope["server"],
            "scheme": scope["scheme"],
            "http_version": scope["http_version"],
            "state": scope.get("state"),
            "pid": os.getpid(),
        }
    )


async def boom(request: Request) -> Response:
    raise RuntimeError("the app is broken")


async def memory(request: Request) -> Response:
    return JSONResponse({"rss": rss(), "peak": rss("VmHWM"), "pid": os.getpid()})


def rss(field: str = "VmRSS") -> int:
    """Return how much memory this process uses, in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(f"{field}:"))


async def talk(websocket: WebSocket) -> None:
    client = websocket.query_params["client"]
    await websocket.accept(subprotocol=next(iter(websocket.scope["subprotocols"]), None))
    async for text in websocket.iter_text():
        await websocket.send_text(f"{counted(client)} {os.getpid()} {text}")


routes = [
    Route("/count", count),
    Route("/rooms/{name}", room),
    Route("/stream", stream),
    Route("/forever", forever),
    Route("/left", left),
    Route("/hold", hold, methods=["GET", "POST"]),
    Route("/release", release),
    Route("/length", length, methods=["POST"]),
    Route("/large", large),
    Route("/echo", echo),
    Route("/boom", boom),
    Route("/memory", memory),
    WebSocketRoute("/talk", talk),
]


def create_app():
    inner = Starlette(routes=routes, lifespan=lifespan)
    options = json.loads(os.environ.get("STICKY", "{}"))
    return inner if options is None else StickyWorkers(inner, **options)


app = create_app()
