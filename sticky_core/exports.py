"""What both faces export, beside the algorithms that `sticky_core.balance` lists. Each face adds its own five names.

A name is imported when it is used first. A new one is added three times: to the imports, which are for type checkers
only, to `__all__`, and to `_MODULES`.
"""

from __future__ import annotations

from enum import Enum
from inspect import isclass
from typing import TYPE_CHECKING

from sticky_core import balance
from sticky_core.deferred.names import deferred_names
from sticky_core.options.spelling import name_unknown_options

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
    "ClosedBy",
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
    "RetryBudget",
    "Route",
    "Server",
    "ServerConfig",
    "ServerFailure",
    "StateChange",
    "Stick",
    "StickTable",
    "Timeouts",
    "Token",
    "accepts",
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

#: the names of each module of `sticky_core`
_MODULES = {
    "backend.backend": ("Backend", "BackendConfig"),
    "backend.events": ("Events", "StateChange"),
    "backend.retries": ("RetryBudget",),
    "decision": ("ClosedBy", "Decision"),
    "dns.resolvers": ("Address", "Resolvers"),
    "errors": ("ConfigError", "Failure", "ServerFailure"),
    "health.agent": ("AgentCheck",),
    "health.check": ("Check", "CheckResult", "CheckStatus"),
    "http.forwarding": ("Forward",),
    "http.timeouts": ("Timeouts",),
    "http.tls": ("TLS",),
    "persistence.aws": ("alb", "elb"),
    "persistence.claim": ("Claim", "Mark", "Reason"),
    "persistence.cookie.config": ("Cookie", "FallbackCookie"),
    "persistence.follow": ("Follow",),
    "persistence.nginx": ("NginxCookie",),
    "persistence.route": ("Route",),
    "persistence.stick.config": ("Learn", "Stick"),
    "persistence.token": ("Token",),
    "samples.request": ("cook", "hdr", "path", "path_param", "src", "url_param"),
    "server.config": ("ServerConfig",),
    "server.server": ("Server",),
    "server.state": ("AdminState", "Health"),
    "stick_table.table": ("StickTable",),
    "stores.redis": ("Redis",),
    "workers.transaction": ("RemoteAppError",),
}


def _finish(value: object) -> object:
    """Let a public constructor name the option that a misspelt keyword was meant to be."""
    if isclass(value) and not issubclass(value, (Enum, BaseException)):
        return name_unknown_options(value)
    return value


if not TYPE_CHECKING:
    __getattr__, __dir__ = deferred_names(
        __name__,
        {
            **{name: f"sticky_core.{module}:{name}" for module, names in _MODULES.items() for name in names},
            **{name: f"sticky_core.balance:{name}" for name in balance.__all__},
            "accepts": "sticky_core.persistence.foreign",
            "res": "sticky_core.samples.response",
            "samples": "sticky_core.samples",
        },
        _finish,
    )
else:  # for type checkers, and for the reference
    from sticky_core import samples
    from sticky_core.backend.backend import Backend, BackendConfig
    from sticky_core.backend.events import Events, StateChange
    from sticky_core.backend.retries import RetryBudget
    from sticky_core.balance import *
    from sticky_core.decision import ClosedBy, Decision
    from sticky_core.dns.resolvers import Address, Resolvers
    from sticky_core.errors import ConfigError, Failure, ServerFailure
    from sticky_core.health.agent import AgentCheck
    from sticky_core.health.check import Check, CheckResult, CheckStatus
    from sticky_core.http.forwarding import Forward
    from sticky_core.http.timeouts import Timeouts
    from sticky_core.http.tls import TLS
    from sticky_core.persistence import foreign as accepts
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
