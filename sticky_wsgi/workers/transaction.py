"""The transactions of requests that may be forwarded to a peer, and the apps among which they choose."""

from __future__ import annotations

from queue import SimpleQueue
from typing import Any, TypeAlias, cast

from sticky_core.backend.backend import Backend
from sticky_core.server.server import Server
from sticky_core.workers.backend import Workers
from sticky_core.workers.transaction import PeerTransaction, key_mixins
from sticky_wsgi.apps import Replicas
from sticky_wsgi.messages import VARIANTS, Environ, HeldResponse, StartResponse, Transaction, WSGIApp

#: permits to run the app, an item for each request that may run at the same time; None: any number may run
Permits: TypeAlias = SimpleQueue[None] | None


class ForwardingTransaction(PeerTransaction[Environ, StartResponse], Transaction):
    """A transaction that may be forwarded to a peer, and holds a permit of this worker while the app here serves it."""

    __slots__ = ("permits",)

    permits: Permits  #: where its permit goes back; set while it holds one

    @staticmethod
    def of(start_response: Any) -> ForwardingTransaction:
        """Return the transaction that has this `start_response`, which the dispatch loop passes to the app of a server.

        Only the app that forwards to a peer needs it, and the one that takes permits. To put the transaction into each
        environ would cost the requests that stay in their own worker a tenth.
        """
        holder = start_response.__self__
        if holder.__class__ is HeldResponse:
            return cast("ForwardingTransaction", holder.transaction)
        transaction: ForwardingTransaction = holder
        return transaction

    def release(self, server: Server, finished: bool) -> None:
        permits = getattr(self, "permits", None)
        if permits is not None:
            self.permits = None
            permits.put(None)
        super().release(server, finished)


class WorkerReplicas(Replicas):
    """The apps behind the worker slots: the app itself, and those that forward to a peer."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self.transaction_class = VARIANTS.build_for_peers(
            backend.snapshot, (*key_mixins(cast(Workers, backend)), ForwardingTransaction), workers=backend
        )
        self.apps.update({server: cast(WSGIApp, server.config.target) for server in backend.servers})
        self.apps_built = True
