"""Servers in the order of declaration, each with a range of numbers as large as its weight, whatever its state.

nginx hashes over all servers, those that are down included, and hashes again if the server found is down: so the keys
of the other servers do not move.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Container, Iterable, Sequence
from itertools import accumulate

from sticky_core.server.server import Server


class WeightRanges:
    """Maps numbers to servers."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = list(servers)
        self._weights = {server: server.weight for server in servers}
        self._update_bounds()

    def _update_bounds(self) -> None:
        self._bounds = list(accumulate(self._weights.values()))

    def state_changed(self, server: Server) -> None:
        if self._weights[server] != server.weight:
            self._weights[server] = server.weight
            self._update_bounds()

    def added(self, server: Server) -> None:
        self._servers.append(server)
        self._weights[server] = server.weight
        self._update_bounds()

    def removed(self, server: Server) -> None:
        self._servers.remove(server)
        del self._weights[server]
        self._update_bounds()

    def first_usable(self, numbers: Iterable[int], avoid: Container[Server]) -> Server | None:
        """Return the first server of `numbers` that is electable and not to be avoided, or None."""
        reach = self._bounds
        total = reach[-1] if reach else 0
        if total:
            for number in numbers:
                server = self._servers[bisect(reach, number % total)]
                if server.electable and server not in avoid:
                    return server
        return None
