"""Sticky sessions for WSGI apps: Flask, Werkzeug, and whatever else speaks WSGI."""

from sticky_core.backend import Backend, BackendConfig
from sticky_core.balance import LeastConn, Random, RoundRobin
from sticky_core.claim import Claim, Mark, Reason
from sticky_core.decision import Decision
from sticky_core.errors import ConfigError, Failure, ServerFailure
from sticky_core.forwarding import Forward
from sticky_core.persistence import Cookie
from sticky_core.server import AdminState, Health, Server, ServerConfig
from sticky_core.timeouts import Timeouts
from sticky_core.tls import TLS
from sticky_wsgi.middleware import Dispatcher, StickyMiddleware, decision
from sticky_wsgi.upstream import Upstream

__all__ = [
    "TLS",
    "AdminState",
    "Backend",
    "BackendConfig",
    "Claim",
    "ConfigError",
    "Cookie",
    "Decision",
    "Dispatcher",
    "Failure",
    "Forward",
    "Health",
    "LeastConn",
    "Mark",
    "Random",
    "Reason",
    "RoundRobin",
    "Server",
    "ServerConfig",
    "ServerFailure",
    "StickyMiddleware",
    "Timeouts",
    "Upstream",
    "decision",
]
