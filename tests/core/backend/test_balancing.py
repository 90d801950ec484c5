"""Balancing: which algorithm is notified of what, and which options let another configuration share it."""

import random
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from typing import Any

import pytest

from sticky_core.backend.balancing import Balancing
from sticky_core.balance import Ewma, LeastConn, RoundRobin
from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.clock import ManualClock, Rng
from sticky_core.http.messages import Request
from sticky_core.server.server import Server
from tests.core.backend.backends import app, build_backend, serve, url, urls
from tests.core.fakes import FakeRequest


class RecordingAlgorithm:
    """An algorithm that records its notifications."""

    counts_requests = True
    preserve_affinity: Affinity = "always"

    def __init__(self, servers: Sequence[Server]) -> None:
        self.servers = [server.name for server in servers]
        self.calls: list[tuple[str, str]] = []
        self.inherited: object = None

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        return None

    def acquired(self, server: Server) -> None:
        self.calls.append(("acquired", server.name))

    def released(self, server: Server) -> None:
        self.calls.append(("released", server.name))

    def state_changed(self, server: Server) -> None:
        self.calls.append(("state_changed", server.name))

    def address_changed(self, server: Server) -> None:
        self.calls.append(("address_changed", server.name))

    def record_latency(self, server: Server, seconds: float) -> None:
        self.calls.append(("record_latency", server.name))

    def inherit_from(self, before: object) -> None:
        self.inherited = before


class RecordingBalance:
    def build(self, servers: Sequence[Server], rng: Rng) -> RecordingAlgorithm:
        return RecordingAlgorithm(servers)


def build_servers() -> list[Server]:
    return [Server("s1", url(1)), Server("b1", url(2), backup=True), Server("s2", url(3))]


def recording(
    servers: Sequence[Server], allbackups: bool, before: Balancing | None = None
) -> tuple[Balancing, Any, Any]:
    balancing = Balancing(RecordingBalance(), servers, allbackups, random.Random(1), ManualClock(), before)
    return balancing, balancing.algorithm, balancing.backup_algorithm


@pytest.mark.parametrize("allbackups, backups", [(False, None), (True, ["b1"])])
def test_backups_have_an_algorithm_only_with_allbackups(allbackups: bool, backups: list[str] | None):
    _, active, backup = recording(build_servers(), allbackups)
    assert active.servers == ["s1", "s2"]
    assert (backup.servers if backup is not None else None) == backups


@pytest.mark.parametrize("notification", ["acquired", "released", "state_changed", "address_changed"])
@pytest.mark.parametrize("allbackups", [False, True])
def test_algorithm_that_has_the_server_is_notified(notification: str, allbackups: bool):
    servers = build_servers()
    balancing, active, backup = recording(servers, allbackups)
    for server in servers:
        getattr(balancing, notification)(server)
    assert active.calls == [(notification, "s1"), (notification, "s2")]
    if allbackups:
        assert backup.calls == [(notification, "b1")]


def test_latencies_of_backups_are_not_recorded():
    servers = build_servers()
    balancing, active, backup = recording(servers, True)
    for server in [*servers, Server("unknown", app)]:
        balancing.record_latency(server, 1.0)
    assert (active.calls, backup.calls) == ([("record_latency", "s1"), ("record_latency", "s2")], [])


def test_address_that_was_changed_under_another_snapshot_is_noticed_once():
    servers = build_servers()
    balancing, active, _ = recording(servers, False)
    balancing.refresh_address(servers[0])
    assert active.calls == []
    servers[0].config = replace(servers[0].config, target=url(9))
    balancing.refresh_address(servers[0])
    balancing.refresh_address(servers[0])
    assert active.calls == [("address_changed", "s1")]


def test_latencies_are_taken_over_from_the_balancing_before():
    servers = build_servers()
    before, measured, _ = recording(servers, False)
    _, active, _ = recording(servers, False, before)
    assert (measured.inherited, active.inherited) == (None, measured)


def test_forked_child_has_new_algorithms():
    balancing, *old = recording(build_servers(), True)
    balancing.after_fork()
    assert all(new not in old for new in (balancing.algorithm, balancing.backup_algorithm))
    balancing.acquired(balancing.active[0])
    assert [each.calls for each in old] == [[], []]


