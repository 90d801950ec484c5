"""The servers of a template follow their name: what answers do to a backend, without anybody who asks."""

import inspect
import logging
from typing import get_type_hints

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.clock import ManualClock
from sticky_core.dns.resolvers import Address, Answer, Resolvers, Status, answer_with
from sticky_core.errors import ConfigError
from sticky_core.health.check import Check
from sticky_core.persistence import xxh64
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.runtime.discovery import Discovery, problems_of
from sticky_core.server.config import ServerConfig, TemplateOptions
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health
from tests.core.fakes import FakeRequest

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"
NX = Answer(Status.NX, info="no such name")


class Asking:
    """A backend of templates, and what its one name is answered."""

    def __init__(self, where="myservice.local:8080/base", n=3, options=None, **of_backend):
        self.clock = ManualClock()
        servers = Server.template("web", n, where, **(options or {}))
        self.backend = Backend("shop", servers, clock=self.clock, **of_backend)
        self.discovery = self.backend.component(Discovery)
        [self.name] = self.discovery.update_names()

    def hears(self, *found, after=1.0):
        self.clock.advance(after)
        whole = answer_with(Address(each) if isinstance(each, str) else each for each in found)
        self.discovery.record_answer(self.name, whole)

    def fails(self, answer=NX, after=1.0):
        self.clock.advance(after)
        for _ in range(3):
            self.discovery.record_answer(self.name, answer)

    @property
    def targets(self):
        return [server.target for server in self.backend.servers]


# -- what is written


def test_a_template_is_as_many_servers_with_one_name():
    servers = Server.template("web", 3, "myservice.local:80")
    assert [server.name for server in servers] == ["web1", "web2", "web3"]
    assert {server.config.template for server in servers} == {"http://myservice.local:80"}
    assert all(server.is_unresolved for server in servers)


@pytest.mark.parametrize("n, names", [("2", ["web1", "web2"]), ("3-5", ["web3", "web4", "web5"]), ("7-7", ["web7"])])
def test_numbers_are_written_as_in_haproxy(n, names):
    assert [server.name for server in Server.template("web", n, "myservice.local:80")] == names


@pytest.mark.parametrize("n", [0, -1, "", "5-3", "a-b", "1-"])
def test_no_servers_are_refused(n):
    with pytest.raises(ConfigError, match="write how many"):
        Server.template("web", n, "myservice.local:80")


@pytest.mark.parametrize(
    "where, problem",
    [
        ("10.0.0.1:80", "is an address already"),
        ("https://[::1]/", "is an address already"),
        ("unix:/run/app.sock", "has no name to resolve"),
        ("http://", "names no host"),
        ("myservice.local:0", "no server can listen at port 0"),
    ],
)
def test_what_has_no_name_is_refused(where, problem):
    with pytest.raises(ConfigError, match=problem):
        Server.template("web", 1, where)


def test_resolvers_without_a_name_are_refused():
    with pytest.raises(ConfigError, match="resolvers have no effect"):
        ServerConfig(name="web1", target="http://10.0.0.1", resolvers=Resolvers())


def test_each_server_is_given_every_option():
    servers = Server.template("web", 2, "https://myservice.local", weight=5, maxconn=7, check=Check("/up"), backup=True)
    assert [(each.config.weight, each.maxconn, each.config.backup) for each in servers] == [(5, 7, True)] * 2
    with pytest.raises(ConfigError, match="weight 300"):
        Server.template("web", 2, "myservice.local:80", weight=300)


def test_a_template_takes_what_a_server_takes():
    """But for what it makes by itself, and what is for apps."""
    of_server = set(inspect.signature(Server).parameters) - {"name", "target", "factory", "stateless"}
    assert set(get_type_hints(TemplateOptions)) == of_server


# -- what answers do


def test_servers_are_in_maintenance_until_they_have_an_address():
    asking = Asking()
    assert [server.status for server in asking.backend.servers] == ["MAINT"] * 3
    asking.hears(A, B)
    assert [server.status for server in asking.backend.servers] == ["UP", "UP", "MAINT"]


@pytest.mark.parametrize(
    "where, url",
    [
        ("myservice.local:8080", "http://10.0.0.1:8080"),
        ("myservice.local", "http://10.0.0.1:80"),
        ("http://myservice.local:8080/base", "http://10.0.0.1:8080/base"),
        ("https://myservice.local/base", "https://10.0.0.1:443/base"),
    ],
)
def test_an_address_stands_in_the_place_of_the_name(where, url):
    asking = Asking(where, n=1)
    asking.hears(A)
    assert asking.targets == [url]


def test_an_address_of_ipv6_stands_in_brackets():
    asking = Asking("myservice.local:8080", n=1)
    asking.hears("2001:db8::1")
    assert asking.targets == ["http://[2001:db8::1]:8080"]


