"""Reports to the backend's monitor how each attempt has turned out, and how long the server took."""

from __future__ import annotations

from collections.abc import Sequence

from sticky_core.errors import Failure
from sticky_core.http.cookies import CookieKey
from sticky_core.server.server import Server
from sticky_core.transaction.state import ClientSend, RawRequest
from sticky_core.transaction.steps import NeedBody, NeedSlot, NeedStores, Step
from sticky_core.transaction.transaction import Transaction


class Reporting(Transaction[RawRequest, ClientSend]):
    """A transaction that reports its attempts. Faces put it before their own transaction class, and only where a
    snapshot observes requests, so that other requests do not pay for it.
    """

    __slots__ = ()

    def first(self, cookie_key: CookieKey) -> Step:
        return self._start_timer(super().first(cookie_key))

    def next(self) -> Step:
        return self._start_timer(super().next())

    def resume(self, need: NeedSlot, woken: bool) -> Step:
        return self._start_timer(super().resume(need, woken))

    def body_read(self, need: NeedBody, beginning: bytes) -> Step:
        return self._start_timer(super().body_read(need, beginning))

    def stores_replied(self, need: NeedStores, replies: Sequence[object]) -> Step:
        return self._start_timer(super().stores_replied(need, replies))

    def _start_timer(self, step: Step) -> Step:
        self._asked_at = self.snapshot.clock.monotonic()
        return step

    def _report(self, server: Server, attempts: int, failure: Failure | None, status: int) -> None:
        self._reported_attempts = attempts
        owner = self.owner
        owner.monitor.record_request(server, failure, status, owner.clock.monotonic() - self._asked_at)

    def record_failure(self, failure: Failure) -> Failure:
        is_server_fault = failure.is_server_fault
        failure = super().record_failure(failure)
        if is_server_fault and not self.holds_response and not self.client_left_first:
            self._report(self.tried[-1], len(self.tried), failure, 0)
        return failure

    def app_raised(self, is_disconnect: bool = False, is_local_limit: bool = False) -> bool:
        counts = super().app_raised(is_disconnect, is_local_limit)
        if counts and (is_local_limit or self.client_left_first):
            self._reported_attempts = len(self.tried)  # there is nothing to report of this attempt
        elif counts:
            self._report(self.tried[-1], len(self.tried), None, 500)
        return counts

    def hold_response(self, status: int) -> bool:
        server, attempts = self.tried[-1], len(self.tried)
        is_held = super().hold_response(status)
        if is_held:
            self._report(server, attempts, None, status)
        return is_held

    def release(self, server: Server, finished: bool) -> None:
        status = self.decision.status
        attempts = len(self.tried)
        if status and getattr(self, "_reported_attempts", 0) < attempts and server is self.tried[-1]:
            if status < 500 or not self.client_left_first:  # an app may respond with 500 to a client that has gone
                self._report(server, attempts, None, status)
        super().release(server, finished)
