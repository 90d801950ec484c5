"""The transaction of a request with a limit for all its attempts (`Timeouts(total=...)`), on ASGI."""

from __future__ import annotations

from collections.abc import Awaitable
from math import inf

import anyio

from sticky_asgi.interruptible import is_overdue
from sticky_asgi.messages import Message, Transaction


class LimitedTransaction(Transaction):
    """A transaction with an attempt in progress that is cancelled when the time is over (`InterruptibleApp`). It stands
    in the place of `Transaction`, after the mixins.
    """

    __slots__ = ()

    def cancel_at_the_end(self, attempt: anyio.CancelScope) -> None:
        left = self.seconds_left
        if left is not None:
            attempt.deadline = anyio.current_time() + left
            self._attempt_scope = attempt

    def send(self, message: Message) -> Awaitable[None]:
        attempt = getattr(self, "_attempt_scope", None)
        if attempt is not None and is_overdue(attempt):
            raise OSError("the request has taken too long in all, and its client gets an error page")
        sending = super().send(message)
        # a WebSocket that is refused has no head
        if attempt is not None and (self.decision.status or message["type"] == "websocket.close"):
            attempt.deadline = inf
            self._attempt_scope = None
        return sending
