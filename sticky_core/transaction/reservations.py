"""Reservations: keys that become the first server's before the request goes there, so that simultaneous requests of one
client go to the same server.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sticky_core.persistence.claim import Claim, Reason
from sticky_core.server.server import Server
from sticky_core.transaction.state import TransactionState
from sticky_core.transaction.steps import NeedStores, Step


def reserve(
    state: TransactionState[Any, Any],
    server: Server,
    on_reserved: Callable[[], Step],
    on_taken: Callable[[Server], Step],
) -> Step:
    """Reserve the keys of the request for `server`, where it has a slot, and return the next step.

    `on_reserved`: called if the keys are the server's. `on_taken`: called with the server of an earlier request of the
    same client; the slot is released then.
    """
    reservations = state.persisted.reservations
    queries = [(each, each.query(server)) for each in reservations]

    def confirm() -> Step:
        state.set_reservations(reservations)
        state.persisted = replace(state.persisted, reservations=())
        for reservation, query in queries:
            owner = reservation.confirm(server, query)
            if owner is not None and owner is not server:
                state.release_slot(server)
                result = replace(state.persisted, claim=Claim.VALID, reason=Reason.BOUND, server=owner)
                state.set_result(replace(result, needs_no_mark=False))
                return on_taken(owner)
        return on_reserved()

    sent = tuple(query for _, query in queries if query is not None)
    return NeedStores(sent, confirm, server) if sent else confirm()


def cancel_reservations(state: TransactionState[Any, Any]) -> None:
    """Give the reserved keys up, as no server has responded."""
    for reservation in state.reservations:
        reservation.cancel(state)
