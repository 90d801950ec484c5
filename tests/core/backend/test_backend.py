"""Backends: what cannot work is told at once; who is chosen when balance has nobody; what a fork brings."""

import os
import random
import select
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pytest

from sticky_core.backend.backend import Backend, BackendComponent, BackendConfig
from sticky_core.backend.queue import Ticket
from sticky_core.balance import Hash, LeastConn, Random, RoundRobin
from sticky_core.errors import ConfigError
from sticky_core.http.messages import Request
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.counters import Total
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health

Ask = Callable[..., Request]
Wait = Callable[..., "Waiter"]

PATIENCE = 300.0  # seconds that a forked child has for what takes it milliseconds


def app(environ: object, start_response: object) -> list[bytes]:
    return []


def servers(*names: str) -> list[Server]:
    return [Server(name, app) for name in names]


@dataclass(frozen=True)
class Always:
    """A sample that is the same in every request."""

    key: str

    def __call__(self, request: Request) -> str:
        return self.key


# -- what was asked


@pytest.mark.parametrize(
    "options, problem",
    [
        pytest.param({"name": ""}, "backend : a name is made of letters", id="no name"),
        pytest.param(
            {"name": "a b"}, "backend a b: a name is made of letters, digits and - _ . :", id="a name with a space"
        ),
        pytest.param({"name": "a/b"}, "backend a/b: a name is made of letters", id="a name with a slash"),
        pytest.param({"servers": []}, "backend web: has no servers", id="no servers"),
        pytest.param(
            {"servers": Server("s1", app)}, "write servers=[Server(name, app), ...]", id="a server for servers"
        ),
        pytest.param(
            {"servers": ["http://s1"]}, "'http://s1' is no Server: write Server(name,", id="a URL for a server"
        ),
        pytest.param({"persist": "SRV"}, "write persist=Cookie('SRV')", id="a name for a cookie"),
        pytest.param({"persist": [7]}, "persist=7 is no way to persist", id="a number for a cookie"),
        pytest.param(
            {"servers": servers("s1", "s2", "s1")},
            "backend web: has 2 servers called s1: give each a name of its own",
            id="one name twice",
        ),
        pytest.param({"retries": -1}, "backend web: retries -1 is below 0", id="retries below 0"),
        pytest.param(
            {"unavailable": "panic"},
            "backend web: unavailable 'panic' is neither 'redispatch' nor 'fail'",
            id="another word",
        ),
        pytest.param({"retries": "3"}, "backend web: retries '3' is no whole number", id="retries as a text"),
        pytest.param(
            {"retry_on": "conn-failure 5xx"}, "backend web: retry_on '5xx' is not known", id="another failure"
        ),
        pytest.param({"retry_on": [503, "none"]}, "backend web: retry_on: 'none' stands alone", id="none and a status"),
        pytest.param({"redispatch": "yes"}, "backend web: redispatch 'yes' is neither True", id="another redispatch"),
        pytest.param(
            {"retry_body_limit": -1}, "backend web: retry_body_limit -1 is below 0", id="a body smaller than none"
        ),
        pytest.param({"balance": "fastest"}, "balance 'fastest' is not known", id="another balance"),
        pytest.param(
            {"persist": Cookie("SRV", signed=False), "servers": [Server("s1", app, cookie="a|b")]},
            "backend web: cookie SRV: server s1: '|'",
            id="an id that could be misread",
        ),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, object], problem: str):
    with pytest.raises(ConfigError) as refused:
        Backend(**{"name": "web", "servers": servers("s1")} | options)  # type: ignore[arg-type]
    (only,) = refused.value.problems
    assert problem in only


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError) as refused:
        Backend(
            "a b",
            [Server("s1", app, cookie="a|b"), Server("s1", app)],
            balance="fastest",
            persist=[Cookie("SRV", signed=False), Cookie("OTHER", signed=False)],
            retries=-1,
            retry_on=("5xx", "none"),
            redispatch="yes",  # type: ignore[arg-type] # what a caller without types may write
            retry_body_limit=-1,
            unavailable="panic",  # type: ignore[arg-type] # likewise
        )
    told = str(refused.value)
    for part in ("a name is made of", "servers called s1", "retries -1", "unavailable 'panic'"):
        assert part in told
    for part in ("retry_on '5xx'", "retry_on: 'none' stands alone", "redispatch 'yes'", "retry_body_limit -1"):
        assert part in told
    assert "balance 'fastest'" in told
    assert "cookie SRV: server s1" in told
    assert "cookie OTHER: server s1" in told
    assert len(refused.value.problems) == 11


