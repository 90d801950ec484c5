"""The checked site over ASGI."""

from typing import Any

import checked  # type: ignore[import-not-found]

import sticky_asgi

site = checked.backend(sticky_asgi)


async def look(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = checked.look(site)
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


app = sticky_asgi.StickyMiddleware(look, routes={"/site": site})
