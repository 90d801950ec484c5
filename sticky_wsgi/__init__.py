"""Sticky sessions for WSGI apps: Flask, Werkzeug, and whatever else speaks WSGI."""

from sticky_core.agent_check import AgentCheck
from sticky_core.backend import Backend, BackendConfig
from sticky_core.balance import (
    Ewma,
    First,
    Hash,
    Hdr,
    IpHash,
    LeastConn,
    NginxHash,
    NginxLeastConn,
    NginxRandom,
    Random,
    RoundRobin,
    Smooth,
    Source,
    StaticRR,
    Uri,
    UrlParam,
)
from sticky_core.check import Check, CheckResult, CheckStatus
from sticky_core.claim import Claim, Mark, Reason
from sticky_core.decision import Decision
from sticky_core.errors import ConfigError, Failure, ServerFailure
from sticky_core.events import Events, StateChange
from sticky_core.forwarding import Forward
from sticky_core.persistence import Cookie
from sticky_core.samples import hdr, path, src, url_param
from sticky_core.server import AdminState, Health, Server, ServerConfig
from sticky_core.timeouts import Timeouts
from sticky_core.tls import TLS
from sticky_wsgi.middleware import Dispatcher, StickyMiddleware, decision
from sticky_wsgi.upstream import Upstream

__all__ = [
    "TLS",
    "AdminState",
    "AgentCheck",
    "Backend",
    "BackendConfig",
    "Check",
    "CheckResult",
    "CheckStatus",
    "Claim",
    "ConfigError",
    "Cookie",
    "Decision",
    "Dispatcher",
    "Events",
    "Ewma",
    "Failure",
    "First",
    "Forward",
    "Hash",
    "Hdr",
    "Health",
    "IpHash",
    "LeastConn",
    "Mark",
    "NginxHash",
    "NginxLeastConn",
    "NginxRandom",
    "Random",
    "Reason",
    "RoundRobin",
    "Server",
    "ServerConfig",
    "ServerFailure",
    "Smooth",
    "Source",
    "StateChange",
    "StaticRR",
    "StickyMiddleware",
    "Timeouts",
    "Upstream",
    "Uri",
    "UrlParam",
    "decision",
    "hdr",
    "path",
    "src",
    "url_param",
]