@pytest.mark.parametrize(
    "written, words",
    [
        ("conn-failure", ("conn-failure",)),
        ("conn-failure empty-response 503", ("conn-failure", "empty-response", "503")),
        (("conn-failure", "503"), ("conn-failure", "503")),
        (["503", 504], ("503", "504")),
        ("", ()),
        ("none", ("none",)),
    ],
)
def test_what_to_retry_on_is_a_line_of_words_or_a_list_of_them(written: str | list[str], words: tuple[str, ...]):
    assert Backend("web", servers("s1"), retry_on=written).config.retry_on == words


@pytest.mark.parametrize(
    "made, options, rereads",
    [
        pytest.param(servers("s1"), {}, False, id="apps alone"),
        pytest.param(servers("s1"), {"retry_on": "none"}, False, id="apps, never again"),
        pytest.param(servers("s1"), {"retry_on": "503"}, True, id="apps whose answers are held back"),
        pytest.param(servers("s1"), {"retry_on": "empty-response"}, True, id="apps that may have read it"),
        pytest.param([Server("s1", app, maxconn=1)], {}, True, id="an app that may be full"),
        pytest.param([Server("s1", "http://10.0.0.1")], {}, True, id="a URL"),
        pytest.param([Server("s1", app), Server("s2", "http://10.0.0.1")], {}, True, id="a URL beside an app"),
    ],
)
def test_whether_a_request_may_have_to_be_read_twice_or_looked_after(
    made: list[Server], options: dict[str, str], rereads: bool
):
    assert Backend("web", made, **options).snapshot.needs_replay is rereads  # type: ignore[arg-type]


def test_a_configuration_is_a_value():
    one, other = servers("s1"), servers("s1")
    asked = {"balance": "leastconn", "persist": Cookie("SRV", signed=False), "retries": 5}
    config = Backend("web", one, **asked).config  # type: ignore[arg-type]
    assert config == Backend("web", other, **asked).config  # type: ignore[arg-type]
    assert config == BackendConfig(
        name="web", servers=(one[0].config,), balance=LeastConn(), persist=(Cookie("SRV", signed=False),), retries=5
    )
    assert config != Backend("web", servers("s1"), balance="random").config
    with pytest.raises(AttributeError):
        config.retries = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    "balance, expected",
    [("leastconn", LeastConn()), ("random(3)", Random(3)), (RoundRobin(start=4), RoundRobin(start=4))],
)
def test_balance_is_a_word_or_what_it_stands_for(balance: str | RoundRobin, expected: object):
    assert Backend("web", servers("s1"), balance=balance).config.balance == expected


def test_its_defaults_are_those_of_the_documentation():
    config = Backend("web", servers("s1")).config
    assert (config.balance, config.persist, config.retries, config.unavailable) == (RoundRobin(), (), 3, "redispatch")


# -- looking at it


def test_its_repr_is_its_name_and_its_servers():
    backend = Backend("app", servers("s1", "s2", "s3"))
    backend["s1"].in_flight.extend([None] * 3)
    for server in backend.servers[:2]:
        server.counters.cell[Total.HRSP_2XX] += 100 - len(server.in_flight)
    backend["s2"].state = AdminState.DRAIN
    backend["s3"].health = Health.DOWN
    assert repr(backend) == "<Backend app: s1 UP 3/100, s2 DRAIN 0/100, s3 DOWN 0/0>"


def test_a_server_is_found_by_its_name():
    web = servers("s1", "s2")
    backend = Backend("web", web)
    assert [backend["s1"], backend["s2"]] == web
    assert backend.servers == tuple(web)


@pytest.mark.parametrize("name", ["s3", "S1", "", "s1 "])
def test_a_name_that_no_server_has_is_a_key_error_that_says_so(name: str):
    with pytest.raises(KeyError, match=f"backend web has no server {name}"):
        Backend("web", servers("s1", "s2"))[name]


# -- who is chosen


@pytest.fixture
def sorry() -> Backend:
    """Two servers, and two backups in order of declaration."""
    return Backend(
        "web",
        [Server("b1", app, backup=True), *servers("s1", "s2"), Server("b2", app, backup=True)],
        balance=RoundRobin(start=0),
    )


def chosen(backend: Backend, ask: Ask, tried: Container[Server] = ()) -> str | None:
    server = backend.placement.choose(backend.snapshot, ask(), tried)
    return server.name if server is not None else None


