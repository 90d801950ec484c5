"""Waits for what a transaction needs before its next server is known: a slot, the end of a pause, the beginning of the
body, the replies of stores.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from sticky_core.server.server import Server
from sticky_core.transaction.steps import UNAVAILABLE, Need, NeedBody, NeedSlot, NeedStores, Step, Unavailable
from sticky_wsgi.body import Body
from sticky_wsgi.clients import disconnect_check
from sticky_wsgi.messages import Transaction, flush_writes
from sticky_wsgi.stores.client import execute
from sticky_wsgi.upstream.connections import TICK


def resolve_wait(transaction: Transaction, step: Step) -> Server | None:
    """Wait until the next server is known, and return it; None if no server can take the request."""
    while not isinstance(step, Server):
        if isinstance(step, Unavailable):
            return None
        try:
            advance = _wait(transaction, step)
            step = UNAVAILABLE  # nothing is waited for any more, if the next line raises
            step = advance()
        except BaseException:
            transaction.abandon(step)
            if transaction.has_writes:
                flush_writes(transaction)
            raise
    return step


def _wait(transaction: Transaction, need: Need) -> Callable[[], Step]:
    """Wait for what is needed, and return what returns the next step."""
    match need:
        case NeedSlot():
            woken = _wait_for_slot(transaction, need)
            return lambda: transaction.resume(need, woken)
        case NeedBody():
            beginning = _body(transaction).peek(need.limit)
            return lambda: transaction.body_read(need, beginning)
        case NeedStores():
            replies = execute([query.command for query in need.queries])
            return lambda: transaction.stores_replied(need, replies)


def _body(transaction: Transaction) -> Body:
    """Return the reader of the body. It is made now if the request has none yet."""
    body = transaction.replayable_body
    if body is None:
        environ = transaction.raw_request
        body = Body(environ, transaction.snapshot.config.retry_body_limit, transaction.decision)
        environ["wsgi.input"] = transaction.body = body
    assert isinstance(body, Body)
    return body


def _wait_for_slot(transaction: Transaction, need: NeedSlot) -> bool:
    """Return whether a server has a slot; False: the time is up, or the client has disconnected."""
    woken = threading.Event()
    owner = transaction.owner

    def wake() -> bool:
        woken.set()
        return True

    if need.ticket is not None and not owner.placement.subscribe(need.ticket, wake):
        return True
    client_gone = disconnect_check(transaction.raw_request)
    while (seconds := need.until - owner.clock.monotonic()) > 0:
        if woken.wait(min(seconds, TICK)):
            return True
        if client_gone():
            return False
    return False
