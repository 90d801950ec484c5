"""Begin: WSGI has no lifespan, so replicas are made by the first request, in the process that serves."""

from __future__ import annotations

from sticky_core.backend import Backend
from sticky_core.replicas import Replicas as CoreReplicas
from sticky_core.server import Server
from sticky_wsgi.messages import Sparing, Transaction, WSGIApp
from sticky_wsgi.upstream import Upstream


class Replicas(CoreReplicas):
    """The apps behind a backend's servers."""

    kind = "wsgi"
    apps: dict[Server, WSGIApp | None]

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self.transaction = Sparing if backend.retries.statuses else Transaction
        self._upstreams: dict[Server, Upstream] = {}

    def upstream(self, server: Server) -> WSGIApp:
        upstream = self._upstreams.get(server)
        if upstream is None:
            config = self.backend.config
            upstream = self._upstreams[server] = Upstream.of(server.config, config.timeouts, config.forward)
        return upstream.forward

    def end(self) -> None:
        for upstream in self._upstreams.values():
            upstream.close()
        super().end()

    def forked(self) -> None:
        for upstream in self._upstreams.values():
            upstream.forked()
        super().forked()
