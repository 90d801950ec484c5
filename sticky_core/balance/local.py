"""New clients are served where they arrive: by one server, that of this very worker. What has a key is hashed, if there
is a hash.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from sticky_core.balance.hash import Hash
from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.balance.hashing import Hashed
from sticky_core.clock import Rng
from sticky_core.http.messages import Request
from sticky_core.server.server import Server


@dataclass(frozen=True, slots=True)
class Local:
    """`server`: the name of the one that is here. `hashed`: who gets a request that has a key, among the first `among`
    servers.
    """

    server: str
    hashed: Hash | None = None
    among: int = 0

    def build(self, servers: Sequence[Server], rng: Rng) -> Here:
        here = next(server for server in servers if server.name == self.server)
        if self.hashed is None:
            return Here(here)
        return Keyed(here, self.hashed, servers[: self.among], rng)


class Here:
    """Local at work."""

    counts_requests = False
    preserve_affinity: Affinity = "maxconn"

    def __init__(self, here: Server) -> None:
        self._here = here

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        here = self._here
        return here if here.electable and here not in avoid else None

    def acquired(self, server: Server) -> None:
        """It does not count."""

    def released(self, server: Server) -> None:
        """It does not count."""

    def state_changed(self, server: Server) -> None:
        """It looks when it chooses."""


class Keyed(Here):
    """The same where keys are hashed. All workers hash alike, so all choose the same."""

    def __init__(self, here: Server, asked: Hash, servers: Sequence[Server], rng: Rng) -> None:
        super().__init__(here)
        self._key = asked.key
        self._among = frozenset(servers)
        self._hashed: Hashed = asked.build(servers, rng)

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        if self._key(request) is not None:
            server = self._hashed.choose(request, avoid)
            if server is not None:
                return server
        return super().choose(request, avoid)

    def state_changed(self, server: Server) -> None:
        if server in self._among:
            self._hashed.state_changed(server)
