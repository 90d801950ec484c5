"""First checks: when every server has been checked, and for which servers the start waits."""

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.backend.first_checks import GRACE, MAX_AT_ONCE, PATIENCE
from sticky_core.clock import ManualClock
from sticky_core.health.agent import AgentCheck
from sticky_core.health.check import Check, CheckResult, CheckStatus
from sticky_core.http.timeouts import Timeouts
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health
from tests.core.backend.backends import FAIL, PASS, app, build_backend, other_app, url, urls, with_changed_server

WAIT = Check("/health", startup="wait")
PROCEED = Check("/health")
LOCAL_LIMIT = CheckResult(CheckStatus.UNK, info="too many open files")


def record(backend: Backend, *names: str, result: CheckResult = PASS) -> None:
    for name in names:
        backend.monitor.record_check(backend[name], result)


def is_over(backend: Backend) -> bool:
    """Return whether the start need not wait; both ways to read it agree."""
    first_checks = backend.monitor.first_checks
    assert first_checks.startup.reached is first_checks.is_over
    return first_checks.is_over


def is_checked(server: Server) -> bool:
    return server.checking is not None and server.checking.has_run


def due(backend: Backend, name: str) -> float:
    checking = backend[name].checking
    assert checking is not None
    return checking.delay(backend.clock.monotonic())


# -- `checked`


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="no checks"),
        pytest.param({"agent_check": AgentCheck(9000)}, id="an agent, which is no check"),
    ],
)
def test_checked_is_reached_at_once_if_there_is_nothing_to_check(options: dict[str, Any]):
    web = build_backend(urls(1, 2, **options))
    assert web.checked.reached and web.checked.wait(0)


@pytest.mark.parametrize("result", [PASS, FAIL, LOCAL_LIMIT], ids=["passed", "failed", "could not be made"])
def test_checked_is_reached_when_every_server_has_been_checked_once(result: CheckResult):
    web = build_backend(urls(1, 2), check=PROCEED)
    record(web, "s1", "s1", result=result)
    assert not web.checked.reached
    record(web, "s2", result=result)
    assert web.checked.reached
    record(web, "s1", "s2", result=FAIL)
    assert web.checked.reached


def test_states_are_those_of_the_checks_when_checked_is_reached():
    web = build_backend(urls(1, 2), check=PROCEED)
    states: list[list[str]] = []
    web.checked._subscribe(lambda: states.append([server.status for server in web.servers]))
    record(web, "s1", result=FAIL)
    record(web, "s2")
    assert states == [["DOWN", "UP"]]


def test_late_result_of_a_check_that_was_replaced_does_not_count():
    web = build_backend(urls(1), check=PROCEED)
    before = web["s1"].checking
    web.apply(replace(web.config, check=Check("/other")))
    web.monitor.record_check(web["s1"], PASS, before)
    assert not web.checked.reached
    web.monitor.record_check(web["s1"], PASS, web["s1"].checking)
    assert web.checked.reached


def maintenance(web: Backend) -> None:
    web["s2"].state = AdminState.MAINT


def removal(web: Backend) -> None:
    web.remove("s2")


def no_check(web: Backend) -> None:
    web.apply(with_changed_server(web.config, "s2", check=False))


def tracking(web: Backend) -> None:
    web.apply(with_changed_server(web.config, "s2", track="s1"))


@pytest.mark.parametrize("change", [maintenance, removal, no_check, tracking])
@pytest.mark.parametrize("is_first", [True, False], ids=["before another is checked", "after it"])
def test_server_that_will_not_be_checked_is_not_waited_for(change: Callable[[Backend], None], is_first: bool):
    web = build_backend(urls(1, 2), check=WAIT)
    web.monitor.begin_startup()
    if is_first:
        change(web)
    assert not web.checked.reached and not is_over(web)
    record(web, "s1")
    if not is_first:
        assert not web.checked.reached and not is_over(web)
        change(web)
    assert web.checked.reached and is_over(web)


