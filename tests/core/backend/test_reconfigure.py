"""Reconfigure: servers are added, removed and changed at run time."""

import gc
import random
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from sticky_core.backend.backend import Backend, BackendConfig
from sticky_core.balance import First, LeastConn, Random, RoundRobin, Source
from sticky_core.balance.algorithm import Balance
from sticky_core.clock import ManualClock
from sticky_core.errors import ConfigError
from sticky_core.health.check import Check
from sticky_core.persistence.claim import Claim, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.stick.config import Stick
from sticky_core.server.config import ServerConfig
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health
from sticky_core.stick_table.table import StickTable
from tests.core.backend.backends import (
    FAILED,
    FakeTransaction,
    app,
    build_backend,
    names,
    other_app,
    serve,
    ticket_of,
    url,
    urls,
    with_changed_server,
)
from tests.counting import count_calls


def test_added_server_gets_requests_and_bound_clients_stay():
    web = build_backend(urls(1, 2))
    kept = web.servers
    change = web.add(Server("s3", url(3)))
    assert change.is_in_force and names(web) == ["s1", "s2", "s3"]
    assert web.servers[:2] == kept, "the very same servers"
    assert {serve(web) for _ in range(3)} == {"s1", "s2", "s3"}
    assert [serve(web, f"SRV=s{number}") for number in (1, 2, 3)] == ["s1", "s2", "s3"]


def test_attached_or_removed_server_cannot_be_added():
    web, other = build_backend(urls(1, 2)), Backend("other", urls(3))
    with pytest.raises(ConfigError, match="server s3: belongs to another backend already"):
        web.add(other["s3"])
    gone = web["s2"]
    web.remove("s2")
    with pytest.raises(ConfigError, match="server s2: was removed"):
        web.add(gone)
    assert names(web) == ["s1"]


def test_new_servers_get_the_lowest_free_ids():
    web = build_backend(urls(1, 2, 3, 4))
    web.remove("s2", "s3")
    web.add(*urls(8, 9, 10))
    assert {server.name: server.id for server in web.servers} == {"s1": 1, "s4": 4, "s8": 2, "s9": 3, "s10": 5}


def test_clients_of_a_removed_server_are_bound_to_others():
    web = build_backend(urls(1, 2))
    web.remove("s2")
    request = FakeTransaction(web, "SRV=s2")
    server = request.begin()
    assert server is web["s1"]
    assert (request.persisted.claim, request.persisted.reason) == (Claim.INVALID, Reason.UNKNOWN)
    with pytest.raises(KeyError):
        web["s2"]


def test_clients_of_a_removed_server_are_bound_to_others_with_unavailable_fail():
    web = build_backend(urls(1, 2), unavailable="fail")
    web["s2"].health = Health.DOWN
    assert serve(web, "SRV=s2") is None
    web.remove("s2")
    assert serve(web, "SRV=s2") == "s1"


@pytest.mark.parametrize("balance", [RoundRobin(), LeastConn()], ids=["uncounted", "counted"])
def test_removed_server_is_retired_when_its_last_request_is_over(balance: Balance):
    web = build_backend(urls(1, 2), balance=balance)
    request = FakeTransaction(web, "SRV=s2")
    gone = request.begin()
    change = web.remove("s2")
    assert change.is_in_force and not change.retired.reached
    assert gone is not None and len(gone.in_flight) == 1 and gone.status == "REMOVED"
    request.end()
    assert change.retired.reached and not gone.in_flight


def test_retired_server_is_freed():
    web = build_backend(urls(1, 2, 3), check=Check())
    serve(web, "SRV=s2")
    assert web.remove("s2").retired.reached
    gone = weakref.ref(web["s3"])
    web.remove("s3")
    gc.collect()
    assert gone() is None


def test_request_waiting_for_a_removed_server_is_redispatched():
    web = build_backend(urls(1, 2, maxconn=1))
    holding = FakeTransaction(web, "SRV=s2")
    holding.begin()
    waiting = FakeTransaction(web, "SRV=s2")
    assert waiting.begin() is None
    ticket, gone = ticket_of(waiting), weakref.ref(web["s2"])
    web.remove("s2")
    assert ticket.has_left, "at once"
    assert waiting.resume_wait(woken=True) is web["s1"]
    holding.end()
    waiting.end()
    assert not web["s1"].in_flight
    del holding, waiting, ticket
    gc.collect()
    assert gone() is None, "the queue does not remember it either"


