"""The effective weight of a server, in sixteenths, as HAProxy counts it: what algorithms that follow every change ask.

A sixteenth is the least step in which a weight can grow (`BE_WEIGHT_SCALE`).
"""

from __future__ import annotations

from sticky_core.server.config import MAX_WEIGHT
from sticky_core.server.server import Server
from sticky_core.server.slowstart import SCALE

MOST = MAX_WEIGHT * SCALE


def eweight(server: Server) -> int:
    """0 while balance may not choose it."""
    return server.eweight if server.electable else 0
