"""Who is told of a change may change something himself, or have it done by another thread and wait for that: nobody's
code is called while a lock is held.
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

#: after so many seconds, somebody waits for somebody who waits for him
STUCK = 20.0
FAILED = CheckResult(CheckStatus.L4CON)


class Beside:
    """Something that is done in another thread. `ended`: whether it was within the time that is long enough."""

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


class House:
    """A backend with a server of each kind, and all that can be done to it."""

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
        """Each lock that there is, taken once."""
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

    def lose_the_name(self) -> None:
        self.resolve("10.0.0.7")
        [name] = self.discovery.update_names()
        for _ in range(4):
            self.clock.advance(1000)
            self.discovery.record_answer(name, Answer(Status.NX))

    def drain(self) -> None:
        self.backend["s1"].drain(deadline=1)
        self.clock.advance(2)
        self.backend.monitor.run_due_timers()


def move_in_place(house: House) -> None:
    """A server in maintenance for want of an address gets one by a change."""
    config = house.backend.config
    web1 = replace(config.servers[2], target="http://10.0.0.8:80")
    house.backend.apply(replace(config, servers=(*config.servers[:2], web1)))


CHANGES = [
    pytest.param(lambda house: setattr(house.backend["s1"], "state", AdminState.MAINT), id="by hand"),
    pytest.param(lambda house: setattr(house.backend["s1"], "health", Health.DOWN), id="its health by hand"),
    pytest.param(lambda house: house.backend.monitor.record_check(house.backend["s1"], FAILED), id="by its check"),
    pytest.param(
        lambda house: house.backend.monitor.on_agent_reply(
            house.backend["s1"], AgentReply(CheckResult(CheckStatus.L7OK), admin="maint", up=False)
        ),
        id="by its agent",
    ),
    pytest.param(
        lambda house: house.backend.monitor.record_request(house.backend["s1"], Failure.REFUSED, 0, 0.0),
        id="by how requests turn out",
    ),
    pytest.param(House.drain, id="as time passes"),
    pytest.param(lambda house: house.resolve("10.0.0.7"), id="its name resolves"),
    pytest.param(House.lose_the_name, id="its name does not resolve any more"),
    pytest.param(lambda house: house.backend.add(Server("s3", "http://10.0.0.4")), id="it is added"),
    pytest.param(lambda house: house.backend.remove("s2"), id="it is removed"),
    pytest.param(move_in_place, id="it is changed in place"),
]


@pytest.fixture
def house() -> House:
    return House()


@pytest.mark.parametrize("change", CHANGES)
def test_who_is_told_of_a_change_may_wait_for_another_thread_that_changes_everything(
    house: House, change: Callable[[House], object]
):
    others: list[Beside] = []

    def told(change: StateChange) -> None:
        if not others:
            others.append(Beside(house.everything))

    house.backend.events(told)
    whole = Beside(lambda: change(house))
    assert [(other.ended, other.raised) for other in (*others, whole)] == [(True, None), (True, None)]


@pytest.mark.parametrize("change", CHANGES)
def test_who_is_told_of_a_change_may_change_everything_himself(house: House, change: Callable[[House], object]):
    raised: list[Exception] = []
    told: list[StateChange] = []

    def meddle(change: StateChange) -> None:
        told.append(change)
        if len(told) == 1:
            try:
                house.everything()
            except Exception as error:
                raised.append(error)

    house.backend.events(meddle)
    whole = Beside(lambda: change(house))
    assert (whole.ended, whole.raised, raised) == (True, None, []) and told


def test_who_has_its_health_from_a_server_that_is_changed_is_told_without_a_lock_as_well(house: House):
    others: list[Beside] = []
    house.other.events(lambda change: others.append(Beside(house.everything)) if not others else None)
    whole = Beside(lambda: move_in_place(house))
    assert [(other.ended, other.raised) for other in (*others, whole)] == [(True, None), (True, None)]


class Listener(logging.Handler):
    """Whoever reads the log, and acts."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self._act: Callable[[], object] | None = act
        self.others: list[Beside] = []

    def emit(self, record: logging.LogRecord) -> None:
        act, self._act = self._act, None
        if act is not None:
            self.others.append(Beside(act))


@pytest.mark.parametrize("change", CHANGES)
def test_the_log_is_written_without_a_lock(house: House, change: Callable[[House], object]):
    """Who writes it may have to wait for a disk, and nobody waits for that who has to choose a server."""
    listener = Listener(
        lambda: house.backend.placement.acquire_or_enqueue(
            house.backend.snapshot,
            None,  # type: ignore[arg-type]
            house.backend["web1"],
            (),
        )
    )
    log = logging.getLogger("sticky_sessions")
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(listener)
    try:
        whole = Beside(lambda: change(house))
    finally:
        log.removeHandler(listener)
        log.setLevel(level)
    assert [(other.ended, other.raised) for other in (*listener.others, whole)] == [(True, None), (True, None)]


def test_a_change_that_a_callback_makes_comes_behind_the_one_that_it_was_told_of(house: House):
    told: list[str] = []

    def follow(change: StateChange) -> None:
        told.append(f"{change.server} {change.after}")
        if change.after == "REMOVED" and change.server == "s2":
            house.backend.add(Server("s4", "http://10.0.0.4"))

    house.backend.events(follow)
    config = house.backend.config
    house.backend.apply(replace(config, servers=(config.servers[0], config.servers[2]), retries=7))
    assert [server.name for server in house.backend.servers] == ["s1", "web1", "s4"]
    assert house.backend.retries.retries == 7 and told == ["s2 REMOVED", "s4 UP"]
