"""Announcements: what the log and subscribers get for each change of a server."""

import logging

import pytest

from sticky_core.backend.announcements import Announcements
from sticky_core.backend.change_lock import ChangeLock
from sticky_core.backend.events import Events, StateChange
from sticky_core.health.check import Check
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState
from tests.core.backend.backends import FAIL, PASS, app, make_backend


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


def change(before: str, after: str, reason: str = "") -> StateChange:
    return StateChange("web", "s1", before, after, reason, 0.0)


@pytest.mark.parametrize(
    "before, after, reason, level, words",
    [
        ("DOWN", "UP", "", "INFO", "is UP. 2 active and 1 backup servers online"),
        ("MAINT", "UP", "", "INFO", "is UP/READY (leaving forced maintenance). 2 active and 1 backup servers online"),
        ("UP", "DOWN", "L4TOUT", "WARNING", "is DOWN, reason: L4TOUT. 2 active and 1 backup servers left"),
        ("UP", "MAINT", "", "WARNING", "is going DOWN for maintenance. 2 active and 1 backup servers left"),
        ("UP", "NOLB", "", "WARNING", "is stopping. 2 active and 1 backup servers online"),
        ("UP", "DRAIN", "", "WARNING", "enters drain state. 2 active and 1 backup servers online"),
        ("DRAIN", "DRAINED", "", "WARNING", "is drained. 2 active and 1 backup servers online"),
        ("NEW", "UP", "", "INFO", "is new, and is UP. 2 active and 1 backup servers online"),
        ("NEW", "DOWN", "", "INFO", "is new, and is DOWN. 2 active and 1 backup servers left"),
        ("UP", "REMOVED", "", "INFO", "is removed. 2 active and 1 backup servers left"),
    ],
)
def test_change_is_logged_in_haproxys_words(
    before: str, after: str, reason: str, level: str, words: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "sticky_sessions")
    server = Server("s1", app)
    server.in_flight.append(None)
    announcements = Announcements("web", ChangeLock())
    announcements.queue_change(change(before, after, reason), server, (2, 1, 3))
    announcements.publish()
    (record,) = caplog.records
    assert record.levelname == level
    assert record.getMessage() == f"Server web/s1 {words}. 1 sessions active, 3 remaining in queue."


def test_nothing_is_published_while_the_change_lock_is_held(caplog: pytest.LogCaptureFixture):
    lock = ChangeLock()
    announcements = Announcements("web", lock)
    events = Events(announcements.bus)
    with lock:
        announcements.queue_change(change("UP", "DOWN"), Server("s1", app), (0, 0, 0))
        announcements.publish()
        assert (events.take(), caplog.messages) == ([], [])
    assert (events.take(), len(caplog.messages)) == ([change("UP", "DOWN")], 1)


def test_forked_child_discards_what_the_parent_has_queued(caplog: pytest.LogCaptureFixture):
    announcements = Announcements("web", ChangeLock())
    events = Events(announcements.bus)
    announcements.queue_change(change("UP", "DOWN"), Server("s1", app), (0, 0, 0))
    announcements.after_fork()
    announcements.publish()
    assert (events.take(), caplog.messages) == ([], [])


def test_tracking_servers_are_notified_with_the_name_of_the_tracked_one():
    tracked, tracker = Server("s1", app), Server("s2", app)
    tracked.trackers = (tracker,)
    Announcements("web", ChangeLock()).publish([tracked])
    assert tracker.reason == "via web/s1"
