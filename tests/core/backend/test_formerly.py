"""Servers that were called something else: which texts are taken, and what a change of names means to clients."""

from dataclasses import replace
from typing import Any

import pytest

from sticky_core.backend.backend import Backend, BackendConfig
from sticky_core.balance import Source
from sticky_core.errors import ConfigError
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.follow import Follow
from sticky_core.persistence.nginx import NginxCookie
from sticky_core.persistence.persistence import Persist
from sticky_core.persistence.route import Route
from sticky_core.persistence.stick.config import Stick
from sticky_core.samples.request import cook
from sticky_core.server.server import Server
from sticky_core.stick_table.table import StickTable
from tests.core.backend.backends import app, build_backend, other_app, serve, url, urls

PLAIN = Cookie("SRV", signed=False)
SECRET = "a secret of these tests"
SIGNED = Cookie("SRV", secret=SECRET)


def named(name: str = "web1", target: Any = "http://10.0.1.1:80", *formerly: str, **options: Any) -> Server:
    return Server(name, target, formerly=formerly, **options)


def s2() -> Server:
    return Server("s2", "http://10.0.0.2:80/shop", cookie="B")


@pytest.mark.parametrize(
    "servers, problem",
    [
        pytest.param(
            [named("s1", app, "s1")], "server s1: formerly: 's1' is its name now, so it has no effect", id="own"
        ),
        pytest.param(
            [named("web1", app, "s2"), s2()],
            "server web1: formerly: 's2' is the name of server s2 now, so what names it belongs there: leave it out, "
            "or give server s2 another name",
            id="name",
        ),
        pytest.param([s2(), named("web1", app, "B")], "'B' is the id in cookies of server s2 now", id="id"),
        pytest.param(
            [s2(), named("web1", app, "10.0.0.2:80")], "'10.0.0.2:80' is the address of server s2", id="address"
        ),
        pytest.param([s2(), named("web1", app, "http://10.0.0.2/shop/")], "is the address of server s2 now", id="URL"),
        pytest.param(
            [Server("s2", "unix:/a"), named("web1", app, "unix:/a")], "'unix:/a' is the address of server s2", id="unix"
        ),
        pytest.param(
            [Server("s2", "http://[::1]:80"), named("web1", app, "[0:0::1]:80")], "the address of server s2", id="IPv6"
        ),
        pytest.param(
            [named("web1", app, "s1"), named("web2", app, "s1")],
            "server web2: formerly: 's1' is in formerly of server web1 as well: leave it out of one, or give both",
            id="two servers",
        ),
        pytest.param(
            [named("web1", app, "10.0.0.1:80"), named("web2", app, "http://10.0.0.1/")],
            "server web2: formerly: 'http://10.0.0.1/' is in formerly of server web1",
            id="two servers, written in two ways",
        ),
        pytest.param(
            [named("web1", app, "s1", cookie=""), named("web2", app, "s1", cookie="")],
            "as well",
            id="both without an id",
        ),
    ],
)
def test_text_that_is_taken_is_refused(servers: list[Server], problem: str):
    with pytest.raises(ConfigError) as refused:
        Backend("app", servers)
    (only,) = refused.value.problems
    assert only.startswith("backend app: server ") and problem in only


@pytest.mark.parametrize(
    "servers",
    [
        pytest.param([named("s1", app, "s1", cookie="A")], id="its name, which was its id"),
        pytest.param([named("web1", app, "s1", cookie="s1")], id="its id, which was its name"),
        pytest.param([named("b1", app, "b1", backup=True), s2()], id="a backup's name, which was its id"),
        pytest.param([named("s1", url(1), url(1), "10.0.0.1:80")], id="its address, which was its id"),
        pytest.param([named("web1", app, "10.0.0.1:80", "http://10.0.0.1/")], id="an address, written in two ways"),
        pytest.param([s2(), named("web1", app, "http://10.0.0.2:81/")], id="another port of a host"),
        pytest.param([named("a", app, "A", cookie="B"), named("b", app, "A", cookie="B")], id="two with one id"),
    ],
)
def test_other_texts_may_be_given(servers: list[Server]):
    assert Backend("app", servers).config.servers == tuple(server.requested for server in servers)


def test_replaced_configuration_is_checked():
    web = build_backend(urls(1, 2))
    with pytest.raises(ConfigError, match="'s2' is the name of server s2 now"):
        web.add(named("web1", "http://10.0.1.1", "s2"))
    assert [server.name for server in web.servers] == ["s1", "s2"]


# Plan and apply


def rename(config: BackendConfig, old: str, new: str, **changes: Any) -> BackendConfig:
    options = {"formerly": (old,)} | changes
    servers = [replace(each, name=new, **options) if each.name == old else each for each in config.servers]
    return replace(config, servers=tuple(servers))


