"""Balance chooses a server for a request that persistence has not assigned to one. One file for each word that users
write.

An algorithm owns its index of the servers and is notified of changes, so nothing is listed per request. Its methods are
called with the backend's lock held, so it needs no lock.
"""
# A new algorithm: here its name in `__all__`, its module in `_MODULES` and in the imports for type checkers, and its
# word in `_WORDS`. A module is imported when its algorithm is used first.

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from sticky_core.deferred.names import deferred_names
from sticky_core.errors import ConfigError

__all__ = [
    "Ewma",
    "First",
    "Hash",
    "Hdr",
    "IpHash",
    "LeastConn",
    "NginxHash",
    "NginxLeastConn",
    "NginxRandom",
    "Random",
    "RoundRobin",
    "Smooth",
    "Source",
    "StaticRR",
    "Uri",
    "UrlParam",
]

#: the module of each algorithm, in this package
_MODULES = {
    "Ewma": "ewma",
    "First": "first",
    "Hash": "hash",
    "Hdr": "hdr",
    "IpHash": "nginx.ip_hash",
    "LeastConn": "leastconn",
    "NginxHash": "nginx.hash",
    "NginxLeastConn": "nginx.least_conn",
    "NginxRandom": "nginx.random",
    "Random": "random",
    "RoundRobin": "roundrobin",
    "Smooth": "nginx.smooth",
    "Source": "source",
    "StaticRR": "static_rr",
    "Uri": "uri",
    "UrlParam": "url_param",
}

#: the algorithm of each word
_WORDS = {
    "roundrobin": "RoundRobin",
    "static-rr": "StaticRR",
    "leastconn": "LeastConn",
    "first": "First",
    "random": "Random",
    "source": "Source",
    "uri": "Uri",
    "url_param": "UrlParam",
    "hdr": "Hdr",
    "hash": "Hash",
    "ewma": "Ewma",
    "smooth": "Smooth",
    "ip_hash": "IpHash",
    "least_conn": "NginxLeastConn",
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = deferred_names(
        __name__, {name: f"{__name__}.{module}:{name}" for name, module in _MODULES.items()}
    )
else:  # for type checkers, and for the reference
    from sticky_core.balance.algorithm import Balance
    from sticky_core.balance.ewma import Ewma
    from sticky_core.balance.first import First
    from sticky_core.balance.hash import Hash
    from sticky_core.balance.hdr import Hdr
    from sticky_core.balance.leastconn import LeastConn
    from sticky_core.balance.nginx.hash import NginxHash
    from sticky_core.balance.nginx.ip_hash import IpHash
    from sticky_core.balance.nginx.least_conn import NginxLeastConn
    from sticky_core.balance.nginx.random import NginxRandom
    from sticky_core.balance.nginx.smooth import Smooth
    from sticky_core.balance.random import Random
    from sticky_core.balance.roundrobin import RoundRobin
    from sticky_core.balance.source import Source
    from sticky_core.balance.static_rr import StaticRR
    from sticky_core.balance.uri import Uri
    from sticky_core.balance.url_param import UrlParam


def parse_balance(text: str) -> Balance:
    """Parse HAProxy's `balance`: `roundrobin`, `random(3)`, `uri depth 2`, `url_param userid`, `hdr(X-User)`,
    `hash src`, …; of nginx's words `ip_hash`, `least_conn`, and `smooth` for its round robin.
    """
    from sticky_core.balance.parser import BalanceSpec
    from sticky_core.options.spelling import nearest

    spec = BalanceSpec(text)
    if spec.word not in _WORDS:
        word = text.partition("(")[0].partition(" ")[0]
        near = None if word in _WORDS else nearest(word, _WORDS)
        write = "one of" if near is None else f"{near!r}, or another of"
        raise ConfigError(f"balance {text!r} is unknown: write {write} {', '.join(_WORDS)}")
    balance: Balance = getattr(sys.modules[__name__], _WORDS[spec.word]).parse(spec)
    return balance
