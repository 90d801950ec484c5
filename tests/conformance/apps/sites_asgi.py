"""The sites of the forwarding tests as an ASGI app. The Host `look` responds with the counters of all of them."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from sites import A, backends, counts  # type: ignore[import-not-found]
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

import sticky_asgi
from sticky_asgi import Dispatcher, Upstream

site_backends = backends(sticky_asgi, PlainTextResponse("the app itself"))
dispatchers = {name: Dispatcher(backend) for name, backend in site_backends.items()}


async def look(scope: Scope, receive: Receive, send: Send) -> None:
    response = JSONResponse({name: counts(backend) for name, backend in site_backends.items()})
    await response(scope, receive, send)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with AsyncExitStack() as lifespans:
        for dispatcher in dispatchers.values():
            await lifespans.enter_async_context(dispatcher.lifespan())
        yield


lifespan_app = Starlette(lifespan=lifespan)
sites: dict[str, ASGIApp] = {
    **dispatchers,
    "look": look,
    "alone": Upstream(A),
    "mounted": Starlette(routes=[Mount("/mounted", dispatchers["mounted"])]),
    "mounted-based": Starlette(routes=[Mount("/mounted", dispatchers["mounted-based"])]),
    "nested": Starlette(routes=[Mount("/outer", Starlette(routes=[Mount("/inner", dispatchers["nested"])]))]),
}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        return await lifespan_app(scope, receive, send)
    host = dict(scope["headers"]).get(b"host", b"plain").decode("latin-1").partition(":")[0]
    await sites.get(host, sites["plain"])(scope, receive, send)