def test_all_problems_are_reported_and_nothing_has_changed():
    web = build_backend(urls(1, 2), use_server={"s2": bool})
    before = web.config, web.snapshot, web.servers
    with pytest.raises(ConfigError) as refused:
        web.apply(
            replace(
                web.config,
                name="other",
                persist=(Cookie("SRV", signed=False), Cookie("TOO", signed=False, dynamic="key")),
                servers=(web.config.servers[0], ServerConfig(name="s2", target=app)),
            )
        )
    assert "the configuration is that of backend other" in str(refused.value)
    with pytest.raises(ConfigError, match="use_server names s2, and there is no such server"):
        web.remove("s2")
    with pytest.raises(ConfigError, match="has no servers"):
        web.remove("s1", "s2")
    with pytest.raises(ConfigError, match="there is no server s7 to be removed"):
        web.remove("s7")
    with pytest.raises(ConfigError, match="cookie TOO: dynamic needs the address of server s2"):
        web.apply(
            with_changed_server(
                replace(web.config, persist=(Cookie("TOO", signed=False, dynamic="k"),)), "s2", target=app
            )
        )
    assert (web.config, web.snapshot, web.servers) == before


def test_server_that_keeps_its_name_keeps_state_and_counters():
    web = build_backend(urls(1, 2), check=Check(fall=1))
    web["s1"].state = AdminState.DRAIN
    web["s1"].weight = 7
    web.monitor.record_check(web["s2"], FAILED)
    serve(web, "SRV=s1")
    first, second, checking = web["s1"], web["s2"], web["s2"].checking
    web.apply(replace(web.config, servers=(*web.config.servers, ServerConfig(name="s3", target=url(3))), retries=1))
    assert (web["s1"], web["s2"]) == (first, second)
    assert (first.state, first.weight, first.total) == (AdminState.DRAIN, 7, 1)
    assert second.health is Health.DOWN and second.checking is checking


def test_weight_assigned_at_run_time_stays_unless_the_configured_one_changes():
    web = build_backend(urls(1, 2))
    web["s1"].weight = 7
    web.apply(with_changed_server(web.config, "s1", slowstart="10s"))
    assert web["s1"].weight == 7
    web.apply(with_changed_server(web.config, "s1", weight=3))
    assert web["s1"].weight == 3


def test_changed_check_keeps_the_health_so_far():
    web = build_backend(urls(1, 2), check=Check(fall=1))
    web.monitor.record_check(web["s1"], FAILED)
    late = web["s1"].checking
    web.apply(replace(web.config, check=Check("/health", fall=3)))
    assert [server.health for server in web.servers] == [Health.DOWN, Health.UP]
    web.monitor.record_check(web["s2"], FAILED, late)
    assert web["s2"].checking is not None and web["s2"].checking.summary == "3/3", "the old one has nothing to say"
    web.apply(replace(web.config, check=None))
    assert [server.health for server in web.servers] == [Health.UP, Health.UP], "nobody says otherwise any more"
    assert not web.has_checks


def test_replaced_app_starts_anew_under_the_same_name():
    web = build_backend([Server("s1", app), Server("s2", app)])
    before = web["s1"]
    before.state, before.weight = AdminState.DRAIN, 5
    serve(web, "SRV=s1")
    held = FakeTransaction(web, "SRV=s1")
    held.begin()
    change = web.apply(with_changed_server(web.config, "s1", target=other_app))
    now = web["s1"]
    assert now is not before and now.target is other_app and not change.retired.reached
    assert (now.state, now.weight, now.id, now.counters.stot) == (AdminState.DRAIN, 5, before.id, 1)
    assert serve(web, "SRV=s1") == "s1" and not now.in_flight
    held.end()
    assert change.retired.reached


def test_backend_is_made_of_a_configuration():
    config = BackendConfig(
        name="web",
        servers=(ServerConfig(name="s1", target=url(1)), ServerConfig(name="s2", target=url(2), weight=3)),
        balance=RoundRobin(start=0),
    )
    web = Backend.of(config)
    assert web.config == config and [server.weight for server in web.servers] == [1, 3]
    assert web.apply(config).is_in_force and web.config == config


def test_sessions_in_a_stick_table_survive_a_change():
    table = StickTable("string", size="1k")
    web = build_backend(urls(1, 2), persist=Stick.on("src", table))
    table["192.0.2.9"] = "s2"
    web.add(*urls(3))
    assert {serve(web, src="192.0.2.9") for _ in range(4)} == {"s2"}


def test_server_that_others_track_cannot_track_one_itself_after_a_change():
    web = build_backend([*urls(1, 2), Server("s3", url(3), track="s1")])
    with pytest.raises(ConfigError, match="server s3: track: s1 has no health of its own"):
        web.apply(with_changed_server(web.config, "s1", track="s2"))
    assert (web["s1"].tracks, web["s3"].tracks) == (None, web["s1"])
    web.apply(with_changed_server(web.config, "s3", track="s2"))
    web.apply(with_changed_server(web.config, "s1", track="s2"))
    assert web["s1"].tracks is web["s3"].tracks is web["s2"]


