"""Sticky sessions for ASGI apps: Starlette, FastAPI, and any other ASGI app."""

from typing import TYPE_CHECKING

from sticky_core import balance, exports
from sticky_core.backend.event_loop import EventLoop
from sticky_core.deferred.names import deferred_names

__version__ = "0.1.0"

__all__ = ["Dispatcher", "StickyMiddleware", "StickyWorkers", "Upstream", "decision"]
__all__ += exports.__all__
__all__ += balance.__all__

EventLoop.place = "sticky_asgi.background.checks:wait"

if not TYPE_CHECKING:
    __getattr__, __dir__ = deferred_names(
        __name__,
        {
            "Dispatcher": "sticky_asgi.middleware:Dispatcher",
            "StickyMiddleware": "sticky_asgi.middleware:StickyMiddleware",
            "StickyWorkers": "sticky_asgi.workers.middleware:StickyWorkers",
            "Upstream": "sticky_asgi.upstream.app:Upstream",
            "decision": "sticky_asgi.middleware:decision",
            **{name: f"sticky_core.exports:{name}" for name in (*exports.__all__, *balance.__all__)},
        },
    )
else:  # for type checkers, and for the reference
    from sticky_asgi.middleware import Dispatcher, StickyMiddleware, decision
    from sticky_asgi.upstream.app import Upstream
    from sticky_asgi.workers.middleware import StickyWorkers
    from sticky_core.balance import *
    from sticky_core.exports import *
