"""What becomes of servers as checks, operators and time go on: slow starts, drains, panic, agents, nginx's counting of
failures, who tracks whom; and what is told of it.
"""

import logging
from typing import Any

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.backend.events import StateChange
from sticky_core.balance import RoundRobin
from sticky_core.clock import ManualClock
from sticky_core.errors import ConfigError, Failure
from sticky_core.health.agent import parse_reply
from sticky_core.health.check import Check, CheckResult, CheckStatus
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health

PASS, FAIL = CheckResult(CheckStatus.L7OK, 200), CheckResult(CheckStatus.L7STS, 503, "Service Unavailable")


def app(environ: object, start_response: object) -> list[bytes]:
    return []


def made(*servers: Server, **options: Any) -> tuple[Backend, ManualClock]:
    clock = ManualClock()
    return Backend("web", servers, clock=clock, balance=RoundRobin(start=0), **options), clock


class Anybody:
    """A request that belongs nowhere."""


def chosen(backend: Backend, times: int) -> list[str]:
    servers = [backend.placement.choose(backend.snapshot, Anybody(), ()) for _ in range(times)]  # type: ignore[arg-type]
    return [server.name if server is not None else "-" for server in servers]


# -- slow start


def recovered(**options: Any) -> tuple[Backend, ManualClock]:
    backend, clock = made(Server("s1", app, slowstart=32, **options), Server("s2", app))
    assert backend["s1"].throttle == 100, "never at the start of the process"
    backend["s1"].health = Health.DOWN
    clock.advance(100)
    backend["s1"].health = Health.UP
    return backend, clock


@pytest.mark.parametrize(
    "after, eweight", [(0, 1), (1.9, 1), (2, 2), (16, 9), (30, 16), (32, 16)], ids=lambda value: f"{value}"
)
def test_weight_grows_from_a_sixteenth(after: float, eweight: int):
    backend, clock = recovered()
    clock.advance(after)
    backend["s1"].refresh_state(clock.monotonic())
    assert backend["s1"].eweight == eweight


def test_it_grows_by_steps_and_nobody_has_to_ask_but_who_chooses():
    backend, clock = recovered()
    seen = []
    for _ in range(40):
        chosen(backend, 1)
        seen.append(backend["s1"].eweight)
        clock.advance(1)
    assert seen[0] == 1 and seen == sorted(seen) and seen[-1] == 16
    assert not backend.monitor.has_timers


def test_maxconn_grows_as_well():
    backend, clock = recovered(maxconn=100)
    seen: dict[int, int] = {}
    for second in (0, 8, 16, 32):
        clock.advance(second - max(seen, default=0))
        backend.monitor.run_due_timers()
        seen[second] = backend["s1"].limit
    assert seen == {0: 1, 8: 25, 16: 50, 32: 100}


def test_new_clients_come_slowly_and_its_own_at_once():
    backend, _ = recovered()
    assert chosen(backend, 17).count("s1") == 1
    assert backend["s1"].usable


def test_who_leaves_maintenance_starts_slowly_and_who_leaves_a_drain_does_not():
    backend, _ = made(Server("s1", app, slowstart=32))
    backend["s1"].state = AdminState.DRAIN
    backend["s1"].state = AdminState.READY
    assert backend["s1"].throttle == 100
    backend["s1"].state = AdminState.MAINT
    backend["s1"].state = AdminState.READY
    assert backend["s1"].throttle == 6


# -- checks


def test_a_server_goes_down_and_comes_back_as_its_checks_say():
    backend, _ = made(Server("s1", app), Server("s2", app), check=Check("/"))
    story = []
    for result in (PASS, FAIL, FAIL, FAIL, PASS, PASS):
        backend.monitor.record_check(backend["s1"], result)
        story.append(backend["s1"].status)
    assert story == ["UP", "UP", "UP", "DOWN", "DOWN", "UP"]
    assert backend["s2"].status == "UP"


def test_what_comes_back_in_maintenance_changes_nothing_until_it_is_over():
    backend, _ = made(Server("s1", app), check=Check("/"))
    backend["s1"].state = AdminState.MAINT
    for _ in range(3):
        backend.monitor.record_check(backend["s1"], FAIL)
    assert backend["s1"].status == "MAINT"
    backend["s1"].state = AdminState.READY
    assert backend["s1"].status == "UP"


