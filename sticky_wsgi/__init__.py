"""Sticky sessions for WSGI apps: Flask, Werkzeug, and any other WSGI app."""

from typing import TYPE_CHECKING

from sticky_core import balance, exports
from sticky_core.deferred.names import deferred_names

__all__ = ["Dispatcher", "StickyMiddleware", "StickyWorkers", "Upstream", "decision"]
__all__ += exports.__all__
__all__ += balance.__all__

if not TYPE_CHECKING:
    __getattr__, __dir__ = deferred_names(
        __name__,
        {
            "Dispatcher": "sticky_wsgi.middleware:Dispatcher",
            "StickyMiddleware": "sticky_wsgi.middleware:StickyMiddleware",
            "StickyWorkers": "sticky_wsgi.workers.middleware:StickyWorkers",
            "Upstream": "sticky_wsgi.upstream.app:Upstream",
            "decision": "sticky_wsgi.middleware:decision",
            **{name: f"sticky_core.exports:{name}" for name in (*exports.__all__, *balance.__all__)},
        },
    )
else:  # for type checkers, and for the reference
    from sticky_core.balance import *
    from sticky_core.exports import *
    from sticky_wsgi.middleware import Dispatcher, StickyMiddleware, decision
    from sticky_wsgi.upstream.app import Upstream
    from sticky_wsgi.workers.middleware import StickyWorkers
