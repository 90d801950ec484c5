"""When a server has drained whose clients come to other processes, too: what is told to a store, and asked."""

from typing import Any

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.clock import ManualClock
from sticky_core.errors import StoreFailure
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.stick.config import Stick
from sticky_core.samples.request import hdr
from sticky_core.server.drain import POLL_INTERVAL
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState
from sticky_core.stick_table.table import StickTable
from sticky_core.stores.redis import Redis
from sticky_core.stores.store import FEED_TIMEOUT, HEARTBEAT_INTERVAL, Command

EXPIRE = 80.0
PART = EXPIRE / 8


class Valkey:
    """Keeps marks for as long as it is told to, and remembers what it was told."""

    def __init__(self, clock: ManualClock) -> None:
        self._now = clock.monotonic
        self._until: dict[str, float] = {}
        self.heard: list[Command] = []
        self.away = False

    def answer(self, command: Command) -> object:
        self.heard.append(command)
        if self.away:
            return StoreFailure("redis://cache", "away")
        match command:
            case ("SET", str() as key, 1, "PX", int() as milliseconds):
                self._until[key] = self._now() + milliseconds / 1000
                return b"OK"
            case ("GET", str() as key):
                return b"1" if self._until.get(key, 0.0) > self._now() else None
        raise AssertionError(command)


class Process:
    """A process that shares tables with others. Its listener does errands when told to."""

    def __init__(self, valkey: Valkey, clock: ManualClock, *persist: Any, **options: Any) -> None:
        self.clock, self.valkey = clock, valkey
        self.store = Redis("redis://cache", clock=clock)
        self.table = StickTable("string", expire=EXPIRE, store=self.store, clock=clock, **options)
        servers = [Server(name, f"http://10.0.0.{number}:80") for number, name in ((1, "s1"), (2, "s2"))]
        persist = (*persist, Stick.on(hdr("x-user"), self.table))
        self.backend = Backend("app", servers, persist=persist, clock=clock)

    def serve(self, server: str) -> None:
        """A client of `server` has come, and the store was told so."""
        assert self.table.namespace is not None
        question = self.table.query(self.table.namespace.touch("d", server))
        question.reply = server.encode()
        self.table.on_written("d", question, self.clock.monotonic())

    def listen(self) -> None:
        for errand in self.store.background_commands(self.clock.monotonic()):
            errand.on_reply(self.valkey.answer(errand.command))

    def drained(self) -> bool:
        return self.backend.drained("s1").wait(0)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def valkey(clock: ManualClock) -> Valkey:
    return Valkey(clock)


def drains(process: Process, deadline: float | None = None) -> Process:
    """Process of which nobody is left at s1, as far as it knows."""
    process.backend["s1"].drain(deadline)
    process.backend.monitor.run_due_timers()
    return process


def passes(clock: ManualClock, seconds: float, *processes: Process) -> bool:
    """Time passes in seconds: whether the first has drained then, asked at each of them."""
    drained = False
    for _ in range(int(seconds)):
        clock.advance(1)
        for process in processes:
            process.listen()
        drained = processes[0].drained()
    return drained


# -- when a server has drained


def test_a_server_has_drained_when_its_clients_have_been_silent_in_every_process(valkey: Valkey, clock: ManualClock):
    here, there = drains(Process(valkey, clock)), Process(valkey, clock)
    for _ in range(30):
        there.serve("s1")
        assert not passes(clock, PART, here, there)
    silent = PART
    while not passes(clock, 1, here, there):
        silent += 1
    # an eighth for the near copy, an eighth for marks, and a beat each for the mark and the question
    assert EXPIRE <= silent <= EXPIRE + 2 * PART + 2 * HEARTBEAT_INTERVAL


def test_clients_of_other_servers_and_of_other_tables_do_not_count(valkey: Valkey, clock: ManualClock):
    here, there, elsewhere = drains(Process(valkey, clock)), Process(valkey, clock), Process(valkey, clock, name="x")
    there.serve("s2")
    elsewhere.serve("s1")
    assert not passes(clock, EXPIRE - 1, here, there, elsewhere)
    there.serve("s2")
    elsewhere.serve("s1")
    assert passes(clock, 2 + HEARTBEAT_INTERVAL, here, there, elsewhere)


def test_clients_that_come_to_the_same_process_keep_it_as_well(valkey: Valkey, clock: ManualClock):
    here = drains(Process(valkey, clock))
    for _ in range(20):
        here.serve("s1")
        assert not passes(clock, PART, here)


def test_the_deadline_does_not_wait_for_other_processes(valkey: Valkey, clock: ManualClock):
    here, there = drains(Process(valkey, clock), deadline=3 * EXPIRE), Process(valkey, clock)
    for _ in range(2):
        there.serve("s1")
        assert not passes(clock, EXPIRE, here, there)
    there.serve("s1")
    assert passes(clock, EXPIRE, here, there)


