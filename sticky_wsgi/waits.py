"""What has to be waited for before the next server is known: a place at one, the end of a pause, the beginning of the
body, the answer of a store.
"""

from __future__ import annotations

import threading

from sticky_core.server.server import Server
from sticky_core.transaction.waits import Need, NeedBody, NeedSlot, NeedStores
from sticky_wsgi.body import Body
from sticky_wsgi.clients import has_left
from sticky_wsgi.messages import Transaction
from sticky_wsgi.stores.client import execute
from sticky_wsgi.upstream.connections import TICK


def resolve_wait(transaction: Transaction) -> Server | None:
    """The server that a wait has led to; None if there is nothing to wait for, or it was in vain."""
    while (wait := transaction.wait) is not None:
        try:
            server = _opened(transaction, wait)
        except BaseException:
            transaction.abandon()
            raise
        if server is not None:
            return server
    return None


def _opened(transaction: Transaction, wait: Need) -> Server | None:
    match wait:
        case NeedSlot():
            return transaction.resume(_woken(transaction, wait))
        case NeedBody():
            return transaction.peeked(_body(transaction).peek(wait.limit))
        case NeedStores():
            return transaction.stores_replied(execute([question.command for question in wait.queries]))


def _body(transaction: Transaction) -> Body:
    """The reader of its body, which may be wanted for this only."""
    body = transaction.reread
    if body is None:
        transaction.body = body = Body(transaction.raw_request, transaction.snapshot.config.retry_body_limit)
    assert isinstance(body, Body)
    return body


def _woken(transaction: Transaction, wait: NeedSlot) -> bool:
    """Whether somebody has woken us; else the time is up, or the client has left."""
    woken = threading.Event()
    backend = transaction.snapshot

    def wake() -> bool:
        woken.set()
        return True

    if wait.ticket is not None and not transaction.owner.placement.subscribe(wait.ticket, wake):
        return True
    client_left = has_left(transaction.raw_request)
    while (left := wait.until - backend.clock.monotonic()) > 0:
        if woken.wait(min(left, TICK)):
            return True
        if client_left():
            return False
    return False