@pytest.mark.parametrize(
    "change, tried, expected",
    [
        pytest.param({}, "", ["s1", "s2", "s1"], id="balance chooses"),
        pytest.param({}, "s1", ["s2", "s2"], id="whom nobody has tried"),
        pytest.param({}, "s1 s2", ["b1", "b1"], id="all were tried: the first backup"),
        pytest.param({}, "s1 s2 b1", ["b2", "b2"], id="and the first backup: the second"),
        pytest.param({}, "s1 s2 b1 b2", [None, None], id="everybody was tried"),
        pytest.param({"s1": "down"}, "", ["s2", "s2"], id="one is down"),
        pytest.param({"s1": "down", "s2": "maint"}, "", ["b1", "b1"], id="all are down: the first backup only"),
        pytest.param({"s1": "down", "s2": "maint", "b1": "down"}, "", ["b2"], id="and the first backup: the second"),
        pytest.param({"s1": "down", "s2": "drain"}, "", ["b1"], id="a backup rather than one that drains"),
        pytest.param(
            {"s1": "down", "s2": "drain", "b1": "down", "b2": "maint"},
            "",
            ["s2"],
            id="one that drains rather than nobody",
        ),
        pytest.param(
            {"s1": "down", "s2": "weight 0", "b1": "down", "b2": "maint"},
            "",
            ["s2"],
            id="one of weight 0 rather than nobody",
        ),
        pytest.param(
            {"s1": "down", "s2": "down", "b1": "drain", "b2": "down"},
            "",
            ["b1"],
            id="a backup that drains rather than nobody",
        ),
        pytest.param(
            {"s1": "drain", "s2": "drain", "b1": "down", "b2": "down"},
            "s1",
            ["s2"],
            id="of those that drain one not tried",
        ),
        pytest.param({"s1": "down", "s2": "maint", "b1": "down", "b2": "maint"}, "", [None], id="nobody is left"),
    ],
)
def test_a_request_that_belongs_nowhere_goes_to(
    sorry: Backend, ask: Ask, change: dict[str, str], tried: str, expected: list[str | None]
):
    for name, what in change.items():
        if what == "down":
            sorry[name].health = Health.DOWN
        elif what == "weight 0":
            sorry[name].weight = 0
        else:
            sorry[name].state = AdminState(what)
    assert [chosen(sorry, ask, [sorry[name] for name in tried.split()]) for _ in expected] == expected


def test_of_those_that_drain_the_one_with_the_fewest_requests_serves(ask: Ask):
    backend = Backend("web", servers("s1", "s2"))
    for server in backend.servers:
        server.state = AdminState.DRAIN
    backend["s1"].in_flight.append(None)
    assert chosen(backend, ask) == "s2"


def test_clients_leave_the_backups_when_a_server_is_back(sorry: Backend, ask: Ask):
    for name in ("s1", "s2"):
        sorry[name].health = Health.DOWN
    assert chosen(sorry, ask) == "b1"
    sorry["s2"].health = Health.UP
    assert chosen(sorry, ask) == "s2"


def test_a_backend_of_backups_alone_serves(ask: Ask):
    backend = Backend("web", [Server("b1", app, backup=True), Server("b2", app, backup=True)], balance="leastconn")
    assert chosen(backend, ask) == "b1"
    backend.placement.acquire(backend["b1"])
    backend.placement.release(backend["b1"])


# -- what is kept beside it


class Counted(BackendComponent):
    made = 0

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        type(self).made += 1


def test_of_each_kind_one_is_kept_and_made_when_first_asked_for():
    class Apps(Counted): ...

    class Checks(Counted): ...

    one, other = Backend("web", servers("s1")), Backend("web", servers("s1"))
    assert Apps.made == 0
    apps = one.component(Apps)
    assert one.component(Apps) is apps
    assert apps.backend is one
    assert other.component(Apps) is not apps
    assert isinstance(one.component(Checks), Checks)
    assert (Apps.made, Checks.made) == (2, 1)


