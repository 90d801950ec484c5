"""Servers in the order of declaration, each with a share of the numbers as large as its weight, whatever its state.

nginx hashes over all servers, those that are down included, and hashes again where it meets one: so the keys of the
others stay where they are.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Container, Iterable, Sequence
from itertools import accumulate

from sticky_core.server.server import Server


class Shares:
    """Numbers to servers."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = servers
        self._weights = {server: server.weight for server in servers}
        self._add_up()

    def _add_up(self) -> None:
        self._reach = list(accumulate(self._weights.values()))

    def state_changed(self, server: Server) -> None:
        if self._weights[server] != server.weight:
            self._weights[server] = server.weight
            self._add_up()

    def first(self, numbers: Iterable[int], avoid: Container[Server]) -> Server | None:
        """The first server, among those that `numbers` name, that may be chosen and need not be avoided."""
        reach = self._reach
        total = reach[-1] if reach else 0
        if total:
            for number in numbers:
                server = self._servers[bisect(reach, number % total)]
                if server.electable and server not in avoid:
                    return server
        return None
