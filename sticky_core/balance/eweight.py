"""The effective weight of a server in sixteenths, as HAProxy counts it, for algorithms that follow every change.

A sixteenth is the smallest step in which a weight grows during slow start (`BE_WEIGHT_SCALE`).
"""

from __future__ import annotations

from sticky_core.server.config import MAX_WEIGHT
from sticky_core.server.server import Server
from sticky_core.server.slowstart import SCALE

MAX_EWEIGHT = MAX_WEIGHT * SCALE


def eweight(server: Server) -> int:
    """Return the effective weight of `server`, 0 while balance must not choose it."""
    return server.eweight if server.electable else 0