def test_server_without_an_address_is_waited_for_once_it_has_one():
    web = build_backend(Server.template("web", 2, "web.test:80"), check=PROCEED)
    assert web.checked.reached
    web["web1"].target = url(1)
    assert not web.checked.reached
    record(web, "web1")
    assert web.checked.reached


def test_servers_that_are_added_or_replaced_have_to_be_checked_as_well():
    web = build_backend([Server("s1", app)], check=PROCEED)
    record(web, "s1")
    first = web.checked
    web.add(Server("s2", app))
    second = web.checked
    assert first.reached and not second.reached
    record(web, "s2")
    assert second.reached
    web.apply(with_changed_server(web.config, "s1", target=other_app))
    assert not web.checked.reached
    record(web, "s1")
    assert web.checked.reached


def test_server_with_another_check_or_address_has_been_checked_if_it_had_been_before():
    web = build_backend(urls(1), check=PROCEED)
    record(web, "s1")
    web.apply(replace(web.config, check=Check("/other", startup="wait")))
    assert web.checked.reached
    web["s1"].target = url(9)
    assert web.checked.reached


def test_check_that_is_added_makes_its_servers_unchecked():
    web = build_backend(urls(1))
    web.apply(replace(web.config, check=PROCEED))
    assert not web.checked.reached
    web.apply(replace(web.config, check=None))
    assert web.checked.reached


def test_server_that_returns_from_maintenance_is_unchecked_only_if_it_never_was_checked():
    web = build_backend(urls(1, 2), check=PROCEED)
    record(web, "s1")
    for server in web.servers:
        server.state = AdminState.MAINT
    assert web.checked.reached
    web["s1"].state = AdminState.READY
    assert web.checked.reached
    web["s2"].state = AdminState.READY
    assert not web.checked.reached


def test_health_that_is_assigned_is_no_check():
    web = build_backend(urls(1), check=PROCEED)
    web["s1"].health = Health.DOWN
    assert not web.checked.reached


def test_many_threads_wait_for_checked():
    web = build_backend(urls(1), check=PROCEED)
    threads = [threading.Thread(target=web.checked.wait) for _ in range(5)]
    for thread in threads:
        thread.start()
    record(web, "s1")
    for thread in threads:
        thread.join(300)
    assert not any(thread.is_alive() for thread in threads)


def test_waiting_while_nothing_runs_the_checks_is_warned_about_once(caplog: pytest.LogCaptureFixture):
    clock = ManualClock()
    web = build_backend(urls(1), check=PROCEED, clock=clock)
    poll = web.monitor.first_checks._warn_if_nothing_checks
    poll()
    clock.advance(PATIENCE - 1)
    poll()
    owner = object()
    web.acquire_checks(owner)
    clock.advance(PATIENCE)
    poll()
    web.release_checks(owner)
    poll()
    assert caplog.messages == []
    clock.advance(PATIENCE)
    for _ in range(3):
        poll()
    (message,) = caplog.messages
    assert message.startswith("backend web: `checked` is waited for, and nothing checks its servers yet")


# -- the start


@pytest.mark.parametrize(
    "checks, awaited",
    [
        pytest.param((PROCEED, None, None), [], id="the default"),
        pytest.param((None, None, None), [], id="no check"),
        pytest.param((WAIT, None, None), ["s1", "s2"], id="the check of the backend"),
        pytest.param((WAIT, PROCEED, None), ["s2"], id="a server's own check proceeds"),
        pytest.param((WAIT, False, None), ["s2"], id="a server without a check"),
        pytest.param((PROCEED, None, WAIT), ["s2"], id="a server's own check waits"),
        pytest.param((None, None, WAIT), ["s2"], id="only one server has a check, which waits"),
        pytest.param((WAIT, WAIT, WAIT), ["s1", "s2"], id="all of them wait"),
    ],
)
def test_start_waits_for_the_servers_whose_check_says_so(checks: tuple[Any, Any, Any], awaited: list[str]):
    of_backend, of_first, of_second = checks
    made = Server("s1", url(1), check=of_first), Server("s2", url(2), check=of_second)
    web = build_backend(made, check=of_backend)
    assert not is_over(web), "it has not begun"
    web.monitor.begin_startup()
    for name in awaited:
        assert not is_over(web)
        record(web, name, result=FAIL)
    assert is_over(web)


