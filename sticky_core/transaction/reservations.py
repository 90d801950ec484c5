"""Reservations: keys that become the first server's before the request goes there, so that simultaneous requests of one
client go to the same server.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
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
    same client; the slot is released then, as it is if anything here raises.
    """
    reservations = state.persisted.reservations

    def confirm() -> Step:
        with _slot_released_on_error(state, server):
            state.set_reservations(reservations)
            state.persisted = replace(state.persisted, reservations=())
            owners = (reservation.confirm(server, query) for reservation, query in queries)
            owner = next((each for each in owners if each is not None and each is not server), None)
            if owner is None:
                return on_reserved()
            result = replace(state.persisted, claim=Claim.VALID, reason=Reason.BOUND, server=owner)
            state.set_result(replace(result, needs_no_mark=False))
        state.release_slot(server)
        return on_taken(owner)

    with _slot_released_on_error(state, server):
        queries = [(each, each.query(server)) for each in reservations]
    sent = tuple(query for _, query in queries if query is not None)
    return NeedStores(sent, confirm, server) if sent else confirm()


@contextmanager
def _slot_released_on_error(state: TransactionState[Any, Any], server: Server) -> Generator[None]:
    """Release the slot at `server` if the block raises: nothing else would, as no step has the server yet."""
    try:
        yield
    except BaseException:
        state.release_slot(server)
        raise


def cancel_reservations(state: TransactionState[Any, Any]) -> None:
    """Give the reserved keys up, as no server has responded."""
    reservations = state.reservations
    if reservations:
        state.set_reservations(())
        for reservation in reservations:
            reservation.cancel(state)
