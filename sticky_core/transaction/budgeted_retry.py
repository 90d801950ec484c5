"""Retries as far as the backend's `retry_budget` allows them."""

from __future__ import annotations

from dataclasses import replace

from sticky_core.backend.granted_retries import RetryGrant
from sticky_core.errors import Failure
from sticky_core.http.messages import ResponseHead
from sticky_core.server.server import Server
from sticky_core.transaction.state import ClientSend, RawRequest
from sticky_core.transaction.steps import UNAVAILABLE, NeedSlot, Step
from sticky_core.transaction.transaction import Transaction


class BudgetedRetry(Transaction[RawRequest, ClientSend]):
    """A transaction that asks the backend's budget before each retry. Faces put it before their own transaction class,
    and only where a snapshot has a budget, so that other requests do not pay for it.
    """

    __slots__ = ()

    @property
    def _grants(self) -> tuple[RetryGrant, ...]:
        """The retries that this request was granted. While it has any, it is counted as a retry in flight: until its
        response begins, as in Envoy.
        """
        return getattr(self, "_retry_grants", ())

    def acquire_retry(self, failure: Failure) -> bool:
        budget = self.snapshot.retry_budget
        if budget is None:  # the snapshot was replaced between the choice of this class and its use
            return True
        grants, placement = self._grants, self.owner.placement
        # the failed attempt has released its slot, unless its response is there and may be held back
        itself = failure is not Failure.RETRIED_STATUS
        grant = self.owner.granted_retries.acquire(budget, lambda: placement.count_requests() + itself, bool(grants))
        if grant is RetryGrant.DENIED:
            self.decision.retry_denied = True
            return False
        self._retry_grants = (*grants, grant)
        self.persisted = replace(self.persisted, needs_no_mark=False)  # so that a face calls `stamp`
        return True

    def retry(self, failure: Failure) -> Step:
        before = self._grants
        try:
            step = super().retry(failure)
        except BaseException:
            self._release_grants()
            raise
        if step is UNAVAILABLE:  # no other server is left
            self._cancel_grant(before)
        elif _is_pause(step):
            self.owner.granted_retries.count_pause(1)
        return step

    def hold_response(self, status: int) -> bool:
        before = self._grants
        is_held = super().hold_response(status)
        if not is_held:
            self._cancel_grant(before)
        return is_held

    def stamp(self, response: ResponseHead) -> None:
        """Edit the head of a response, and count the request as a retry no more: it needs no further attempt, while its
        response, or a WebSocket, may last for hours.
        """
        self._release_grants()
        super().stamp(response)

    def resume(self, need: NeedSlot, woken: bool) -> Step:
        self._end_pause(need)
        return super().resume(need, woken)

    def stop_waiting(self, step: Step) -> None:
        self._end_pause(step)
        super().stop_waiting(step)

    def release(self, server: Server, finished: bool) -> None:
        super().release(server, finished)
        if finished and hasattr(self, "_retry_grants"):  # in line: every request passes here
            self._release_grants()

    def _finish(self) -> None:
        super()._finish()
        self._release_grants()

    def _end_pause(self, step: Step) -> None:
        if _is_pause(step):
            self.owner.granted_retries.count_pause(-1)

    def _cancel_grant(self, before: tuple[RetryGrant, ...]) -> None:
        """Take back what was granted since there were only the grants `before`."""
        grants = self._grants
        if grants != before:
            self._retry_grants = before
            self.owner.granted_retries.cancel(grants[-1], bool(before))

    def _release_grants(self) -> None:
        if self._grants:
            self._retry_grants = ()
            self.owner.granted_retries.release()


def _is_pause(step: Step) -> bool:
    """Return whether `step` is the pause before the same server is tried again."""
    return isinstance(step, NeedSlot) and step.ticket is None
