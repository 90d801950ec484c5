"""The transactions of requests that may be forwarded to a peer, and the apps among which they choose."""

from __future__ import annotations

from typing import Any, cast

from sticky_asgi.apps import VARIANTS, Replicas
from sticky_asgi.messages import ASGIApp, HeldResponse, Scope, Send, Transaction
from sticky_core.backend.backend import Backend
from sticky_core.workers.backend import Workers
from sticky_core.workers.transaction import PeerTransaction, key_mixins


class ForwardingTransaction(PeerTransaction[Scope, Send], Transaction):
    """A transaction that may be forwarded to a peer."""

    __slots__ = ()

    @staticmethod
    def of(send: Any) -> ForwardingTransaction:
        """Return the transaction that has this `send`, which the dispatch loop passes to the app of a server.

        Only the app that forwards to a peer needs it. To put the transaction into each scope would cost the requests
        that stay in their own worker a tenth.
        """
        holder = send.__self__
        if holder.__class__ is HeldResponse:
            return cast("ForwardingTransaction", holder.transaction)
        transaction: ForwardingTransaction = holder
        return transaction


class WorkerReplicas(Replicas):
    """The apps behind the worker slots: the app itself, and those that forward to a peer."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self.transaction_class = VARIANTS.build_for_peers(
            backend.snapshot, (*key_mixins(cast(Workers, backend)), ForwardingTransaction), workers=backend
        )
        self.apps.update({server: cast(ASGIApp, server.config.target) for server in backend.servers})
        self.apps_built = self.has_warned = True
