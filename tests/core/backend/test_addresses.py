"""Servers move to other addresses, and lose them, at run time."""

from collections.abc import Callable
from typing import Any

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.balance import NginxHash, Source
from sticky_core.balance.algorithm import Balance
from sticky_core.errors import ConfigError
from sticky_core.health.agent import AgentCheck
from sticky_core.health.check import Check, CheckResult, CheckStatus
from sticky_core.persistence.claim import Claim
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.samples.request import src
from sticky_core.server.config import ServerConfig
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health
from tests.core.backend.backends import (
    FAILED,
    FakeTransaction,
    SlowComponent,
    app,
    build_backend,
    serve,
    url,
    urls,
    with_changed_server,
)


def test_moved_server_keeps_name_clients_and_counters():
    web = build_backend(urls(1, 2), check=Check(fall=1))
    serve(web, "SRV=s1")
    server, late = web["s1"], web["s1"].checking
    server.target = url(9)
    assert web["s1"] is server and server.target == url(9) and server.total == 1
    assert serve(web, "SRV=s1") == "s1"
    web.monitor.record_check(server, FAILED, late)
    assert server.health is Health.UP, "what the old address has said is nothing to the new one"
    assert server.checking is not None and server.checking.delay(0.0) == 0.0, "which is looked at at once"


def test_moved_server_stays_down_until_it_is_checked():
    web = build_backend(urls(1, 2), check=Check(fall=1, rise=1))
    web.monitor.record_check(web["s1"], FAILED)
    web["s1"].target = url(9)
    assert web["s1"].health is Health.DOWN
    web.monitor.record_check(web["s1"], CheckResult(CheckStatus.L4OK))
    assert web["s1"].status == "UP"


def test_address_assigned_at_run_time_stays_unless_the_configured_one_changes():
    web = build_backend(urls(1, 2))
    web["s1"].target = url(9)
    web.apply(with_changed_server(web.config, "s1", weight=3))
    assert web["s1"].target == url(9) and web["s1"].weight == 3
    web.apply(with_changed_server(web.config, "s1", target=url(8)))
    assert web["s1"].target == url(8)


@pytest.mark.parametrize(
    "target, problem",
    [
        pytest.param("10.0.0.9:80", "server s1: '10.0.0.9:80' is no URL", id="no URL"),
        pytest.param(None, "has neither a target", id="none, of a server that has always one"),
        pytest.param(app, "only a URL can be moved, and only to a URL", id="an app"),
    ],
)
def test_server_moves_to_urls_only(target: Any, problem: str):
    web = build_backend(urls(1))
    with pytest.raises(ConfigError, match=problem):
        web["s1"].target = target
    assert web["s1"].target == url(1)


def test_app_does_not_move():
    web = build_backend([Server("s1", app)])
    with pytest.raises(ConfigError, match="only a URL can be moved"):
        web["s1"].target = url(1)


class RecordedResponse:
    """The head of an answer that sets no cookies of its own."""

    sets_cookies = False
    set_cookies: tuple[str, ...] = ()
    cache_control = ""

    def __init__(self) -> None:
        self.marks: list[str] = []

    def add(self, name: str, value: str) -> None:
        if name == "set-cookie":
            self.marks.append(value)

    def header(self, name: str) -> list[str]:
        return []

    def edit_cookies(self, new: Callable[[str], str | None]) -> None:
        """There are none."""


@pytest.mark.parametrize("signed", [{"signed": False}, {"secret": "x" * 16}], ids=["plain", "signed"])
def test_dynamic_ids_follow_the_address(signed: dict[str, Any]):
    cookie = Cookie("SRV", dynamic="key", **signed)
    web = build_backend(urls(1, 2), persist=cookie)

    def mark_of(name: str, where: Backend) -> str:
        request = FakeTransaction(where)
        while (server := request.begin()) is None or server.name != name:
            request.end()
            request = FakeTransaction(where)
        reply = RecordedResponse()
        request.stamp(reply)
        request.end()
        return reply.marks[-1].partition(";")[0]

    old = mark_of("s1", web)
    assert serve(web, old) == "s1"
    web["s1"].target = url(9)
    request = FakeTransaction(web, old)
    request.begin()
    assert request.persisted.claim is Claim.INVALID
    new = mark_of("s1", web)
    assert new != old and serve(web, new) == "s1"
    assert new == mark_of("s9", build_backend(urls(9, 2), persist=cookie)), "as any other proxy would call it"
    web["s2"].target = url(1)
    assert serve(web, old) == "s2"


