"""The transactions of requests that may be forwarded to a peer, and the apps among which they choose."""

from __future__ import annotations

from queue import SimpleQueue
from typing import TypeAlias, cast

from sticky_core.backend.backend import Backend
from sticky_core.server.server import Server
from sticky_core.workers.transaction import PeerTransaction
from sticky_wsgi.apps import Replicas
from sticky_wsgi.messages import Environ, StartResponse, StatusRetryTransaction, Transaction, WSGIApp

#: permits to run the app, an item for each request that may run at the same time; None: any number may run
Permits: TypeAlias = SimpleQueue[None] | None


class PermitTransaction(PeerTransaction[Environ, StartResponse]):
    """A transaction that may be forwarded to a peer. It holds a permit of this worker while the app here serves it."""

    __slots__ = ("permits",)

    permits: Permits  #: where its permit goes back; set while it holds one

    def release(self, server: Server, over: bool) -> None:
        permits = getattr(self, "permits", None)
        if permits is not None:
            self.permits = None
            permits.put(None)
        super().release(server, over)


class ForwardingTransaction(PermitTransaction, Transaction):
    """A transaction that may be forwarded to a peer."""

    __slots__ = ()


class ForwardingStatusRetryTransaction(PermitTransaction, StatusRetryTransaction):
    """The same where responses may be held back because of their status (`retry_on="503"`)."""

    __slots__ = ()


class WorkerReplicas(Replicas):
    """The apps behind the worker slots: the app itself, and those that forward to a peer."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        kind = ForwardingStatusRetryTransaction if backend.snapshot.retries.statuses else ForwardingTransaction
        self.transaction_class = cast(
            type[Transaction], type(kind.__name__, (kind,), {"__slots__": (), "workers": backend})
        )
        self.apps.update({server: cast(WSGIApp, server.config.target) for server in backend.servers})
        self.apps_built = True
