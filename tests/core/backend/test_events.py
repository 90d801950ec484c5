"""Events: each change of a server is announced once, to callbacks, iterators and the log."""

import logging

import pytest

from sticky_core.backend.events import StateChange
from sticky_core.health.check import Check
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState
from tests.core.backend.backends import FAIL, PASS, app, build_backend, make_backend, url, urls, with_changed_server


def test_added_and_removed_servers_are_announced():
    web = build_backend(urls(1, 2))
    with web.events() as events:
        web.add(Server("s3", url(3)))
        web.remove("s1")
        web.apply(with_changed_server(web.config, "s2", weight=5))
        received = [(change.server, change.before, change.after) for change in events.take()]
    assert received == [("s3", "NEW", "UP"), ("s1", "UP", "REMOVED")]


def test_each_change_is_announced_once(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "sticky_sessions")
    backend, clock = make_backend(Server("s1", app), Server("s2", app), check=Check("/"))
    received: list[StateChange] = []
    with backend.events(received.append):
        for result in (PASS, FAIL, FAIL, FAIL, FAIL, PASS, PASS, PASS):
            backend.monitor.record_check(backend["s1"], result)
        backend["s1"].state = AdminState.DRAIN
        backend["s1"].weight = 5
    backend["s1"].state = AdminState.READY
    why = 'Layer7 wrong status, code: 503, info: "Service Unavailable"'
    assert received == [
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


def test_callback_may_fail_or_change_servers(caplog: pytest.LogCaptureFixture):
    backend, _ = make_backend(Server("s1", app), Server("s2", app))
    received: list[str] = []

    def change_and_fail(change: StateChange) -> None:
        if change.server == "s1":
            backend["s2"].state = AdminState.MAINT
            raise RuntimeError("a callback's own fault")

    backend.events(change_and_fail)
    backend.events(lambda change: received.append(change.server))
    backend["s1"].state = AdminState.MAINT
    assert received == ["s1", "s2"]


def test_changes_are_iterated_in_a_thread():
    backend, _ = make_backend(Server("s1", app))
    events = backend.events()
    backend["s1"].state = AdminState.MAINT
    backend["s1"].state = AdminState.READY
    events.close()
    assert [change.after for change in events] == ["MAINT", "UP"]
