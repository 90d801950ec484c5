"""Balance chooses a server for a request that belongs nowhere yet. One file per word that a user writes.

An algorithm owns its index of the servers and is told what changes; nothing is listed per request. It is called under
its backend's lock, so it needs none.
"""

from __future__ import annotations

from collections.abc import Callable

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
from sticky_core.balance.parser import BalanceSpec
from sticky_core.balance.random import Random
from sticky_core.balance.roundrobin import RoundRobin
from sticky_core.balance.source import Source
from sticky_core.balance.static_rr import StaticRR
from sticky_core.balance.uri import Uri
from sticky_core.balance.url_param import UrlParam
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


_WORDS: dict[str, Callable[[BalanceSpec], Balance]] = {
    "roundrobin": RoundRobin.parse,
    "static-rr": StaticRR.parse,
    "leastconn": LeastConn.parse,
    "first": First.parse,
    "random": Random.parse,
    "source": Source.parse,
    "uri": Uri.parse,
    "url_param": UrlParam.parse,
    "hdr": Hdr.parse,
    "hash": Hash.parse,
    "ewma": Ewma.parse,
    "smooth": Smooth.parse,
    "ip_hash": IpHash.parse,
    "least_conn": NginxLeastConn.parse,
}


def parse_balance(text: str) -> Balance:
    """The balance that HAProxy's words name: `roundrobin`, `random(3)`, `uri depth 2`, `url_param userid`,
    `hdr(X-User)`, `hash src`, …; of nginx's, `ip_hash`, `least_conn`, and `smooth` for its round robin.
    """
    line = BalanceSpec(text)
    if line.word not in _WORDS:
        raise ConfigError(f"balance {text!r} is not known: write one of {', '.join(_WORDS)}")
    return _WORDS[line.word](line)
