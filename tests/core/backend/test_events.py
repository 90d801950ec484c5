"""Events: each change of a server is announced once, to callbacks, iterators and the log."""

import pytest

from sticky_core.backend.events import StateChange
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState
from tests.core.backend.backends import app, build_backend, make_backend, url, urls, with_changed_server


def test_added_and_removed_servers_are_announced():
    web = build_backend(urls(1, 2))
    with web.events() as events:
        web.add(Server("s3", url(3)))
        web.remove("s1")
        web.apply(with_changed_server(web.config, "s2", weight=5))
        received = [(change.server, change.before, change.after) for change in events.take()]
    assert received == [("s3", "NEW", "UP"), ("s1", "UP", "REMOVED")]


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