PERSISTS: list[Any] = [
    pytest.param(PLAIN, id="plain"),
    pytest.param(SIGNED, id="signed"),
    pytest.param(Cookie("SRV", secret=SECRET, opaque=True), id="opaque"),
    pytest.param(Cookie("SRV", signed=False, maxidle=100), id="dated"),
    pytest.param(Cookie("SRV", signed=False, mode="prefix"), id="prefix"),
    pytest.param(Cookie("SRV", mode="passive"), id="passive"),
    pytest.param(Follow("SID", PLAIN), id="follow"),
    pytest.param(Route(cook("SID")), id="route"),
    pytest.param(NginxCookie("SRV"), id="nginx"),
]


@pytest.mark.parametrize("persist", PERSISTS)
@pytest.mark.parametrize("is_derived", [True, False])
def test_plan_of_another_name_moves_no_client(persist: Persist, is_derived: bool):
    web = build_backend(urls(*range(1, 9)), persist=persist)
    config = rename(web.config, "s2", "web2", formerly=("s2", "10.0.0.2:80"))
    if not is_derived:
        config = replace(config, servers=config.servers[::-1])
    plan = web.plan(config)
    assert (plan.marks, plan.notes, plan.renamed) == ({}, (), {"s2": "web2"})
    assert (plan.added, plan.removed, plan.restarted) == ((), (), ())
    assert str(plan).startswith("renamed: s2 -> web2")
    without = web.plan(rename(config, "web2", "web3", formerly=()))
    assert (without.added, without.removed, without.renamed) == (("web3",), ("s2",), {})
    # nginx's ids are addresses: what names another server of the same address, after a change of names, has moved
    assert without.marks == {"s2": "web3" if isinstance(persist, NginxCookie) else None}


@pytest.mark.parametrize("dynamic", [True, False])
def test_plan_of_another_name_and_address_moves_no_client(dynamic: bool):
    cookie = Cookie("SRV", secret=SECRET, dynamic="MYKEY") if dynamic else NginxCookie("SRV")
    web = build_backend(urls(1, 2, 3), persist=cookie)
    config = rename(web.config, "s2", "web2", target="http://10.0.1.2", formerly=("10.0.0.2:80",))
    plan = web.plan(config)
    assert (plan.marks, plan.renamed) == ({}, {"s2": "web2"})


def test_plan_counts_sessions_of_another_name_as_kept():
    table = StickTable("string")
    web = build_backend(urls(1, 2), persist=Stick.on("src", table))
    table["a"], table["b"] = "s1", "s2"
    assert web.plan(rename(web.config, "s2", "web2")).sessions == {}
    assert web.plan(rename(web.config, "s2", "web2", formerly=())).sessions == {("s2", None): 1}


@pytest.mark.parametrize("hash_type", ["consistent", "map-based"])
def test_hash_keys_stay_with_the_number_of_the_server(hash_type: str):
    web = build_backend(urls(*range(1, 6)), persist=(), balance=Source(hash_type=hash_type))
    assert web.plan(rename(web.config, "s2", "web2")).moved_keys == 0
    web.apply(rename(web.config, "s2", "web2"))
    assert [(server.name, server.id) for server in web.servers][1] == ("web2", 2)


def test_former_clients_of_two_servers_go_to_the_one_that_was_both():
    web = build_backend(urls(1, 2, 3))
    config = replace(web.config, servers=(named("web", "http://10.0.1.1", "s1", "s2").requested, web["s3"].requested))
    plan = web.plan(config)
    assert (plan.renamed, plan.removed, plan.marks) == ({"s1": "web"}, ("s2",), {"s2": "web"})


def test_clients_that_another_server_takes_over_have_moved():
    web = build_backend(urls(1, 2))
    plan = web.plan(replace(web.config, servers=(replace(web.config.servers[1], formerly=("s1",)),)))
    assert (plan.renamed, plan.removed, plan.changed, plan.marks) == ({}, ("s1",), ("s2",), {"s1": "s2"})


def test_app_in_this_process_starts_anew_under_another_name():
    web = build_backend([Server("s1", app), Server("s2", other_app)], persist=PLAIN)
    web["s1"].instance = "abc123"
    plan = web.plan(rename(web.config, "s1", "web1"))
    assert (plan.renamed, plan.marks) == ({"s1": "web1"}, {"s1": "web1"})
    assert plan.notes == ("web1, formerly s1, is an app in this process: it starts with empty memory",)
    stateless = build_backend([Server("s1", app, stateless=True), Server("s2", app)], persist=PLAIN)
    plan = stateless.plan(rename(stateless.config, "s1", "web1"))
    assert (plan.renamed, plan.marks, plan.notes) == ({"s1": "web1"}, {}, ())


def test_what_was_counted_and_what_the_operator_wants_go_to_the_new_name():
    web = build_backend(urls(1, 2))
    assert [serve(web) for _ in range(3)] == ["s1", "s2", "s1"]
    before, total = web["s1"], web["s1"].total
    before.state = "drain"
    with web.events() as events:
        web.apply(rename(web.config, "s1", "web1"))
        changes = {(change.server, change.before, change.after) for change in events.take()}
    server = web["web1"]
    assert (server.total, server.state, server.id, before.removed) == (total, "drain", 1, True)
    assert changes == {("s1", "DRAIN", "REMOVED"), ("web1", "NEW", "DRAIN")}
