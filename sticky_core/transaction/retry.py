"""Whether a request is retried after a failure, and at which server. Pure decisions: the transaction acts on them."""

from __future__ import annotations

from enum import Enum
from typing import Any, Final

from sticky_core.errors import Failure
from sticky_core.http.forwarding import IDEMPOTENT
from sticky_core.transaction.state import TransactionState
from sticky_core.transaction.steps import NeedSlot

#: the longest pause before the same server is tried again, in seconds
LONGEST_PAUSE: Final = 1.0


class Retry(Enum):
    """Where a request goes after a failure."""

    NOWHERE = "nowhere"
    SAME_SERVER = "same server"
    SAME_SERVER_AFTER_PAUSE = "same server after a pause"
    OTHER_SERVER = "other server"


def may_retry(state: TransactionState[Any, Any], failure: Failure) -> bool:
    """Return whether the request may be replayed after `failure`, as far as its body and `retry_on` are concerned."""
    if failure.maybe_executed:
        replayable = may_execute_twice(state)
    else:
        body = state.replayable_body
        replayable = body is None or not body.discarded
    return replayable and state.snapshot.retries.covers(failure)


def may_execute_twice(state: TransactionState[Any, Any]) -> bool:
    """Return whether it does no harm if two servers execute the request."""
    if not state.replayable:
        return False
    return state.method in IDEMPOTENT or (
        state.snapshot.config.idempotency_key and any(state.header("idempotency-key"))
    )


def choose_retry(state: TransactionState[Any, Any], failure: Failure, number: int) -> Retry:
    """Return where the retry with this number (from 1) goes, after `failure` of the last attempt."""
    if number > state.snapshot.retries.retries:
        return Retry.NOWHERE
    if failure is Failure.LOCAL_LIMIT:  # it would be met at another server as well, and the client would be moved
        return Retry.SAME_SERVER_AFTER_PAUSE
    if goes_elsewhere(state, number):
        return Retry.OTHER_SERVER
    # A server that has responded, in whatever way, needs no pause. An app in this process never does.
    if not failure.maybe_executed and isinstance(state.tried[-1].config.target, str):
        return Retry.SAME_SERVER_AFTER_PAUSE
    return Retry.SAME_SERVER


def goes_elsewhere(state: TransactionState[Any, Any], number: int) -> bool:
    """Return whether the retry with this number (from 1) goes to another server than the last attempt."""
    retries = state.snapshot.retries
    if state.persisted.is_forced:
        return False
    if retries.is_elsewhere(number):
        return True
    # HAProxy does not wait for the attempt that its option names if the client is bound to no server, or the server is
    # not usable any more
    return bool(retries.redispatch) and (not state.tried[-1].usable or (number == 1 and not state.persisted.is_bound))


def pause(state: TransactionState[Any, Any]) -> NeedSlot:
    """Return the pause before the last server is tried again."""
    snapshot = state.snapshot
    seconds = min(LONGEST_PAUSE, snapshot.config.timeouts.in_seconds.connect)
    return NeedSlot(snapshot.clock.monotonic() + seconds, None, state.tried[-1])
