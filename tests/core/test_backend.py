"""Backends: what cannot work is told at once; who is chosen when balance has nobody; what a fork brings."""

import os
import random
import select
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Container
from typing import Protocol

import pytest

from sticky_core.backend import Backend, BackendConfig
from sticky_core.balance import LeastConn, Random, RoundRobin
from sticky_core.counters import Total
from sticky_core.errors import ConfigError
from sticky_core.persistence import Cookie
from sticky_core.request import Request
from sticky_core.server import AdminState, Health, Server

Ask = Callable[..., Request]

PATIENCE = 30.0  # seconds that a forked child has for what takes it milliseconds


def app(environ: object, start_response: object) -> list[bytes]:
    return []


def servers(*names: str) -> list[Server]:
    return [Server(name, app) for name in names]


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
            unavailable="panic",  # type: ignore[arg-type] # what a caller without types may write
        )
    told = str(refused.value)
    for part in ("a name is made of", "servers called s1", "retries -1", "unavailable 'panic'"):
        assert part in told
    assert "balance 'fastest'" in told
    assert "cookie SRV: server s1" in told
    assert "cookie OTHER: server s1" in told
    assert len(refused.value.problems) == 7


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
    server = backend.choose(ask(), tried)
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
    backend.take(backend["b1"])
    backend.left(backend["b1"])


# -- what is kept beside it


class Kept:
    made = 0

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        type(self).made += 1

    def forked(self) -> None: ...


def test_of_each_kind_one_is_kept_and_made_when_first_asked_for():
    class Apps(Kept): ...

    class Checks(Kept): ...

    one, other = Backend("web", servers("s1")), Backend("web", servers("s1"))
    assert Apps.made == 0
    apps = one.keep(Apps)
    assert one.keep(Apps) is apps
    assert apps.backend is one
    assert other.keep(Apps) is not apps
    assert isinstance(one.keep(Checks), Checks)
    assert (Apps.made, Checks.made) == (2, 1)


def test_of_many_threads_that_ask_at_once_all_get_the_same():
    class Apps(Kept): ...

    backend = Backend("web", servers("s1"))
    together = threading.Barrier(16)
    got: list[Apps] = []

    def run() -> None:
        together.wait()
        got.append(backend.keep(Apps))

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
            server = forking.choose(ask(), ())
            assert server is not None
            forking.take(server)
            server.counters.cell[Total.LBTOT] += 1
        forking["s1"].state = AdminState.MAINT
        assert all(forking.choose(ask(), ()) is not forking["s1"] for _ in range(20))
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
    first = forking.choose(ask(), ())
    assert first is not None
    avoided = next(server for server in forking.servers if server is not first)
    pausing = Pausing(avoided, stop_at)
    thread = threading.Thread(target=forking.choose, args=(ask(), pausing))
    thread.start()
    try:
        assert pausing.reached.wait(PATIENCE)

        def work() -> str:
            return " ".join(sorted({server.name for _ in range(90) if (server := forking.choose(ask(), ()))}))

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
        backend.take(backend["s1"])

    def work() -> str:
        assert [len(server.in_flight) for server in backend.servers] == [0, 0]
        shares = Counter(chosen(backend, ask) for _ in range(20))
        return f"{shares['s1']} {shares['s2']}"

    assert in_child(work) == "10 10"
    assert len(backend["s1"].in_flight) == 5, "the parent's are still there"
    assert {chosen(backend, ask) for _ in range(20)} == {"s2"}


def test_children_of_one_parent_do_not_all_begin_with_the_same_server(ask: Ask, in_child: InChild):
    """Each draws for itself: nothing is drawn before the first choice, and chance is sown anew."""
    backend = Backend("web", [Server(f"s{number}", app) for number in range(50)])
    assert len({in_child(lambda: chosen(backend, ask)) for _ in range(12)}) > 1


def test_what_is_kept_beside_it_is_told_of_the_fork(in_child: InChild):
    class Apps(Kept):
        told = 0

        def forked(self) -> None:
            self.told += 1

    backend = Backend("web", servers("s1"))
    apps = backend.keep(Apps)
    assert in_child(lambda: apps.told) == "1"
    assert apps.told == 0