def test_before_the_store_has_answered_it_is_not_known_to_have_drained(valkey: Valkey, clock: ManualClock):
    here = drains(Process(valkey, clock))
    clock.advance(10 * EXPIRE)
    assert [here.drained(), here.drained()] == [False, False]
    here.listen()
    clock.advance(POLL_INTERVAL)
    assert here.drained()


def test_who_looks_seldom_is_answered_the_next_time(valkey: Valkey, clock: ManualClock):
    here = drains(Process(valkey, clock))
    clock.advance(EXPIRE)
    assert not here.drained()
    for _ in range(5):
        clock.advance(HEARTBEAT_INTERVAL)
        here.listen()
    assert here.drained()


def test_while_the_store_is_away_a_process_goes_by_what_it_knows(valkey: Valkey, clock: ManualClock):
    here, there = drains(Process(valkey, clock)), Process(valkey, clock)
    there.serve("s1")
    there.listen()
    valkey.away = True
    here.store.breaker.record_failure(clock.monotonic(), "away")
    clock.advance(EXPIRE - 1)
    assert not here.drained()
    clock.advance(1)
    assert here.drained()


def test_what_the_store_has_just_said_counts_although_it_has_gone_since(valkey: Valkey, clock: ManualClock):
    here, there = drains(Process(valkey, clock)), Process(valkey, clock)
    clock.advance(EXPIRE)
    there.serve("s1")
    there.listen()
    assert not here.drained()
    here.listen()
    valkey.away = True
    here.store.breaker.record_failure(clock.monotonic(), "away")
    assert not here.drained()
    assert passes(clock, PART + 1, here)


def test_processes_that_know_servers_by_their_addresses_need_not_agree_on_names(valkey: Valkey, clock: ManualClock):
    here, there = (Process(valkey, clock, srvkey="addr") for _ in range(2))
    drains(here)
    clock.advance(EXPIRE)
    there.serve("10.0.0.1:80")
    there.listen()
    assert not passes(clock, EXPIRE, here, there)
    assert passes(clock, 2 * PART + 2 * HEARTBEAT_INTERVAL, here, there)


# -- what that costs


def test_a_mark_is_made_once_in_an_eighth_of_the_expiry_for_each_server(valkey: Valkey, clock: ManualClock):
    process = Process(valkey, clock)
    for _ in range(int(EXPIRE)):
        for server in ("s1", "s2", "s1"):
            process.serve(server)
            process.listen()
        clock.advance(1)
    marks = [(command[1], command[4]) for command in valkey.heard if command[0] == "SET"]
    until = round(1000 * (EXPIRE + 2 * PART + HEARTBEAT_INTERVAL))
    assert sorted(marks) == [("sticky:app:bound:s1", until)] * 8 + [("sticky:app:bound:s2", until)] * 8
    assert len(marks) == len(valkey.heard)


def test_a_process_without_requests_has_nothing_to_say(valkey: Valkey, clock: ManualClock):
    process = Process(valkey, clock)
    process.serve("s1")
    passes(clock, EXPIRE, process)
    assert len(valkey.heard) == 1


def test_who_came_within_the_eighth_is_told_of_when_it_has_passed(valkey: Valkey, clock: ManualClock):
    process = Process(valkey, clock)
    process.serve("s1")
    process.listen()
    clock.advance(HEARTBEAT_INTERVAL)
    process.serve("s1")
    passes(clock, PART - HEARTBEAT_INTERVAL - 1, process)
    assert len(valkey.heard) == 1
    passes(clock, 1, process)
    assert len(valkey.heard) == 2


def test_a_mark_that_the_store_has_not_taken_is_made_again(valkey: Valkey, clock: ManualClock):
    process = Process(valkey, clock)
    process.serve("s1")
    valkey.away = True
    process.listen()
    valkey.away = False
    passes(clock, EXPIRE, process)
    assert len(valkey.heard) == 2


def test_marks_last_for_as_long_as_cookies_do_if_that_is_longer(valkey: Valkey, clock: ManualClock):
    process = Process(valkey, clock, Cookie("S", signed=False, maxidle=8 * EXPIRE))
    process.serve("s1")
    process.listen()
    assert valkey.heard == [("SET", "sticky:app:bound:s1", 1, "PX", round(1000 * (10 * EXPIRE + HEARTBEAT_INTERVAL)))]


def test_the_store_is_asked_while_somebody_wants_to_know_and_not_more_often_than_once_a_second(
    valkey: Valkey, clock: ManualClock
):
    here, there = drains(Process(valkey, clock)), Process(valkey, clock)
    there.serve("s1")
    passes(clock, EXPIRE - 1, here, there)
    assert not any(command[0] == "GET" for command in valkey.heard)
    valkey.heard.clear()
    for _ in range(50):
        clock.advance(HEARTBEAT_INTERVAL / 10)
        here.drained()
        here.listen()
    assert {command[0] for command in valkey.heard} == {"GET"}
    assert 4 <= len(valkey.heard) <= 6
    here.backend["s1"].state = AdminState.READY
    passes(clock, EXPIRE, here)
    assert len(valkey.heard) <= 6 + FEED_TIMEOUT
