"""Balance chooses a server for a request that belongs nowhere yet. One file per word that a user writes.

An algorithm owns its index of the servers and is told what changes; nothing is listed per request. It is called under
its backend's lock, so it needs none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Sequence
from typing import Protocol

from sticky_core.balance.leastconn import LeastConn
from sticky_core.balance.random import Random
from sticky_core.balance.roundrobin import RoundRobin
from sticky_core.clock import Rng
from sticky_core.errors import ConfigError
from sticky_core.request import Request
from sticky_core.server import Server

__all__ = ["Algorithm", "Balance", "LeastConn", "Random", "RoundRobin", "named"]


class Algorithm(Protocol):
    """A way to choose, at work over the servers of one backend."""

    #: whether it wants `taken` and `left`; an algorithm that does not costs a bound request nothing
    counts: bool

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


class Balance(Protocol):
    """What was asked for: a word with its arguments."""

    def over(self, servers: Sequence[Server], rng: Rng) -> Algorithm:
        """The algorithm at work over `servers`."""
        ...


_WORD = re.compile(r"([a-z-]+)(?:\((\d+)\))?")
_WORDS: dict[str, Callable[[], Balance]] = {"roundrobin": RoundRobin, "leastconn": LeastConn, "random": Random}


def named(text: str) -> Balance:
    """The balance that HAProxy's word names: `roundrobin`, `leastconn`, `random`, `random(3)`."""
    match = _WORD.fullmatch(text)
    if match is not None and match[1] in _WORDS:
        if match[2] is None:
            return _WORDS[match[1]]()
        if match[1] == "random":
            return Random(draws=int(match[2]))
    raise ConfigError(f"balance {text!r} is not known: write one of {', '.join(_WORDS)}, or random(<draws>)")
