"""MCP's transport over Server-Sent Events, by hand, behind StickyWorkers unless STICKY is `null`: `GET /sse` opens a
stream and names in it where its client sends messages; each message comes back in the stream, with its number.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from uuid import uuid4

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from sticky_asgi import StickyWorkers

streams: dict[str, asyncio.Queue[bytes]] = {}


async def sse(request: Request) -> Response:
    session = uuid4().hex
    messages = streams[session] = asyncio.Queue()

    async def events() -> AsyncIterator[str]:
        try:
            yield f"event: endpoint\r\ndata: /messages/?session_id={session}\r\n\r\n"
            number = 0
            while True:
                message = await messages.get()
                number += 1
                yield f"event: message\r\ndata: {number} {os.getpid()} {message.decode()}\r\n\r\n"
        finally:
            del streams[session]

    return StreamingResponse(events(), media_type="text/event-stream")


async def messages(request: Request) -> Response:
    stream = streams.get(request.query_params["session_id"])
    if stream is None:
        return Response("Could not find session", 404)
    stream.put_nowait(await request.body())
    return Response("Accepted", 202)


inner = Starlette(routes=[Route("/sse", sse), Route("/messages/", messages, methods=["POST"])])
app = inner if os.environ["STICKY"] == "null" else StickyWorkers(inner, **json.loads(os.environ["STICKY"]))