# -- what a change costs, and that it leads to what a backend made anew would be


def cost_of(change: Callable[[Backend], Callable[[], object]], count: int, **options: Any) -> int:
    """Return how many calls a change of a backend of `count` servers makes. Earlier changes have filled caches."""
    web = build_backend(urls(*range(1, count + 1)), **options)
    for number in (201, 202):
        web.add(Server(f"s{number}", url(number)))
    web.remove("s201")
    return count_calls(change(web))


def changing(**options: Any) -> Callable[[Backend], Callable[[], object]]:
    return lambda web: partial(web.apply, with_changed_server(web.config, "s7", **options))


CHANGES = [
    pytest.param(lambda web: partial(web.add, Server("s250", url(250))), id="add"),
    pytest.param(lambda web: partial(web.remove, "s7"), id="remove"),
    pytest.param(changing(weight=5), id="another weight"),
    pytest.param(changing(cookie="x"), id="another id"),
    pytest.param(changing(target=url(251)), id="another address"),
    pytest.param(changing(check=Check("/x")), id="another check"),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "balance",
    [RoundRobin(), LeastConn(), Source(hash_type="consistent"), Random()],
    ids=["roundrobin", "leastconn", "source, consistent", "random"],
)
def test_change_of_one_server_costs_the_same_however_many_there_are(
    change: Callable[[Backend], Callable[[], object]], balance: Balance
):
    cost, cost_among_more = (cost_of(change, count, balance=balance) for count in (60, 120))
    assert cost_among_more < 1.05 * cost + 20


def facts(web: Backend) -> dict[str, object]:
    """Return what follows from the configuration of a backend and its servers."""
    snapshot = web.snapshot
    known: dict[str, object] = {
        name: getattr(snapshot, name)
        for name in (
            "max_idle",
            "name",
            "counts_requests",
            "needs_replay",
            "has_checks",
            "observes",
            "shuts_down_sessions",
            "shuts_down_backup_sessions",
        )
    }
    known["kinds"] = {kind: count for kind, count in snapshot.kinds.items() if count}
    known["servers"] = [server.name for server in snapshot.servers]
    known["members"] = {server.name for server in snapshot.members}
    known["active"] = [server.name for server in snapshot.balancing.active]
    known["unchecked"] = web.monitor.first_checks.unchecked
    known["backups"] = [server.name for server in snapshot.balancing.backups]
    known["of servers"] = {
        server.name: (
            server.usable,
            server.electable,
            server.counts_requests,
            (server.max_fails.limit, rate and (rate.rate, rate.volume, rate.window)),
            server.checking is not None and server.checking.check,
            server.tracks is not None and server.tracks.name,
            {tracker.name for tracker in server.trackers},
            server.draining.max_idle,
        )
        for server in snapshot.servers
        for rate in (server.max_fails.rate,)
    }
    return known


def any_server(number: int, rng: random.Random, names: Sequence[str]) -> ServerConfig:
    kinds: list[dict[str, Any]] = [
        {"maxconn": 3},
        {"max_fails": 2},
        {"fail_rate": 0.5, "fail_volume": 3, "fail_timeout": 5},
        {"backup": True},
        {"check": Check("/x", observe="layer7", on_marked_down="shutdown-sessions")},
        {"track": rng.choice(names)},
        {"cookie": "shared"},
        {},
    ]
    return ServerConfig(name=f"s{number}", target=url(number), **rng.choice(kinds))


@pytest.mark.parametrize("seed", range(20))
def test_changed_backend_is_like_one_made_with_its_configuration(seed: int):
    rng = random.Random(seed)
    balance = rng.choice([RoundRobin(start=0), LeastConn(), Source(), First()])
    web = build_backend(urls(1, 2, 3, 4, 5, 6), balance=balance, check=rng.choice([None, Check()]))
    for number in range(10, 22):
        configs = [*web.config.servers]
        what = rng.choice(["add", "add", "insert", "remove", "change", "move"])
        place = rng.randrange(len(configs))
        new = any_server(number, rng, [config.name for config in configs[:2]])
        if what == "add":
            configs.append(new)
        elif what == "insert":
            configs.insert(place, new)
        elif what == "remove":
            del configs[place]
        elif what == "change":
            configs[place] = replace(new, name=configs[place].name, target=configs[place].target)
        else:
            configs.insert(0, configs.pop(place))
        try:
            changed = web.apply(replace(web.config, servers=tuple(configs)))
        except ConfigError:  # a server that another one tracks was removed, or tracks one itself now
            continue
        assert changed.is_in_force
        fresh = Backend.of(web.config, clock=ManualClock())
        assert facts(web) == facts(fresh)
