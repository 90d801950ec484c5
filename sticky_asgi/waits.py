"""What has to be waited for before the next server is known: a place at one, the end of a pause, the beginning of the
body, the answer of a store.
"""

from __future__ import annotations

import asyncio

import anyio

from sticky_asgi.body import Body
from sticky_asgi.messages import Transaction, waker
from sticky_asgi.stores.client import execute
from sticky_core.server.server import Server
from sticky_core.transaction.waits import Need, NeedBody, NeedSlot, NeedStores


async def resolve_wait(transaction: Transaction, body: Body | None) -> Server | None:
    """The server that a wait has led to; None if there is nothing to wait for, or it was in vain."""
    while (wait := transaction.wait) is not None:
        assert body is not None
        try:
            server = await _opened(transaction, wait, body)
        except BaseException:
            transaction.abandon()
            body.close()
            raise
        if server is not None:
            return server
        if body.gone:
            transaction.abandon()
            return None
    return None


async def _opened(transaction: Transaction, wait: Need, body: Body) -> Server | None:
    match wait:
        case NeedSlot():
            woken = await _woken(transaction, wait, body)
            return None if body.gone else transaction.resume(woken)
        case NeedBody():
            beginning = await body.peek(wait.limit)
            return None if body.gone else transaction.peeked(beginning)
        case NeedStores():
            return transaction.stores_replied(await execute([question.command for question in wait.queries]))


async def _woken(transaction: Transaction, wait: NeedSlot, body: Body) -> bool:
    """Whether somebody has woken us; else the time is up."""
    woken = anyio.Event()
    backend = transaction.snapshot
    if wait.ticket is not None and not transaction.owner.placement.subscribe(wait.ticket, waker(woken)):
        return True
    with anyio.move_on_after(wait.until - backend.clock.monotonic()):
        async with anyio.create_task_group() as group:
            if _on_asyncio():
                body.watch(woken.set)  # what it has begun to read survives us
            else:
                group.start_soon(body.until_gone, woken.set)
            await woken.wait()
            group.cancel_scope.cancel()
    body.unwatch()
    return woken.is_set()


def _on_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
