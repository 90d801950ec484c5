"""The apps behind the servers of one backend, on WSGI, which has no lifespan: the first request builds them, in the
process that serves.
"""

from __future__ import annotations

from collections.abc import Callable

from sticky_core.backend.backend import Backend
from sticky_core.backend.change import Change
from sticky_core.backend.snapshot import Snapshot
from sticky_core.runtime.apps import Apps
from sticky_core.runtime.apps import Replicas as CoreReplicas
from sticky_core.server.server import Server
from sticky_core.target import App
from sticky_core.transaction.variants import TransactionVariants
from sticky_core.upstream.upstream import Upstream
from sticky_wsgi.background.checks import Checks
from sticky_wsgi.background.discovery import Discovery
from sticky_wsgi.interruptible import InterruptibleApp
from sticky_wsgi.messages import StatusRetryTransaction, Transaction, WSGIApp
from sticky_wsgi.stores import client as stores


def _import_limited() -> type[Transaction]:
    from sticky_wsgi.total_timeout import LimitedTransaction  # only some backends need it

    return LimitedTransaction


VARIANTS = TransactionVariants(Transaction, StatusRetryTransaction, _import_limited)


class Replicas(CoreReplicas):
    """The apps behind a backend's servers."""

    kind = "wsgi"
    interruptible_app = InterruptibleApp
    apps: Apps[WSGIApp]

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self.checks = Checks(backend, self.apps)
        self.discovery = Discovery(backend)

    def _use_snapshot(self, snapshot: Snapshot) -> None:
        self.transaction_class: type[Transaction] = VARIANTS.select(snapshot)
        super()._use_snapshot(snapshot)

    @property
    def upstream_class(self) -> type[Upstream]:
        from sticky_wsgi.upstream import app  # it takes memory, and workers have no servers that are URLs

        return app.Upstream

    @property
    def _background_is_running(self) -> bool:
        return self.checks.has_owner and self.discovery.has_owner and not self.is_starting

    @property
    def is_starting(self) -> bool:
        """Whether requests have to wait for the first addresses, or for the first checks."""
        return self.discovery.is_pending or self.checks.are_pending

    def get_ready(self) -> None:
        if not self.apps_built:
            self.build_apps()
            stores.listen(self.backend.stores)
        if not self.checks.has_owner:
            self.checks.start()
        if not self.discovery.has_owner:
            self.discovery.start()
        if self.discovery.is_pending:
            self.discovery.wait_for_first_answers()
        if self.checks.are_pending:
            self.checks.wait_for_first_checks()
        super().get_ready()

    def build_app(self, server: Server) -> App | None:
        super().build_app(server)
        self.make_interruptible(server.as_tuple)
        return self.apps[server]

    def after_swap(self, change: Change) -> None:
        super().after_swap(change)
        self.discovery.update()
        self.checks.update(change.checked_servers)

    def after_move(self, server: Server) -> None:
        super().after_move(server)
        self.checks.update(server.as_tuple)

    def retire(self, server: Server, on_done: Callable[[], None]) -> None:
        self.checks.remove(server)
        super().retire(server, on_done)

    def stop(self) -> None:
        self.discovery.stop()
        self.checks.stop()
        stores.close(self.backend.stores)
        super().stop()

    def after_fork(self) -> None:
        self.checks.after_fork()
        self.discovery.after_fork()
        super().after_fork()
