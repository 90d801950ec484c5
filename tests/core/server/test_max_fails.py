"""Failed requests take a server down for a while (nginx max_fails)."""

from dataclasses import replace
from math import inf
from typing import Any

from sticky_core.errors import Failure
from sticky_core.server.config import ServerConfig
from sticky_core.server.max_fails import MaxFails
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState
from tests.core.backend.backends import app, choose_names, make_backend, with_changed_server


def fails_of(**options: Any) -> MaxFails:
    return MaxFails(ServerConfig(name="s1", target=app, **options))


def test_server_is_down_for_fail_timeout_after_max_fails():
    backend, clock = make_backend(Server("s1", app, max_fails=2, fail_timeout=10), Server("s2", app))
    server = backend["s1"]
    backend.monitor.record_request(server, Failure.TIMEOUT, 0, 0.1)
    assert server.usable
    backend.monitor.record_request(server, Failure.TIMEOUT, 0, 0.1)
    assert not server.usable and choose_names(backend, 2) == ["s2", "s2"]
    clock.advance(10)
    assert "s1" in choose_names(backend, 2)
    backend.monitor.record_request(server, Failure.TIMEOUT, 0, 0.1)
    assert not server.usable, "on probation one failure is enough"
    clock.advance(10.5)
    backend.monitor.run_due_timers()
    backend.monitor.record_request(server, None, 200, 0.1)
    backend.monitor.record_request(server, Failure.TIMEOUT, 0, 0.1)
    assert server.usable, "a success has made up for them"


def test_only_server_is_never_taken_down():
    backend, _ = make_backend(Server("s1", app, max_fails=1, fail_rate=0.5, fail_volume=1))
    backend.monitor.record_request(backend["s1"], Failure.TIMEOUT, 0, 0.1)
    assert backend["s1"].usable and not backend.snapshot.observes


def test_what_ends_at_a_server_in_maintenance_is_not_counted():
    backend, _ = make_backend(Server("s1", app, max_fails=1, fail_rate=0.5, fail_volume=1), Server("s2", app))
    server = backend["s1"]
    server.state = AdminState.MAINT
    backend.monitor.record_request(server, Failure.TIMEOUT, 0, 0.1)
    server.state = AdminState.READY
    assert server.status == "UP"


def test_number_of_failed_requests_is_forgotten_without_a_limit():
    backend, _ = make_backend(Server("s1", app, max_fails=3), Server("s2", app, max_fails=3))
    server = backend["s1"]
    backend.monitor.record_request(server, Failure.TIMEOUT, 0, 0.1)
    assert not server.is_error_free
    backend.apply(with_changed_server(backend.config, "s2", max_fails=2))
    assert server.max_fails.count == 1, "it is another server that has changed"
    backend.apply(with_changed_server(backend.config, "s1", max_fails=5, fail_timeout=3))
    assert server.max_fails.count == 1
    backend.apply(with_changed_server(backend.config, "s1", max_fails=0, fail_timeout=None))
    assert server.max_fails.count == 0 and server.is_error_free, "no success takes the lock to reset it"


def test_number_of_failed_requests_is_forgotten_at_the_only_server():
    backend, _ = make_backend(Server("s1", app, max_fails=2), Server("s2", app))
    server = backend["s1"]
    backend.monitor.record_request(server, Failure.TIMEOUT, 0, 0.1)
    backend.remove("s2")
    assert server.is_error_free
    backend.apply(replace(backend.config, servers=(*backend.config.servers, ServerConfig(name="s3", target=app))))
    backend.monitor.record_request(server, Failure.TIMEOUT, 0, 0.1)
    assert server.usable and server.max_fails.count == 1


def test_failures_before_a_fail_timeout_are_forgotten_at_the_next_success():
    fails = fails_of(max_fails=3, fail_timeout=10)
    assert not fails.record_failure(0) and not fails.record_failure(5)
    fails.record_success(15)
    assert fails.count == 2 and not fails.ignores_success, "the last one is not longer ago than that"
    fails.record_success(15.1)
    assert fails.count == 0 and fails.ignores_success


def test_it_is_down_from_the_last_failure_allowed_until_fail_timeout_is_over():
    fails = fails_of(max_fails=2, fail_timeout="10s")
    assert not fails.record_failure(0) and not fails.is_down and fails.next_deadline == inf
    assert fails.record_failure(1) == "2 requests failed" and not fails.is_down
    fails.take_down(1)
    assert fails.is_down and fails.next_deadline == 11
    assert not fails.expire(10.9) and fails.is_down
    assert fails.expire(11) and not fails.is_down
    assert not fails.expire(12), "it has expired already"


def test_health_assigned_by_hand_ends_it():
    fails = fails_of(max_fails=1)
    fails.record_failure(0)
    fails.take_down(0)
    fails.reset()
    assert not fails.is_down and fails.next_deadline == inf