def test_of_many_threads_that_ask_at_once_all_get_the_same():
    class Apps(Counted): ...

    backend = Backend("web", servers("s1"))
    together = threading.Barrier(16)
    got: list[Apps] = []

    def run() -> None:
        together.wait()
        got.append(backend.component(Apps))

    threads = [threading.Thread(target=run) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 16
    assert len(set(got)) == Apps.made == 1


def test_a_backend_that_nobody_holds_is_let_go():
    import gc
    import weakref

    backend = Backend("web", servers("s1"), persist=Cookie("SRV", signed=False), balance="leastconn")
    gone = weakref.ref(backend)
    del backend
    gc.collect()
    assert gone() is None


# -- places where only so many requests may be at once


def full(
    *names: str, maxqueue: int = 0, others: Sequence[Server] = (), taken: Sequence[str] | None = None, **options: Any
) -> Backend:
    """Servers with one place each, all of which, or those of `taken`, are taken."""
    made = [Server(name, app, maxconn=1, maxqueue=maxqueue) for name in names]
    backend = Backend("web", [*made, *others], **{"balance": RoundRobin(start=0)} | options)
    for name in names if taken is None else taken:
        backend.placement.acquire(backend[name])
    return backend


class Waiter:
    """Who has a ticket, and is told when there is news about it."""

    def __init__(self, backend: Backend, ticket: Server | Ticket | None, alive: bool = True) -> None:
        assert isinstance(ticket, Ticket), f"{ticket} is no ticket"
        self.backend, self.ticket, self.alive, self.woken = backend, ticket, alive, 0
        self.lies_down = backend.placement.subscribe(ticket, self._wake)

    def _wake(self) -> bool:
        assert not self.backend.placement.lock.locked(), "woken while nobody can do anything"
        self.woken += 1
        return self.alive

    @property
    def server(self) -> str | None:
        """Who it has a place at, once it has looked up."""
        server = self.backend.placement.redeem(self.ticket)
        return server.name if server is not None else None


@pytest.fixture
def wait(ask: Ask) -> Callable[..., Waiter]:
    def wait(backend: Backend, bound: str | None = None, tried: Sequence[str] = (), alive: bool = True) -> Waiter:
        placed = backend.placement.acquire_or_enqueue(
            backend.snapshot, ask(), backend[bound] if bound else None, tuple(backend[name] for name in tried)
        )
        return Waiter(backend, placed, alive)

    return wait


def in_flight(backend: Backend) -> list[int]:
    return [len(server.in_flight) for server in backend.servers]


@pytest.mark.parametrize("bound", [None, "s2"])
def test_a_free_place_is_taken_at_once(ask: Ask, bound: str | None):
    backend = full("s1", "s2", taken=["s1"])
    assert (
        backend.placement.acquire_or_enqueue(backend.snapshot, ask(), backend[bound] if bound else None, ())
        is backend["s2"]
    )
    assert in_flight(backend) == [1, 1]


def test_who_belongs_to_a_full_server_waits_there_and_nowhere_else(wait: Wait):
    backend = full("s1", "s2", taken=["s1"])
    waiter = wait(backend, "s1")
    assert waiter.lies_down and waiter.woken == 0 and waiter.ticket.server is backend["s1"]
    backend.placement.release(backend["s1"])
    assert waiter.woken == 1
    assert waiter.server == "s1"
    assert in_flight(backend) == [1, 0]


def test_who_belongs_nowhere_waits_for_whichever_has_room_first(wait: Wait):
    backend = full("s1", "s2")
    first, second = wait(backend), wait(backend)
    backend.placement.release(backend["s2"])
    backend.placement.release(backend["s1"])
    assert (first.server, second.server) == ("s2", "s1")
    assert in_flight(backend) == [1, 1]


def test_a_place_goes_to_who_has_waited_longest(wait: Wait):
    backend = full("s1", "s2")
    waiters = [wait(backend, bound) for bound in (None, "s1", None, "s1")]
    for _ in waiters:
        backend.placement.release(backend["s1"])
        assert in_flight(backend) == [1, 1]
    assert [waiter.woken for waiter in waiters] == [1, 1, 1, 1]
    backend.placement.release(backend["s1"])
    assert [waiter.server for waiter in waiters] == ["s1"] * 4
    assert in_flight(backend) == [0, 1]


def test_who_has_tried_a_server_is_not_granted_it(wait: Wait):
    backend = full("s1", "s2")
    waiter = wait(backend, tried=["s1"])
    backend.placement.release(backend["s1"])
    assert (waiter.woken, in_flight(backend)) == (0, [0, 1])
    backend.placement.release(backend["s2"])
    assert waiter.server == "s2"


def test_who_has_tried_all_servers_does_not_wait_for_any(ask: Ask):
    backend = full("s1", "s2")
    assert backend.placement.acquire_or_enqueue(backend.snapshot, ask(), None, backend.servers) is None


def test_news_that_come_before_a_waiter_lies_down_are_seen_before(ask: Ask):
    backend = full("s1", "s2")
    granted, dismissed = (
        backend.placement.acquire_or_enqueue(backend.snapshot, ask(), None, ()),
        backend.placement.acquire_or_enqueue(backend.snapshot, ask(), backend["s2"], ()),
    )
    backend.placement.release(backend["s1"])
    backend["s2"].state = AdminState.MAINT
    assert Waiter(backend, granted).lies_down is False
    assert Waiter(backend, dismissed).lies_down is False
    assert (Waiter(backend, granted).server, Waiter(backend, dismissed).server) == ("s1", None)


def test_a_place_that_was_granted_in_time_is_kept_however_late_the_waiter_looks_up(wait: Wait):
    backend = full("s1")
    late, in_vain = wait(backend), wait(backend)
    backend.placement.release(backend["s1"])
    assert late.server == "s1"
    assert in_vain.server is None, "whose time is up"
    backend.placement.release(backend["s1"])
    assert (in_vain.woken, in_flight(backend)) == (0, [0]), "it waits no longer"


def test_a_waiter_that_nobody_can_wake_gives_way_to_the_next(wait: Wait):
    backend = full("s1")
    gone, gone_too, there = wait(backend, alive=False), wait(backend, alive=False), wait(backend)
    backend.placement.release(backend["s1"])
    assert (gone.woken, gone_too.woken, there.woken) == (1, 1, 1)
    assert there.server == "s1"
    assert in_flight(backend) == [1]
    backend.placement.release(backend["s1"])
    assert in_flight(backend) == [0]


def test_the_place_of_one_that_nobody_can_wake_is_free_if_nobody_else_waits(wait: Wait):
    backend = full("s1")
    wait(backend, alive=False)
    backend.placement.release(backend["s1"])
    assert in_flight(backend) == [0]


def test_a_thousand_that_nobody_can_wake_are_no_matter_either(wait: Wait):
    backend = full("s1")
    gone = [wait(backend, alive=False) for _ in range(3000)]
    there = wait(backend)
    backend.placement.release(backend["s1"])
    assert all(waiter.woken == 1 for waiter in gone)
    assert there.server == "s1"


# -- queues that are full


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
        pytest.param(Hash(Always("a")), id="a hash that means the other"),
        pytest.param(Hash(Always("b")), id="a hash that means the same"),
    ],
)
def test_where_enough_wait_already_who_comes_goes_elsewhere_or_is_sent_away(
    ask: Ask, wait: Wait, balance: str | Hash, redispatch: bool | int, unavailable: str, goes: str | None
):
    backend = full(
        "s1", "s2", taken=["s1"], maxqueue=2, redispatch=redispatch, unavailable=unavailable, balance=balance
    )
    for _ in range(2):
        assert wait(backend, "s1").ticket.server is backend["s1"]
    placed = backend.placement.acquire_or_enqueue(backend.snapshot, ask(), backend["s1"], ())
    assert placed is (backend[goes] if goes else None)


