"""An app with a middleware that lacks an argument, plain and wrapped: it raises in its lifespan, and at every request.

The environment variable `WRAPPED` names what is around it.
"""

import os

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from sticky_asgi import Backend, Dispatcher, Server, StickyMiddleware, StickyWorkers


class NeedsKey:
    def __init__(self, app: ASGIApp, key: str) -> None:
        raise AssertionError("unreachable")


def create_app() -> Starlette:
    return Starlette(middleware=[Middleware(NeedsKey)])  # type: ignore[arg-type]  # the mistake


def wrap(name: str) -> ASGIApp:
    match name:
        case "StickyWorkers":
            return StickyWorkers(create_app())
        case "StickyWorkers with peers":
            return StickyWorkers(create_app(), name=f"broken-{os.getpid()}")
        case "StickyMiddleware":
            return StickyMiddleware(create_app(), routes={"/cart": Backend("cart", Server.replicas(Starlette, 2))})
        case "Dispatcher":
            return Dispatcher(Backend("web", Server.replicas(create_app, 2)))
        case _:
            return create_app()


app = wrap(os.environ.get("WRAPPED", ""))
