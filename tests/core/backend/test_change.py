"""A backend that is changed while it runs: who stays where, what goes on by which rules, and what is left behind."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from sticky_core.backend.backend import Backend, BackendComponent, BackendConfig
from sticky_core.backend.change import Change
from sticky_core.backend.queue import Ticket
from sticky_core.backend.snapshot import Snapshot
from sticky_core.balance import Ewma, LeastConn, NginxHash, RoundRobin, Source
from sticky_core.balance.algorithm import Balance
from sticky_core.clock import ManualClock
from sticky_core.errors import ConfigError, Failure
from sticky_core.health.agent import AgentCheck
from sticky_core.health.check import Check, CheckResult, CheckStatus
from sticky_core.persistence.claim import Claim, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.stick.config import Stick
from sticky_core.samples.request import src
from sticky_core.server.config import ServerConfig
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health
from sticky_core.stick_table.table import StickTable
from sticky_core.transaction.steps import NeedSlot
from tests.core.driver import DrivenTransaction

PLAIN = Cookie("SRV", signed=False)
FAILED = CheckResult(CheckStatus.L4CON)


def app(environ: object, start_response: object) -> list[bytes]:
    return []


def another(environ: object, start_response: object) -> list[bytes]:
    return []


def url(number: int) -> str:
    return f"http://10.0.0.{number}:80"


def urls(*numbers: int, **options: Any) -> list[Server]:
    return [Server(f"s{number}", url(number), **options) for number in numbers]


def backend(servers: Iterable[Server], **options: Any) -> Backend:
    options = {"persist": PLAIN, "balance": RoundRobin(start=0), "clock": ManualClock(), **options}
    return Backend("web", list(servers), **options)


def having(before: BackendConfig, name: str, **changes: Any) -> BackendConfig:
    """The same, with something else asked of one server."""
    return replace(
        before, servers=tuple(replace(each, **changes) if each.name == name else each for each in before.servers)
    )


def names(backend: Backend) -> list[str]:
    return [server.name for server in backend.servers]


class Asking(DrivenTransaction):
    """A request that is nothing but values."""

    __slots__ = ("_cookie", "_src")

    def __init__(self, backend: Backend, cookie: str = "", src: str = "192.0.2.1") -> None:
        self.owner = backend
        self.snapshot, self.raw_request, self.client_send = backend.snapshot, "a request", None
        self._cookie, self._src = cookie, src

    def begin(self) -> Server | None:
        return self.first_server(self.cookies or None)

    def end(self, status: int = 200) -> None:
        self.decision.status = status
        self.release(self.tried[-1], True)

    @property
    def cookies(self) -> tuple[str, ...]:
        return (self._cookie,) if self._cookie else ()

    def set_forwarded_cookies(self, texts: Any) -> None:
        self.forwarded_cookies = list(texts)

    @property
    def method(self) -> str:
        return "GET"

    @property
    def peer(self) -> str:
        return self._src

    path, query, scheme = "/", "", "http"

    @property
    def secure(self) -> bool:
        return False

    def header(self, name: str) -> list[str]:
        return []


def ticket_of(request: Asking) -> Ticket:
    """What it waits by."""
    wait = request.wait
    assert isinstance(wait, NeedSlot) and wait.ticket is not None
    return wait.ticket


def served(backend: Backend, cookie: str = "", src: str = "192.0.2.1") -> str | None:
    """Who serves a request that comes now, and is over at once."""
    request = Asking(backend, cookie, src)
    server = request.begin()
    if server is None:
        return None
    request.end()
    return server.name


# -- servers come


def test_a_server_that_is_added_takes_its_turns_and_nobody_else_has_moved():
    web = backend(urls(1, 2))
    kept = web.servers
    change = web.add(Server("s3", url(3)))
    assert change.is_in_force and names(web) == ["s1", "s2", "s3"]
    assert web.servers[:2] == kept, "the very same servers"
    assert {served(web) for _ in range(3)} == {"s1", "s2", "s3"}
    assert [served(web, f"SRV=s{number}") for number in (1, 2, 3)] == ["s1", "s2", "s3"]


def test_a_server_that_belongs_somewhere_can_not_be_added_nor_one_that_was_removed():
    web, other = backend(urls(1, 2)), Backend("other", urls(3))
    with pytest.raises(ConfigError, match="server s3: belongs to another backend already"):
        web.add(other["s3"])
    gone = web["s2"]
    web.remove("s2")
    with pytest.raises(ConfigError, match="server s2: was removed"):
        web.add(gone)
    assert names(web) == ["s1"]


def test_new_servers_take_the_lowest_numbers_that_are_free():
    web = backend(urls(1, 2, 3, 4))
    web.remove("s2", "s3")
    web.add(*urls(8, 9, 10))
    assert {server.name: server.id for server in web.servers} == {"s1": 1, "s4": 4, "s8": 2, "s9": 3, "s10": 5}


# -- servers go


def test_a_server_that_is_removed_is_known_no_more_and_its_clients_are_given_others():
    web = backend(urls(1, 2))
    web.remove("s2")
    request = Asking(web, "SRV=s2")
    server = request.begin()
    assert server is web["s1"]
    assert (request.persisted.claim, request.persisted.reason) == (Claim.INVALID, Reason.UNKNOWN)
    with pytest.raises(KeyError):
        web["s2"]


def test_its_clients_are_not_sent_away_for_ever_where_they_would_wait_for_a_server_that_is_down():
    web = backend(urls(1, 2), unavailable="fail")
    web["s2"].health = Health.DOWN
    assert served(web, "SRV=s2") is None
    web.remove("s2")
    assert served(web, "SRV=s2") == "s1"


@pytest.mark.parametrize("balance", [RoundRobin(), LeastConn()], ids=["uncounted", "counted"])
def test_what_is_in_flight_ends_in_peace_and_only_then_has_the_server_gone(balance: Balance):
    web = backend(urls(1, 2), balance=balance)
    request = Asking(web, "SRV=s2")
    gone = request.begin()
    change = web.remove("s2")
    assert change.is_in_force and not change.retired.reached
    assert gone is not None and len(gone.in_flight) == 1 and gone.status == "REMOVED"
    request.end()
    assert change.retired.reached and not gone.in_flight


def test_nothing_of_a_server_that_has_gone_is_left():
    web = backend(urls(1, 2, 3), check=Check())
    served(web, "SRV=s2")
    assert web.remove("s2").retired.reached
    gone = weakref.ref(web["s3"])
    web.remove("s3")
    gc.collect()
    assert gone() is None


def test_who_waits_for_a_server_that_is_removed_is_sent_on():
    web = backend(urls(1, 2, maxconn=1))
    holding = Asking(web, "SRV=s2")
    holding.begin()
    waiting = Asking(web, "SRV=s2")
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


def test_all_that_is_wrong_is_told_and_nothing_has_changed():
    web = backend(urls(1, 2), use_server={"s2": bool})
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
    assert "the configuration is another backend's, other's" in str(refused.value)
    with pytest.raises(ConfigError, match="use_server names s2, and there is no such server"):
        web.remove("s2")
    with pytest.raises(ConfigError, match="has no servers"):
        web.remove("s1", "s2")
    with pytest.raises(ConfigError, match="there is no server s7 to be removed"):
        web.remove("s7")
    with pytest.raises(ConfigError, match="cookie TOO: dynamic needs the address of server s2"):
        web.apply(having(replace(web.config, persist=(Cookie("TOO", signed=False, dynamic="k"),)), "s2", target=app))
    assert (web.config, web.snapshot, web.servers) == before


def test_a_server_whose_health_others_have_is_not_removed_from_under_them():
    web = backend([*urls(1), Server("s2", url(2), track="s1")])
    with pytest.raises(ConfigError, match="server s2: track s1: there is no such server"):
        web.remove("s1")
    web.add(*urls(3))
    other = Backend("other", [Server("t1", url(9), track=web["s1"])])
    with pytest.raises(ConfigError, match="server s1 is tracked by t1"):
        web.remove("s1", "s2")
    assert other["t1"].tracks is web["s1"]
    web.remove("s2")
    assert [tracker.name for tracker in web["s1"].trackers] == ["t1"]


def test_what_is_tracked_by_object_is_not_to_go_either():
    first = Server("s1", url(1))
    web = backend([first, Server("s2", url(2), track=first)])
    with pytest.raises(ConfigError, match="server s2: track: s1 is to go"):
        web.apply(having(web.config, "s1", target=app))


# -- servers stay


def test_a_server_that_keeps_its_name_keeps_what_was_done_and_counted():
    web = backend(urls(1, 2), check=Check(fall=1))
    web["s1"].state = AdminState.DRAIN
    web["s1"].weight = 7
    web.monitor.record_check(web["s2"], FAILED)
    served(web, "SRV=s1")
    first, second, checking = web["s1"], web["s2"], web["s2"].checking
    web.apply(replace(web.config, servers=(*web.config.servers, ServerConfig(name="s3", target=url(3))), retries=1))
    assert (web["s1"], web["s2"]) == (first, second)
    assert (first.state, first.weight, first.total) == (AdminState.DRAIN, 7, 1)
    assert second.health is Health.DOWN and second.checking is checking


def test_a_weight_that_was_changed_by_hand_stays_unless_another_is_asked():
    web = backend(urls(1, 2))
    web["s1"].weight = 7
    web.apply(having(web.config, "s1", slowstart="10s"))
    assert web["s1"].weight == 7
    web.apply(having(web.config, "s1", weight=3))
    assert web["s1"].weight == 3


def test_another_check_goes_on_from_what_the_one_before_knew():
    web = backend(urls(1, 2), check=Check(fall=1))
    web.monitor.record_check(web["s1"], FAILED)
    late = web["s1"].checking
    web.apply(replace(web.config, check=Check("/health", fall=3)))
    assert [server.health for server in web.servers] == [Health.DOWN, Health.UP]
    web.monitor.record_check(web["s2"], FAILED, late)
    assert web["s2"].checking is not None and web["s2"].checking.summary == "3/3", "the old one has nothing to say"
    web.apply(replace(web.config, check=None))
    assert [server.health for server in web.servers] == [Health.UP, Health.UP], "nobody says otherwise any more"
    assert not web.checked


def test_an_app_that_is_exchanged_begins_anew_under_its_old_name():
    web = backend([Server("s1", app), Server("s2", app)])
    before = web["s1"]
    before.state, before.weight = AdminState.DRAIN, 5
    served(web, "SRV=s1")
    held = Asking(web, "SRV=s1")
    held.begin()
    change = web.apply(having(web.config, "s1", target=another))
    now = web["s1"]
    assert now is not before and now.target is another and not change.retired.reached
    assert (now.state, now.weight, now.id, now.counters.stot) == (AdminState.DRAIN, 5, before.id, 1)
    assert served(web, "SRV=s1") == "s1" and not now.in_flight
    held.end()
    assert change.retired.reached


def test_a_configuration_is_as_good_as_servers():
    config = BackendConfig(
        name="web",
        servers=(ServerConfig(name="s1", target=url(1)), ServerConfig(name="s2", target=url(2), weight=3)),
        balance=RoundRobin(start=0),
    )
    web = Backend.of(config)
    assert web.config == config and [server.weight for server in web.servers] == [1, 3]
    assert web.apply(config).is_in_force and web.config == config


def test_what_nothing_has_changed_about_goes_on_as_it_stands():
    web = backend(urls(1, 2, 3), persist=PLAIN)
    assert served(web) == "s1"
    persistence = web.persistence
    web.apply(replace(web.config, retries=0))
    assert served(web) == "s2", "it is still its turn"
    assert web.persistence is persistence


def test_times_that_were_seen_are_not_forgotten_when_others_come():
    web = backend(urls(1, 2), balance=Ewma(), rng=random.Random(1))
    for server, seconds in (("s1", 9.0), ("s2", 0.1)):
        for _ in range(5):
            web.monitor.record_request(web[server], None, 200, seconds)
    web.add(Server("s3", url(3)))
    web.monitor.record_request(web["s3"], None, 200, 9.0)
    assert [served(web) for _ in range(40)].count("s2") > 20


# -- each request sees one snapshot


def test_a_request_goes_on_by_the_rules_that_it_began_with():
    web = backend(urls(1, 2), retries=1)
    before = Asking(web, "SRV=s1")
    before.begin()
    web.apply(replace(web.config, retries=0, persist=()))
    after = Asking(web, "SRV=s1")
    after.begin()
    for request in (before, after):
        request.record_failure(Failure.REFUSED)
    assert before.persisted.claim is Claim.VALID and after.persisted.claim is Claim.NONE
    assert before.next_server() is web["s2"]
    assert after.next_server() is None


def test_a_request_that_is_tried_again_is_not_sent_to_whom_it_could_not_be_marked_for_nor_to_who_has_gone():
    web = backend(urls(1, 2, 3))
    request = Asking(web, "SRV=s1")
    request.begin()
    request.record_failure(Failure.REFUSED)
    web.remove("s2")
    web.add(*urls(7, 8, 9))
    request.release(web["s1"], False)
    assert request.next_server() is web["s3"]


def test_who_waits_for_anyone_is_given_no_place_that_its_persistence_does_not_know():
    web = backend(urls(1, maxconn=1))
    holding = Asking(web)
    holding.begin()
    waiting = Asking(web)
    assert waiting.begin() is None
    ticket = ticket_of(waiting)
    web.add(Server("s2", url(2), maxconn=1))
    assert ticket.granted is None
    holding.end()
    assert ticket.granted is web["s1"]


def test_who_began_uncounted_makes_room_when_a_limit_has_come_meanwhile():
    web = backend(urls(1))
    early = Asking(web)
    early.begin()
    web.apply(having(web.config, "s1", maxconn=1))
    waiting = Asking(web)
    assert waiting.begin() is None
    ticket = ticket_of(waiting)
    early.end()
    assert ticket.granted is web["s1"]


def test_who_waits_is_let_in_when_the_limit_is_lifted():
    web = backend(urls(1, maxconn=1))
    Asking(web).begin()
    waiting = Asking(web)
    assert waiting.begin() is None
    ticket = ticket_of(waiting)
    web.apply(having(web.config, "s1", maxconn=0))
    assert ticket.granted is web["s1"]


def test_an_algorithm_that_counts_knows_of_those_who_began_before_it():
    web = backend(urls(1, 2))
    busy = [Asking(web, "SRV=s1") for _ in range(3)]
    for request in busy:
        request.begin()
    web.apply(replace(web.config, balance=LeastConn()))
    assert {served(web) for _ in range(4)} == {"s2"}
    for request in busy:
        request.end()
    assert {served(web) for _ in range(4)} == {"s1", "s2"}


def test_threads_that_come_and_go_while_servers_do_leave_nothing_behind():
    web = backend(urls(1, 2, 3), balance=LeastConn())
    stop = threading.Event()
    wrong: list[object] = []

    def visit(cookie: str, home: str | None) -> None:
        while not stop.is_set():
            try:
                server = served(web, cookie)
                if server is None or (home is not None and server != home):
                    wrong.append((cookie, server))
            except Exception as error:
                wrong.append(error)

    visitors = [threading.Thread(target=visit, args=each) for each in (("SRV=s1", "s1"), ("SRV=s2", "s2"), ("", None))]
    for visitor in visitors:
        visitor.start()
    for number in range(60):
        web.add(Server(f"x{number}", url(number % 200), maxconn=number % 3))
        web.apply(replace(web.config, balance=(LeastConn(), RoundRobin(), Source())[number % 3]))
        change = web.remove(f"x{number}")
    stop.set()
    for visitor in visitors:
        visitor.join()
    assert wrong == []
    assert change.retired.wait(300)
    assert [len(server.in_flight) for server in web.servers] == [0, 0, 0]


# -- addresses


def test_a_server_that_moves_keeps_its_name_its_clients_and_what_was_counted():
    web = backend(urls(1, 2), check=Check(fall=1))
    served(web, "SRV=s1")
    server, late = web["s1"], web["s1"].checking
    server.target = url(9)
    assert web["s1"] is server and server.target == url(9) and server.total == 1
    assert served(web, "SRV=s1") == "s1"
    web.monitor.record_check(server, FAILED, late)
    assert server.health is Health.UP, "what the old address has said is nothing to the new one"
    assert server.checking is not None and server.checking.delay(0.0) == 0.0, "which is looked at at once"


def test_a_server_that_was_down_is_down_at_its_new_address_until_it_is_checked():
    web = backend(urls(1, 2), check=Check(fall=1, rise=1))
    web.monitor.record_check(web["s1"], FAILED)
    web["s1"].target = url(9)
    assert web["s1"].health is Health.DOWN
    web.monitor.record_check(web["s1"], CheckResult(CheckStatus.L4OK))
    assert web["s1"].status == "UP"


def test_an_address_that_was_changed_by_hand_stays_unless_another_is_asked():
    web = backend(urls(1, 2))
    web["s1"].target = url(9)
    web.apply(having(web.config, "s1", weight=3))
    assert web["s1"].target == url(9) and web["s1"].weight == 3
    web.apply(having(web.config, "s1", target=url(8)))
    assert web["s1"].target == url(8)


@pytest.mark.parametrize(
    "target, problem",
    [
        pytest.param("10.0.0.9:80", "server s1: '10.0.0.9:80' is no URL", id="no URL"),
        pytest.param(None, "has neither a target", id="none, of a server that has always one"),
        pytest.param(app, "only a URL moves, and only to a URL", id="an app"),
    ],
)
def test_a_server_moves_to_urls_only(target: Any, problem: str):
    web = backend(urls(1))
    with pytest.raises(ConfigError, match=problem):
        web["s1"].target = target
    assert web["s1"].target == url(1)


def test_an_app_does_not_move():
    web = backend([Server("s1", app)])
    with pytest.raises(ConfigError, match="only a URL moves"):
        web["s1"].target = url(1)


@pytest.mark.parametrize("signed", [{"signed": False}, {"secret": "x" * 16}], ids=["plain", "signed"])
def test_dynamic_ids_follow_the_address(signed: dict[str, Any]):
    cookie = Cookie("SRV", dynamic="key", **signed)
    web = backend(urls(1, 2), persist=cookie)

    def mark_of(name: str, where: Backend) -> str:
        request = Asking(where)
        while (server := request.begin()) is None or server.name != name:
            request.end()
            request = Asking(where)
        reply = Head()
        request.stamp(reply)
        request.end()
        return reply.marks[-1].partition(";")[0]

    old = mark_of("s1", web)
    assert served(web, old) == "s1"
    web["s1"].target = url(9)
    request = Asking(web, old)
    request.begin()
    assert request.persisted.claim is Claim.INVALID
    new = mark_of("s1", web)
    assert new != old and served(web, new) == "s1"
    assert new == mark_of("s9", backend(urls(9, 2), persist=cookie)), "as any other proxy would call it"
    web["s2"].target = url(1)
    assert served(web, old) == "s2"


def test_two_servers_at_one_address_share_their_dynamic_id_and_part_again():
    web = backend(urls(1, 2), persist=Cookie("SRV", signed=False, dynamic="key"))
    assert web.persistence is not None
    request = Asking(web)
    request.begin()
    reply = Head()
    request.stamp(reply)
    mark = reply.marks[-1].partition(";")[0]
    web["s2"].target = url(1)
    web["s1"].health = Health.DOWN
    assert served(web, mark) == "s2"
    web["s1"].target = url(9)
    web["s1"].health = Health.UP
    assert {served(web, mark) for _ in range(4)} == {"s2"}


class Head:
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


@pytest.mark.parametrize(
    "balance",
    [
        pytest.param(Source(hash_type="consistent", hash_key="addr"), id="HAProxy's ring"),
        pytest.param(NginxHash(src, consistent=True), id="nginx's ring"),
    ],
)
def test_keys_that_go_by_addresses_go_where_the_address_is(balance: Balance):
    clients = [f"192.0.2.{number}" for number in range(200)]
    moved = backend([*urls(1, 2, 3), Server("s4", url(77))], balance=balance, persist=())
    moved["s4"].target = url(4)
    never = backend(urls(1, 2, 3, 4), balance=balance, persist=())
    assert [served(moved, src=client) for client in clients] == [served(never, src=client) for client in clients]


def test_keys_that_go_by_numbers_stay_whoever_moves():
    clients = [f"192.0.2.{number}" for number in range(200)]
    web = backend(urls(1, 2, 3, 4), balance=Source(hash_type="consistent"), persist=())
    before = [served(web, src=client) for client in clients]
    web["s4"].target = url(77)
    assert [served(web, src=client) for client in clients] == before


def template(name: str, **options: Any) -> Server:
    return Server.of(ServerConfig(name=name, template="http://shop.example:80", **options))


def test_a_server_without_an_address_is_in_maintenance_apart_from_what_the_operator_wants():
    web = backend([*urls(1), template("s2", check=Check())])
    server = web["s2"]
    assert (server.status, server.state, server.is_unresolved) == ("MAINT", AdminState.READY, True)
    assert served(web, "SRV=s2") == "s1"
    server.target = url(2)
    assert (server.status, server.state) == ("UP", AdminState.READY)
    assert served(web, "SRV=s2") == "s2"
    server.state = AdminState.DRAIN
    server.target = None
    assert (server.status, server.state) == ("MAINT", AdminState.DRAIN)
    server.target = url(3)
    assert server.status == "DRAIN"


def test_a_server_that_gets_an_address_gets_its_dynamic_id():
    web = backend([*urls(1), template("s2")], persist=Cookie("SRV", secret="x" * 16, dynamic="key"))
    web["s2"].target = url(2)
    known = backend(urls(1, 2), persist=Cookie("SRV", secret="x" * 16, dynamic="key"))
    request = Asking(known)
    while (server := request.begin()) is None or server.name != "s2":
        request = Asking(known)
    reply = Head()
    request.stamp(reply)
    assert served(web, reply.marks[-1].partition(";")[0]) == "s2"


def test_a_check_that_was_on_its_way_when_the_address_was_lost_says_nothing():
    web = backend([*urls(1), template("s2", target=url(2), check=Check(fall=1))])
    late = web["s2"].checking
    web["s2"].target = None
    web.monitor.record_check(web["s2"], FAILED, late)
    web["s2"].target = url(3)
    assert web["s2"].status == "UP"


def test_an_agent_is_asked_at_the_new_address():
    web = backend([Server("s1", url(1), agent_check=AgentCheck(port=9)), *urls(2)])
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
def test_a_template_stands_for_a_url(options: dict[str, Any], problem: str):
    asked: dict[str, Any] = {"name": "s1", "template": "http://shop.example:80", **options}
    with pytest.raises(ConfigError, match=problem):
        ServerConfig(**asked)


# -- events


def test_who_comes_and_who_goes_is_told():
    web = backend(urls(1, 2))
    with web.events() as events:
        web.add(Server("s3", url(3)))
        web.remove("s1")
        web.apply(having(web.config, "s2", weight=5))
        told = [(change.server, change.before, change.after) for change in events.take()]
    assert told == [("s3", "NEW", "UP"), ("s1", "UP", "REMOVED")]


def test_when_the_last_that_could_serve_is_removed_health_counts_for_nothing_if_that_was_asked():
    web = backend(urls(1, 2), on_empty="panic")
    web["s1"].health = Health.DOWN
    assert not web.monitor.panics
    web.remove("s2")
    assert web.monitor.panics and served(web) == "s1"
    web.add(*urls(3))
    assert not web.monitor.panics and served(web, "SRV=s1") == "s3"


# -- what is kept beside a backend takes part


class Slow(BackendComponent):
    """Needs to be waited for."""

    def __init__(self, web: Backend) -> None:
        self.ready: Callable[[Exception | None], None] | None = None
        self.undone: list[Change] = []
        self.swaps: list[Snapshot] = []

    def prepare(self, change: Change, on_ready: Callable[[Exception | None], None]) -> None:
        self.ready = on_ready

    def undo(self, change: Change) -> None:
        self.undone.append(change)

    def swap(self, change: Change, snapshot: Snapshot) -> None:
        self.swaps.append(snapshot)


class Quick(Slow):
    """Does not."""

    def prepare(self, change: Change, on_ready: Callable[[Exception | None], None]) -> None:
        on_ready(None)


class Picky(Quick):
    def server_problems(self, servers: Iterable[ServerConfig]) -> Iterator[str]:
        yield from (f"server {server.name} is not to my taste" for server in servers)


def test_nothing_is_in_force_before_all_are_ready():
    web = backend(urls(1))
    slow, quick = web.component(Slow), web.component(Quick)
    change = web.add(*urls(2))
    assert not change.is_in_force and names(web) == ["s1"] and change.wait(0) is False
    with pytest.raises(ConfigError, match="another change is being prepared: await it first"):
        web.add(*urls(3))
    assert slow.ready is not None
    slow.ready(None)
    assert change.is_in_force and change.wait(0) and names(web) == ["s1", "s2"]
    assert slow.swaps == quick.swaps == [web.snapshot]


def test_if_one_can_not_be_made_ready_all_are_undone_and_nothing_has_changed():
    web = backend(urls(1))
    slow, quick = web.component(Slow), web.component(Quick)
    before = web.config, web.snapshot
    change = web.add(*urls(2))
    assert slow.ready is not None
    slow.ready(RuntimeError("no luck"))
    assert (web.config, web.snapshot) == before and slow.undone == quick.undone == [change]
    with pytest.raises(RuntimeError, match="no luck"):
        change.wait()
    assert "failed" in repr(change)
    assert web.component(Slow).ready is not None and not web.add(*urls(2)).is_in_force, "another may be tried"


def test_what_is_kept_beside_has_a_say_in_what_can_be():
    web = backend(urls(1))
    web.component(Picky)
    with pytest.raises(ConfigError, match="backend web: server s2 is not to my taste"):
        web.add(*urls(2))
    assert names(web) == ["s1"]


def test_a_change_says_what_it_is():
    web = backend([Server("s1", app), *urls(2, 3)])
    change = web.apply(
        replace(
            having(having(web.config, "s1", target=another), "s2", weight=2),
            servers=having(having(web.config, "s1", target=another), "s2", weight=2).servers[:2],
        )
    )
    assert repr(change) == "<Change of web: +s1 -s1 -s3 ~s2, in force>"


# -- plans


@pytest.mark.parametrize(
    "hash_type, least, most",
    [
        pytest.param("consistent", 0.03, 0.25, id="its own share"),
        pytest.param("map-based", 0.85, 0.95, id="nearly all"),
    ],
)
def test_a_plan_says_what_share_of_keys_moves_if_one_of_ten_goes(hash_type: str, least: float, most: float):
    web = backend(urls(*range(1, 11)), balance=Source(hash_type=hash_type), persist=())
    config = replace(web.config, servers=web.config.servers[1:])
    plan = web.plan(config)
    assert plan.removed == ("s1",) and least < plan.moved_keys < most
    if hash_type == "consistent":
        assert plan.keys is not None and {before for before, _ in plan.keys} == {"s1"}
    assert names(web)[0] == "s1" and web.plan(config) == plan, "asked again it says the same, and nothing has changed"


def test_a_plan_comes_true():
    web = backend(urls(*range(1, 11)), balance=Source(hash_type="consistent"), persist=())
    clients = [f"10.{number // 200}.{number % 200}.1" for number in range(2000)]
    before = [served(web, src=client) for client in clients]
    config = replace(web.config, servers=(*web.config.servers, ServerConfig(name="s11", target=url(11))))
    plan = web.plan(config)
    web.apply(config)
    moved = [after for client, was in zip(clients, before, strict=True) if (after := served(web, src=client)) != was]
    assert set(moved) == {"s11"} and plan.added == ("s11",)
    assert abs(len(moved) / len(clients) - plan.moved_keys) < 0.05 and 0.03 < plan.moved_keys < 0.2


def test_a_plan_takes_nobody_s_turn():
    web = backend(urls(1, 2, 3))
    web.plan(replace(web.config, retries=0))
    assert served(web) == "s1"
    assert web.plan(web.config).keys is None and str(web.plan(web.config)) == "nothing changes"


def test_where_something_else_is_hashed_nearly_all_move():
    web = backend(urls(1, 2, 3, 4), balance=Source(), persist=())
    assert 0.7 < web.plan(replace(web.config, balance=Source(hash_type="map-based crc32"))).moved_keys < 0.8
    assert web.plan(replace(web.config, balance=RoundRobin())).moved_keys == 1


def test_a_plan_knows_the_sessions_that_stick_tables_know():
    table = StickTable("string", size="1k")
    web = backend([*urls(1, 2), Server("s3", app)], persist=Stick.on("src", table))
    for key, server in (("a", "s1"), ("b", "s1"), ("c", "s2"), ("d", "s3"), ("e", "elsewhere")):
        table[key] = server
    config = having(replace(web.config, servers=web.config.servers[1:]), "s3", target=another)
    plan = web.plan(config)
    assert plan.sessions == {("s1", None): 2, ("s3", None): 1} and plan.moved_sessions == 3
    assert (plan.removed, plan.restarted, plan.changed) == (("s1",), ("s3",), ())
    assert str(plan) == "removed: s1\nrestarted: s3\nsessions s1 -> by balance: 2\nsessions s3 -> by balance: 1"
    assert web.plan(having(web.config, "s2", weight=3)).changed == ("s2",)


def test_sessions_in_a_stick_table_outlive_a_change():
    table = StickTable("string", size="1k")
    web = backend(urls(1, 2), persist=Stick.on("src", table))
    table["192.0.2.9"] = "s2"
    web.add(*urls(3))
    assert {served(web, src="192.0.2.9") for _ in range(4)} == {"s2"}


def test_a_server_that_moves_while_a_change_is_prepared_is_found_where_it_is():
    balance = Source(hash_type="consistent", hash_key="addr")
    clients = [f"192.0.2.{number}" for number in range(200)]
    moved = backend([*urls(1, 2, 3), Server("s4", url(77))], balance=balance, persist=())
    slow = moved.component(Slow)
    moved.add(*urls(5))
    moved["s4"].target = url(4)
    assert slow.ready is not None
    slow.ready(None)
    never = backend(urls(1, 2, 3, 4, 5), balance=balance, persist=())
    assert [served(moved, src=client) for client in clients] == [served(never, src=client) for client in clients]
