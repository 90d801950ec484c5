"""The transactions of requests that may be forwarded to a peer, and the apps among which they choose."""

from __future__ import annotations

from queue import Empty, SimpleQueue
from threading import get_ident
from typing import Any, cast

from sticky_core.backend.backend import Backend
from sticky_core.server.server import Server
from sticky_core.workers.backend import Workers
from sticky_core.workers.transaction import PeerTransaction, key_mixins
from sticky_wsgi.apps import VARIANTS, Replicas
from sticky_wsgi.messages import Environ, HeldResponse, StartResponse, Transaction, WSGIApp
from sticky_wsgi.workers.gunicorn import Heartbeat


class Permit:
    """The permission to run the app for one request."""

    __slots__ = ("_free", "thread")

    def __init__(self, free: SimpleQueue[Permit]) -> None:
        self._free = free
        self.thread = 0  #: the identifier of the thread that holds it; 0: none

    def release(self) -> None:
        """Let another request have it."""
        self.thread = 0
        self._free.put(self)


class Permits:
    """As many permits as requests may be in the app at the same time. `heartbeat`: what a thread that waits for one
    sends.
    """

    __slots__ = ("_all", "_free", "_heartbeat")

    def __init__(self, count: int, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat
        self._free: SimpleQueue[Permit] = SimpleQueue()
        self._all = [Permit(self._free) for _ in range(count)]
        for each in self._all:
            self._free.put(each)

    def acquire(self) -> Permit | None:
        """Wait for a permit, and return it. None: all are held, one of them by this thread, and no further one is
        needed: the app calls itself while it serves a request, or a test client has not closed the last response.
        To wait would be for ever. ServerFailure if this thread can't wait any longer.
        """
        thread = get_ident()
        try:
            permit = self._free.get_nowait()
        except Empty:
            if any(each.thread == thread for each in self._all):
                return None
            permit = self._heartbeat.wait(self._wait)
        permit.thread = thread
        return permit

    def _wait(self, timeout: float) -> Permit | None:
        try:
            return self._free.get(timeout=timeout)
        except Empty:
            return None


class ForwardingTransaction(PeerTransaction[Environ, StartResponse], Transaction):
    """A transaction that may be forwarded to a peer, and holds a permit of this worker while the app here serves it."""

    __slots__ = ("permit",)

    permit: Permit | None  #: set while it holds one

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
        permit = getattr(self, "permit", None)
        if permit is not None:
            self.permit = None
            permit.release()
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