@pytest.mark.parametrize("startup, delays", [("wait", [0.0, 0.0, 0.0]), ("proceed", [0.0, 1.0, 2.0])])
def test_first_checks_run_at_once_if_the_start_waits_for_them(startup: Any, delays: list[float]):
    web = build_backend(urls(1, 2, 3), check=Check(inter=3, startup=startup))
    web.monitor.begin_startup()
    assert [due(web, server.name) for server in web.servers] == delays


def test_first_checks_are_spread_again_for_servers_that_nothing_waits_for():
    web = build_backend(urls(1), check=Check(inter=3, startup="wait"))
    web.monitor.begin_startup()
    web.add(*urls(2, 3, 4))
    assert [due(web, name) for name in ("s2", "s3", "s4")] == [0.0, 1.0, 2.0]


def test_only_so_many_first_checks_run_at_once_and_each_that_ends_makes_another_one_due():
    count = MAX_AT_ONCE + 4
    web = build_backend(urls(*range(count)), check=Check(inter=count, startup="wait"))
    web.monitor.begin_startup()

    def later() -> dict[str, float]:
        return {
            server.name: wait for server in web.servers if not is_checked(server) and (wait := due(web, server.name))
        }

    spread = {f"s{number}": float(number) for number in range(MAX_AT_ONCE, count)}
    assert later() == spread, "as without a wait"
    _, second, third, fourth = spread
    record(web, "s0", result=FAIL)
    assert later() == {name: spread[name] for name in (second, third, fourth)}
    web[second].state = AdminState.MAINT  # which is not waited for, so that another one may be checked
    assert later() == {fourth: spread[fourth]} | {second: spread[second]}
    web.remove("s1")
    assert later() == {second: spread[second]}
    record(web, *(server.name for server in web.servers if server.name != second))
    assert is_over(web)


def test_server_that_was_checked_meanwhile_is_not_made_due_again():
    count = MAX_AT_ONCE + 2
    web = build_backend(urls(*range(count)), check=Check(inter=count, startup="wait"))
    web.monitor.begin_startup()
    early, late = f"s{MAX_AT_ONCE}", f"s{MAX_AT_ONCE + 1}"
    record(web, early)
    assert (due(web, early), due(web, late)) == (count, 0.0)


@pytest.mark.parametrize(
    "options, connect, timeout",
    [
        pytest.param({}, 5, 2, id="the interval"),
        pytest.param({"inter": 30, "timeout": 3}, 5, 8, id="time to connect and timeout"),
        pytest.param({"inter": 30, "timeout": 3, "probe": bool}, 5, 3, id="the timeout of a function"),
    ],
)
def test_start_waits_no_longer_than_a_check_may_take(options: dict[str, Any], connect: float, timeout: float):
    web = build_backend(urls(1, 2), check=Check(startup="wait", **options), timeouts=Timeouts(connect=connect))
    web.monitor.begin_startup()
    assert web.monitor.first_checks.timeout == timeout + GRACE


def test_start_that_has_waited_in_vain_ends_with_a_warning(caplog: pytest.LogCaptureFixture):
    web = build_backend(urls(1, 2, 3), check=WAIT)
    web.monitor.begin_startup()
    record(web, "s2")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            web.monitor.end_startup()
    assert is_over(web) and not web.checked.reached
    assert caplog.messages == [
        "backend web: no result of the first check of s1, s3 after 7 s: requests are served without it"
    ]