def test_a_server_whose_address_stays_is_not_touched(caplog):
    caplog.set_level(logging.INFO, "sticky_sessions")
    asking = Asking()
    asking.hears(A, B, C)
    caplog.clear()
    before = asking.backend["web2"].target
    asking.hears(C, B)
    asking.hears(B, C)
    assert asking.backend["web2"].target is before
    assert [record.getMessage() for record in caplog.records if "web2" in record.getMessage()] == []


def test_a_server_whose_address_has_left_goes_to_another_without_a_stop():
    asking = Asking()
    asking.hears(A, B)
    seen = []
    asking.backend.events(lambda change: seen.append((change.server, change.after)))
    asking.hears(Address(B), Address(C))
    assert asking.targets == [f"http://{each}:8080/base" for each in (C, B)] + [None]
    assert ("web1", "MAINT") not in seen, "another address took its place at once"


def test_a_name_that_does_not_resolve_leaves_servers_for_a_while_and_says_so_once(caplog):
    asking = Asking()
    asking.hears(A)
    asking.fails(after=29)
    asking.fails(after=0.5)
    assert asking.backend["web1"].status == "UP"
    told = [record.getMessage() for record in caplog.records if "does not resolve" in record.getMessage()]
    assert len(told) == 1
    assert "myservice.local" in told[0] and "nx" in told[0] and "30 s" in told[0]
    asking.fails(after=1)
    assert asking.backend["web1"].status == "MAINT"
    asking.hears(A)
    assert asking.backend["web1"].status == "UP"
    assert "resolves again" in caplog.text


def test_the_state_that_an_operator_gave_is_apart_from_addresses():
    asking = Asking()
    asking.backend["web1"].state = AdminState.MAINT
    asking.backend["web2"].state = AdminState.DRAIN
    asking.hears(A, B)
    assert [server.status for server in asking.backend.servers] == ["MAINT", "DRAIN", "MAINT"]
    asking.backend["web1"].state = AdminState.READY
    assert asking.backend["web1"].status == "UP"


def test_health_belongs_to_the_server_and_outlives_another_address():
    asking = Asking()
    asking.hears(A, B)
    asking.backend["web1"].health = Health.DOWN
    asking.hears(B, C)
    assert asking.backend["web1"].target == f"http://{C}:8080/base"
    assert asking.backend["web1"].status == "DOWN"


def test_clients_go_to_servers_that_have_an_address():
    asking = Asking()
    assert asking.backend.placement.choose(asking.backend.snapshot, FakeRequest(), ()) is None
    asking.hears(A)
    assert {asking.backend.placement.choose(asking.backend.snapshot, FakeRequest(), ()) for _ in range(6)} == {
        asking.backend["web1"]
    }
    asking.hears(A, B)
    assert {asking.backend.placement.choose(asking.backend.snapshot, FakeRequest(), ()) for _ in range(6)} == {
        asking.backend[name] for name in ("web1", "web2")
    }


def test_srv_records_give_port_and_weight_on_haproxy_s_scale():
    asking = Asking("_http._tcp.myservice.local", n=3)
    asking.hears(Address(A, 8081, 0, "a"), Address(B, 8082, 256, "b"), Address(C, 8083, 65535, "c"))
    assert asking.targets == ["http://10.0.0.1:8081", "http://10.0.0.2:8082", "http://10.0.0.3:8083"]
    assert [server.weight for server in asking.backend.servers] == [1, 2, 256]


def test_weights_of_srv_records_may_be_ignored():
    asking = Asking(
        "_http._tcp.myservice.local", n=1, options={"weight": 7, "resolvers": Resolvers(ignore_weight=True)}
    )
    asking.hears(Address(A, 8081, 65535, "a"))
    assert asking.backend["web1"].weight == 7


def test_dynamic_cookies_follow_addresses():
    asking = Asking("myservice.local:8080", persist=Cookie("SRV", dynamic="key", signed=False))

    def whose(address):
        mark = xxh64.dynamic_id("key", address, 8080)
        assert asking.backend.persistence is not None
        return asking.backend.persistence.recognise(FakeRequest(cookies=[f"SRV={mark}"])).server

    asking.hears(B)
    assert whose(B) is asking.backend["web1"]
    assert whose(A) is None
    asking.hears(B, A)
    assert (whose(A), whose(B)) == (asking.backend["web2"], asking.backend["web1"])
    asking.hears(A)
    assert (whose(A), whose(B)) == (asking.backend["web2"], None)


def test_a_place_that_is_none_is_refused_once_and_the_others_are_filled(caplog):
    asking = Asking("_http._tcp.myservice.local", n=2)
    for _ in range(2):
        asking.hears(Address(A, 70000, 0, "a"), Address(B, 8082, 0, "b"))
    assert asking.targets == [None, "http://10.0.0.2:8082"]
    assert caplog.text.count("server web1 can't be moved to http://10.0.0.1:70000") == 1
    asking.hears(Address(A, 8081, 0, "a"), Address(B, 8082, 0, "b"))
    assert asking.targets == ["http://10.0.0.1:8081", "http://10.0.0.2:8082"]


