"""Failed requests take a server down for a while (nginx max_fails)."""

from math import inf

from sticky_core.errors import Failure
from sticky_core.server.max_fails import MaxFails
from sticky_core.server.server import Server
from tests.core.backend.backends import app, choose_names, make_backend


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
    backend, _ = make_backend(Server("s1", app, max_fails=1))
    backend.monitor.record_request(backend["s1"], Failure.TIMEOUT, 0, 0.1)
    assert backend["s1"].usable and not backend.snapshot.observes


def test_failures_before_a_fail_timeout_are_forgotten_at_the_next_success():
    fails = MaxFails(3, 10)
    assert not fails.record_failure(0) and not fails.record_failure(5)
    fails.record_success(15)
    assert fails.count == 2, "the last one is not longer ago than that"
    fails.record_success(15.1)
    assert fails.count == 0


def test_it_is_down_from_the_last_failure_allowed_until_fail_timeout_is_over():
    fails = MaxFails(2, "10s")
    assert not fails.record_failure(0) and not fails.is_down and fails.next_deadline == inf
    assert fails.record_failure(1) and fails.is_down and fails.next_deadline == 11
    assert not fails.expire(10.9) and fails.is_down
    assert fails.expire(11) and not fails.is_down
    assert not fails.expire(12), "it has expired already"


def test_health_assigned_by_hand_ends_it():
    fails = MaxFails(1, None)
    fails.record_failure(0)
    fails.reset()
    assert not fails.is_down and fails.next_deadline == inf