def test_two_servers_share_a_dynamic_id_while_they_share_an_address():
    web = build_backend(urls(1, 2), persist=Cookie("SRV", signed=False, dynamic="key"))
    assert web.persistence is not None
    request = FakeTransaction(web)
    request.begin()
    reply = RecordedResponse()
    request.stamp(reply)
    mark = reply.marks[-1].partition(";")[0]
    web["s2"].target = url(1)
    web["s1"].health = Health.DOWN
    assert serve(web, mark) == "s2"
    web["s1"].target = url(9)
    web["s1"].health = Health.UP
    assert {serve(web, mark) for _ in range(4)} == {"s2"}


@pytest.mark.parametrize(
    "balance",
    [
        pytest.param(Source(hash_type="consistent", hash_key="addr"), id="HAProxy's ring"),
        pytest.param(NginxHash(src, consistent=True), id="nginx's ring"),
    ],
)
def test_keys_hashed_by_address_follow_the_address(balance: Balance):
    clients = [f"192.0.2.{number}" for number in range(200)]
    moved = build_backend([*urls(1, 2, 3), Server("s4", url(77))], balance=balance, persist=())
    moved["s4"].target = url(4)
    never = build_backend(urls(1, 2, 3, 4), balance=balance, persist=())
    assert [serve(moved, src=client) for client in clients] == [serve(never, src=client) for client in clients]


def test_keys_hashed_by_id_stay_when_a_server_moves():
    clients = [f"192.0.2.{number}" for number in range(200)]
    web = build_backend(urls(1, 2, 3, 4), balance=Source(hash_type="consistent"), persist=())
    before = [serve(web, src=client) for client in clients]
    web["s4"].target = url(77)
    assert [serve(web, src=client) for client in clients] == before


def test_server_that_moves_during_a_change_is_hashed_at_its_new_address():
    balance = Source(hash_type="consistent", hash_key="addr")
    clients = [f"192.0.2.{number}" for number in range(200)]
    moved = build_backend([*urls(1, 2, 3), Server("s4", url(77))], balance=balance, persist=())
    slow = moved.component(SlowComponent)
    moved.add(*urls(5))
    moved["s4"].target = url(4)
    assert slow.ready is not None
    slow.ready(None)
    never = build_backend(urls(1, 2, 3, 4, 5), balance=balance, persist=())
    assert [serve(moved, src=client) for client in clients] == [serve(never, src=client) for client in clients]


def template(name: str, **options: Any) -> Server:
    return Server.of(ServerConfig(name=name, template="http://shop.example:80", **options))


def test_server_without_an_address_is_in_maintenance():
    web = build_backend([*urls(1), template("s2", check=Check())])
    server = web["s2"]
    assert (server.status, server.state, server.is_unresolved) == ("MAINT", AdminState.READY, True)
    assert serve(web, "SRV=s2") == "s1"
    server.target = url(2)
    assert (server.status, server.state) == ("UP", AdminState.READY)
    assert serve(web, "SRV=s2") == "s2"
    server.state = AdminState.DRAIN
    server.target = None
    assert (server.status, server.state) == ("MAINT", AdminState.DRAIN)
    server.target = url(3)
    assert server.status == "DRAIN"


def test_server_that_gets_an_address_gets_its_dynamic_id():
    web = build_backend([*urls(1), template("s2")], persist=Cookie("SRV", secret="x" * 16, dynamic="key"))
    web["s2"].target = url(2)
    known = build_backend(urls(1, 2), persist=Cookie("SRV", secret="x" * 16, dynamic="key"))
    request = FakeTransaction(known)
    while (server := request.begin()) is None or server.name != "s2":
        request = FakeTransaction(known)
    reply = RecordedResponse()
    request.stamp(reply)
    assert serve(web, reply.marks[-1].partition(";")[0]) == "s2"


def test_check_of_a_lost_address_is_ignored():
    web = build_backend([*urls(1), template("s2", target=url(2), check=Check(fall=1))])
    late = web["s2"].checking
    web["s2"].target = None
    web.monitor.record_check(web["s2"], FAILED, late)
    web["s2"].target = url(3)
    assert web["s2"].status == "UP"


def test_agent_is_called_at_the_new_address():
    web = build_backend([Server("s1", url(1), agent_check=AgentCheck(port=9)), *urls(2)])
    before = web["s1"].agent
    web["s1"].target = url(9)
    assert web["s1"].agent is not before


@pytest.mark.parametrize(
    "options, problem",
    [
        pytest.param({"target": app}, "template is for URLs", id="an app"),
        pytest.param({"template": "shop.example"}, "is no URL", id="a template that is no URL"),
        pytest.param({"stateless": True}, "stateless is for apps", id="stateless"),
        pytest.param({"target": "ftp://s1"}, "is no URL", id="an address that is no URL"),
    ],
)
def test_invalid_templates_are_refused(options: dict[str, Any], problem: str):
    asked: dict[str, Any] = {"name": "s1", "template": "http://shop.example:80", **options}
    with pytest.raises(ConfigError, match=problem):
        ServerConfig(**asked)
