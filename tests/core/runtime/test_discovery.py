"""Servers of a template follow their name: what recorded answers change in a backend. No query is sent."""

import logging

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.clock import ManualClock
from sticky_core.dns.resolvers import Address, Answer, Resolvers, Status, answer_with
from sticky_core.persistence import xxh64
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.runtime.discovery import Discovery, problems_of
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health
from tests.core.fakes import FakeRequest

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"
NX = Answer(Status.NX, info="no such name")


class ResolvedBackend:
    """A backend of a template, with the answers for its name that a test records."""

    def __init__(self, where="myservice.local:8080/base", n=3, options=None, **backend_options):
        self.clock = ManualClock()
        servers = Server.template("web", n, where, **(options or {}))
        self.backend = Backend("shop", servers, clock=self.clock, **backend_options)
        self.discovery = self.backend.component(Discovery)
        [self.name] = self.discovery.update_names()

    def record(self, *addresses, after=1.0):
        self.clock.advance(after)
        answer = answer_with(Address(each) if isinstance(each, str) else each for each in addresses)
        self.discovery.record_answer(self.name, answer)

    def record_failures(self, answer=NX, after=1.0):
        self.clock.advance(after)
        for _ in range(3):
            self.discovery.record_answer(self.name, answer)

    @property
    def targets(self):
        return [server.target for server in self.backend.servers]


# -- answers


def test_servers_are_in_maintenance_until_they_have_an_address():
    resolved = ResolvedBackend()
    assert [server.status for server in resolved.backend.servers] == ["MAINT"] * 3
    resolved.record(A, B)
    assert [server.status for server in resolved.backend.servers] == ["UP", "UP", "MAINT"]


@pytest.mark.parametrize(
    "where, url",
    [
        ("myservice.local:8080", "http://10.0.0.1:8080"),
        ("myservice.local", "http://10.0.0.1:80"),
        ("http://myservice.local:8080/base", "http://10.0.0.1:8080/base"),
        ("https://myservice.local/base", "https://10.0.0.1:443/base"),
    ],
)
def test_address_replaces_the_name_in_the_url(where, url):
    resolved = ResolvedBackend(where, n=1)
    resolved.record(A)
    assert resolved.targets == [url]


def test_ipv6_address_is_in_brackets():
    resolved = ResolvedBackend("myservice.local:8080", n=1)
    resolved.record("2001:db8::1")
    assert resolved.targets == ["http://[2001:db8::1]:8080"]


def test_server_that_keeps_its_address_is_not_changed(caplog):
    caplog.set_level(logging.INFO, "sticky_sessions")
    resolved = ResolvedBackend()
    resolved.record(A, B, C)
    caplog.clear()
    before = resolved.backend["web2"].target
    resolved.record(C, B)
    resolved.record(B, C)
    assert resolved.backend["web2"].target is before
    assert [record.getMessage() for record in caplog.records if "web2" in record.getMessage()] == []


def test_server_gets_another_address_without_a_pause():
    resolved = ResolvedBackend()
    resolved.record(A, B)
    changes = []
    resolved.backend.events(lambda change: changes.append((change.server, change.after)))
    resolved.record(Address(B), Address(C))
    assert resolved.targets == [f"http://{each}:8080/base" for each in (C, B)] + [None]
    assert ("web1", "MAINT") not in changes, "it had an address all the time"


def test_servers_keep_their_addresses_for_a_while_and_the_failure_is_logged_once(caplog):
    resolved = ResolvedBackend()
    resolved.record(A)
    resolved.record_failures(after=29)
    resolved.record_failures(after=0.5)
    assert resolved.backend["web1"].status == "UP"
    messages = [record.getMessage() for record in caplog.records if "does not resolve" in record.getMessage()]
    assert len(messages) == 1
    assert "myservice.local" in messages[0] and "nx" in messages[0] and "30 s" in messages[0]
    resolved.record_failures(after=1)
    assert resolved.backend["web1"].status == "MAINT"
    resolved.record(A)
    assert resolved.backend["web1"].status == "UP"
    assert "resolves again" in caplog.text


