"""What has to be waited for before the next server is known: a place at one, the end of a pause, the beginning of the
body, the answer of a store.
"""

from __future__ import annotations

import threading

from sticky_core.doors import Asked, Door, Peek, Wait
from sticky_core.server import Server
from sticky_wsgi.bodies import Body
from sticky_wsgi.clients import has_left
from sticky_wsgi.connections import TICK
from sticky_wsgi.messages import Transaction
from sticky_wsgi.stores import ask


def waited(transaction: Transaction) -> Server | None:
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


def _opened(transaction: Transaction, wait: Door) -> Server | None:
    match wait:
        case Wait():
            return transaction.resume(_woken(transaction, wait))
        case Peek():
            return transaction.peeked(_body(transaction).peek(wait.limit))
        case Asked():
            return transaction.answered(ask([question.ask for question in wait.questions]))


def _body(transaction: Transaction) -> Body:
    """The reader of its body, which may be wanted for this only."""
    body = transaction.reread
    if body is None:
        transaction.body = body = Body(transaction.message, transaction.through.config.retry_body_limit)
    assert isinstance(body, Body)
    return body


def _woken(transaction: Transaction, wait: Wait) -> bool:
    """Whether somebody has woken us; else the time is up, or the client has left."""
    woken = threading.Event()
    backend = transaction.through

    def wake() -> bool:
        woken.set()
        return True

    if wait.ticket is not None and not backend.waits(wait.ticket, wake):
        return True
    client_left = has_left(transaction.message)
    while (left := wait.until - backend.clock.monotonic()) > 0:
        if woken.wait(min(left, TICK)):
            return True
        if client_left():
            return False
    return False
