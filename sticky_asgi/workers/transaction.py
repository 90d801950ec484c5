"""The transactions of requests that may be forwarded to a peer, and the apps among which they choose."""

from __future__ import annotations

from typing import cast

from sticky_asgi.apps import Replicas
from sticky_asgi.messages import ASGIApp, Scope, Send, StatusRetryTransaction, Transaction
from sticky_core.backend.backend import Backend
from sticky_core.workers.transaction import PeerTransaction


class ForwardingTransaction(PeerTransaction[Scope, Send], Transaction):
    """A transaction that may be forwarded to a peer."""

    __slots__ = ()


class ForwardingStatusRetryTransaction(PeerTransaction[Scope, Send], StatusRetryTransaction):
    """The same where responses may be held back because of their status (`retry_on="503"`)."""

    __slots__ = ()


class WorkerReplicas(Replicas):
    """The apps behind the worker slots: the app itself, and those that forward to a peer."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        kind = ForwardingStatusRetryTransaction if backend.snapshot.retries.statuses else ForwardingTransaction
        self.transaction_class = cast(
            "type[Transaction]", type(kind.__name__, (kind,), {"__slots__": (), "workers": backend})
        )
        self.apps.update({server: cast(ASGIApp, server.config.target) for server in backend.servers})
        self.apps_built = self.has_warned = True