def test_where_the_others_are_full_too_it_waits_for_whichever_has_room_first(wait: Wait):
    backend = full("s1", "s2", maxqueue=1)
    bound, overflowing = wait(backend, "s1"), wait(backend, "s1")
    assert overflowing.ticket.server is None
    backend.placement.release(backend["s2"])
    assert overflowing.server == "s2"
    backend.placement.release(backend["s1"])
    assert bound.server == "s1"


def test_no_more_wait_for_anyone_than_may_wait_for_all(ask: Ask, wait: Wait):
    backend = full("s1", "s2", maxqueue=2)
    for _ in range(4):
        wait(backend)
    assert backend.placement.acquire_or_enqueue(backend.snapshot, ask(), None, ()) is None
    backend.placement.release(backend["s1"])
    wait(backend)


def test_any_number_waits_where_one_of_them_has_no_limit(wait: Wait):
    backend = full("s1", maxqueue=1, others=[Server("s2", app, maxconn=1)])
    backend.placement.acquire(backend["s2"])
    assert all(wait(backend).lies_down for _ in range(50))


def test_nobody_waits_for_a_server_without_a_limit(ask: Ask):
    backend = full("s1", others=servers("s2"))
    assert [backend.placement.acquire_or_enqueue(backend.snapshot, ask(), None, ()) for _ in range(3)] == [
        backend["s2"]
    ] * 3
    assert [backend.placement.acquire_or_enqueue(backend.snapshot, ask(), backend["s2"], ()) for _ in range(3)] == [
        backend["s2"]
    ] * 3


