"""Balance chooses a server for a request that persistence has not assigned to one. One file for each word that users
write.

An algorithm owns its index of the servers and is notified of changes, so nothing is listed per request. Its methods are
called with the backend's lock held, so it needs no lock.
"""
# A new algorithm: its module, and here its import, its name in `__all__`, and its word in `_WORDS`.

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
from sticky_core.options.spelling import nearest

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
    """Parse HAProxy's `balance`: `roundrobin`, `random(3)`, `uri depth 2`, `url_param userid`, `hdr(X-User)`,
    `hash src`, …; of nginx's words `ip_hash`, `least_conn`, and `smooth` for its round robin.
    """
    spec = BalanceSpec(text)
    if spec.word not in _WORDS:
        word = text.partition("(")[0].partition(" ")[0]
        near = None if word in _WORDS else nearest(word, _WORDS)
        write = "one of" if near is None else f"{near!r}, or another of"
        raise ConfigError(f"balance {text!r} is unknown: write {write} {', '.join(_WORDS)}")
    return _WORDS[spec.word](spec)
