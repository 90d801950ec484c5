"""Balance chooses a server for a request that belongs nowhere yet. One file per word that a user writes.

An algorithm owns its index of the servers and is told what changes; nothing is listed per request. It is called under
its backend's lock, so it needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Protocol, runtime_checkable

from sticky_core.balance.ewma import Ewma
from sticky_core.balance.first import First
from sticky_core.balance.hash import Hash
from sticky_core.balance.hash_preserve_affinity import Affinity
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
from sticky_core.balance.words import Line
from sticky_core.clock import Rng
from sticky_core.errors import ConfigError
from sticky_core.request import Request
from sticky_core.server import Server

__all__ = [
    "Affinity",
    "Algorithm",
    "Balance",
    "Ewma",
    "First",
    "Hash",
    "Hdr",
    "IpHash",
    "Keyed",
    "LeastConn",
    "NginxHash",
    "NginxLeastConn",
    "NginxRandom",
    "Placed",
    "Random",
    "RoundRobin",
    "Smooth",
    "Source",
    "StaticRR",
    "Timed",
    "Uri",
    "UrlParam",
    "named",
]


class Algorithm(Protocol):
    """A way to choose, at work over the servers of one backend."""

    #: whether it wants `taken` and `left`; an algorithm that does not costs a bound request nothing
    counts: bool

    #: how far it insists on a server that is full. Whoever asks puts those into `avoid` that are not worth waiting for:
    #: all who are full (`maxconn`), those whose queue is full as well (`maxqueue`), nobody (`always`).
    preserve_affinity: Affinity

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        """A server that is electable and not in `avoid`; None if there is none."""
        ...

    def taken(self, server: Server) -> None:
        """One more request is at `server`, chosen here or not."""
        ...

    def left(self, server: Server) -> None:
        """One less."""
        ...

    def changed(self, server: Server) -> None:
        """Its weight, its state or its health is another."""
        ...


@runtime_checkable
class Timed(Protocol):
    """An algorithm that also wants to know how long servers take."""

    def observed(self, server: Server, seconds: float) -> None:
        """`server` has begun an answer so long after it was asked."""
        ...

    def succeed(self, before: Timed) -> None:
        """Go on with what another has seen of the servers that it had as well."""
        ...


@runtime_checkable
class Placed(Protocol):
    """An algorithm that also goes by where servers are."""

    def moved(self, server: Server) -> None:
        """Its address is another. `changed` comes behind."""
        ...


@runtime_checkable
class Keyed(Protocol):
    """An algorithm that goes by keys, each of which is hashed to a number."""

    def of_number(self, number: int) -> Server | None:
        """Whose keys are they that are hashed to `number` (32 bits); None if there is nobody."""
        ...


class Balance(Protocol):
    """What was asked for: a word with its arguments."""

    def over(self, servers: Sequence[Server], rng: Rng) -> Algorithm:
        """The algorithm at work over `servers`, which are in the order in which they were declared."""
        ...


_WORDS: dict[str, Callable[[Line], Balance]] = {
    "roundrobin": RoundRobin.read,
    "static-rr": StaticRR.read,
    "leastconn": LeastConn.read,
    "first": First.read,
    "random": Random.read,
    "source": Source.read,
    "uri": Uri.read,
    "url_param": UrlParam.read,
    "hdr": Hdr.read,
    "hash": Hash.read,
    "ewma": Ewma.read,
    "smooth": Smooth.read,
    "ip_hash": IpHash.read,
    "least_conn": NginxLeastConn.read,
}


def named(text: str) -> Balance:
    """The balance that HAProxy's words name: `roundrobin`, `random(3)`, `uri depth 2`, `url_param userid`,
    `hdr(X-User)`, `hash src`, …; of nginx's, `ip_hash`, `least_conn`, and `smooth` for its round robin.
    """
    line = Line(text)
    if line.word not in _WORDS:
        raise ConfigError(f"balance {text!r} is not known: write one of {', '.join(_WORDS)}")
    return _WORDS[line.word](line)
