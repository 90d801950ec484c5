"""When a server has drained that has clients in other processes as well: which marks are set in a store, and read."""

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


class FakeValkey:
    """Keeps marks until they expire, and remembers the commands it has received."""

    def __init__(self, clock: ManualClock) -> None:
        self._now = clock.monotonic
        self._until: dict[str, float] = {}
        self.commands: list[Command] = []
        self.is_away = False

    def reply_to(self, command: Command) -> object:
        self.commands.append(command)
        if self.is_away:
            return StoreFailure("redis://cache", "away")
        match command:
            case ("SET", str() as key, 1, "PX", int() as milliseconds):
                self._until[key] = self._now() + milliseconds / 1000
                return b"OK"
            case ("GET", str() as key):
                return b"1" if self._until.get(key, 0.0) > self._now() else None
        raise AssertionError(command)


class Process:
    """A process that shares tables with others. `listen` sends its background commands."""

    def __init__(self, valkey: FakeValkey, clock: ManualClock, *persist: Any, **options: Any) -> None:
        self.clock, self.valkey = clock, valkey
        self.store = Redis("redis://cache", clock=clock)
        self.table = StickTable("string", expire=EXPIRE, store=self.store, clock=clock, **options)
        servers = [Server(name, f"http://10.0.0.{number}:80") for number, name in ((1, "s1"), (2, "s2"))]
        persist = (*persist, Stick.on(hdr("x-user"), self.table))
        self.backend = Backend("app", servers, persist=persist, clock=clock)

    def serve(self, server: str) -> None:
        """A client of `server` has sent a request, and the store has replied to the write."""
        assert self.table.namespace is not None
        query = self.table.query(self.table.namespace.touch("d", server))
        query.set_reply(server.encode())
        self.table.on_written("d", query, self.clock.monotonic())

    def listen(self) -> None:
        for command in self.store.background_commands(self.clock.monotonic()):
            command.on_reply(self.valkey.reply_to(command.command))

    def drained(self) -> bool:
        return self.backend.drained("s1").wait(0)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def valkey(clock: ManualClock) -> FakeValkey:
    return FakeValkey(clock)


def draining(process: Process, deadline: float | None = None) -> Process:
    """Drain s1 in `process`, which knows of no client there. Return the process."""
    process.backend["s1"].drain(deadline)
    process.backend.monitor.run_due_timers()
    return process


def has_drained_after(clock: ManualClock, seconds: float, *processes: Process) -> bool:
    """Let time pass, second by second, while the processes listen. Return whether s1 of the first has drained then."""
    drained = False
    for _ in range(int(seconds)):
        clock.advance(1)
        for process in processes:
            process.listen()
        drained = processes[0].drained()
    return drained


# -- when a server has drained


def test_server_has_drained_when_its_clients_have_been_silent_in_every_process(valkey: FakeValkey, clock: ManualClock):
    here, there = draining(Process(valkey, clock)), Process(valkey, clock)
    for _ in range(30):
        there.serve("s1")
        assert not has_drained_after(clock, PART, here, there)
    silent = PART
    while not has_drained_after(clock, 1, here, there):
        silent += 1
    # an eighth for the local copy, an eighth for marks, and a heartbeat each to set and to read the mark
    assert EXPIRE <= silent <= EXPIRE + 2 * PART + 2 * HEARTBEAT_INTERVAL


def test_clients_of_other_servers_and_of_other_tables_do_not_count(valkey: FakeValkey, clock: ManualClock):
    here, there, elsewhere = draining(Process(valkey, clock)), Process(valkey, clock), Process(valkey, clock, name="x")
    there.serve("s2")
    elsewhere.serve("s1")
    assert not has_drained_after(clock, EXPIRE - 1, here, there, elsewhere)
    there.serve("s2")
    elsewhere.serve("s1")
    assert has_drained_after(clock, 2 + HEARTBEAT_INTERVAL, here, there, elsewhere)


def test_server_with_clients_in_the_same_process_has_not_drained(valkey: FakeValkey, clock: ManualClock):
    here = draining(Process(valkey, clock))
    for _ in range(20):
        here.serve("s1")
        assert not has_drained_after(clock, PART, here)


def test_deadline_of_a_drain_does_not_wait_for_other_processes(valkey: FakeValkey, clock: ManualClock):
    here, there = draining(Process(valkey, clock), deadline=3 * EXPIRE), Process(valkey, clock)
    for _ in range(2):
        there.serve("s1")
        assert not has_drained_after(clock, EXPIRE, here, there)
    there.serve("s1")
    assert has_drained_after(clock, EXPIRE, here, there)


def test_server_has_not_drained_before_the_store_has_replied(valkey: FakeValkey, clock: ManualClock):
    here = draining(Process(valkey, clock))
    clock.advance(10 * EXPIRE)
    assert [here.drained(), here.drained()] == [False, False]
    here.listen()
    clock.advance(POLL_INTERVAL)
    assert here.drained()


