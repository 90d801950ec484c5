"""Failed requests take a server down for a while (nginx max_fails)."""

from sticky_core.errors import Failure
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
