"""An ASGI app behind one sticky server with streams that wait for permission: each chunk is sent after a
`POST /go-on`. `/look` responds with what is in flight.
"""

import asyncio
from collections.abc import AsyncIterator
from itertools import count

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from sticky_asgi import Backend, Cookie, Server, StickyMiddleware

permissions = asyncio.Semaphore(0)
closed: list[str] = []


async def chunks() -> AsyncIterator[str]:
    try:
        for number in count(1):
            yield f"data: {number}\n\n"
            await permissions.acquire()
    finally:
        closed.append("stream")


async def stream(request: Request) -> StreamingResponse:
    return StreamingResponse(chunks(), media_type="text/event-stream")


async def echo(socket: WebSocket) -> None:
    await socket.accept(subprotocol=next(iter(socket.scope["subprotocols"]), None))
    try:
        async for text in socket.iter_text():
            await socket.send_text(text)
    finally:
        closed.append("socket")


async def deny(socket: WebSocket) -> None:
    await socket.send_denial_response(PlainTextResponse("not you", 403))


def create_app() -> Starlette:
    return Starlette(
        routes=[
            Route("/sticky/stream", stream),
            WebSocketRoute("/sticky/echo", echo),
            WebSocketRoute("/sticky/deny", deny),
        ]
    )


backend = Backend("streams", servers=[Server("s1", factory=create_app)], persist=Cookie("SERVERID"))


async def go_on(request: Request) -> JSONResponse:
    permissions.release()
    return await look(request)


async def look(request: Request) -> JSONResponse:
    return JSONResponse({"in_flight": len(backend["s1"].in_flight), "closed": closed})


app = Starlette(routes=[Route("/go-on", go_on, methods=["POST"]), Route("/look", look)])
app.add_middleware(StickyMiddleware, routes={"/sticky": backend})