@pytest.mark.parametrize(
    "affinity, placed",
    [("always", ["s1", "s1", "s1"]), ("maxqueue", ["s1", "s1", "s2"]), ("maxconn", ["s2", None, None])],
)
def test_how_far_a_hash_insists_on_a_server_that_is_full(ask: Ask, affinity: Any, placed: list[str | None]):
    """Who is waited for, or has taken the request: `s1` has room for two in its queue, `s2` for one request."""
    balance = Hash(Always("a"), hash_preserve_affinity=affinity)
    made = [Server("s1", app, maxconn=1, maxqueue=2 if affinity == "maxqueue" else 0), Server("s2", app, maxconn=1)]
    backend = Backend("web", made, balance=balance)
    first = backend.placement.acquire_or_enqueue(backend.snapshot, ask(), None, ())
    if first is backend["s2"]:  # whom the key means is the hash's business
        made = [Server("s2", app, maxconn=1), Server("s1", app, maxconn=1, maxqueue=made[0].config.maxqueue)]
        backend = Backend("web", made, balance=balance)
        first = backend.placement.acquire_or_enqueue(backend.snapshot, ask(), None, ())
    assert first is backend["s1"]
    went = []
    for _ in placed:
        there = backend.placement.acquire_or_enqueue(backend.snapshot, ask(), None, ())
        server = there.server if isinstance(there, Ticket) else there
        went.append(server.name if server is not None else None)
    assert went == placed


# -- servers that change while somebody waits


def put(server: Server, state: str) -> None:
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
def test_who_waits_for_a_server_that_goes_out_is_sent_on_as_in_haproxy(
    wait: Wait, state: str, redispatch: bool | int, sent_on: bool
):
    backend = full("s1", "s2", redispatch=redispatch)
    waiter = wait(backend, "s1")
    put(backend["s1"], state)
    assert waiter.woken == (1 if sent_on else 0)
    assert waiter.ticket.has_left is sent_on
    backend.placement.release(backend["s1"])
    assert waiter.ticket.granted is (None if state in ("down", "maint") else backend["s1"])


def test_who_waits_for_a_server_that_comes_back_has_waited_long_enough(wait: Wait):
    backend = full("s1", redispatch=False)
    put(backend["s1"], "down")
    waiter = wait(backend, "s1")
    backend.placement.release(backend["s1"])
    assert waiter.woken == 0
    put(backend["s1"], "up")
    assert (waiter.woken, waiter.server) == (1, "s1")


@pytest.mark.parametrize("state", ["down", "maint", "drain", "weight 0"])
def test_who_waits_for_anyone_waits_on_while_there_is_somebody(wait: Wait, state: str):
    backend = full("s1", "s2")
    waiter = wait(backend)
    put(backend["s1"], state)
    assert waiter.woken == 0
    backend.placement.release(backend["s1"])
    assert waiter.woken == 0, "it takes no new clients"
    backend.placement.release(backend["s2"])
    assert waiter.server == "s2"


@pytest.mark.parametrize("state", ["down", "maint"])
def test_who_waits_for_anyone_is_sent_on_when_nobody_is_left(wait: Wait, state: str):
    backend = full("s1", "s2")
    waiter = wait(backend)
    put(backend["s1"], state)
    put(backend["s2"], state)
    assert (waiter.woken, waiter.server) == (1, None)


def test_who_waits_for_anyone_is_sent_on_when_nobody_is_left_that_it_has_not_tried(wait: Wait):
    backend = full("s1", "s2")
    tired, fresh = wait(backend, tried=["s2"]), wait(backend)
    put(backend["s1"], "down")
    assert (tired.woken, fresh.woken) == (1, 0)


def test_who_waits_for_anyone_is_sent_on_when_only_those_are_left_that_it_does_not_wait_for(ask: Ask, wait: Wait):
    """A draining server is better than none for who comes now, and so it is for who came before."""
    backend = full("s1", others=servers("s2"))
    put(backend["s2"], "drain")
    waiter = wait(backend)
    put(backend["s1"], "maint")
    assert (waiter.woken, waiter.server) == (1, None)
    assert backend.placement.acquire_or_enqueue(backend.snapshot, ask(), None, ()) is backend["s2"]


@pytest.mark.parametrize("state", ["up", "ready"])
def test_a_server_that_is_there_again_takes_as_many_of_those_who_wait_as_it_may(wait: Wait, state: str):
    backend = full("s1", others=[Server("s2", app, maxconn=2)])
    put(backend["s2"], "down" if state == "up" else "maint")
    waiters = [wait(backend) for _ in range(3)]
    put(backend["s2"], state)
    assert [waiter.woken for waiter in waiters] == [1, 1, 0]
    assert in_flight(backend) == [1, 2]


def test_a_server_that_drains_still_takes_those_who_wait_for_it(wait: Wait):
    backend = full("s1", "s2")
    own, anyone = wait(backend, "s1"), wait(backend)
    put(backend["s1"], "drain")
    backend.placement.release(backend["s1"])
    assert (own.server, anyone.woken) == ("s1", 0)


