"""Drain: a server keeps its clients until none is left or the deadline has passed."""

from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState
from tests.core.backend.backends import app, choose_names, make_backend


def test_clients_are_sent_to_other_servers_after_the_deadline():
    backend, clock = make_backend(Server("s1", app), Server("s2", app), persist=Cookie("S", signed=False))
    backend["s1"].drain(deadline="60s")
    clock.advance(59)
    backend.monitor.run_due_timers()
    assert (backend["s1"].usable, backend["s1"].drained) == (True, False)
    clock.advance(1)
    backend.monitor.run_due_timers()
    assert (backend["s1"].usable, backend["s1"].drained) == (False, True)
    backend["s1"].state = AdminState.READY
    assert (backend["s1"].usable, backend["s1"].drained) == (True, False)


def test_drain_without_a_deadline_lasts():
    backend, clock = make_backend(Server("s1", app), Server("s2", app), persist=Cookie("S", signed=False))
    backend["s1"].drain(deadline=None)
    clock.advance(100_000)
    backend.monitor.run_due_timers()
    assert (backend["s1"].usable, backend["s1"].drained) == (True, False)


def test_server_is_drained_when_no_client_has_come_for_as_long_as_marks_last():
    backend, clock = make_backend(Server("s1", app), Server("s2", app), persist=Cookie("S", signed=False, maxidle=60))
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


def test_drained_is_waited_for():
    backend, clock = make_backend(Server("s1", app), Server("s2", app))
    backend["s1"].in_flight.append(None)
    backend["s1"].drain()
    waiting = backend.drained("s1")
    assert not waiting.wait(timeout=0)
    backend["s1"].in_flight.pop()
    clock.advance(0.2)
    assert waiting.wait(timeout=0)


def test_drained_is_reached_when_the_server_is_removed():
    backend, _ = make_backend(Server("s1", app), Server("s2", app))
    backend["s1"].in_flight.append(None)
    backend["s1"].drain(deadline=None)
    drained = backend.drained("s1")
    removed = backend["s1"]
    backend.remove("s1")
    assert not drained.wait(0)
    backend.placement.release(removed)
    assert drained.wait(0)


def test_unbound_requests_go_to_a_drained_server_if_no_other_is_left():
    backend, clock = make_backend(Server("s1", app))
    backend["s1"].drain(deadline=1)
    clock.advance(2)
    assert choose_names(backend, 1) == ["s1"]
