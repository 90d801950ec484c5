"""Replace a secret without moving a client: clients with a cookie of the old key stay where they are,
and get a cookie of the new one.

    export STICKY_SECRET="the-key-of-last-year the-key-of-this-year"     # oldest to newest
    uvicorn --app-dir examples key_rotation:app

Keep both until the last client with a cookie of the old key has come back, then take the old key out.
"""

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from sticky_asgi import Backend, Cookie, Dispatcher, Server, decision


async def hello(request: Request) -> JSONResponse:
    return JSONResponse({"server": decision(request).server})


# Stateless: the app keeps nothing of a client in this process, so its cookie is valid after a restart as well.
servers = [Server(name, Starlette(routes=[Route("/", hello)]), stateless=True) for name in ("web1", "web2", "web3")]
keys = os.environ.get("STICKY_SECRET", "").split()

app = Dispatcher(Backend("web", servers, persist=Cookie("SERVERID", secret=keys)))
