"""The transactions of requests that may be forwarded to a peer, and the apps among which they choose."""

from __future__ import annotations

from typing import cast

from sticky_asgi.apps import Replicas
from sticky_asgi.messages import TRANSACTION, VARIANTS, ASGIApp, Scope, Send, Transaction
from sticky_core.backend.backend import Backend
from sticky_core.workers.transaction import PeerTransaction


class ForwardingTransaction(PeerTransaction[Scope, Send], Transaction):
    """A transaction that may be forwarded to a peer. It passes itself to the app that forwards the request."""

    __slots__ = ()

    def forwarded(self) -> Scope:
        scope = super().forwarded()
        if self.tried[-1] is not self.workers.own_server:
            scope[TRANSACTION] = self
        return scope


class WorkerReplicas(Replicas):
    """The apps behind the worker slots: the app itself, and those that forward to a peer."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self.transaction_class = VARIANTS.build_for_peers(backend.snapshot, ForwardingTransaction, workers=backend)
        self.apps.update({server: cast(ASGIApp, server.config.target) for server in backend.servers})
        self.apps_built = self.has_warned = True
