"""Waits for what a transaction needs before its next server is known: a slot, the end of a pause, the beginning of the
body, the replies of stores.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import anyio

from sticky_asgi.body import Body
from sticky_asgi.messages import Transaction, flush_remaining_writes, waker
from sticky_asgi.stores.client import execute
from sticky_core.server.server import Server
from sticky_core.transaction.steps import UNAVAILABLE, Need, NeedBody, NeedSlot, NeedStores, Step, Unavailable


async def resolve_wait(transaction: Transaction, step: Step, body: Body | None) -> Server | None:
    """Wait until the next server is known, and return it; None if no server can take the request, or the client has
    disconnected.
    """
    while not isinstance(step, Server):
        if isinstance(step, Unavailable):
            return None
        assert body is not None
        try:
            advance = await _wait(transaction, step, body)
            if advance is not None:
                step = UNAVAILABLE  # nothing is waited for any more, if the next line raises
                step = advance()
        except BaseException:
            transaction.abandon(step)
            body.close()
            await flush_remaining_writes(transaction)
            raise
        if body.client_gone and not isinstance(step, Server):
            transaction.abandon(step)
            await flush_remaining_writes(transaction)
            return None
    return step


async def _wait(transaction: Transaction, need: Need, body: Body) -> Callable[[], Step] | None:
    """Wait for what is needed, and return what returns the next step; None if the client has disconnected."""
    match need:
        case NeedSlot():
            woken = await _wait_for_slot(transaction, need, body)
            return None if body.client_gone else lambda: transaction.resume(need, woken)
        case NeedBody():
            beginning = b""
            with anyio.move_on_after(transaction.seconds_left):
                beginning = await body.peek(need.limit)
            return None if body.client_gone else lambda: transaction.body_read(need, beginning)
        case NeedStores():
            replies = await execute([query.command for query in need.queries])
            return lambda: transaction.stores_replied(need, replies)


async def _wait_for_slot(transaction: Transaction, need: NeedSlot, body: Body) -> bool:
    """Return whether the wait was ended before its time, by a server that has a slot or by the client."""
    woken = anyio.Event()
    if need.ticket is not None and not transaction.owner.placement.subscribe(need.ticket, waker(woken)):
        return True
    with anyio.move_on_after(need.until - transaction.owner.clock.monotonic()):
        async with anyio.create_task_group() as group:
            if _on_asyncio():
                body.watch(woken.set)  # the read that it starts goes on after this wait
            else:
                group.start_soon(body.watch_in_task, woken.set)
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
