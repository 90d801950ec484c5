"""What both faces export, beside the algorithms that `sticky_core.balance` lists. Each face adds its own five names."""

from enum import Enum
from inspect import isclass

from sticky_core import balance as _balance
from sticky_core import samples
from sticky_core.backend.backend import Backend, BackendConfig
from sticky_core.backend.events import Events, StateChange
from sticky_core.balance import *
from sticky_core.decision import Decision
from sticky_core.dns.resolvers import Address, Resolvers
from sticky_core.errors import ConfigError, Failure, ServerFailure
from sticky_core.health.agent import AgentCheck
from sticky_core.health.check import Check, CheckResult, CheckStatus
from sticky_core.http.forwarding import Forward
from sticky_core.http.timeouts import Timeouts
from sticky_core.http.tls import TLS
from sticky_core.options.spelling import name_unknown_options
from sticky_core.persistence.aws import alb, elb
from sticky_core.persistence.claim import Claim, Mark, Reason
from sticky_core.persistence.cookie.config import Cookie, FallbackCookie
from sticky_core.persistence.follow import Follow
from sticky_core.persistence.nginx import NginxCookie
from sticky_core.persistence.route import Route
from sticky_core.persistence.stick.config import Learn, Stick
from sticky_core.persistence.token import Token
from sticky_core.samples import response as res
from sticky_core.samples.request import cook, hdr, path, path_param, src, url_param
from sticky_core.server.config import ServerConfig
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health
from sticky_core.stick_table.table import StickTable
from sticky_core.stores.redis import Redis
from sticky_core.workers.transaction import RemoteAppError

__all__ = [
    "TLS",
    "Address",
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
    "Events",
    "Failure",
    "FallbackCookie",
    "Follow",
    "Forward",
    "Health",
    "Learn",
    "Mark",
    "NginxCookie",
    "Reason",
    "Redis",
    "RemoteAppError",
    "Resolvers",
    "Route",
    "Server",
    "ServerConfig",
    "ServerFailure",
    "StateChange",
    "Stick",
    "StickTable",
    "Timeouts",
    "Token",
    "alb",
    "cook",
    "elb",
    "hdr",
    "path",
    "path_param",
    "res",
    "samples",
    "src",
    "url_param",
]

# every public constructor names the option that a misspelt keyword was meant to be
for _name in (*__all__, *_balance.__all__):
    _exported: object = globals()[_name]
    if isclass(_exported) and not issubclass(_exported, (Enum, BaseException)):
        name_unknown_options(_exported)
