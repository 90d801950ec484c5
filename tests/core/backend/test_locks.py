"""Callbacks and the log are called while no lock is held, so a callback may change servers, or wait for a thread that
does.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.backend.events import StateChange
from sticky_core.clock import ManualClock
from sticky_core.dns.resolvers import Address, Answer, Status, answer_with
from sticky_core.errors import Failure
from sticky_core.health.agent import AgentCheck, AgentReply
from sticky_core.health.check import Check, CheckResult, CheckStatus
from sticky_core.runtime.discovery import Discovery
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health

#: after so many seconds, it is a deadlock
STUCK = 20.0
FAILED = CheckResult(CheckStatus.L4CON)


class OtherThread:
    """Work done in another thread. `ended`: whether it ended before it had to be taken for a deadlock."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.raised: Exception | None = None
        self._work = work
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        thread.join(STUCK)
        self.ended = not thread.is_alive()

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:
            self.raised = error


class BackendUnderTest:
    """A backend with a server of each kind, and every change that can be made to it."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        servers = [
            Server("s1", "http://10.0.0.1", check=Check(fall=1), agent_check=AgentCheck(9000), max_fails=1),
            Server("s2", "http://10.0.0.2", slowstart=10),
            *Server.template("web", 1, "myservice.local:80"),
        ]
        self.backend = Backend("web", servers, clock=self.clock, on_empty="panic", panic_threshold=0.9)
        self.other = Backend("other", [Server("o1", "http://10.0.0.3", track=self.backend["web1"])], clock=self.clock)
        self.discovery = self.backend.component(Discovery)

    def everything(self) -> None:
        """Acquire every lock once."""
        for backend in (self.backend, self.other):
            backend.monitor.run_due_timers()
            backend.servers[0].weight = 7 - backend.servers[0].weight
            backend.monitor.schedule_timers()
            backend.component(Discovery).update_names()
            backend.add(Server(f"n{len(backend.servers)}", "http://10.0.0.9"))
            backend.remove(backend.servers[-1].name)

    def resolve(self, *addresses: str) -> None:
        [name] = self.discovery.update_names()
        self.discovery.record_answer(name, answer_with(map(Address, addresses)))

    def lose_address(self) -> None:
        self.resolve("10.0.0.7")
        [name] = self.discovery.update_names()
        for _ in range(4):
            self.clock.advance(1000)
            self.discovery.record_answer(name, Answer(Status.NX))

    def drain(self) -> None:
        self.backend["s1"].drain(deadline=1)
        self.clock.advance(2)
        self.backend.monitor.run_due_timers()


def move_in_place(tested: BackendUnderTest) -> None:
    """Give the server without an address one, by a change."""
    config = tested.backend.config
    web1 = replace(config.servers[2], target="http://10.0.0.8:80")
    tested.backend.apply(replace(config, servers=(*config.servers[:2], web1)))


CHANGES = [
    pytest.param(lambda tested: setattr(tested.backend["s1"], "state", AdminState.MAINT), id="its state is assigned"),
    pytest.param(lambda tested: setattr(tested.backend["s1"], "health", Health.DOWN), id="its health is assigned"),
    pytest.param(lambda tested: tested.backend.monitor.record_check(tested.backend["s1"], FAILED), id="a check fails"),
    pytest.param(
        lambda tested: tested.backend.monitor.on_agent_reply(
            tested.backend["s1"], AgentReply(CheckResult(CheckStatus.L7OK), admin="maint", up=False)
        ),
        id="its agent replies",
    ),
    pytest.param(
        lambda tested: tested.backend.monitor.record_request(tested.backend["s1"], Failure.REFUSED, 0, 0.0),
        id="a request fails",
    ),
    pytest.param(BackendUnderTest.drain, id="time passes"),
    pytest.param(lambda tested: tested.resolve("10.0.0.7"), id="its name resolves"),
    pytest.param(BackendUnderTest.lose_address, id="its name does not resolve any more"),
    pytest.param(lambda tested: tested.backend.add(Server("s3", "http://10.0.0.4")), id="it is added"),
    pytest.param(lambda tested: tested.backend.remove("s2"), id="it is removed"),
    pytest.param(move_in_place, id="it is changed in place"),
]


@pytest.fixture
def tested() -> BackendUnderTest:
    return BackendUnderTest()


@pytest.mark.parametrize("change", CHANGES)
def test_callback_may_wait_for_another_thread_that_changes_everything(
    tested: BackendUnderTest, change: Callable[[BackendUnderTest], object]
):
    others: list[OtherThread] = []

    def received(change: StateChange) -> None:
        if not others:
            others.append(OtherThread(tested.everything))

    tested.backend.events(received)
    thread = OtherThread(lambda: change(tested))
    assert [(other.ended, other.raised) for other in (*others, thread)] == [(True, None), (True, None)]


@pytest.mark.parametrize("change", CHANGES)
def test_callback_may_change_everything(tested: BackendUnderTest, change: Callable[[BackendUnderTest], object]):
    raised: list[Exception] = []
    received: list[StateChange] = []

    def change_everything(change: StateChange) -> None:
        received.append(change)
        if len(received) == 1:
            try:
                tested.everything()
            except Exception as error:
                raised.append(error)

    tested.backend.events(change_everything)
    thread = OtherThread(lambda: change(tested))
    assert (thread.ended, thread.raised, raised) == (True, None, []) and received


def test_tracking_servers_are_notified_without_a_lock(tested: BackendUnderTest):
    others: list[OtherThread] = []
    tested.other.events(lambda change: others.append(OtherThread(tested.everything)) if not others else None)
    thread = OtherThread(lambda: move_in_place(tested))
    assert [(other.ended, other.raised) for other in (*others, thread)] == [(True, None), (True, None)]


class ActingHandler(logging.Handler):
    """A handler of the log that calls a function, in another thread."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self._act: Callable[[], object] | None = act
        self.others: list[OtherThread] = []

    def emit(self, record: logging.LogRecord) -> None:
        act, self._act = self._act, None
        if act is not None:
            self.others.append(OtherThread(act))


@pytest.mark.parametrize("change", CHANGES)
def test_log_is_written_without_a_lock(tested: BackendUnderTest, change: Callable[[BackendUnderTest], object]):
    """A handler may have to wait for a disk, and a request that needs a server must not wait for that."""
    handler = ActingHandler(
        lambda: tested.backend.placement.acquire_or_enqueue(
            tested.backend.snapshot,
            None,  # type: ignore[arg-type]
            tested.backend["web1"],
            (),
        )
    )
    log = logging.getLogger("sticky_sessions")
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        thread = OtherThread(lambda: change(tested))
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    assert [(other.ended, other.raised) for other in (*handler.others, thread)] == [
        (True, None),
        (True, None),
    ]


def test_change_made_by_a_callback_is_announced_after_the_one_that_caused_it(tested: BackendUnderTest):
    received: list[str] = []

    def follow(change: StateChange) -> None:
        received.append(f"{change.server} {change.after}")
        if change.after == "REMOVED" and change.server == "s2":
            tested.backend.add(Server("s4", "http://10.0.0.4"))

    tested.backend.events(follow)
    config = tested.backend.config
    tested.backend.apply(replace(config, servers=(config.servers[0], config.servers[2]), retries=7))
    assert [server.name for server in tested.backend.servers] == ["s1", "web1", "s4"]
    assert tested.backend.retries.retries == 7 and received == ["s2 REMOVED", "s4 UP"]
