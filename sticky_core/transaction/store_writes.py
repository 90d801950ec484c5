"""Writes to shared stores that a request has queued (`Request.queue_write`). A face sends them before the client gets
the head of the response, so that the client's next request finds them written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sticky_core.stores.store import StoreCommand
from sticky_core.transaction.state import TransactionState


def pending_writes(state: TransactionState[Any, Any]) -> Sequence[StoreCommand]:
    """Return the commands to send to the stores now; `complete_writes` takes the replies."""
    return [query.command for _, _, query in state.writes]


def complete_writes(state: TransactionState[Any, Any], replies: Sequence[object]) -> None:
    """Hand the replies to `pending_writes` to their tables, one for one."""
    writes = state.writes
    state.clear_writes()
    now = state.snapshot.clock.monotonic()
    for (table, key, query), reply in zip(writes, replies, strict=True):
        query.set_reply(reply)
        table.on_written(key, query, now)
