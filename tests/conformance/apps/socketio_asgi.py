"""A Socket.IO server with rooms in memory, behind StickyWorkers unless STICKY is `null`."""

import json
import os

import socketio  # type: ignore[import-untyped]

from sticky_asgi import StickyWorkers

server = socketio.AsyncServer(async_mode="asgi", cors_allowed_origins="*")
heard: dict[str, list[str]] = {}


@server.event
async def connect(sid, environ):
    heard[sid] = []


@server.event
async def say(sid, text):
    heard[sid].append(text)
    return {"heard": heard[sid], "pid": os.getpid()}


@server.event
async def disconnect(sid, reason=None):
    heard.pop(sid, None)


inner = socketio.ASGIApp(server)
app = (
    inner if os.environ.get("STICKY") == "null" else StickyWorkers(inner, **json.loads(os.environ.get("STICKY", "{}")))
)
