"""Plan: what a change would do, and how many clients it would move."""

from dataclasses import replace

import pytest

from sticky_core.balance import RoundRobin, Source
from sticky_core.persistence.stick.config import Stick
from sticky_core.server.config import ServerConfig
from sticky_core.server.server import Server
from sticky_core.stick_table.table import StickTable
from tests.core.backend.backends import app, build_backend, names, other_app, serve, url, urls, with_changed_server


@pytest.mark.parametrize(
    "hash_type, least, most",
    [
        pytest.param("consistent", 0.03, 0.25, id="its own share"),
        pytest.param("map-based", 0.85, 0.95, id="nearly all"),
    ],
)
def test_share_of_keys_that_move_if_one_server_of_ten_is_removed(hash_type: str, least: float, most: float):
    web = build_backend(urls(*range(1, 11)), balance=Source(hash_type=hash_type), persist=())
    config = replace(web.config, servers=web.config.servers[1:])
    plan = web.plan(config)
    assert plan.removed == ("s1",) and least < plan.moved_keys < most
    if hash_type == "consistent":
        assert plan.keys is not None and {before for before, _ in plan.keys} == {"s1"}
    assert names(web)[0] == "s1" and web.plan(config) == plan, "asked again it says the same, and nothing has changed"


def test_plan_predicts_the_share_of_clients_that_move():
    web = build_backend(urls(*range(1, 11)), balance=Source(hash_type="consistent"), persist=())
    clients = [f"10.{number // 200}.{number % 200}.1" for number in range(2000)]
    before = [serve(web, src=client) for client in clients]
    config = replace(web.config, servers=(*web.config.servers, ServerConfig(name="s11", target=url(11))))
    plan = web.plan(config)
    web.apply(config)
    moved = [after for client, was in zip(clients, before, strict=True) if (after := serve(web, src=client)) != was]
    assert set(moved) == {"s11"} and plan.added == ("s11",)
    assert abs(len(moved) / len(clients) - plan.moved_keys) < 0.05 and 0.03 < plan.moved_keys < 0.2


def test_plan_changes_nothing_in_balance():
    web = build_backend(urls(1, 2, 3))
    web.plan(replace(web.config, retries=0))
    assert serve(web) == "s1"
    assert web.plan(web.config).keys is None and str(web.plan(web.config)) == "nothing changes"


def test_nearly_all_keys_move_if_something_else_is_hashed():
    web = build_backend(urls(1, 2, 3, 4), balance=Source(), persist=())
    assert 0.7 < web.plan(replace(web.config, balance=Source(hash_type="map-based crc32"))).moved_keys < 0.8
    assert web.plan(replace(web.config, balance=RoundRobin())).moved_keys == 1


def test_plan_counts_sessions_in_stick_tables():
    table = StickTable("string", size="1k")
    web = build_backend([*urls(1, 2), Server("s3", app)], persist=Stick.on("src", table))
    for key, server in (("a", "s1"), ("b", "s1"), ("c", "s2"), ("d", "s3"), ("e", "elsewhere")):
        table[key] = server
    config = with_changed_server(replace(web.config, servers=web.config.servers[1:]), "s3", target=other_app)
    plan = web.plan(config)
    assert plan.sessions == {("s1", None): 2, ("s3", None): 1} and plan.moved_sessions == 3
    assert (plan.removed, plan.restarted, plan.changed) == (("s1",), ("s3",), ())
    assert str(plan) == "removed: s1\nrestarted: s3\nsessions s1 -> by balance: 2\nsessions s3 -> by balance: 1"
    assert web.plan(with_changed_server(web.config, "s2", weight=3)).changed == ("s2",)
