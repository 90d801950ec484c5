"""The server with the fewest requests in flight for its weight (HAProxy `balance leastconn`).

Servers stand in rows by load, and a heap knows which rows there are; within a row they take turns, so that equals
share. A choice looks at the first row only, unless it must avoid somebody.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from sticky_core.clock import Rng
from sticky_core.request import Request
from sticky_core.server import Server

_SCALE = 4096 * 16  # so that whole numbers tell the loads of weights 1..256 apart


@dataclass(frozen=True, slots=True)
class LeastConn:
    """No arguments."""

    def over(self, servers: Sequence[Server], rng: Rng) -> Rows:
        return Rows(servers, rng)


class Rows:
    """Leastconn at work."""

    counts = True

    def __init__(self, servers: Sequence[Server], rng: Rng) -> None:
        self._servers = servers
        self._rng = rng
        self._begun = False
        self._rows: dict[
            int, dict[Server, None]
        ] = {}  # a dict as an ordered set: the first is the one whose turn it is
        self._loads: list[int] = []
        self._load: dict[Server, int] = {}
        for server in servers:
            self.changed(server)

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        if not self._begun and self._servers:
            self._begun = True  # who is first among equals differs from process to process
            start = self._rng.randrange(len(self._servers))
            for server in (*self._servers[start:], *self._servers[:start]):
                self._leave(server)
                self.changed(server)
        while self._loads and not self._rows[self._loads[0]]:
            del self._rows[heappop(self._loads)]
        if not self._loads:
            return None
        for server in self._rows[self._loads[0]]:
            if server not in avoid:
                return self._moved_back(server)
        for load in sorted(self._loads)[1:]:
            for server in self._rows[load]:
                if server not in avoid:
                    return self._moved_back(server)
        return None

    def _moved_back(self, server: Server) -> Server:
        row = self._rows[self._load[server]]
        del row[server]
        row[server] = None
        return server

    def taken(self, server: Server) -> None:
        self.changed(server)

    left = taken

    def changed(self, server: Server) -> None:
        """Put it into the row of its load, at the end."""
        if not server.electable:
            self._leave(server)
            return
        in_flight = len(server.in_flight)
        load = 0 if in_flight == 0 else (in_flight + 1) * _SCALE // server.weight
        if self._load.get(server) == load:
            return
        self._leave(server)
        self._load[server] = load
        row = self._rows.get(load)
        if row is None:
            row = self._rows[load] = {}
            heappush(self._loads, load)
        row[server] = None

    def _leave(self, server: Server) -> None:
        load = self._load.pop(server, None)
        if load is not None:
            del self._rows[load][server]