def test_who_is_stopping_takes_no_new_clients():
    backend, _ = made(Server("s1", app), Server("s2", app), check=Check("/", disable_on_404=True))
    backend.monitor.record_check(backend["s1"], CheckResult(CheckStatus.L7OKC, 404))
    assert (backend["s1"].status, backend["s1"].usable, backend["s1"].electable) == ("NOLB", True, False)
    assert chosen(backend, 2) == ["s2", "s2"]


def test_who_tracks_another_has_its_health():
    leader = Server("s1", app)
    backend, _ = made(leader, Server("s2", app, track="s1"), check=Check("/"))
    followers = Backend("other", [Server("s1", app, track=leader), Server("s2", app, track="web/s1")])
    for _ in range(3):
        backend.monitor.record_check(leader, FAIL)
    tracking = [backend["s2"], followers["s1"], followers["s2"]]
    assert [server.status for server in tracking] == ["DOWN"] * 3
    assert [server.checking for server in tracking] == [None] * 3
    leader.state = AdminState.MAINT
    assert [server.status for server in tracking] == ["MAINT"] * 3
    leader.state = AdminState.READY
    assert [server.usable for server in tracking] == [True] * 3


@pytest.mark.parametrize(
    "line, status, weight, maxconn",
    [
        (b"down", "DOWN", 10, 8),
        (b"up", "UP", 10, 8),
        (b"drain", "DRAIN", 10, 8),
        (b"maint", "MAINT", 10, 8),
        (b"50%", "UP", 5, 8),
        (b"weight:7 maxconn:3", "UP", 7, 3),
        (b"splendid", "UP", 10, 8),
    ],
)
def test_an_agent_s_word(line: bytes, status: str, weight: int, maxconn: int):
    from sticky_core.health.agent import AgentCheck

    server = Server("s1", "http://127.0.0.1:1", weight=10, maxconn=8, agent_check=AgentCheck(9000))
    backend, _ = made(server)
    backend.monitor.on_agent_reply(server, parse_reply(line))
    assert (server.status, server.weight, server.limit) == (status, weight, maxconn)
    backend.monitor.on_agent_reply(server, parse_reply(b"ready up"))
    assert server.status == "UP"


@pytest.mark.parametrize("observe, failure, down", [
    ("layer4", Failure.REFUSED, True),
    ("layer4", Failure.CLOSED, False),
    ("layer7", Failure.REFUSED, True),
    ("layer7", Failure.CLOSED, True),
])  # fmt: skip
def test_what_clients_meet_counts(observe: Any, failure: Failure, down: bool):
    backend, _ = made(Server("s1", app), check=Check("/", observe=observe, error_limit=2, on_error="mark-down"))
    for _ in range(2):
        backend.monitor.record_request(backend["s1"], failure, 0, 0.1)
    assert (backend["s1"].status == "DOWN") is down


@pytest.mark.parametrize(
    "status, down", [(200, False), (404, False), (500, True), (501, False), (503, True), (505, False)]
)
def test_statuses_that_count_as_failures(status: int, down: bool):
    backend, _ = made(Server("s1", app), check=Check("/", observe="layer7", error_limit=2, on_error="mark-down"))
    for _ in range(2):
        backend.monitor.record_request(backend["s1"], None, status, 0.1)
    assert (backend["s1"].status == "DOWN") is down


# -- nginx's max_fails


def test_a_server_that_fails_too_often_is_left_alone_for_a_while():
    backend, clock = made(Server("s1", app, max_fails=2, fail_timeout=10), Server("s2", app))
    server = backend["s1"]
    backend.monitor.record_request(server, Failure.TIMEOUT, 0, 0.1)
    assert server.usable
    backend.monitor.record_request(server, Failure.TIMEOUT, 0, 0.1)
    assert not server.usable and chosen(backend, 2) == ["s2", "s2"]
    clock.advance(10)
    assert "s1" in chosen(backend, 2)
    backend.monitor.record_request(server, Failure.TIMEOUT, 0, 0.1)
    assert not server.usable, "on probation one failure is enough"
    clock.advance(10.5)
    backend.monitor.run_due_timers()
    backend.monitor.record_request(server, None, 200, 0.1)
    backend.monitor.record_request(server, Failure.TIMEOUT, 0, 0.1)
    assert server.usable, "a success has made up for them"


def test_the_only_server_is_never_left_alone():
    backend, _ = made(Server("s1", app, max_fails=1))
    backend.monitor.record_request(backend["s1"], Failure.TIMEOUT, 0, 0.1)
    assert backend["s1"].usable and not backend.snapshot.observes


# -- drains