def become_backup(servers: list[Server]) -> list[Server]:
    servers[0].config = replace(servers[0].config, backup=True)
    return servers


@pytest.mark.parametrize(
    "balance, change, allbackups, fits",
    [
        pytest.param(RoundRobin(start=0), lambda servers: servers, False, True, id="nothing has changed"),
        pytest.param(LeastConn(), lambda servers: servers, False, False, id="another balance"),
        pytest.param(RoundRobin(start=0), lambda servers: servers, True, False, id="another allbackups"),
        pytest.param(RoundRobin(start=0), lambda servers: servers[:2], False, False, id="a server less"),
        pytest.param(RoundRobin(start=0), lambda servers: servers[::-1], False, False, id="another order"),
        pytest.param(RoundRobin(start=0), become_backup, False, False, id="a server is a backup now"),
    ],
)
def test_balancing_is_shared_with_configurations_that_differ_in_other_options(
    balance: Any, change: Callable[[list[Server]], list[Server]], allbackups: bool, fits: bool
):
    servers = build_servers()
    balancing = Balancing(RoundRobin(start=0), servers, False, random.Random(1), ManualClock())
    assert balancing.fits(balance, change(servers), allbackups) is fits


def test_latencies_age_by_the_clock_of_the_backend():
    clock = ManualClock()
    web = build_backend(urls(1, 2), balance=Ewma(decay=10), rng=random.Random(1), clock=clock)
    for server, seconds in (("s1", 5.0), ("s2", 0.1)):
        web.monitor.record_request(web[server], None, 200, seconds)
    assert {serve(web) for _ in range(20)} == {"s2"}
    clock.advance(100)  # s2 is measured again, and what was measured of s1 has lost its weight
    web.monitor.record_request(web["s2"], None, 200, 0.1)
    assert {serve(web) for _ in range(20)} == {"s1"}


def test_latencies_are_kept_when_servers_are_added():
    web = build_backend(urls(1, 2), balance=Ewma(), rng=random.Random(1))
    for server, seconds in (("s1", 9.0), ("s2", 0.1)):
        for _ in range(5):
            web.monitor.record_request(web[server], None, 200, seconds)
    web.add(Server("s3", url(3)))
    web.monitor.record_request(web["s3"], None, 200, 9.0)
    assert [serve(web) for _ in range(40)].count("s2") > 20


def test_algorithm_goes_on_with_other_servers_if_it_can():
    servers = build_servers()
    balancing = Balancing(RoundRobin(start=0), servers, False, random.Random(1), ManualClock())
    new, backup = Server("s3", url(4)), Server("b2", url(5), backup=True)
    assert balancing.can_replace([new], [], is_last=True)
    assert not balancing.can_replace([new], [], is_last=False), "no server has had its turn: the order matters"
    assert balancing.can_replace([backup], [], is_last=False), "backups serve in order, without an algorithm"
    assert not balancing.can_replace([new, backup], [], is_last=True), "it costs less to build another one"
    balancing.choose(FakeRequest(), ())
    assert balancing.can_replace([new], [], is_last=False)
    recorded, _, _ = recording(servers, False)
    assert not recorded.can_replace([new], [], is_last=True), "an algorithm of a user's that does not know of it"


def test_servers_that_are_replaced_are_known_by_their_kind():
    servers = build_servers()
    balancing = Balancing(LeastConn(), servers, True, random.Random(1), ManualClock())
    assert (balancing.active, balancing.backups) == ((servers[0], servers[2]), (servers[1],))
    new, backup = Server("s3", url(4)), Server("b2", url(5), backup=True)
    now = [servers[0], new, backup]
    balancing.replace_servers(now, [new, backup], servers[1:])
    assert (balancing.active, balancing.backups) == ((servers[0], new), (backup,))
    for server in (*servers, new, backup):  # also of those that were removed, with requests in flight
        balancing.acquired(server)
        balancing.released(server)
        balancing.state_changed(server)
        balancing.refresh_address(server)
    assert {balancing.choose(FakeRequest(), ()) for _ in range(4)} == {servers[0], new}
    assert balancing.choose_backup(FakeRequest(), ()) is backup
