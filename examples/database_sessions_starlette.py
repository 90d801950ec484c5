"""The other way: a Starlette app that keeps its sessions in Redis or Valkey (starsessions), so that any of its
replicas serves any client, and nothing has to stick. Each request pays for that with a read from the store, and with
writing the session back; with sticky sessions it stays in memory, and is lost with its replica.

    pip install starsessions redis uvicorn
    REDIS_URL=redis://localhost:6379 uvicorn --app-dir examples database_sessions_starlette:app

    curl -c jar -b jar -X POST localhost:8000/cart/tea     # again and again: another replica each time, one cart

To go from one way to the other, client by client: run this app on the servers that the clients stick to now. A client
with a session in the store does not need its server any more; when the last session in memory has expired, leave
`persist` out.
"""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starsessions import SessionAutoloadMiddleware, SessionMiddleware
from starsessions.stores.redis import RedisStore

from sticky_asgi import Backend, Dispatcher, Server, decision


async def cart(request: Request) -> JSONResponse:
    items: list[str] = request.session.setdefault("items", [])
    if request.method == "POST":
        # a new list, so that the session counts as changed
        request.session["items"] = items = [*items, request.path_params["item"]]
    return JSONResponse({"replica": decision(request).server, "items": items})


def create_app() -> Starlette:
    url = os.environ.get("REDIS_URL", "redis://localhost:6379")
    client = Redis.from_url(url)  # pyright: ignore[reportUnknownMemberType]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        async with client:
            yield

    https = "HTTPS" in os.environ
    sessions = [
        Middleware(SessionMiddleware, store=RedisStore(connection=client), lifetime=3600, cookie_https_only=https),
        Middleware(SessionAutoloadMiddleware),
    ]
    routes = [Route("/cart", cart), Route("/cart/{item}", cart, methods=["POST"])]
    return Starlette(routes=routes, middleware=sessions, lifespan=lifespan)


backend = Backend("cart", servers=Server.replicas(create_app, 3))  # without `persist`

app = Dispatcher(backend)