def test_after_the_deadline_its_clients_go_elsewhere():
    backend, clock = made(Server("s1", app), Server("s2", app), persist=Cookie("S", signed=False))
    backend["s1"].drain(deadline="60s")
    clock.advance(59)
    backend.monitor.run_due_timers()
    assert (backend["s1"].usable, backend["s1"].drained) == (True, False)
    clock.advance(1)
    backend.monitor.run_due_timers()
    assert (backend["s1"].usable, backend["s1"].drained) == (False, True)
    backend["s1"].state = AdminState.READY
    assert (backend["s1"].usable, backend["s1"].drained) == (True, False)


def test_a_drain_without_a_deadline_lasts():
    backend, clock = made(Server("s1", app), Server("s2", app), persist=Cookie("S", signed=False))
    backend["s1"].drain(deadline=None)
    clock.advance(100_000)
    backend.monitor.run_due_timers()
    assert (backend["s1"].usable, backend["s1"].drained) == (True, False)


def test_it_is_drained_when_nobody_has_come_for_as_long_as_marks_last():
    backend, clock = made(Server("s1", app), Server("s2", app), persist=Cookie("S", signed=False, maxidle=60))
    server = backend["s1"]
    server.drain(deadline=None)
    server.in_flight.append(None)
    clock.advance(61)
    backend.monitor.run_due_timers()
    assert not server.drained, "somebody is here"
    server.in_flight.pop()
    server.counters.cell[2] += 1
    clock.advance(59)
    backend.monitor.run_due_timers()
    assert not server.drained, "somebody was here a minute ago"
    clock.advance(61)
    backend.monitor.run_due_timers()
    assert server.drained and server.usable


def test_who_waits_for_a_drain_is_told():
    backend, clock = made(Server("s1", app), Server("s2", app))
    backend["s1"].in_flight.append(None)
    backend["s1"].drain()
    waiting = backend.drained("s1")
    assert not waiting.wait(timeout=0)
    backend["s1"].in_flight.pop()
    clock.advance(0.2)
    assert waiting.wait(timeout=0)


def test_who_waits_for_a_drain_is_told_when_the_server_is_removed_meanwhile():
    backend, _ = made(Server("s1", app), Server("s2", app))
    backend["s1"].in_flight.append(None)
    backend["s1"].drain(deadline=None)
    drained = backend.drained("s1")
    removed = backend["s1"]
    backend.remove("s1")
    assert not drained.wait(0)
    backend.placement.release(removed)
    assert drained.wait(0)


def test_past_their_deadline_the_last_ones_still_serve_those_who_belong_nowhere():
    backend, clock = made(Server("s1", app))
    backend["s1"].drain(deadline=1)
    clock.advance(2)
    assert chosen(backend, 1) == ["s1"]


# -- nobody left


def test_nobody_left_is_nobody():
    backend, _ = made(Server("s1", app), Server("s2", app))
    for server in backend.servers:
        server.health = Health.DOWN
    assert chosen(backend, 1) == ["-"]


def test_in_panic_all_are_used_but_those_in_maintenance():
    backend, _ = made(Server("s1", app), Server("s2", app), Server("s3", app), on_empty="panic")
    backend["s3"].state = AdminState.MAINT
    for name in ("s1", "s2"):
        backend[name].health = Health.DOWN
    assert backend.monitor.panics and sorted(chosen(backend, 2)) == ["s1", "s2"]
    assert backend["s1"].status == "DOWN"
    backend["s2"].health = Health.UP
    assert not backend.monitor.panics and chosen(backend, 2) == ["s2", "s2"]


@pytest.mark.parametrize("down, panics", [(1, False), (2, False), (3, True)])
def test_panic_may_come_before_the_last_is_down(down: int, panics: bool):
    servers = [Server(f"s{n}", app) for n in range(4)]
    backend, _ = made(*servers, on_empty="panic", panic_threshold=0.5)
    for server in servers[:down]:
        server.health = Health.DOWN
    assert backend.monitor.panics is panics


def test_a_backup_comes_before_panic():
    backend, _ = made(Server("s1", app), Server("sorry", app, backup=True), on_empty="panic")
    backend["s1"].health = Health.DOWN
    assert chosen(backend, 1) == ["sorry"] and not backend.monitor.panics


@pytest.mark.parametrize("allbackups, who", [(False, ["b1"] * 4), (True, ["b1", "b2"] * 2)])
def test_backups_serve_one_or_all(allbackups: bool, who: list[str]):
    servers = [Server("s1", app), Server("b1", app, backup=True), Server("b2", app, backup=True)]
    backend, _ = made(*servers, allbackups=allbackups)
    servers[0].health = Health.DOWN
    assert chosen(backend, 4) == who


