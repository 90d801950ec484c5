"""New clients stay at the server where they arrive, that of this worker. Requests with a key are hashed, if a hash is
configured.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.clock import Rng
from sticky_core.deferred.dataclass import dataclass
from sticky_core.http.messages import Request
from sticky_core.server.server import Server

if TYPE_CHECKING:  # only some workers hash keys
    from sticky_core.balance.hash import Hash
    from sticky_core.balance.hashing import HashAlgorithm


@dataclass(frozen=True, slots=True)
class Local:
    """`server`: the name of the server in this worker. `hashed`: the hash for requests with a key. `among`: how many of
    the servers, from the first on, it hashes to.
    """

    server: str
    hashed: Hash | None = None
    among: int = 0

    def build(self, servers: Sequence[Server], rng: Rng) -> LocalAlgorithm:
        local = next(server for server in servers if server.name == self.server)
        if self.hashed is None:
            return LocalAlgorithm(local)
        return LocalHashAlgorithm(local, self.hashed, servers[: self.among], rng)


class LocalAlgorithm:
    """The algorithm of `Local` without a hash: chooses the server of this worker."""

    counts_requests = False
    preserve_affinity: Affinity = "maxconn"

    def __init__(self, local: Server) -> None:
        self._local = local

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        local = self._local
        return local if local.electable and local not in avoid else None

    def acquired(self, server: Server) -> None:
        """Nothing to do: requests are not counted."""

    def released(self, server: Server) -> None:
        """Nothing to do: requests are not counted."""

    def state_changed(self, server: Server) -> None:
        """Nothing to do: `choose` reads the state of the server."""


class LocalHashAlgorithm(LocalAlgorithm):
    """The algorithm of `Local` with a hash. All workers hash alike, so they agree about the server of a key."""

    def __init__(self, local: Server, config: Hash, servers: Sequence[Server], rng: Rng) -> None:
        super().__init__(local)
        self._key = config.key
        self._among = frozenset(servers)
        self._hashed: HashAlgorithm = config.build(servers, rng)

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        if self._key(request) is not None:
            server = self._hashed.choose(request, avoid)
            if server is not None:
                return server
        return super().choose(request, avoid)

    def state_changed(self, server: Server) -> None:
        if server in self._among:
            self._hashed.state_changed(server)
