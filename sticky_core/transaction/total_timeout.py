"""The limit of all attempts of one request (`Timeouts(total=...)`). Pure decisions: a face ends the attempt in progress
where it can.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final

from sticky_core.errors import Failure
from sticky_core.http.cookies import CookieKey
from sticky_core.server.server import Server
from sticky_core.transaction.state import ClientSend, RawRequest
from sticky_core.transaction.steps import UNAVAILABLE, NeedBody, NeedSlot, NeedStores, Step
from sticky_core.transaction.transaction import Transaction

#: Timers may end a wait so many seconds before its time: what is left then is no time for another attempt.
_TIMER_ACCURACY: Final = 0.001


class TotalTimeout(Transaction[RawRequest, ClientSend]):
    """A transaction with a limit for all its attempts. Faces put it before their own transaction class, and only where
    a snapshot has such a limit, so that other requests do not pay for it.
    """

    __slots__ = ()

    @property
    def seconds_left(self) -> float | None:
        if self._ends_at == inf or getattr(self, "_is_lifted", False):
            return None
        return max(self._ends_at - self.snapshot.clock.monotonic(), 0.0)

    def lift_total_timeout(self) -> None:
        self._is_lifted = True

    def first(self, cookie_key: CookieKey) -> Step:
        total = self.snapshot.total_timeout
        # None: the snapshot was replaced between the choice of this class and its use
        self._ends_at = inf if total is None else self.snapshot.clock.monotonic() + total
        return self._limit_wait(super().first(cookie_key))

    def next(self) -> Step:
        self._is_lifted = False
        if self._is_over:
            self.drop_next_server()
            return self._end()
        return self._limit_wait(super().next())

    def resume(self, need: NeedSlot, woken: bool) -> Step:
        if self._is_over:
            self.stop_waiting(need)
            return self._end()
        return self._limit_wait(super().resume(need, woken))

    def body_read(self, need: NeedBody, beginning: bytes) -> Step:
        return self._end() if self._is_over else self._limit_wait(super().body_read(need, beginning))

    def stores_replied(self, need: NeedStores, replies: Sequence[object]) -> Step:
        step = super().stores_replied(need, replies)  # also if the time is over: what is reserved is known then
        if not self._is_over:
            return self._limit_wait(step)
        if isinstance(step, Server):
            self.remove_attempt()
            self.release_slot(step)
        else:
            self.stop_waiting(step)
        return self._end()

    def hold_response(self, status: int) -> bool:
        return not self._is_over and super().hold_response(status)

    @property
    def _is_over(self) -> bool:
        return self.snapshot.clock.monotonic() >= self._ends_at - _TIMER_ACCURACY

    def _limit_wait(self, step: Step) -> Step:
        if isinstance(step, NeedSlot) and step.until > self._ends_at:
            return step._replace(until=self._ends_at)
        return step

    def _end(self) -> Step:
        """Record that the time is over, unless the last attempt has ended for that reason."""
        failures = self.decision.failures
        if not failures or failures[-1] is not Failure.TOTAL_TIMEOUT:
            self.decision.failures = (*failures, Failure.TOTAL_TIMEOUT)
        return UNAVAILABLE