# -- what is told


def test_each_change_is_told_once(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "sticky_sessions")
    backend, clock = made(Server("s1", app), Server("s2", app), check=Check("/"))
    told: list[StateChange] = []
    with backend.events(told.append):
        for result in (PASS, FAIL, FAIL, FAIL, FAIL, PASS, PASS, PASS):
            backend.monitor.record_check(backend["s1"], result)
        backend["s1"].state = AdminState.DRAIN
        backend["s1"].weight = 5
    backend["s1"].state = AdminState.READY
    why = 'Layer7 wrong status, code: 503, info: "Service Unavailable"'
    assert told == [
        StateChange("web", "s1", "UP", "DOWN", why, clock.wall()),
        StateChange("web", "s1", "DOWN", "UP", "Layer7 check passed, code: 200", clock.wall()),
        StateChange("web", "s1", "UP", "DRAIN", "", clock.wall()),
        StateChange("web", "s1", "DRAIN", "DRAINED", "", clock.wall()),
    ]
    assert caplog.messages[0] == (
        f"Server web/s1 is DOWN, reason: {why}. 1 active and 0 backup servers left. "
        "0 sessions active, 0 remaining in queue."
    )
    assert [record.levelname for record in caplog.records[:2]] == ["WARNING", "INFO"]
    assert len(caplog.records) == 5


def test_a_callback_that_fails_or_changes_something_itself_harms_nobody(caplog: pytest.LogCaptureFixture):
    backend, _ = made(Server("s1", app), Server("s2", app))
    told: list[str] = []

    def meddle(change: StateChange) -> None:
        if change.server == "s1":
            backend["s2"].state = AdminState.MAINT
            raise RuntimeError("a callback's own fault")

    backend.events(meddle)
    backend.events(lambda change: told.append(change.server))
    backend["s1"].state = AdminState.MAINT
    assert told == ["s1", "s2"]


def test_changes_can_be_iterated_in_a_thread():
    backend, _ = made(Server("s1", app))
    events = backend.events()
    backend["s1"].state = AdminState.MAINT
    backend["s1"].state = AdminState.READY
    events.close()
    assert [change.after for change in events] == ["MAINT", "UP"]


# -- what can't work


def nobody(request: object) -> bool:
    return False


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"on_empty": "panics"}, "on_empty 'panics' is neither"),
        ({"panic_threshold": 0.5}, "panic_threshold has no effect"),
        ({"on_empty": "panic", "panic_threshold": 50}, "panic_threshold 50 is not a share"),
        ({"allbackups": True}, "allbackups has no effect"),
        ({"persist_on_down": True}, "persist_on_down has no effect without persist"),
        ({"force_persist": nobody}, "force_persist has no effect without persist"),
        ({"ignore_persist": nobody}, "ignore_persist has no effect without persist"),
        ({"use_server": {"s9": nobody}}, "use_server names s9"),
        ({"check": "/health"}, "check='/health' is no check"),
        ({"check": Check(port=80)}, "check: port is for URLs"),
        ({"check": Check(on_marked_up="shutdown-backup-sessions")}, "on_marked_up has no effect without servers"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], problem: str):
    with pytest.raises(ConfigError) as refused:
        made(Server("s1", app), **options)
    (only,) = refused.value.problems
    assert problem in only


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"check": False}, "check=False has no effect"),
        ({"track": "s9"}, "track s9: there is no such server"),
        ({"track": "nowhere/s1"}, "there is no backend nowhere"),
        ({"track": "s1"}, "has no health of its own"),
        ({"track": "s2", "check": Check()}, "track takes another server's health over"),
        ({"fail_timeout": 5}, "fail_timeout has no effect without max_fails"),
        ({"slowstart": 0}, "slowstart 0 is not above 0"),
        ({"slowstart": float("nan")}, "slowstart nan is not above 0"),
        (
            {"backup": True, "check": Check(on_marked_up="shutdown-backup-sessions")},
            "server s1: check: on_marked_up has no effect on a backup: leave it out",
        ),
        ({"check": Check(on_marked_up="shutdown-backup-sessions")}, "on_marked_up has no effect without servers"),
    ],
)
def test_what_cannot_work_of_a_server_is_refused(options: dict[str, Any], problem: str):
    with pytest.raises(ConfigError) as refused:
        made(Server("s1", app, **options), Server("s2", app))
    assert problem in str(refused.value)
