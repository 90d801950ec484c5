"""Waiting for a place at a server, or out a pause, while the client may leave."""

from __future__ import annotations

import threading

from sticky_core.server import Server
from sticky_core.transaction import Wait
from sticky_wsgi.clients import has_left
from sticky_wsgi.connections import TICK
from sticky_wsgi.messages import Transaction


def waited(transaction: Transaction) -> Server | None:
    """The server that a wait has led to; None if there is nothing to wait for, or it was in vain."""
    while (wait := transaction.wait) is not None:
        try:
            woken = _woken(transaction, wait)
        except BaseException:
            transaction.abandon()
            raise
        server = transaction.resume(woken)
        if server is not None:
            return server
    return None


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