def test_admin_state_is_independent_of_addresses():
    resolved = ResolvedBackend()
    resolved.backend["web1"].state = AdminState.MAINT
    resolved.backend["web2"].state = AdminState.DRAIN
    resolved.record(A, B)
    assert [server.status for server in resolved.backend.servers] == ["MAINT", "DRAIN", "MAINT"]
    resolved.backend["web1"].state = AdminState.READY
    assert resolved.backend["web1"].status == "UP"


def test_health_belongs_to_the_server_and_stays_with_another_address():
    resolved = ResolvedBackend()
    resolved.record(A, B)
    resolved.backend["web1"].health = Health.DOWN
    resolved.record(B, C)
    assert resolved.backend["web1"].target == f"http://{C}:8080/base"
    assert resolved.backend["web1"].status == "DOWN"


def test_clients_are_balanced_over_servers_that_have_an_address():
    resolved = ResolvedBackend()
    assert resolved.backend.placement.choose(resolved.backend.snapshot, FakeRequest(), ()) is None
    resolved.record(A)
    assert {resolved.backend.placement.choose(resolved.backend.snapshot, FakeRequest(), ()) for _ in range(6)} == {
        resolved.backend["web1"]
    }
    resolved.record(A, B)
    assert {resolved.backend.placement.choose(resolved.backend.snapshot, FakeRequest(), ()) for _ in range(6)} == {
        resolved.backend[name] for name in ("web1", "web2")
    }


def test_srv_records_give_port_and_weight_on_haproxy_s_scale():
    resolved = ResolvedBackend("_http._tcp.myservice.local", n=3)
    resolved.record(Address(A, 8081, 0, "a"), Address(B, 8082, 256, "b"), Address(C, 8083, 65535, "c"))
    assert resolved.targets == ["http://10.0.0.1:8081", "http://10.0.0.2:8082", "http://10.0.0.3:8083"]
    assert [server.weight for server in resolved.backend.servers] == [1, 2, 256]


def test_weights_of_srv_records_can_be_ignored():
    resolved = ResolvedBackend(
        "_http._tcp.myservice.local", n=1, options={"weight": 7, "resolvers": Resolvers(ignore_weight=True)}
    )
    resolved.record(Address(A, 8081, 65535, "a"))
    assert resolved.backend["web1"].weight == 7


def test_dynamic_cookies_follow_addresses():
    resolved = ResolvedBackend("myservice.local:8080", persist=Cookie("SRV", dynamic="key", signed=False))

    def server_of(address):
        mark = xxh64.dynamic_id("key", address, 8080)
        assert resolved.backend.persistence is not None
        return resolved.backend.persistence.recognise(FakeRequest(cookies=[f"SRV={mark}"])).server

    resolved.record(B)
    assert server_of(B) is resolved.backend["web1"]
    assert server_of(A) is None
    resolved.record(B, A)
    assert (server_of(A), server_of(B)) == (resolved.backend["web2"], resolved.backend["web1"])
    resolved.record(A)
    assert (server_of(A), server_of(B)) == (resolved.backend["web2"], None)


def test_impossible_port_is_rejected_once_and_the_other_servers_are_moved(caplog):
    resolved = ResolvedBackend("_http._tcp.myservice.local", n=2)
    for _ in range(2):
        resolved.record(Address(A, 70000, 0, "a"), Address(B, 8082, 0, "b"))
    assert resolved.targets == [None, "http://10.0.0.2:8082"]
    assert caplog.text.count("server web1 can't be moved to http://10.0.0.1:70000") == 1
    resolved.record(Address(A, 8081, 0, "a"), Address(B, 8082, 0, "b"))
    assert resolved.targets == ["http://10.0.0.1:8081", "http://10.0.0.2:8082"]


def test_more_addresses_than_servers_are_logged_once(caplog):
    resolved = ResolvedBackend(n=1)
    resolved.record(A, B, C)
    resolved.record(C, B, A)
    assert caplog.text.count("2 addresses more than servers") == 1


# -- several names, and changes


def test_servers_of_one_name_share_one_resolution():
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


