"""A Socket.IO server with rooms in memory, behind StickyWorkers unless STICKY is `null`."""

import json
import os

import socketio  # type: ignore[import-untyped]

from sticky_asgi import StickyWorkers

server = socketio.AsyncServer(async_mode="asgi", cors_allowed_origins="*")
received: dict[str, list[str]] = {}


@server.event
async def connect(sid, environ):
    received[sid] = []


@server.event
async def append(sid, text):
    received[sid].append(text)
    return {"received": received[sid], "pid": os.getpid()}


@server.event
async def disconnect(sid, reason=None):
    received.pop(sid, None)


inner = socketio.ASGIApp(server)
app = (
    inner if os.environ.get("STICKY") == "null" else StickyWorkers(inner, **json.loads(os.environ.get("STICKY", "{}")))
)
