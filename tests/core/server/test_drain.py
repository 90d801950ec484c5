"""Drain: a server keeps its clients until none is left or the deadline has passed."""

from typing import Any

import pytest

from sticky_core.errors import ConfigError
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.drain import DEADLINE, POLL_INTERVAL
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


def test_server_has_not_drained_at_the_deadline_while_a_request_is_in_flight():
    backend, clock = make_backend(Server("s1", app), Server("s2", app), persist=Cookie("S", signed=False, maxidle="1h"))
    server = backend["s1"]
    server.in_flight.append(None)
    server.drain(deadline=60)
    clock.advance(60)
    backend.monitor.run_due_timers()
    assert (server.usable, server.drained) == (False, False)
    server.in_flight.pop()
    clock.advance(POLL_INTERVAL)
    backend.monitor.run_due_timers()
    assert server.drained


def test_state_drain_has_the_default_deadline():
    backend, clock = make_backend(Server("s1", app), Server("s2", app), persist=Cookie("S", signed=False))
    server = backend["s1"]
    server.state = AdminState.DRAIN
    clock.advance(DEADLINE - 1)
    backend.monitor.run_due_timers()
    assert (server.usable, server.drained) == (True, False)
    clock.advance(1)
    backend.monitor.run_due_timers()
    assert (server.usable, server.drained) == (False, True)


@pytest.mark.parametrize(
    "arguments, problem",
    [
        ({"deadline": "soon"}, "server s1: deadline: 'soon' is not a duration"),
        ({"deadline": -1}, "server s1: deadline -1 is no number of seconds from 0 on"),
        ({"spread": "soon"}, "server s1: spread: 'soon' is not a duration"),
        ({"spread": -1}, "server s1: spread -1 is no number of seconds from 0 on"),
    ],
)
def test_what_is_no_duration_is_refused_and_changes_nothing(arguments: dict[str, Any], problem: str):
    server = Server("s1", app)
    with pytest.raises(ConfigError, match=problem):
        server.drain(**arguments)
    assert server.state is AdminState.READY


class RecordingConnection:
    def __init__(self, server: Server) -> None:
        self.left: list[float | None] = []
        self._server = server

    def on_drain_changed(self) -> None:
        self.left.append(self._server.seconds_to_deadline(0))


def test_open_connections_are_notified_whenever_the_drain_changes():
    backend, _ = make_backend(Server("s1", app), Server("s2", app))
    server = backend["s1"]
    connection = RecordingConnection(server)
    server.draining.add_connection(connection)
    server.state = AdminState.DRAIN
    server.drain(deadline=5)
    server.drain(deadline=None)
    server.state = AdminState.MAINT
    backend.remove("s1")
    assert connection.left == [300, 5, None, None, 0]


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