# -- backups, and those that drain: they are for when nobody else is there, not for when the others are busy


def test_a_backup_does_not_help_out_while_the_others_are_only_full(wait: Wait):
    backend = full("s1", others=[Server("sorry", app, backup=True)])
    waiter = wait(backend)
    assert in_flight(backend) == [1, 0]
    backend.placement.release(backend["s1"])
    assert waiter.server == "s1"


def test_a_backup_with_room_takes_nobody_who_waits_for_the_others(ask: Ask, wait: Wait):
    backend = full("s1", others=[Server("sorry", app, backup=True, maxconn=1)])
    assert backend.placement.acquire_or_enqueue(backend.snapshot, ask(), backend["sorry"], ()) is backend["sorry"]
    waiter = wait(backend)
    backend.placement.release(backend["sorry"])
    assert (waiter.woken, in_flight(backend)) == (0, [1, 0])


def test_a_backup_takes_those_who_wait_when_the_others_go_out(ask: Ask, wait: Wait):
    backend = full("s1", others=[Server("sorry", app, backup=True)])
    waiter = wait(backend)
    put(backend["s1"], "down")
    assert (waiter.woken, waiter.server) == (1, None), "it is to choose anew"
    assert backend.placement.acquire_or_enqueue(backend.snapshot, ask(), None, ()) is backend["sorry"]


def test_a_backup_may_be_full_as_well_and_then_is_waited_for(wait: Wait):
    backend = full("s1", others=[Server("sorry", app, backup=True, maxconn=1)])
    put(backend["s1"], "down")
    backend.placement.acquire(backend["sorry"])
    waiter = wait(backend)
    backend.placement.release(backend["sorry"])
    assert waiter.server == "sorry"


def test_a_server_that_drains_does_not_help_out_while_the_others_are_only_full(wait: Wait):
    backend = full("s1", others=servers("s2"))
    put(backend["s2"], "drain")
    waiter = wait(backend)
    assert in_flight(backend) == [1, 0]
    backend.placement.release(backend["s1"])
    assert waiter.server == "s1"


# -- a forked child


class InChild(Protocol):
    def __call__(self, work: Callable[[], object]) -> str: ...


@pytest.fixture
def in_child() -> InChild:
    """What `work` says in a forked child, as text; a child that hangs is killed and fails by name."""
    if not hasattr(os, "fork"):
        pytest.skip("nobody forks here")

    def run(work: Callable[[], object]) -> str:
        said, says = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # from 3.12 on, of a fork beside threads: that is the point
            pid = os.fork()
        if pid == 0:
            try:
                os.write(says, str(work()).encode())
            except BaseException as error:
                os.write(says, repr(error).encode())
            finally:
                os._exit(0)
        os.close(says)
        try:
            if not select.select([said], [], [], PATIENCE)[0]:
                os.kill(pid, 9)
                raise AssertionError("the child hangs")
            return os.read(said, 65536).decode()
        finally:
            os.close(said)
            os.waitpid(pid, 0)

    return run


@pytest.fixture(params=["roundrobin", "leastconn", "random"])
def forking(request: pytest.FixtureRequest) -> Backend:
    persist = Cookie("SRV", secret="a secret of some length")
    return Backend("web", servers("s1", "s2", "s3"), balance=request.param, persist=persist, rng=random.Random(1))


def test_a_child_chooses_counts_and_changes(forking: Backend, ask: Ask, in_child: InChild):
    def work() -> str:
        for _ in range(60):
            server = forking.placement.choose(forking.snapshot, ask(), ())
            assert server is not None
            forking.placement.acquire(server)
            server.counters.cell[Total.LBTOT] += 1
        forking["s1"].state = AdminState.MAINT
        assert all(forking.placement.choose(forking.snapshot, ask(), ()) is not forking["s1"] for _ in range(20))
        return " ".join("busy" if server.counters[Total.LBTOT] > 5 else "idle" for server in forking.servers)

    assert in_child(work) == "busy busy busy"
    assert forking["s1"].state is AdminState.READY, "the parent's is another"
    assert [server.counters[Total.LBTOT] for server in forking.servers] == [0, 0, 0]


class Pausing:
    """Servers to avoid, where the look at one of them stops until somebody lets it go on."""

    def __init__(self, avoided: Server, stop_at: int) -> None:
        self.avoided = avoided
        self.stop_at = stop_at
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __contains__(self, server: object) -> bool:
        self.stop_at -= 1
        if self.stop_at == 0:
            self.reached.set()
            assert self.go_on.wait(PATIENCE)
        return server is self.avoided


