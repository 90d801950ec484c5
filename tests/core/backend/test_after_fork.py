"""A backend in a forked child: locks are free, and no request of the parent is in flight or waits."""

import os
import random
import select
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Protocol

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.counters import Total
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState
from tests.core.backend.backends import CountedComponent, Wait, app, choose_name, full_backend, in_flight, servers
from tests.core.fakes import FakeRequest

PATIENCE = 300.0  # seconds that a forked child has for what takes it milliseconds


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


def test_child_chooses_counts_and_changes(forking: Backend, in_child: InChild):
    def work() -> str:
        for _ in range(60):
            server = forking.placement.choose(forking.snapshot, FakeRequest(), ())
            assert server is not None
            forking.placement.acquire(server)
            server.counters.cell[Total.LBTOT] += 1
        forking["s1"].state = AdminState.MAINT
        assert all(
            forking.placement.choose(forking.snapshot, FakeRequest(), ()) is not forking["s1"] for _ in range(20)
        )
        return " ".join("busy" if server.counters[Total.LBTOT] > 5 else "idle" for server in forking.servers)

    assert in_child(work) == "busy busy busy"
    assert forking["s1"].state is AdminState.READY, "the parent's is another"
    assert [server.counters[Total.LBTOT] for server in forking.servers] == [0, 0, 0]


class PausingContainer:
    """Servers to avoid. The look-up of one of them pauses until the test goes on."""

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
def test_child_forked_while_a_thread_holds_the_lock_does_not_hang_and_has_all_servers(
    forking: Backend, in_child: InChild, stop_at: int
):
    """The thread, in the midst of a choice, is not in the child; what it was about to put back must be."""
    first = forking.placement.choose(forking.snapshot, FakeRequest(), ())
    assert first is not None
    avoided = next(server for server in forking.servers if server is not first)
    pausing = PausingContainer(avoided, stop_at)
    thread = threading.Thread(target=forking.placement.choose, args=(forking.snapshot, FakeRequest(), pausing))
    thread.start()
    try:
        assert pausing.reached.wait(PATIENCE)

        def work() -> str:
            return " ".join(
                sorted(
                    {
                        server.name
                        for _ in range(90)
                        if (server := forking.placement.choose(forking.snapshot, FakeRequest(), ()))
                    }
                )
            )

        assert in_child(work) == "s1 s2 s3"
    finally:
        pausing.go_on.set()
        thread.join()


def test_child_forked_while_a_thread_adds_a_counter_does_not_hang(in_child: InChild, monkeypatch: pytest.MonkeyPatch):
    """A thread that adds its cell holds the lock of the counters while it finds out its name."""
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
def test_child_has_no_requests_in_flight_and_its_leastconn_counts_none(in_child: InChild, begun: bool):
    backend = Backend("web", servers("s1", "s2"), balance="leastconn")
    if begun:
        choose_name(backend)
    for _ in range(5):
        backend.placement.acquire(backend["s1"])

    def work() -> str:
        assert [len(server.in_flight) for server in backend.servers] == [0, 0]
        shares = Counter(choose_name(backend) for _ in range(20))
        return f"{shares['s1']} {shares['s2']}"

    assert in_child(work) == "10 10"
    assert len(backend["s1"].in_flight) == 5, "the parent's are still there"
    assert {choose_name(backend) for _ in range(20)} == {"s2"}


def test_child_has_no_waiting_requests(wait: Wait, in_child: InChild):
    backend = full_backend("s1", "s2")
    parents = [wait(backend, "s1"), wait(backend)]

    def work() -> str:
        assert backend.placement.acquire_or_enqueue(backend.snapshot, FakeRequest(), backend["s1"], ()) is backend["s1"]
        assert backend.placement.acquire_or_enqueue(backend.snapshot, FakeRequest(), None, ()) is backend["s2"]
        waiter = wait(backend, "s1")
        backend.placement.release(backend["s1"])
        return f"{waiter.server} {in_flight(backend)} {[waiter.woken for waiter in parents]}"

    assert in_child(work) == "s1 [1, 1] [0, 0]"
    backend.placement.release(backend["s1"])
    assert parents[0].server == "s1", "the parent's wait on"


def test_children_start_with_different_servers(in_child: InChild):
    """Each draws for itself: nothing is drawn before the first choice, and chance is sown anew."""
    backend = Backend("web", [Server(f"s{number}", app) for number in range(50)])
    assert len({in_child(lambda: choose_name(backend)) for _ in range(12)}) > 1


def test_components_are_called_after_a_fork(in_child: InChild):
    class Apps(CountedComponent):
        called = 0

        def after_fork(self) -> None:
            self.called += 1

    backend = Backend("web", servers("s1"))
    apps = backend.component(Apps)
    assert in_child(lambda: apps.called) == "1"
    assert apps.called == 0
