"""An app that breaks ASGI, behind StickyWorkers unless STICKY is `null`: each path in its own way."""

import json
import os
from typing import Any

from sticky_asgi import StickyWorkers

HEAD = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
LAST = {"type": "http.response.body", "body": b"ok"}

#: what the app sends for each path; an exception is raised
SENT: dict[str, list[Any]] = {
    "/": [HEAD, LAST],
    "/after-the-end": [HEAD, LAST, LAST],
    "/head-after-the-end": [HEAD, LAST, HEAD],
    "/two-heads": [HEAD, HEAD, LAST],
    "/no-head": [LAST],
    "/nothing": [],
    "/unknown-key": [{**HEAD, "x": object()}, {**LAST, "y": object()}],
    "/object-in-header": [{**HEAD, "headers": [(b"a", object())]}],
    "/raises-after-the-end": [HEAD, LAST, RuntimeError("raised after the end")],
    "/raises": [RuntimeError("raised before the head")],
    "/base-exception": [BaseException("raised by no Exception")],
    "/marker": [RuntimeError("the last request")],
}


async def inner(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        return await send({"type": "lifespan.shutdown.complete"})
    path, _, catches = scope["path"].partition(":")
    for message in SENT[path]:
        if isinstance(message, BaseException):
            raise message
        try:
            await send(message)
        except Exception:
            if not catches:
                raise


options = json.loads(os.environ["STICKY"])
app = inner if options is None else StickyWorkers(inner, **options)
