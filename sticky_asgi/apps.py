"""The apps behind the servers of one backend, on ASGI."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from types import CellType
from typing import Protocol

from sticky_asgi.background.checks import Checks
from sticky_asgi.background.discovery import Discovery
from sticky_asgi.interruptible import InterruptibleApp
from sticky_asgi.messages import ASGIApp, StatusRetryTransaction, Transaction
from sticky_asgi.stores import client as stores
from sticky_core.backend.backend import Backend
from sticky_core.backend.change import Change
from sticky_core.backend.snapshot import Snapshot
from sticky_core.runtime.apps import Apps
from sticky_core.runtime.apps import Replicas as CoreReplicas
from sticky_core.server.server import Server
from sticky_core.transaction.variants import TransactionVariants
from sticky_core.upstream.upstream import Upstream

_log = logging.getLogger("sticky_sessions")


class LifespanRunner(Protocol):
    """The running lifespans of some replicas (`sticky_asgi.lifespan`), as the replicas use them."""

    def prepare(self, replicas: Replicas, change: Change, on_ready: Callable[[Exception | None], None]) -> None: ...

    def start_background_tasks(self, replicas: Replicas) -> None: ...

    def retire(self, server: Server, on_done: Callable[[], None]) -> None: ...

    async def restart(self, replicas: Replicas, server: Server) -> None: ...


def _import_limited() -> type[Transaction]:
    from sticky_asgi.total_timeout import LimitedTransaction  # only some backends need it

    return LimitedTransaction


VARIANTS = TransactionVariants(Transaction, StatusRetryTransaction, _import_limited)


class Replicas(CoreReplicas):
    """The apps behind a backend's servers."""

    kind = "asgi"
    interruptible_app = InterruptibleApp
    apps: Apps[ASGIApp]
    _limits_requests = False  # whether there is, or was, a limit for all attempts of a request

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self.checks = Checks(backend, self.apps)
        self.discovery = Discovery(backend)
        #: the lifespans that run the replicas; None: no lifespan runs them
        self.lifespans: LifespanRunner | None = None
        self.has_warned = False

    def _use_snapshot(self, snapshot: Snapshot) -> None:
        self.transaction_class: type[Transaction] = VARIANTS.select(snapshot)
        if snapshot.total_timeout is not None:
            self._limits_requests = True
            self.make_interruptible(snapshot.servers)
        super()._use_snapshot(snapshot)

    def _may_end_requests(self, server: Server) -> bool:
        return self._limits_requests or super()._may_end_requests(server)

    @property
    def upstream_class(self) -> type[Upstream]:
        from sticky_asgi.upstream import app  # it takes memory, and workers have no servers that are URLs

        return app.Upstream

    @property
    def _background_is_running(self) -> bool:
        return self.checks.has_owner and self.discovery.has_owner and not self.is_starting

    @property
    def is_starting(self) -> bool:
        """Whether requests have to wait for the first addresses, or for the first checks."""
        return self.discovery.is_pending or self.checks.are_pending

    async def wait_until_started(self) -> None:
        """Wait for the first addresses and the first checks."""
        if self.discovery.is_pending:
            await self.discovery.wait_for_first_answers()
        if self.checks.are_pending:
            await self.checks.wait_for_first_checks()

    def get_ready(self) -> None:
        if not self.checks.has_owner and self.lifespans is None:
            self.checks.start()
        if not self.discovery.has_owner and self.lifespans is None:
            self.discovery.start()
        super().get_ready()

    def build_apps(self) -> bool:
        made = super().build_apps()
        if made:
            self._on_apps_built()
            self._warn_without_lifespan()
        return made

    def start(self) -> None:
        self._on_apps_built()
        super().start()

    def _on_apps_built(self) -> None:
        """Do what follows once all apps are built."""
        self.make_interruptible(self.backend.servers)
        stores.listen(self.backend.stores)

    def build_added(self, change: Change, on_ready: Callable[[Exception | None], None]) -> None:
        if self.lifespans is not None and self.apps_built and not all(server.config.is_url for server in change.added):
            self.lifespans.prepare(self, change, on_ready)
        else:
            super().build_added(change, on_ready)

    def undo(self, change: Change) -> None:
        if self.lifespans is not None:
            for server in change.added:
                self.lifespans.retire(server, lambda: None)
        super().undo(change)

    def after_swap(self, change: Change) -> None:
        super().after_swap(change)
        self.make_interruptible(change.added)
        self.discovery.update()
        self._update_checks(change.checked_servers)

    def after_move(self, server: Server) -> None:
        super().after_move(server)
        self._update_checks(server.as_tuple)

    def _update_checks(self, servers: Sequence[Server] | None) -> None:
        self.checks.update(servers)
        if self.lifespans is not None and not (self.checks.has_owner and self.discovery.has_owner):
            self.lifespans.start_background_tasks(self)

    def retire(self, server: Server, on_done: Callable[[], None]) -> None:
        self.checks.remove(server)
        if self.lifespans is not None:
            super().retire(server, lambda: None)
            self.lifespans.retire(server, on_done)
        else:
            super().retire(server, on_done)

    def _warn_without_lifespan(self) -> None:
        apps = [app for server, app in self.apps.items() if app is not None and not server.config.is_url]
        if not self.has_warned and any(map(may_have_lifespan, apps)):
            self.has_warned = True
            _log.warning(
                "backend %s: requests came before any lifespan, so the lifespans of its replicas do not run. If the "
                "dispatcher is mounted, run `dispatcher.lifespan()` in the lifespan of the app around it; with "
                "Starlette's TestClient, use `with TestClient(app)`.",
                self.backend.name,
            )

    def after_fork(self) -> None:
        self.checks.after_fork()
        self.discovery.after_fork()
        super().after_fork()

    async def restart(self, server: Server) -> None:
        """Stop one replica and start another in its place. RuntimeError if that fails to start."""
        if self.lifespans is not None:
            await self.lifespans.restart(self, server)
        else:
            self.build_app(server)
        self.make_interruptible(server.as_tuple)


def may_have_lifespan(app: object) -> bool:
    """Return False if `app` is a Starlette or FastAPI app with the lifespan that these have by default, which does
    nothing. Whether another app has a lifespan only a call would show.
    """
    router: object = getattr(app, "router", app)
    return not _does_nothing(getattr(router, "lifespan_context", None))


def _does_nothing(lifespan: object) -> bool:
    if type(lifespan).__name__ == "_DefaultLifespan":
        router: object = getattr(lifespan, "_router", None)  # with the handlers of FastAPI's `on_event`
        return not (getattr(router, "on_startup", None) or getattr(router, "on_shutdown", None))
    # FastAPI's `include_router` makes a function of the app's lifespan and that of the router
    cells: Sequence[CellType] = getattr(lifespan, "__closure__", None) or ()
    return len(cells) > 0 and all(_does_nothing(cell.cell_contents) for cell in cells)
