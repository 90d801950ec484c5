"""Sticky sessions for ASGI apps: Starlette, FastAPI, and any other ASGI app."""

from sticky_asgi.middleware import Dispatcher, StickyMiddleware, decision
from sticky_asgi.upstream.app import Upstream
from sticky_asgi.workers.middleware import StickyWorkers
from sticky_core import balance, exports
from sticky_core.balance import *
from sticky_core.exports import *

__version__ = "0.1.0"

__all__ = ["Dispatcher", "StickyMiddleware", "StickyWorkers", "Upstream", "decision"]
__all__ += exports.__all__
__all__ += balance.__all__
