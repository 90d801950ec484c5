"""Tracking: a server has the health of another one."""

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.errors import ConfigError
from sticky_core.health.check import Check
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState
from tests.core.backend.backends import FAIL, app, build_backend, make_backend, url, urls, with_changed_server


def test_tracked_server_is_not_removed_alone():
    web = build_backend([*urls(1), Server("s2", url(2), track="s1")])
    with pytest.raises(ConfigError, match="server s2: track s1: there is no such server"):
        web.remove("s1")
    web.add(*urls(3))
    other = Backend("other", [Server("t1", url(9), track=web["s1"])])
    with pytest.raises(ConfigError, match="server s1 is tracked by t1"):
        web.remove("s1", "s2")
    assert other["t1"].tracks is web["s1"]
    web.remove("s2")
    assert [tracker.name for tracker in web["s1"].trackers] == ["t1"]


def test_server_tracked_by_object_is_not_removed_either():
    first = Server("s1", url(1))
    web = build_backend([first, Server("s2", url(2), track=first)])
    with pytest.raises(ConfigError, match="server s2: track: s1 is being removed"):
        web.apply(with_changed_server(web.config, "s1", target=app))


def test_tracking_server_has_the_health_of_the_tracked_one():
    leader = Server("s1", app)
    backend, _ = make_backend(leader, Server("s2", app, track="s1"), check=Check("/"))
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