def test_caller_that_calls_seldom_gets_the_reply_the_next_time(valkey: FakeValkey, clock: ManualClock):
    here = draining(Process(valkey, clock))
    clock.advance(EXPIRE)
    assert not here.drained()
    for _ in range(5):
        clock.advance(HEARTBEAT_INTERVAL)
        here.listen()
    assert here.drained()


def test_while_the_store_fails_a_process_uses_what_it_knows(valkey: FakeValkey, clock: ManualClock):
    here, there = draining(Process(valkey, clock)), Process(valkey, clock)
    there.serve("s1")
    there.listen()
    valkey.is_away = True
    here.store.breaker.record_failure(clock.monotonic(), "away")
    clock.advance(EXPIRE - 1)
    assert not here.drained()
    clock.advance(1)
    assert here.drained()


def test_recent_reply_counts_although_the_store_fails_since(valkey: FakeValkey, clock: ManualClock):
    here, there = draining(Process(valkey, clock)), Process(valkey, clock)
    clock.advance(EXPIRE)
    there.serve("s1")
    there.listen()
    assert not here.drained()
    here.listen()
    valkey.is_away = True
    here.store.breaker.record_failure(clock.monotonic(), "away")
    assert not here.drained()
    assert has_drained_after(clock, PART + 1, here)


def test_processes_that_know_servers_by_their_addresses_need_not_agree_on_names(valkey: FakeValkey, clock: ManualClock):
    here, there = (Process(valkey, clock, srvkey="addr") for _ in range(2))
    draining(here)
    clock.advance(EXPIRE)
    there.serve("10.0.0.1:80")
    there.listen()
    assert not has_drained_after(clock, EXPIRE, here, there)
    assert has_drained_after(clock, 2 * PART + 2 * HEARTBEAT_INTERVAL, here, there)


# -- which commands are sent


def test_mark_is_set_once_in_an_eighth_of_the_expiry_for_each_server(valkey: FakeValkey, clock: ManualClock):
    process = Process(valkey, clock)
    for _ in range(int(EXPIRE)):
        for server in ("s1", "s2", "s1"):
            process.serve(server)
            process.listen()
        clock.advance(1)
    marks = [(command[1], command[4]) for command in valkey.commands if command[0] == "SET"]
    until = round(1000 * (EXPIRE + 2 * PART + HEARTBEAT_INTERVAL))
    assert sorted(marks) == [("sticky:app:bound:s1", until)] * 8 + [("sticky:app:bound:s2", until)] * 8
    assert len(marks) == len(valkey.commands)


def test_process_without_requests_sends_no_commands(valkey: FakeValkey, clock: ManualClock):
    process = Process(valkey, clock)
    process.serve("s1")
    has_drained_after(clock, EXPIRE, process)
    assert len(valkey.commands) == 1


def test_request_within_the_eighth_renews_the_mark_when_it_has_passed(valkey: FakeValkey, clock: ManualClock):
    process = Process(valkey, clock)
    process.serve("s1")
    process.listen()
    clock.advance(HEARTBEAT_INTERVAL)
    process.serve("s1")
    has_drained_after(clock, PART - HEARTBEAT_INTERVAL - 1, process)
    assert len(valkey.commands) == 1
    has_drained_after(clock, 1, process)
    assert len(valkey.commands) == 2


def test_mark_that_the_store_has_not_confirmed_is_set_again(valkey: FakeValkey, clock: ManualClock):
    process = Process(valkey, clock)
    process.serve("s1")
    valkey.is_away = True
    process.listen()
    valkey.is_away = False
    has_drained_after(clock, EXPIRE, process)
    assert len(valkey.commands) == 2


def test_marks_last_for_as_long_as_cookies_do_if_that_is_longer(valkey: FakeValkey, clock: ManualClock):
    process = Process(valkey, clock, Cookie("S", signed=False, maxidle=8 * EXPIRE))
    process.serve("s1")
    process.listen()
    assert valkey.commands == [
        ("SET", "sticky:app:bound:s1", 1, "PX", round(1000 * (10 * EXPIRE + HEARTBEAT_INTERVAL)))
    ]


def test_mark_is_read_while_it_is_wanted_and_at_most_once_a_second(valkey: FakeValkey, clock: ManualClock):
    here, there = draining(Process(valkey, clock)), Process(valkey, clock)
    there.serve("s1")
    has_drained_after(clock, EXPIRE - 1, here, there)
    assert not any(command[0] == "GET" for command in valkey.commands)
    valkey.commands.clear()
    for _ in range(50):
        clock.advance(HEARTBEAT_INTERVAL / 10)
        here.drained()
        here.listen()
    assert {command[0] for command in valkey.commands} == {"GET"}
    assert 4 <= len(valkey.commands) <= 6
    here.backend["s1"].state = AdminState.READY
    has_drained_after(clock, EXPIRE, here)
    assert len(valkey.commands) <= 6 + FEED_TIMEOUT
