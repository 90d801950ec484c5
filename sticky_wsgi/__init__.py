"""Sticky sessions for WSGI apps: Flask, Werkzeug, and any other WSGI app."""

from sticky_core import balance, exports
from sticky_core.balance import *
from sticky_core.exports import *
from sticky_wsgi.middleware import Dispatcher, StickyMiddleware, decision
from sticky_wsgi.upstream.app import Upstream
from sticky_wsgi.workers.middleware import StickyWorkers

__all__ = ["Dispatcher", "StickyMiddleware", "StickyWorkers", "Upstream", "decision"]
__all__ += exports.__all__
__all__ += balance.__all__
