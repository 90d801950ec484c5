"""Retries because of the status of a response (`retry_on="503"`): the response is held back while another server is
tried. If no other server responds, it is passed on after all, provided that it was short enough to be kept.
"""

from __future__ import annotations

from typing import Any, Final

from sticky_core.errors import Failure
from sticky_core.server.server import Server
from sticky_core.transaction.retry import may_execute_twice
from sticky_core.transaction.state import ClientSend, RawRequest
from sticky_core.transaction.steps import UNAVAILABLE, Step
from sticky_core.transaction.transaction import Transaction

#: The longest body of a response that is kept while another server is tried, in bytes.
KEPT_BODY_LIMIT: Final = 65536
#: How long the rest of a response that an upstream has begun is awaited to keep it, in seconds; then another server is
#: tried without it.
KEEP_TIMEOUT: Final = 0.25


class StatusRetry(Transaction[RawRequest, ClientSend]):
    """A transaction that may hold responses back. Faces put it before their own transaction class, and only where
    a snapshot retries statuses, so that other requests do not pay for it.
    """

    __slots__ = ()

    @property
    def holds_response(self) -> bool:
        return getattr(self, "_next_server", None) is not None

    def hold_response(self, status: int) -> bool:
        """Return whether a response with this status is held back. The server that is tried next gets its slot now, so
        that the response passes if no server has one.
        """
        if status not in self.snapshot.retries.statuses or not may_execute_twice(self) or self.client_left_first:
            return False
        decision = self.decision
        server, failures, result = self.tried[-1], decision.failures, self.persisted
        decision.failures += (Failure.RETRIED_STATUS,)
        step = self.retry(Failure.RETRIED_STATUS)
        if isinstance(step, Server):
            self._next_server = step
            self._held = server, failures, result
            return True
        if step is not UNAVAILABLE:
            self.stop_waiting(step)  # a response that is there is better than a wait
        decision.failures = failures
        self.set_result(result)
        return False

    def keep_response(self, response: object) -> None:
        """Keep the whole of the response that is held back, in the form in which the face can send it."""
        self._kept = *self._held, response

    def restore_response(self) -> Any:
        self.drop_next_server()  # there is one if the client has disconnected before it was tried
        kept = getattr(self, "_kept", None)
        if kept is None:
            return None
        server, failures, result, response = kept
        decision = self.decision
        # without the one that stands for this response
        decision.failures = failures + decision.failures[len(failures) + 1 :]
        decision.server = server.name
        self.set_result(result)
        self.tried = (*self.tried, server)
        return response

    def next(self) -> Step:
        server: Server | None = getattr(self, "_next_server", None)
        if server is None:
            return super().next()
        self._next_server = None
        return server

    def release(self, server: Server, finished: bool) -> None:
        if finished:
            self.drop_next_server()
        super().release(server, finished)

    def drop_next_server(self) -> None:
        server: Server | None = getattr(self, "_next_server", None)
        if server is not None:
            self._next_server = None
            self.remove_attempt()
            self.release_slot(server)