def test_start_that_waits_is_logged_with_at_most_ten_names(caplog: pytest.LogCaptureFixture):
    numbers = range(11, 23)
    with caplog.at_level(logging.INFO):
        build_backend(urls(1), check=PROCEED).monitor.begin_startup()
        web = build_backend(urls(*numbers), check=WAIT)
        for _ in range(2):
            web.monitor.begin_startup()
        web.monitor.end_startup()
    names = ", ".join(f"s{number}" for number in range(11, 21)) + " and 2 more"
    assert [message.partition(" after")[0] for message in caplog.messages] == [
        f"backend web: waiting for the first check of {names}",
        f"backend web: no result of the first check of {names}",
    ]


def test_start_waits_for_no_server_that_is_added_or_returns_once_it_is_over():
    web = build_backend(urls(1, 2), check=WAIT)
    web["s2"].state = AdminState.MAINT
    web.monitor.begin_startup()
    record(web, "s1")
    assert is_over(web)
    web["s2"].state = AdminState.READY
    web.add(*urls(3))
    assert is_over(web) and not web.checked.reached
    web.monitor.begin_startup()
    assert is_over(web), "it begins once"


def test_server_that_is_added_before_the_start_is_waited_for():
    web = build_backend(urls(1), check=WAIT)
    web.add(*urls(2))
    web.monitor.begin_startup()
    record(web, "s1")
    assert not is_over(web)
    record(web, "s2")
    assert is_over(web)


@pytest.mark.parametrize("count", [3, MAX_AT_ONCE + 2])
def test_check_that_is_changed_while_the_start_waits_is_due_at_once_as_well(count: int):
    web = build_backend(urls(*range(count)), check=Check("/wrong", inter=count, startup="wait"))
    web.monitor.begin_startup()
    record(web, "s1")
    delays = [due(web, server.name) for server in web.servers]
    web.apply(replace(web.config, check=Check("/right", inter=count, startup="wait")))
    changed = [due(web, server.name) for server in web.servers]
    assert [delay == 0 for delay in changed[2:]] == [delay == 0 for delay in delays[2:]], "no more of them at once"
    record(web, *(server.name for server in web.servers if server.name != "s1"))
    assert is_over(web)


def test_check_that_is_changed_to_proceed_ends_the_wait():
    web = build_backend(urls(1), check=WAIT)
    web.monitor.begin_startup()
    web.apply(replace(web.config, check=PROCEED))
    assert is_over(web) and not web.checked.reached


def test_start_after_an_end_waits_anew_and_its_checks_are_due_at_once():
    web = build_backend(urls(1, 2), check=Check(inter=60, startup="wait"))
    web.monitor.begin_startup()
    record(web, "s1", "s2")
    first, waking = web.monitor.first_checks.startup, []
    web.monitor.forget_first_checks()
    assert first.reached and not is_over(web) and not web.checked.reached
    assert (due(web, "s1"), due(web, "s2")) == (60.0, 60.0)
    for server in web.servers:
        assert server.checking is not None
        server.checking.wake = lambda name=server.name: waking.append(name)
    web.monitor.begin_startup()
    assert (due(web, "s1"), due(web, "s2"), sorted(waking)) == (0.0, 0.0, ["s1", "s2"])
    record(web, "s1", "s2")
    assert is_over(web) and web.checked.reached


def test_end_while_the_start_waits_lets_it_go_on():
    web = build_backend(urls(1), check=WAIT)
    web.monitor.begin_startup()
    waiting = web.monitor.first_checks.startup
    web.monitor.forget_first_checks()
    assert waiting.reached and not is_over(web)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_start_of_a_forked_child_waits_anew():
    web = build_backend(urls(1, 2), check=WAIT)
    web.monitor.begin_startup()
    record(web, "s1")
    parent = web.monitor.first_checks.startup
    web.after_fork()
    assert not is_over(web) and not web.checked.reached and not parent.reached
    web.monitor.begin_startup()
    record(web, "s2")
    assert is_over(web) and web.checked.reached


def test_checked_of_a_forked_child_is_reached_if_it_was_before():
    web = build_backend(urls(1), check=PROCEED)
    record(web, "s1")
    web.after_fork()
    assert web.checked.reached
