"""Sticky sessions for WSGI apps: Flask, Werkzeug, and whatever else speaks WSGI."""

from sticky_core import res, samples
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
from sticky_core.persistence.aws import alb, elb
from sticky_core.persistence.cookie import Twin
from sticky_core.persistence.follow import Follow
from sticky_core.persistence.nginx import NginxCookie
from sticky_core.persistence.route import Route
from sticky_core.persistence.stick import Learn, Stick
from sticky_core.persistence.token import Token
from sticky_core.resolvers import Found, Resolvers
from sticky_core.samples import cook, hdr, path, path_param, src, url_param
from sticky_core.server import AdminState, Health, Server, ServerConfig
from sticky_core.stick_table import StickTable
from sticky_core.stores.redis import Redis
from sticky_core.timeouts import Timeouts
from sticky_core.tls import TLS
from sticky_core.workers import HandedOverError
from sticky_wsgi.middleware import Dispatcher, StickyMiddleware, decision
from sticky_wsgi.upstream import Upstream
from sticky_wsgi.workers import StickyWorkers

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
    "Follow",
    "Forward",
    "Found",
    "HandedOverError",
    "Hash",
    "Hdr",
    "Health",
    "IpHash",
    "Learn",
    "LeastConn",
    "Mark",
    "NginxCookie",
    "NginxHash",
    "NginxLeastConn",
    "NginxRandom",
    "Random",
    "Reason",
    "Redis",
    "Resolvers",
    "RoundRobin",
    "Route",
    "Server",
    "ServerConfig",
    "ServerFailure",
    "Smooth",
    "Source",
    "StateChange",
    "StaticRR",
    "Stick",
    "StickTable",
    "StickyMiddleware",
    "StickyWorkers",
    "Timeouts",
    "Token",
    "Twin",
    "Upstream",
    "Uri",
    "UrlParam",
    "alb",
    "cook",
    "decision",
    "elb",
    "hdr",
    "path",
    "path_param",
    "res",
    "samples",
    "src",
    "url_param",
]
