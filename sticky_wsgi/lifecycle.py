"""Begin: WSGI has no lifespan, so replicas are made by the first request, in the process that serves."""

from __future__ import annotations

from sticky_core.backend import Backend
from sticky_core.events import StateChange
from sticky_core.replicas import Replicas as CoreReplicas
from sticky_core.server import Server
from sticky_core.target import App
from sticky_core.transaction import Reporting
from sticky_wsgi.checks import Checks, Cut
from sticky_wsgi.messages import Environ, Sparing, StartResponse, Transaction, WSGIApp
from sticky_wsgi.upstream import Upstream


class Reported(Reporting[Environ, StartResponse], Transaction):
    """A transaction that reports how it turned out at each server."""

    __slots__ = ()


class ReportedSparing(Reporting[Environ, StartResponse], Sparing):
    """The same of one whose answers may be held back."""

    __slots__ = ()


class Replicas(CoreReplicas):
    """The apps behind a backend's servers."""

    kind = "wsgi"
    forwards = Upstream
    apps: dict[Server, WSGIApp | None]

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        spares = bool(backend.retries.statuses)
        self.transaction: type[Transaction] = Sparing if spares else Transaction
        if backend.observes:
            self.transaction = ReportedSparing if spares else Reported
        self.checks = Checks(self)
        if backend.shuts_down:
            backend.events(self._marked)

    @property
    def _watched(self) -> bool:
        return self.checks.cared_for

    def begin(self) -> None:
        if not self.made:
            self.make_all()
        if not self.checks.cared_for:
            self.checks.begin()
        super().begin()

    def make(self, server: Server) -> App:
        app = super().make(server)
        check = server.checking.check if server.checking is not None else None
        if check is not None and check.on_marked_down:
            app = self.apps[server] = Cut(app, server)
        return app

    def _marked(self, change: StateChange) -> None:
        if change.after == "DOWN":
            app = self.apps[self.backend[change.server]]
            if isinstance(app, Cut):
                app.end()

    def end(self) -> None:
        self.checks.end()
        super().end()

    def forked(self) -> None:
        self.checks.forked()
        super().forked()
