"""Placement: which server gets a request, and which waiting request gets a free slot."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.backend.placement import Placement
from sticky_core.backend.queue import Ticket
from sticky_core.balance import Hash, IpHash, NginxHash, RoundRobin, Source
from sticky_core.balance.algorithm import Balance
from sticky_core.http.messages import Request
from sticky_core.samples.request import src
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health
from tests.core.backend.backends import (
    FakeTransaction,
    Wait,
    WaitingRequest,
    app,
    choose_name,
    choose_names,
    full_backend,
    in_flight,
    make_backend,
    serve,
    servers,
)
from tests.core.fakes import FakeRequest


@pytest.fixture
def with_backups() -> Backend:
    """Two servers, and two backups in order of declaration."""
    return Backend(
        "web",
        [Server("b1", app, backup=True), *servers("s1", "s2"), Server("b2", app, backup=True)],
        balance=RoundRobin(start=0),
    )


@pytest.mark.parametrize(
    "change, tried, expected",
    [
        pytest.param({}, "", ["s1", "s2", "s1"], id="balance chooses"),
        pytest.param({}, "s1", ["s2", "s2"], id="a server that was not tried"),
        pytest.param({}, "s1 s2", ["b1", "b1"], id="all were tried: the first backup"),
        pytest.param({}, "s1 s2 b1", ["b2", "b2"], id="and the first backup: the second"),
        pytest.param({}, "s1 s2 b1 b2", [None, None], id="all were tried"),
        pytest.param({"s1": "down"}, "", ["s2", "s2"], id="one is down"),
        pytest.param({"s1": "down", "s2": "maint"}, "", ["b1", "b1"], id="all are down: the first backup only"),
        pytest.param({"s1": "down", "s2": "maint", "b1": "down"}, "", ["b2"], id="and the first backup: the second"),
        pytest.param({"s1": "down", "s2": "drain"}, "", ["b1"], id="a backup rather than one that drains"),
        pytest.param(
            {"s1": "down", "s2": "drain", "b1": "down", "b2": "maint"},
            "",
            ["s2"],
            id="one that drains rather than none",
        ),
        pytest.param(
            {"s1": "down", "s2": "weight 0", "b1": "down", "b2": "maint"},
            "",
            ["s2"],
            id="one of weight 0 rather than none",
        ),
        pytest.param(
            {"s1": "down", "s2": "down", "b1": "drain", "b2": "down"},
            "",
            ["b1"],
            id="a backup that drains rather than none",
        ),
        pytest.param(
            {"s1": "drain", "s2": "drain", "b1": "down", "b2": "down"},
            "s1",
            ["s2"],
            id="of those that drain one not tried",
        ),
        pytest.param({"s1": "down", "s2": "maint", "b1": "down", "b2": "maint"}, "", [None], id="no server is left"),
    ],
)
def test_unbound_request_goes_to(with_backups: Backend, change: dict[str, str], tried: str, expected: list[str | None]):
    for name, what in change.items():
        if what == "down":
            with_backups[name].health = Health.DOWN
        elif what == "weight 0":
            with_backups[name].weight = 0
        else:
            with_backups[name].state = AdminState(what)
    assert [choose_name(with_backups, [with_backups[name] for name in tried.split()]) for _ in expected] == expected


def test_of_draining_servers_the_one_with_the_fewest_requests_is_chosen():
    backend = Backend("web", servers("s1", "s2"))
    for server in backend.servers:
        server.state = AdminState.DRAIN
    backend["s1"].in_flight.append(None)
    assert choose_name(backend) == "s2"


def set_not_electable(server: Server, how: str) -> None:
    if how == "drain":
        server.state = AdminState.DRAIN
    elif how == "weight 0":
        server.weight = 0
    elif how == "past its deadline":
        server.drain(deadline=0)
    else:
        server.health = Health[how.upper()]


@pytest.mark.parametrize("how", ["drain", "weight 0", "past its deadline", "nolb"])
@pytest.mark.parametrize("balance", ["roundrobin", "leastconn", "random", "first", "ewma"])
@pytest.mark.parametrize("maxconn", [0, 100], ids=["not counted", "counted"])
def test_new_clients_are_spread_evenly_over_servers_of_which_none_is_electable(how: str, balance: str, maxconn: int):
    backend = Backend("web", [Server(f"s{number}", app, maxconn=maxconn) for number in (1, 2, 3)], balance=balance)
    for server in backend.servers:
        set_not_electable(server, how)
    assert Counter(serve(backend) for _ in range(30)) == {"s1": 10, "s2": 10, "s3": 10}
    in_flight = [FakeTransaction(backend).begin() for _ in range(30)]
    assert Counter(server.name for server in in_flight if server is not None) == {"s1": 10, "s2": 10, "s3": 10}


@pytest.mark.parametrize(
    "states, expected",
    [
        pytest.param({"s1": "past its deadline", "s2": "drain"}, "s2", id="past its deadline comes last"),
        pytest.param({"s1": "past its deadline", "s2": "weight 0"}, "s2", id="weight 0 before past its deadline"),
        pytest.param({"b1": "drain", "s1": "down", "s2": "drain"}, "s2", id="a backup comes after the others"),
        pytest.param({"b1": "drain", "s1": "down", "s2": "past its deadline"}, "b1", id="but not past its deadline"),
    ],
)
def test_where_none_is_electable_new_clients_are_sent_to(states: dict[str, str], expected: str):
    backend = Backend("web", [Server("b1", app, backup=True), *servers("s1", "s2")])
    backend["b1"].health = Health.DOWN
    for name, how in states.items():
        backend[name].health = Health.UP
        set_not_electable(backend[name], how)
    assert [serve(backend) for _ in range(4)] == [expected] * 4


@pytest.mark.parametrize(
    "balance",
    [Source(), Source(hash_type="consistent"), IpHash(), NginxHash(src)],
    ids=["source", "consistent", "ip_hash", "hash"],
)
def test_where_none_is_electable_clients_with_the_same_key_get_the_same_server(balance: Balance):
    backend = Backend("web", servers("s1", "s2", "s3"), balance=balance)
    for server in backend.servers:
        server.state = AdminState.DRAIN
    clients = [f"192.0.{number}.7" for number in range(60)]
    first = {client: serve(backend, src=client) for client in clients}
    assert {client: serve(backend, src=client) for client in reversed(clients)} == first
    assert all(count > 8 for count in Counter(first.values()).values())
    assert len(set(first.values())) == 3


def test_clients_leave_the_backups_when_a_server_is_up_again(with_backups: Backend):
    for name in ("s1", "s2"):
        with_backups[name].health = Health.DOWN
    assert choose_name(with_backups) == "b1"
    with_backups["s2"].health = Health.UP
    assert choose_name(with_backups) == "s2"


def test_backups_serve_without_other_servers():
    backend = Backend("web", [Server("b1", app, backup=True), Server("b2", app, backup=True)], balance="leastconn")
    assert choose_name(backend) == "b1"
    backend.placement.acquire(backend["b1"])
    backend.placement.release(backend["b1"])


@pytest.mark.parametrize("allbackups, who", [(False, ["b1"] * 4), (True, ["b1", "b2"] * 2)])
def test_first_backup_serves_or_all_backups_do(allbackups: bool, who: list[str]):
    servers = [Server("s1", app), Server("b1", app, backup=True), Server("b2", app, backup=True)]
    backend, _ = make_backend(*servers, allbackups=allbackups)
    servers[0].health = Health.DOWN
    assert choose_names(backend, 4) == who


@pytest.mark.parametrize("bound", [None, "s2"])
def test_free_slot_is_acquired_at_once(bound: str | None):
    backend = full_backend("s1", "s2", taken=["s1"])
    assert (
        backend.placement.acquire_or_enqueue(backend.snapshot, FakeRequest(), backend[bound] if bound else None, ())
        is backend["s2"]
    )
    assert in_flight(backend) == [1, 1]


def test_bound_request_waits_for_its_full_server_only(wait: Wait):
    backend = full_backend("s1", "s2", taken=["s1"])
    waiter = wait(backend, "s1")
    assert waiter.is_subscribed and waiter.woken == 0 and waiter.ticket.server is backend["s1"]
    backend.placement.release(backend["s1"])
    assert waiter.woken == 1
    assert waiter.server == "s1"
    assert in_flight(backend) == [1, 0]


def test_unbound_request_waits_for_any_server(wait: Wait):
    backend = full_backend("s1", "s2")
    first, second = wait(backend), wait(backend)
    backend.placement.release(backend["s2"])
    backend.placement.release(backend["s1"])
    assert (first.server, second.server) == ("s2", "s1")
    assert in_flight(backend) == [1, 1]


def test_slot_is_granted_to_the_request_that_has_waited_longest(wait: Wait):
    backend = full_backend("s1", "s2")
    waiters = [wait(backend, bound) for bound in (None, "s1", None, "s1")]
    for _ in waiters:
        backend.placement.release(backend["s1"])
        assert in_flight(backend) == [1, 1]
    assert [waiter.woken for waiter in waiters] == [1, 1, 1, 1]
    backend.placement.release(backend["s1"])
    assert [waiter.server for waiter in waiters] == ["s1"] * 4
    assert in_flight(backend) == [0, 1]


def test_request_is_granted_no_slot_at_a_server_that_it_has_tried(wait: Wait):
    backend = full_backend("s1", "s2")
    waiter = wait(backend, tried=["s1"])
    backend.placement.release(backend["s1"])
    assert (waiter.woken, in_flight(backend)) == (0, [0, 1])
    backend.placement.release(backend["s2"])
    assert waiter.server == "s2"


def test_request_that_has_tried_all_servers_does_not_wait():
    backend = full_backend("s1", "s2")
    assert backend.placement.acquire_or_enqueue(backend.snapshot, FakeRequest(), None, backend.servers) is None


def test_slot_granted_before_subscription_is_noticed():
    backend = full_backend("s1", "s2")
    granted, dismissed = (
        backend.placement.acquire_or_enqueue(backend.snapshot, FakeRequest(), None, ()),
        backend.placement.acquire_or_enqueue(backend.snapshot, FakeRequest(), backend["s2"], ()),
    )
    backend.placement.release(backend["s1"])
    backend["s2"].state = AdminState.MAINT
    assert WaitingRequest(backend, granted).is_subscribed is False
    assert WaitingRequest(backend, dismissed).is_subscribed is False
    assert (WaitingRequest(backend, granted).server, WaitingRequest(backend, dismissed).server) == ("s1", None)


def test_granted_slot_is_kept_until_it_is_redeemed(wait: Wait):
    backend = full_backend("s1")
    late, in_vain = wait(backend), wait(backend)
    backend.placement.release(backend["s1"])
    assert late.server == "s1"
    assert in_vain.server is None, "whose time is up"
    backend.placement.release(backend["s1"])
    assert (in_vain.woken, in_flight(backend)) == (0, [0]), "it waits no longer"


def test_slot_of_a_request_that_has_ended_is_granted_to_the_next(wait: Wait):
    backend = full_backend("s1")
    gone, gone_too, there = wait(backend, alive=False), wait(backend, alive=False), wait(backend)
    backend.placement.release(backend["s1"])
    assert (gone.woken, gone_too.woken, there.woken) == (1, 1, 1)
    assert there.server == "s1"
    assert in_flight(backend) == [1]
    backend.placement.release(backend["s1"])
    assert in_flight(backend) == [0]


def test_slot_of_a_request_that_has_ended_is_free_if_no_request_waits(wait: Wait):
    backend = full_backend("s1")
    wait(backend, alive=False)
    backend.placement.release(backend["s1"])
    assert in_flight(backend) == [0]


def test_a_thousand_requests_that_have_ended_are_skipped(wait: Wait):
    backend = full_backend("s1")
    gone = [wait(backend, alive=False) for _ in range(3000)]
    there = wait(backend)
    backend.placement.release(backend["s1"])
    assert all(waiter.woken == 1 for waiter in gone)
    assert there.server == "s1"


@dataclass(frozen=True)
class ConstantSample:
    """A sample that is the same in every request."""

    key: str

    def __call__(self, request: Request) -> str:
        return self.key


@pytest.mark.parametrize(
    "redispatch, unavailable, goes",
    [
        (True, "redispatch", "s2"),
        (-1, "redispatch", "s2"),
        (False, "redispatch", None),
        (True, "fail", None),
        (False, "fail", None),
    ],
)
@pytest.mark.parametrize(
    "balance",
    [
        "roundrobin",
        "leastconn",
        "first",
        pytest.param(Hash(ConstantSample("a")), id="a hash that means the other"),
        pytest.param(Hash(ConstantSample("b")), id="a hash that means the same"),
    ],
)
def test_request_is_redispatched_or_rejected_where_the_queue_is_full(
    wait: Wait, balance: str | Hash, redispatch: bool | int, unavailable: str, goes: str | None
):
    backend = full_backend(
        "s1", "s2", taken=["s1"], maxqueue=2, redispatch=redispatch, unavailable=unavailable, balance=balance
    )
    for _ in range(2):
        assert wait(backend, "s1").ticket.server is backend["s1"]
    placed = backend.placement.acquire_or_enqueue(backend.snapshot, FakeRequest(), backend["s1"], ())
    assert placed is (backend[goes] if goes else None)


def test_redispatched_request_waits_for_any_server_if_all_are_full(wait: Wait):
    backend = full_backend("s1", "s2", maxqueue=1)
    bound, overflowing = wait(backend, "s1"), wait(backend, "s1")
    assert overflowing.ticket.server is None
    backend.placement.release(backend["s2"])
    assert overflowing.server == "s2"
    backend.placement.release(backend["s1"])
    assert bound.server == "s1"


def test_queue_for_any_server_is_as_long_as_those_of_all_servers(wait: Wait):
    backend = full_backend("s1", "s2", maxqueue=2)
    for _ in range(4):
        wait(backend)
    assert backend.placement.acquire_or_enqueue(backend.snapshot, FakeRequest(), None, ()) is None
    backend.placement.release(backend["s1"])
    wait(backend)


def test_queue_for_any_server_has_no_limit_if_one_server_has_none(wait: Wait):
    backend = full_backend("s1", maxqueue=1, others=[Server("s2", app, maxconn=1)])
    backend.placement.acquire(backend["s2"])
    assert all(wait(backend).is_subscribed for _ in range(50))


def test_no_request_waits_for_a_server_without_maxconn():
    backend = full_backend("s1", others=servers("s2"))
    assert [backend.placement.acquire_or_enqueue(backend.snapshot, FakeRequest(), None, ()) for _ in range(3)] == [
        backend["s2"]
    ] * 3
    assert [
        backend.placement.acquire_or_enqueue(backend.snapshot, FakeRequest(), backend["s2"], ()) for _ in range(3)
    ] == [backend["s2"]] * 3


@pytest.mark.parametrize(
    "affinity, placed",
    [("always", ["s1", "s1", "s1"]), ("maxqueue", ["s1", "s1", "s2"]), ("maxconn", ["s2", None, None])],
)
def test_hash_preserve_affinity_says_whether_a_full_server_is_waited_for(affinity: Any, placed: list[str | None]):
    """`s1` has one slot and a queue for two requests, `s2` has a slot for one request."""
    balance = Hash(ConstantSample("a"), hash_preserve_affinity=affinity)
    made = [Server("s1", app, maxconn=1, maxqueue=2 if affinity == "maxqueue" else 0), Server("s2", app, maxconn=1)]
    backend = Backend("web", made, balance=balance)
    first = backend.placement.acquire_or_enqueue(backend.snapshot, FakeRequest(), None, ())
    if first is backend["s2"]:  # the hash decides which server the key leads to
        made = [Server("s2", app, maxconn=1), Server("s1", app, maxconn=1, maxqueue=made[0].config.maxqueue)]
        backend = Backend("web", made, balance=balance)
        first = backend.placement.acquire_or_enqueue(backend.snapshot, FakeRequest(), None, ())
    assert first is backend["s1"]
    went = []
    for _ in placed:
        there = backend.placement.acquire_or_enqueue(backend.snapshot, FakeRequest(), None, ())
        server = there.server if isinstance(there, Ticket) else there
        went.append(server.name if server is not None else None)
    assert went == placed


def set_state(server: Server, state: str) -> None:
    if state in ("down", "up"):
        server.health = Health.DOWN if state == "down" else Health.UP
    elif state == "weight 0":
        server.weight = 0
    else:
        server.state = AdminState(state)


@pytest.mark.parametrize(
    "state, redispatch, sent_on",
    [
        ("down", True, True),
        ("down", -1, True),
        ("down", False, False),
        ("maint", True, True),
        ("maint", False, True),
        ("drain", True, False),
        ("drain", False, False),
        ("weight 0", True, False),
    ],
)
def test_requests_waiting_for_an_unusable_server_are_redispatched_as_in_haproxy(
    wait: Wait, state: str, redispatch: bool | int, sent_on: bool
):
    backend = full_backend("s1", "s2", redispatch=redispatch)
    waiter = wait(backend, "s1")
    set_state(backend["s1"], state)
    assert waiter.woken == (1 if sent_on else 0)
    assert waiter.ticket.has_left is sent_on
    backend.placement.release(backend["s1"])
    assert waiter.ticket.granted is (None if state in ("down", "maint") else backend["s1"])


def test_requests_waiting_for_a_server_get_a_slot_when_it_is_up_again(wait: Wait):
    backend = full_backend("s1", redispatch=False)
    set_state(backend["s1"], "down")
    waiter = wait(backend, "s1")
    backend.placement.release(backend["s1"])
    assert waiter.woken == 0
    set_state(backend["s1"], "up")
    assert (waiter.woken, waiter.server) == (1, "s1")


@pytest.mark.parametrize("state", ["down", "maint", "drain", "weight 0"])
def test_unbound_request_goes_on_waiting_while_a_server_is_electable(wait: Wait, state: str):
    backend = full_backend("s1", "s2")
    waiter = wait(backend)
    set_state(backend["s1"], state)
    assert waiter.woken == 0
    backend.placement.release(backend["s1"])
    assert waiter.woken == 0, "it takes no new clients"
    backend.placement.release(backend["s2"])
    assert waiter.server == "s2"


@pytest.mark.parametrize("state", ["down", "maint"])
def test_unbound_request_stops_waiting_when_no_server_is_left(wait: Wait, state: str):
    backend = full_backend("s1", "s2")
    waiter = wait(backend)
    set_state(backend["s1"], state)
    set_state(backend["s2"], state)
    assert (waiter.woken, waiter.server) == (1, None)


def test_unbound_request_stops_waiting_when_only_tried_servers_are_left(wait: Wait):
    backend = full_backend("s1", "s2")
    tired, fresh = wait(backend, tried=["s2"]), wait(backend)
    set_state(backend["s1"], "down")
    assert (tired.woken, fresh.woken) == (1, 0)


def test_unbound_request_stops_waiting_when_only_backups_are_left(wait: Wait):
    """A draining server is better than none for a new request, and so it is for one that waits."""
    backend = full_backend("s1", others=servers("s2"))
    set_state(backend["s2"], "drain")
    waiter = wait(backend)
    set_state(backend["s1"], "maint")
    assert (waiter.woken, waiter.server) == (1, None)
    assert backend.placement.acquire_or_enqueue(backend.snapshot, FakeRequest(), None, ()) is backend["s2"]


@pytest.mark.parametrize("state", ["up", "ready"])
def test_server_that_is_usable_again_grants_as_many_slots_as_it_has(wait: Wait, state: str):
    backend = full_backend("s1", others=[Server("s2", app, maxconn=2)])
    set_state(backend["s2"], "down" if state == "up" else "maint")
    waiters = [wait(backend) for _ in range(3)]
    set_state(backend["s2"], state)
    assert [waiter.woken for waiter in waiters] == [1, 1, 0]
    assert in_flight(backend) == [1, 2]


def test_draining_server_grants_slots_to_requests_bound_to_it(wait: Wait):
    backend = full_backend("s1", "s2")
    own, unbound = wait(backend, "s1"), wait(backend)
    set_state(backend["s1"], "drain")
    backend.placement.release(backend["s1"])
    assert (own.server, unbound.woken) == ("s1", 0)


def test_backup_is_not_used_while_other_servers_are_full(wait: Wait):
    backend = full_backend("s1", others=[Server("sorry", app, backup=True)])
    waiter = wait(backend)
    assert in_flight(backend) == [1, 0]
    backend.placement.release(backend["s1"])
    assert waiter.server == "s1"


def test_backup_grants_no_slot_to_a_request_that_waits_for_other_servers(wait: Wait):
    backend = full_backend("s1", others=[Server("sorry", app, backup=True, maxconn=1)])
    assert (
        backend.placement.acquire_or_enqueue(backend.snapshot, FakeRequest(), backend["sorry"], ()) is backend["sorry"]
    )
    waiter = wait(backend)
    backend.placement.release(backend["sorry"])
    assert (waiter.woken, in_flight(backend)) == (0, [1, 0])


def test_backup_is_used_when_the_servers_waited_for_go_down(wait: Wait):
    backend = full_backend("s1", others=[Server("sorry", app, backup=True)])
    waiter = wait(backend)
    set_state(backend["s1"], "down")
    assert (waiter.woken, waiter.server) == (1, None), "it is to choose anew"
    assert backend.placement.acquire_or_enqueue(backend.snapshot, FakeRequest(), None, ()) is backend["sorry"]


def test_full_backup_is_waited_for(wait: Wait):
    backend = full_backend("s1", others=[Server("sorry", app, backup=True, maxconn=1)])
    set_state(backend["s1"], "down")
    backend.placement.acquire(backend["sorry"])
    waiter = wait(backend)
    backend.placement.release(backend["sorry"])
    assert waiter.server == "sorry"


def test_draining_server_is_not_used_while_other_servers_are_full(wait: Wait):
    backend = full_backend("s1", others=servers("s2"))
    set_state(backend["s2"], "drain")
    waiter = wait(backend)
    assert in_flight(backend) == [1, 0]
    backend.placement.release(backend["s1"])
    assert waiter.server == "s1"


class PlacementUnsetByAnotherThread(Placement):
    """A placement of which another thread unsets `on_release` as soon as it has been read."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name == "on_release":
            self.on_release = None
        return value


def test_release_is_reported_though_another_thread_retires_the_last_removed_server():
    backend = full_backend("s1")
    placement, released = PlacementUnsetByAnotherThread(backend), list[str]()
    placement.on_release = lambda: released.append("s1")
    placement.release(backend["s1"])
    assert released == ["s1"]
