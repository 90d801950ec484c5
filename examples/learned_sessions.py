"""An app that names its sessions in a header, as MCP servers do, is sticky by that header:
no cookie, and an identifier that no replica has given out belongs to no replica.

    uvicorn examples.learned_sessions:app

    session=$(curl -si -X POST localhost:8000 | tr -d '\\r' | sed -n 's/^mcp-session-id: //p')
    curl -X POST -H "Mcp-Session-Id: $session" localhost:8000      # the same replica, and what it remembers
    curl -X POST -H "Mcp-Session-Id: invented" localhost:8000      # 404
"""

import secrets

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from sticky_asgi import Backend, Dispatcher, Learn, Server, decision

NAME = "Mcp-Session-Id"


def create_tool() -> Starlette:
    calls: dict[str, int] = {}

    async def call(request: Request) -> JSONResponse:
        session = request.headers.get(NAME)
        if session is None:
            session = secrets.token_urlsafe()
            calls[session] = 0
        elif session not in calls:
            return JSONResponse({"error": "Session not found"}, 404)
        calls[session] += 1
        body = {"replica": decision(request).server, "calls": calls[session]}
        return JSONResponse(body, headers={NAME: session})

    return Starlette(routes=[Route("/", call, methods=["POST"])])


app = Dispatcher(Backend("tool", Server.replicas(create_tool, 3), persist=Learn.header(NAME, timeout="1h")))
