"""An app with StickyWorkers inside of other middleware, where it should not be. STICKY: its options as JSON."""

import json
import os

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sticky_asgi import StickyWorkers


async def seen(request: Request) -> Response:
    return JSONResponse({"session": "session" in request.scope, "app": request.app is app})


app = Starlette(
    routes=[Route("/seen", seen)],
    middleware=[
        Middleware(SessionMiddleware, secret_key="of the test"),
        Middleware(StickyWorkers, **json.loads(os.environ["STICKY"])),
    ],
)