def test_requests_wait_until_every_name_was_queried_once():
    servers = [*Server.template("web", 1, "web.local:80"), *Server.template("api", 1, "api.local:80")]
    discovery = Backend("shop", servers).component(Discovery)
    web, api = discovery.update_names()
    assert not discovery.first_answers.reached
    discovery.record_answer(web, answer_with([Address(A)]))
    assert not discovery.first_answers.reached
    discovery.record_answer(api, NX)
    assert discovery.first_answers.reached


def test_requests_do_not_wait_without_names():
    discovery = Backend("shop", [Server("web1", "http://10.0.0.1")]).component(Discovery)
    assert discovery.first_answers.reached
    assert discovery.has_owner
    assert not discovery.acquire(object())


def test_names_have_one_owner_until_it_releases_them():
    discovery = ResolvedBackend().discovery
    one, other = object(), object()
    assert not discovery.has_owner
    assert discovery.acquire(one)
    assert not discovery.acquire(other)
    discovery.release(other)
    assert discovery.has_owner
    discovery.release(one)
    assert discovery.acquire(other)


def test_added_server_gets_an_address_and_removed_server_leaves_its_own():
    resolved = ResolvedBackend(n=2)
    resolved.record(A, B, C)
    web3 = Server.template("web", "3-3", "myservice.local:8080/base")
    resolved.backend.add(*web3)
    resolved.record(A, B, C)
    assert resolved.backend["web3"].target == f"http://{C}:8080/base"
    resolved.backend.remove("web1")
    resolved.record(A, B, C)
    assert resolved.targets == [f"http://{each}:8080/base" for each in (B, C)]
    assert resolved.name.resolution.surplus == 1


def test_answer_that_arrives_while_servers_are_moved_wins():
    resolved = ResolvedBackend(n=2)
    d, e = "10.0.0.4", "10.0.0.5"
    moved = []

    def record_more(change):
        moved.append(change.server)
        if len(moved) == 1:
            resolved.record(d, e)

    resolved.backend.events(record_more)
    resolved.record(A, B)
    assert sorted(resolved.targets) == [f"http://{each}:8080/base" for each in (d, e)]
    assert resolved.targets == [
        f"http://{address.address}:8080/base" for address in resolved.name.resolution.assigned.values()
    ]


def test_child_that_was_forked_while_servers_were_moved_moves_them():
    resolved = ResolvedBackend(n=1)
    resolved.name.is_placing = True  # by a thread that is not in the child
    resolved.backend.after_fork()
    resolved.record(A)
    assert resolved.targets == ["http://10.0.0.1:8080/base"]


def test_answer_for_a_name_without_servers_changes_nothing():
    resolved = ResolvedBackend(n=1)
    resolved.backend.add(Server("fixed", "http://10.0.0.9:80"))
    resolved.backend.remove("web1")
    resolved.record(A)
    assert resolved.discovery.update_names() == ()
    assert resolved.targets == ["http://10.0.0.9:80"]


# -- what a face can't resolve


async def resolve_later(query):
    return [A]


def test_coroutine_function_is_refused_on_wsgi():
    [server] = Server.template("web", 1, "myservice.local:80", resolvers=Resolvers(resolver=resolve_later))
    assert list(problems_of(server.config, "asgi")) == []
    [problem] = problems_of(server.config, "wsgi")
    assert "coroutine function" in problem


@pytest.mark.parametrize(
    "where, resolvers",
    [("_http._tcp.myservice.local", None), ("myservice.local:80", Resolvers(nameservers=["10.0.0.2"]))],
    ids=["SRV", "nameservers"],
)
def test_options_that_need_dnspython_are_refused_with_the_command_to_install_it(monkeypatch, where, resolvers):
    monkeypatch.setattr("sticky_core.dns.nameservers.find_spec", lambda name: None)
    [server] = Server.template("web", 1, where, resolvers=resolvers)
    [problem] = problems_of(server.config, "asgi")
    assert "pip install 'sticky-sessions[dns]'" in problem
    [plain] = Server.template("web", 1, "myservice.local:80")
    assert list(problems_of(plain.config, "asgi")) == []