@pytest.mark.parametrize("stop_at", [1, 2])
def test_a_child_forked_while_a_thread_holds_the_lock_neither_hangs_nor_forgets_a_server(
    forking: Backend, ask: Ask, in_child: InChild, stop_at: int
):
    """The thread, in the midst of a choice, is not in the child; what it was about to put back must be."""
    first = forking.placement.choose(forking.snapshot, ask(), ())
    assert first is not None
    avoided = next(server for server in forking.servers if server is not first)
    pausing = Pausing(avoided, stop_at)
    thread = threading.Thread(target=forking.placement.choose, args=(forking.snapshot, ask(), pausing))
    thread.start()
    try:
        assert pausing.reached.wait(PATIENCE)

        def work() -> str:
            return " ".join(
                sorted(
                    {
                        server.name
                        for _ in range(90)
                        if (server := forking.placement.choose(forking.snapshot, ask(), ()))
                    }
                )
            )

        assert in_child(work) == "s1 s2 s3"
    finally:
        pausing.go_on.set()
        thread.join()


def test_a_child_forked_while_a_thread_begins_to_count_does_not_hang(
    in_child: InChild, monkeypatch: pytest.MonkeyPatch
):
    """A thread that counts for the first time holds the lock of the counters while it says who it is."""
    backend = Backend("web", servers("s1"))
    held, go_on = threading.Event(), threading.Event()
    current_thread = threading.current_thread

    def begin() -> None:
        def stopped() -> threading.Thread:
            if threading.get_ident() == me:
                held.set()
                assert go_on.wait(PATIENCE)
            return current_thread()

        me = threading.get_ident()
        with monkeypatch.context() as patched:
            patched.setattr(threading, "current_thread", stopped)
            backend["s1"].counters.cell[Total.ECON] += 1

    thread = threading.Thread(target=begin)
    thread.start()
    try:
        assert held.wait(PATIENCE)
        assert in_child(lambda: repr(backend)) == "<Backend web: s1 UP 0/0>"
    finally:
        go_on.set()
        thread.join()
    assert backend["s1"].counters[Total.ECON] == 1


@pytest.mark.parametrize("begun", [False, True], ids=["before the first choice", "after it"])
def test_a_child_has_nothing_in_flight_and_its_leastconn_knows_it(ask: Ask, in_child: InChild, begun: bool):
    backend = Backend("web", servers("s1", "s2"), balance="leastconn")
    if begun:
        chosen(backend, ask)
    for _ in range(5):
        backend.placement.acquire(backend["s1"])

    def work() -> str:
        assert [len(server.in_flight) for server in backend.servers] == [0, 0]
        shares = Counter(chosen(backend, ask) for _ in range(20))
        return f"{shares['s1']} {shares['s2']}"

    assert in_child(work) == "10 10"
    assert len(backend["s1"].in_flight) == 5, "the parent's are still there"
    assert {chosen(backend, ask) for _ in range(20)} == {"s2"}


def test_a_child_has_nobody_waiting(wait: Wait, ask: Ask, in_child: InChild):
    backend = full("s1", "s2")
    parents = [wait(backend, "s1"), wait(backend)]

    def work() -> str:
        assert backend.placement.acquire_or_enqueue(backend.snapshot, ask(), backend["s1"], ()) is backend["s1"]
        assert backend.placement.acquire_or_enqueue(backend.snapshot, ask(), None, ()) is backend["s2"]
        waiter = wait(backend, "s1")
        backend.placement.release(backend["s1"])
        return f"{waiter.server} {in_flight(backend)} {[waiter.woken for waiter in parents]}"

    assert in_child(work) == "s1 [1, 1] [0, 0]"
    backend.placement.release(backend["s1"])
    assert parents[0].server == "s1", "the parent's wait on"


def test_children_of_one_parent_do_not_all_begin_with_the_same_server(ask: Ask, in_child: InChild):
    """Each draws for itself: nothing is drawn before the first choice, and chance is sown anew."""
    backend = Backend("web", [Server(f"s{number}", app) for number in range(50)])
    assert len({in_child(lambda: chosen(backend, ask)) for _ in range(12)}) > 1


def test_what_is_kept_beside_it_is_told_of_the_fork(in_child: InChild):
    class Apps(Counted):
        told = 0

        def after_fork(self) -> None:
            self.told += 1

    backend = Backend("web", servers("s1"))
    apps = backend.component(Apps)
    assert in_child(lambda: apps.told) == "1"
    assert apps.told == 0
