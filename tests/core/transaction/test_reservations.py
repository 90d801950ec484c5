"""Reservations: the first request of a client reserves its keys for a server before the request goes there."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.balance import RoundRobin
from sticky_core.clock import ManualClock
from sticky_core.http.messages import Request
from sticky_core.persistence.claim import Claim, Reason
from sticky_core.server.server import Server
from sticky_core.stores.store import StoreCommand, StoreQuery
from sticky_core.transaction.reservations import cancel_reservations, reserve
from sticky_core.transaction.steps import UNAVAILABLE, NeedStores, Step
from tests.core.fakes import ScriptedTransaction


def app(environ: object, start_response: object) -> list[bytes]:
    return []


class FakeReservation:
    """A key that has the server `owner`, by name. "": it is not usable. `in_store`: whether a store has the key.
    `raises_in`: the method that raises.
    """

    def __init__(self, owner: str, in_store: bool = False, raises_in: str = "") -> None:
        self.owner, self.in_store, self.raises_in = owner, in_store, raises_in
        self.web: Backend | None = None
        self.confirmed: list[tuple[str, StoreQuery | None]] = []
        self.cancelled: list[Request] = []

    def query(self, server: Server) -> StoreQuery | None:
        if self.raises_in == "query":
            raise ValueError("no query")
        store: Any = object()
        return StoreQuery(StoreCommand(store, ("reserve", server.name)), 0) if self.in_store else None

    def confirm(self, server: Server, query: StoreQuery | None) -> Server | None:
        assert self.web is not None
        if self.raises_in == "confirm":
            raise ValueError("not confirmed")
        self.confirmed.append((server.name, query))
        return self.web[self.owner] if self.owner else None

    def cancel(self, request: Request) -> None:
        self.cancelled.append(request)


class ReservingRequest:
    """A request with a slot at s1, and the server that its reservations have led to."""

    def __init__(self, reservations: Sequence[FakeReservation]) -> None:
        servers = [Server(name, app) for name in ("s1", "s2")]
        self.web = Backend("web", servers, balance=RoundRobin(start=0), persist=(), clock=ManualClock())
        self.state = ScriptedTransaction(self.web)
        for reservation in reservations:
            reservation.web = self.web
        self.state.start()
        self.state.persisted = replace(self.state.persisted, reservations=tuple(reservations))
        self.outcome: tuple[str, str] | None = None

    def reserve(self) -> Step:
        server = self.web["s1"]
        return reserve(self.state, server, lambda: self._finish("reserved", server), self._on_taken)

    def _on_taken(self, owner: Server) -> Step:
        return self._finish("taken", owner)

    def _finish(self, word: str, server: Server) -> Step:
        self.outcome = word, server.name
        return UNAVAILABLE

    @property
    def in_flight(self) -> list[int]:
        return [len(server.in_flight) for server in self.web.servers]


@pytest.mark.parametrize(
    "owners, outcome, in_flight",
    [
        pytest.param(["s1"], ("reserved", "s1"), [1, 0], id="the server has the key"),
        pytest.param([""], ("reserved", "s1"), [1, 0], id="another server has it, and is not usable"),
        pytest.param(["s2"], ("taken", "s2"), [0, 0], id="another server has it"),
        pytest.param(["s1", "s2"], ("taken", "s2"), [0, 0], id="another server has the second key"),
        pytest.param(["s1", "s1"], ("reserved", "s1"), [1, 0], id="the server has both keys"),
    ],
)
@pytest.mark.parametrize("in_store", [False, True], ids=["in memory", "in a store"])
def test_request_goes_to_the_server_that_has_its_keys(
    owners: list[str], outcome: tuple[str, str], in_flight: list[int], in_store: bool
):
    reservations = [FakeReservation(owner, in_store) for owner in owners]
    request = ReservingRequest(reservations)
    step = request.reserve()
    if in_store:
        assert isinstance(step, NeedStores) and len(step.queries) == len(owners)
        assert step.server is request.web["s1"] and request.outcome is None
        assert request.in_flight == [1, 0], "the slot is held while the store is called"
        step.then()
    assert (request.outcome, request.in_flight) == (outcome, in_flight)
    persisted = request.state.persisted
    assert (list(request.state.reservations), persisted.reservations) == (reservations, ())
    if outcome[0] == "taken":
        assert (persisted.claim, persisted.reason, persisted.server) == (Claim.VALID, Reason.BOUND, request.web["s2"])
        assert not persisted.needs_no_mark and request.state.decision.claimed == "s2"


def test_only_keys_in_a_store_are_queried_and_each_gets_its_own_reply():
    local, stored = FakeReservation("s1"), FakeReservation("s1", in_store=True)
    request = ReservingRequest([local, stored])
    step = request.reserve()
    assert isinstance(step, NeedStores)
    (query,) = step.queries
    step.then()
    assert (local.confirmed, stored.confirmed) == ([("s1", None)], [("s1", query)])


def test_key_after_one_that_another_server_has_is_not_confirmed():
    taken, later = FakeReservation("s2"), FakeReservation("s1")
    ReservingRequest([taken, later]).reserve()
    assert (len(taken.confirmed), len(later.confirmed)) == (1, 0)


def test_all_reservations_are_cancelled():
    reservations = [FakeReservation("s1"), FakeReservation("s1")]
    request = ReservingRequest(reservations)
    cancel_reservations(request.state)
    assert [each.cancelled for each in reservations] == [[], []], "nothing was reserved yet"
    request.reserve()
    cancel_reservations(request.state)
    assert [each.cancelled for each in reservations] == [[request.state], [request.state]]


def resolve(reserve: Callable[[], Step]) -> None:
    """Reserve, with the replies of stores."""
    step = reserve()
    assert isinstance(step, NeedStores)
    step.then()


@pytest.mark.parametrize("in_store", [False, True], ids=["in memory", "in a store"])
@pytest.mark.parametrize("raises_in", ["query", "confirm"])
def test_slot_is_released_if_a_reservation_raises(raises_in: str, in_store: bool):
    request = ReservingRequest([FakeReservation("s1", in_store), FakeReservation("s1", in_store, raises_in)])
    with pytest.raises(ValueError):
        resolve(request.reserve)
    assert request.in_flight == [0, 0]


@pytest.mark.parametrize("in_store", [False, True], ids=["in memory", "in a store"])
@pytest.mark.parametrize("owner", ["s1", "s2"], ids=["it has the key", "another server has the key"])
def test_slot_is_released_once_if_the_next_step_raises(owner: str, in_store: bool):
    request = ReservingRequest([FakeReservation(owner, in_store)])

    def no_step(*_: object) -> Step:
        raise ValueError("no step")

    with pytest.raises(ValueError):
        resolve(lambda: reserve(request.state, request.web["s1"], no_step, no_step))
    assert request.in_flight == [0, 0]
