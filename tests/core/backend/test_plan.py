"""Plan: what a change would do, and how many clients it would move."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.backend.config import BackendConfig
from sticky_core.backend.plan import HashKeys
from sticky_core.balance import RoundRobin, Source
from sticky_core.balance.algorithm import HashAware
from sticky_core.balance.hashing import HashKey
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.follow import Follow
from sticky_core.persistence.nginx import NginxCookie
from sticky_core.persistence.persistence import Persist
from sticky_core.persistence.route import Route
from sticky_core.persistence.stick.config import Stick
from sticky_core.samples.request import cook
from sticky_core.server.config import ServerConfig
from sticky_core.server.server import Server
from sticky_core.stick_table.table import StickTable
from tests.core.backend.backends import app, build_backend, names, other_app, serve, url, urls, with_changed_server
from tests.counting import count_calls


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


def signed(*secrets: str, **options: Any) -> Cookie:
    return Cookie("SRV", secret=[f"{secret} of sixteen bytes or more" for secret in secrets], **options)


def plain(name: str = "SRV", **options: Any) -> Cookie:
    return Cookie(name, signed=False, **options)


def persist(*after: Persist) -> Callable[[BackendConfig], BackendConfig]:
    return lambda before: replace(before, persist=after)


def server(**changes: Any) -> Callable[[BackendConfig], BackendConfig]:
    return lambda before: with_changed_server(before, "s1", **changes)


ALL: Mapping[str, str | None] = {"s1": None, "s2": None, "s3": None}
S1: Mapping[str, str | None] = {"s1": None}
APPLICATION = Route(cook("JSESSIONID"))

MARKS: list[Any] = [
    # what persists before, the change, and from where to where clients with a cookie move
    pytest.param(signed("one"), persist(signed("another")), ALL, id="another secret"),
    pytest.param(signed("one"), persist(signed("one", "another")), {}, id="a secret is rotated in"),
    pytest.param(signed("one", "another"), persist(signed("another")), {}, id="the oldest secret is dropped"),
    pytest.param(signed("one", "another"), persist(signed("one")), ALL, id="the newest secret is dropped"),
    pytest.param(signed("one"), persist(plain()), ALL, id="no signature any more"),
    pytest.param(plain(), persist(signed("one")), ALL, id="a signature"),
    pytest.param(signed("one"), persist(signed("one", opaque=True)), ALL, id="opaque"),
    pytest.param(plain(), persist(plain("OTHER")), ALL, id="another name"),
    pytest.param(plain(), persist(), ALL, id="no persistence"),
    pytest.param(plain(), persist(plain("OTHER"), plain()), {}, id="a cookie in addition"),
    pytest.param(plain(), persist(plain(path="/shop")), {}, id="another path"),
    pytest.param(plain(), persist(plain(domain="shop.example")), {}, id="another domain"),
    pytest.param(plain(), persist(plain(max_age=60, httponly=False)), {}, id="other attributes"),
    pytest.param(plain(), persist(NginxCookie("SRV")), ALL, id="another kind of cookie"),
    pytest.param(plain(), server(cookie="one"), S1, id="cookie="),
    pytest.param(plain(), server(cookie=""), S1, id="no cookie"),
    pytest.param(plain(), server(cookie="s1"), {}, id="cookie= as before"),
    pytest.param(plain(), server(cookie="s2"), {"s1": None, "s2": "s1"}, id="the cookie of another server"),
    pytest.param(plain(), server(backup=True), {}, id="a backup, cookie"),
    pytest.param(signed("one"), server(backup=True), {}, id="a backup, signed cookie"),
    pytest.param(signed("one", opaque=True), server(backup=True), {}, id="a backup, opaque cookie"),
    pytest.param(plain(), server(target=url(9)), {}, id="a new target"),
    pytest.param(plain(dynamic="key"), server(target=url(9)), S1, id="dynamic, a new target"),
    pytest.param(plain(dynamic="key"), persist(plain(dynamic="another")), ALL, id="another dynamic key"),
    pytest.param(plain(dynamic="key"), server(backup=True), {}, id="a backup, dynamic"),
    pytest.param(plain(), server(weight=0), {}, id="weight 0"),
    pytest.param(plain(), server(target=None, factory=lambda: app), S1, id="an app instead of a URL"),
    pytest.param(plain(mode="rewrite"), server(cookie="one"), S1, id="rewrite, cookie="),
    pytest.param(plain(mode="prefix"), server(cookie="one"), S1, id="prefix, cookie="),
    pytest.param(plain(mode="prefix"), server(backup=True), {}, id="prefix, a backup"),
    pytest.param(Cookie("SRV", mode="passive"), server(cookie="one"), S1, id="passive, cookie="),
    pytest.param(Cookie("SRV", mode="passive"), server(backup=True), {}, id="passive, a backup"),
    pytest.param(Follow("SID", plain()), server(cookie="one"), S1, id="follow, cookie="),
    pytest.param(Follow("SID", plain()), persist(Follow("OTHER", plain())), ALL, id="follow another"),
    pytest.param(Follow("SID", plain()), persist(plain()), {}, id="follow no more"),
    pytest.param(NginxCookie("route"), server(target=url(9)), S1, id="nginx, a new target"),
    pytest.param(NginxCookie("route"), server(weight=5), {}, id="nginx, another weight"),
    pytest.param(APPLICATION, server(cookie="one"), S1, id="route, cookie="),
    pytest.param(APPLICATION, server(backup=True), {}, id="route, a backup"),
    pytest.param(APPLICATION, persist(), ALL, id="no route any more"),
]


@pytest.mark.parametrize("before, change, moved", MARKS)
def test_plan_names_the_servers_from_which_clients_with_a_cookie_move(
    before: Persist, change: Callable[[BackendConfig], BackendConfig], moved: Mapping[str, str | None]
):
    web = build_backend(urls(1, 2, 3), persist=before)
    plan = web.plan(change(web.config))
    assert plan.marks == moved
    assert str(plan) != "nothing changes"
    assert [line for line in str(plan).splitlines() if line.startswith("cookies ")] == [
        f"cookies {name} -> {to or 'by balance'}" for name, to in moved.items()
    ]
    assert web.plan(web.config).marks == {} and str(web.plan(web.config)) == "nothing changes"


def test_clients_of_removed_and_restarted_servers_move():
    web = build_backend([*urls(1, 2), Server("s3", app)])
    config = with_changed_server(replace(web.config, servers=web.config.servers[1:]), "s3", target=other_app)
    assert web.plan(config).marks == {"s1": None, "s3": None}


@pytest.mark.parametrize(
    "change",
    [{"retries": 0}, {"balance": Source()}, {"on_empty": "panic"}, {"unavailable": "fail"}],
    ids=lambda change: next(iter(change)),
)
def test_plan_names_the_options_that_change(change: dict[str, Any]):
    web = build_backend(urls(1, 2))
    plan = web.plan(replace(web.config, **change))
    assert plan.options == tuple(change) and str(plan) == f"options: {', '.join(change)}"


def test_plan_shows_another_order():
    web = build_backend(urls(1, 2))
    assert str(web.plan(replace(web.config, servers=web.config.servers[::-1]))) == "the same servers in another order"


@pytest.mark.parametrize("change", [{"path": "/shop"}, {"domain": "shop.example"}], ids=["path", "domain"])
def test_plan_notes_that_browsers_keep_a_cookie_with_another_path_or_domain(change: dict[str, Any]):
    web = build_backend(urls(1, 2), persist=plain())
    (note,) = web.plan(replace(web.config, persist=(plain(**change),))).notes
    assert note.startswith("cookie SRV has another path or domain, so browsers keep the one that they have")


@pytest.mark.parametrize(
    "change, moved",
    [
        pytest.param(lambda table, config: config, {}, id="the same table"),
        pytest.param(
            lambda table, config: replace(config, persist=(Stick.on("src", StickTable("string")),)),
            {("s1", None): 2, ("s2", None): 1},
            id="another table",
        ),
        pytest.param(
            lambda table, config: replace(config, persist=()), {("s1", None): 2, ("s2", None): 1}, id="no table"
        ),
        pytest.param(
            lambda table, config: replace(config, persist=(Stick.match("hdr(x)", table),)), {}, id="another rule"
        ),
    ],
)
def test_sessions_of_a_table_that_is_used_no_more_move(
    change: Callable[[StickTable, BackendConfig], BackendConfig], moved: dict[Any, int]
):
    table = StickTable("string", size="1k")
    web = build_backend(urls(1, 2), persist=Stick.on("src", table))
    for key, name in (("a", "s1"), ("b", "s1"), ("c", "s2")):
        table[key] = name
    assert web.plan(change(table, web.config)).sessions == moved


def test_sessions_by_address_move_with_another_target():
    table = StickTable("string", size="1k", srvkey="addr")
    web = build_backend(urls(1, 2), persist=Stick.on("src", table))
    table["a"], table["b"] = "10.0.0.1:80", "10.0.0.2:80"
    swapped = with_changed_server(with_changed_server(web.config, "s1", target=url(2)), "s2", target=url(9))
    assert web.plan(swapped).sessions == {("s1", None): 1, ("s2", "s1"): 1}


@pytest.mark.parametrize(
    "options, moved",
    [
        pytest.param({"weight": 5}, {}, id="another weight"),
        pytest.param({"cookie": "x"}, {"s7": None}, id="another id"),
        pytest.param({"cookie": "s9"}, {"s7": None, "s9": "s7"}, id="the id of another server"),
        pytest.param(None, {"s7": None}, id="removed"),
    ],
)
def test_plan_for_one_server_costs_the_same_however_many_there_are(
    options: dict[str, Any] | None, moved: dict[str, str | None]
):
    costs: list[int] = []
    for count in (60, 120):
        web = build_backend(urls(*range(1, count + 1)), persist=[plain(), Route(cook("SID"))])
        new = replace(web.config, servers=tuple(each for each in web.config.servers if each.name != "s7"))
        if options is not None:
            new = with_changed_server(web.config, "s7", **options)
        assert web.plan(new).marks == moved
        costs.append(count_calls(partial(web.plan, new)))
    assert costs[1] < 1.05 * costs[0] + 20


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda servers: servers[1:], id="removed"),
        pytest.param(lambda servers: (*servers, ServerConfig(name="new", target=url(99), weight=3)), id="added"),
        pytest.param(lambda servers: (*servers[:3], replace(servers[3], weight=7), *servers[4:]), id="another weight"),
        pytest.param(lambda servers: (*servers[:3], replace(servers[3], backup=True), *servers[4:]), id="a backup"),
        pytest.param(lambda servers: (*servers[:3], replace(servers[3], target=app), *servers[4:]), id="another app"),
    ],
)
@pytest.mark.parametrize("hash_type", ["map-based", "consistent"])
def test_keys_that_a_plan_moves_are_those_that_a_backend_made_anew_would_move(
    change: Callable[[tuple[ServerConfig, ...]], tuple[ServerConfig, ...]], hash_type: str
):
    hash_key: HashKey = "name" if hash_type == "consistent" else "id"
    web = build_backend(urls(*range(1, 21)), balance=Source(hash_type=hash_type, hash_key=hash_key), persist=())
    before, after = web.config, replace(web.config, servers=change(web.config.servers))
    old, new = (Backend.of(config).snapshot.balancing.algorithm for config in (before, after))
    assert isinstance(old, HashAware)
    keys = HashKeys(2000)
    expected = keys.moved(keys.servers_before(old), before, after, new, {})
    for _ in range(2):
        plan = web.plan(after, keys=2000)
        assert plan.keys is not None
        if hash_type == "consistent":  # computed: what is estimated is near
            assert set(expected) <= set(plan.keys)
            assert all(abs(share - expected.get(from_to, 0)) < 0.02 for from_to, share in plan.keys.items())
        else:
            assert plan.keys == pytest.approx(expected)


def test_share_of_keys_is_estimated_where_many_points_differ_and_few_keys_are_drawn():
    heavy = urls(*range(1, 5), weight=256)
    web = build_backend(heavy, balance=Source(hash_type="consistent", hash_key="name"), persist=())
    fewer = replace(web.config, servers=web.config.servers[1:])
    estimated, computed = web.plan(fewer, keys=60).keys, web.plan(fewer, keys=4 * 16 * 256).keys
    assert estimated is not None and all((share * 60).is_integer() for share in estimated.values())
    assert computed is not None and not all((share * 4 * 16 * 256).is_integer() for share in computed.values())
    assert {before for before, _ in computed} == {"s1"}
