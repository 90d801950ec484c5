"""Sticky sessions for ASGI apps: Starlette, FastAPI, and whatever else speaks ASGI."""

from sticky_asgi.middleware import Dispatcher, StickyMiddleware, decision
from sticky_asgi.upstream import Upstream
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

__version__ = "0.1.0"

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