def test_more_addresses_than_servers_are_told_once(caplog):
    asking = Asking(n=1)
    asking.hears(A, B, C)
    asking.hears(C, B, A)
    assert caplog.text.count("2 addresses more than servers") == 1


# -- several names, and changes


def test_servers_of_one_name_are_resolved_once_and_others_by_themselves():
    servers = [
        *Server.template("web", 2, "myservice.local:80"),
        *Server.template("more", 2, "myservice.local:80"),
        *Server.template("other", 1, "other.local:80"),
        *Server.template("fast", 1, "myservice.local:80", resolvers=Resolvers(timeout_resolve="100ms")),
        Server("fixed", "http://10.0.0.9:80"),
    ]
    discovery = Backend("shop", servers).component(Discovery)
    names = discovery.update_names()
    assert [(name.query.name, len(name.resolution.servers)) for name in names] == [
        ("myservice.local", 4),
        ("other.local", 1),
        ("myservice.local", 1),
    ]


def test_requests_wait_until_every_name_was_asked_for_once():
    servers = [*Server.template("web", 1, "web.local:80"), *Server.template("api", 1, "api.local:80")]
    discovery = Backend("shop", servers).component(Discovery)
    web, api = discovery.update_names()
    assert not discovery.first_answers.reached
    discovery.record_answer(web, answer_with([Address(A)]))
    assert not discovery.first_answers.reached
    discovery.record_answer(api, NX)
    assert discovery.first_answers.reached


def test_nobody_waits_for_names_where_there_are_none():
    discovery = Backend("shop", [Server("web1", "http://10.0.0.1")]).component(Discovery)
    assert discovery.first_answers.reached
    assert discovery.has_owner
    assert not discovery.acquire(object())


def test_names_have_one_owner_until_it_lets_go():
    discovery = Asking().discovery
    one, other = object(), object()
    assert not discovery.has_owner
    assert discovery.acquire(one)
    assert not discovery.acquire(other)
    discovery.release(other)
    assert discovery.has_owner
    discovery.release(one)
    assert discovery.acquire(other)


def test_a_server_that_is_added_gets_an_address_and_one_that_is_removed_leaves_its_own():
    asking = Asking(n=2)
    asking.hears(A, B, C)
    web3 = Server.template("web", "3-3", "myservice.local:8080/base")
    asking.backend.add(*web3)
    asking.hears(A, B, C)
    assert asking.backend["web3"].target == f"http://{C}:8080/base"
    asking.backend.remove("web1")
    asking.hears(A, B, C)
    assert asking.targets == [f"http://{each}:8080/base" for each in (B, C)]
    assert asking.name.resolution.surplus == 1


def test_an_answer_that_comes_while_servers_are_moved_has_the_last_word():
    asking = Asking(n=2)
    d, e = "10.0.0.4", "10.0.0.5"
    moved = []

    def hear_more(change):
        moved.append(change.server)
        if len(moved) == 1:
            asking.hears(d, e)

    asking.backend.events(hear_more)
    asking.hears(A, B)
    assert sorted(asking.targets) == [f"http://{each}:8080/base" for each in (d, e)]
    assert asking.targets == [f"http://{found.address}:8080/base" for found in asking.name.resolution.assigned.values()]


def test_a_child_that_was_forked_while_servers_were_moved_moves_them():
    asking = Asking(n=1)
    asking.name.is_placing = True  # by a thread that is not in the child
    asking.backend.after_fork()
    asking.hears(A)
    assert asking.targets == ["http://10.0.0.1:8080/base"]


def test_what_is_heard_of_a_name_that_nobody_has_any_more_changes_nothing():
    asking = Asking(n=1)
    asking.backend.add(Server("fixed", "http://10.0.0.9:80"))
    asking.backend.remove("web1")
    asking.hears(A)
    assert asking.discovery.update_names() == ()
    assert asking.targets == ["http://10.0.0.9:80"]


# -- what a face can't do


async def resolve_later(query):
    return [A]


def test_what_has_to_be_awaited_is_refused_on_wsgi():
    [server] = Server.template("web", 1, "myservice.local:80", resolvers=Resolvers(resolver=resolve_later))
    assert list(problems_of(server.config, "asgi")) == []
    [problem] = problems_of(server.config, "wsgi")
    assert "coroutine function" in problem


@pytest.mark.parametrize(
    "where, resolvers",
    [("_http._tcp.myservice.local", None), ("myservice.local:80", Resolvers(nameservers=["10.0.0.2"]))],
    ids=["SRV", "nameservers"],
)
def test_without_dnspython_what_needs_it_is_refused_with_the_way_out(monkeypatch, where, resolvers):
    monkeypatch.setattr("sticky_core.dns.nameservers.find_spec", lambda name: None)
    [server] = Server.template("web", 1, where, resolvers=resolvers)
    [problem] = problems_of(server.config, "asgi")
    assert "pip install 'sticky-sessions[dns]'" in problem
    [plain] = Server.template("web", 1, "myservice.local:80")
    assert list(problems_of(plain.config, "asgi")) == []
