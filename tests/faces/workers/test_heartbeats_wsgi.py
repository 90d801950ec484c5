"""Heartbeats of a WSGI worker that waits, and the end of one with an app that hangs: what happens to gunicorn's workers
of the class `sync`, here without gunicorn.
"""

import os
import signal
import sys
import threading
from types import MethodType, SimpleNamespace
from typing import Any
from weakref import WeakSet

import pytest

from sticky_core.workers.heartbeat import NOT_IN_APP, HeartbeatTimeout
from sticky_wsgi import StickyWorkers
from sticky_wsgi.gunicorn import post_worker_init
from sticky_wsgi.workers import gunicorn as gunicorn_module
from sticky_wsgi.workers import middleware as middleware_module
from sticky_wsgi.workers.gunicorn import Heartbeat, find_worker, server_threads, settings_of
from sticky_wsgi.workers.transaction import Permits
from tests.faces.workers.wsgi import DEADLINE, Beats, HoldingApp, SeenRule, listed, respond, run_together, wait_until


def test_thread_that_waits_for_a_permit_sends_heartbeats():
    held: list[Any] = []
    beats = Beats(lambda: held[0].release())
    permits = Permits(1, Heartbeat(HeartbeatTimeout(1000), beats))
    run_together(lambda: held.append(permits.acquire()))
    assert permits.acquire() is held[0]
    assert set(beats.threads) == {threading.get_ident()}


def test_thread_that_gunicorn_does_not_watch_sends_none():
    beats = Beats()
    permits = Permits(1, Heartbeat(HeartbeatTimeout(1000), beats))
    held: Any = permits.acquire()
    waits = threading.Event()

    def wait_for_it():
        waits.set()
        permits.acquire()

    thread = threading.Thread(target=wait_for_it)
    thread.start()
    waits.wait(DEADLINE)
    thread.join(0.3)  # as long as three heartbeats take
    held.release()
    thread.join(DEADLINE)
    assert beats.threads == []


def test_thread_that_waits_for_the_response_of_a_peer_sends_heartbeats(pair, beats):
    app = HoldingApp()
    front, _, cookie = pair(app)
    beats.then = app.gate.set
    assert front.request("/wait", **cookie).status == "200 OK"
    assert set(beats.threads) == {threading.get_ident()}


def test_thread_that_waits_for_the_rest_of_a_response_sends_heartbeats(pair, beats):
    gate = threading.Event()

    def app(environ, start_response):
        def items():
            yield b"one"
            if environ["PATH_INFO"] != "/":
                assert gate.wait(DEADLINE)
            yield b"two"

        start_response("200 OK", [])
        return items()

    front, _, cookie = pair(app)
    beats.then = gate.set
    assert front.request("/wait", **cookie).data == b"onetwo"


def test_worker_whose_app_hangs_with_the_request_of_a_peer_is_ended_as_by_gunicorn(pair, monkeypatch, caplog):
    signals: list[tuple[int, int]] = []
    app = HoldingApp()

    def kill(pid, number):
        signals.append((pid, number))
        app.gate.set()

    monkeypatch.setattr(os, "kill", kill)
    monkeypatch.setattr(Heartbeat, "of_server", lambda settings=None: Heartbeat(HeartbeatTimeout(0.01), lambda: None))
    front, _, cookie = pair(app)
    front.request("/wait", **cookie)
    assert signals == [(os.getpid(), signal.SIGABRT)]
    assert "WORKER TIMEOUT" in caplog.text


def test_app_that_waits_for_the_body_from_a_peer_does_not_hang(pair, beats):
    class SlowBody:
        """The body of a client that sends nothing until a worker has looked at its app twice."""

        def read(self, size=-1):
            wait_until(lambda: SeenRule.seen.count([NOT_IN_APP]) >= 2, "the worker looks at its app")
            return b""

    front, _, cookie = pair(lambda environ, start_response: respond(start_response, environ["wsgi.input"].read()))
    more = {"wsgi.input": SlowBody(), "CONTENT_LENGTH": "100000"}
    front.request("/", method="POST", **more, **cookie)
    assert SeenRule.seen.count([NOT_IN_APP]) >= 2


def test_app_that_works_is_seen_until_it_has_responded(pair, beats):
    app = HoldingApp()
    front, owner, cookie = pair(app)

    def worked():
        return any(since != NOT_IN_APP for each in SeenRule.seen for since in each)

    thread = threading.Thread(target=front.request, args=("/wait",), kwargs=cookie)
    thread.start()
    wait_until(worked, "the worker looks at its app")
    app.gate.set()
    thread.join(DEADLINE)
    connections = [*owner.app._worker._busy]
    assert [each for each in connections if each.in_app_since != NOT_IN_APP] == []


# -- where gunicorn's worker object is not found


@pytest.fixture
def unknown(monkeypatch):
    """Lets workers know the timeout of gunicorn, and not the object that sends heartbeats."""
    monkeypatch.setattr(Heartbeat, "of_server", lambda settings=None: Heartbeat(HeartbeatTimeout(0.2)))


def test_request_that_waits_for_its_worker_is_given_up_in_time_and_the_log_says_what_to_write(pair, unknown, caplog):
    app = HoldingApp()
    front, owner, cookie = pair(app, threads=1)
    held = threading.Thread(target=owner.request, args=("/wait",), kwargs=cookie)
    held.start()
    wait_until(lambda: app.inside, "the permit is held")
    statuses = [each.request(path, **cookie).status for each in (owner, front) for path in ("/", "/more")]
    app.gate.set()
    held.join(DEADLINE)
    assert statuses == ["503 Service Unavailable"] * 2 + ["504 Gateway Timeout"] * 2
    lines = [each.getMessage() for each in caplog.records if "post_worker_init" in each.getMessage()]
    assert len(lines) == 2  # one of each worker
    assert owner.request(**cookie).status == front.request(**cookie).status == "200 OK"


# -- finding gunicorn's worker object


class GunicornWorker:
    """What is used of gunicorn's `Worker`."""

    def __init__(self, timeout=30, threads=1, workers=2):
        self.pid = os.getpid()
        self.cfg = SimpleNamespace(timeout=timeout, threads=threads, workers=workers)
        self.beats = 0

    def notify(self):
        self.beats += 1

    def handle_abort(self, number, frame): ...


class SyncWorker(GunicornWorker): ...


class ThreadWorker(GunicornWorker): ...


@pytest.fixture
def gunicorn(monkeypatch):
    """Makes this process look like a worker of gunicorn, with the worker object that it is called with."""
    before = signal.getsignal(signal.SIGABRT)
    monkeypatch.setitem(sys.modules, "gunicorn.workers.base", SimpleNamespace(Worker=GunicornWorker))
    monkeypatch.setitem(sys.modules, "gunicorn.workers.sync", SimpleNamespace(SyncWorker=SyncWorker))
    monkeypatch.setitem(sys.modules, "gunicorn.workers.gthread", SimpleNamespace(ThreadWorker=ThreadWorker))
    monkeypatch.setattr(gunicorn_module, "_announced", None)
    monkeypatch.setattr(middleware_module, "_all", WeakSet())
    yield lambda worker: signal.signal(signal.SIGABRT, worker.handle_abort)
    signal.signal(signal.SIGABRT, before)


@pytest.mark.parametrize(
    ("kind", "settings", "threads", "beats"),
    [
        pytest.param(SyncWorker, {}, 1, 1, id="sync"),
        pytest.param(SyncWorker, {"timeout": 0}, 1, 0, id="sync without a timeout"),
        pytest.param(GunicornWorker, {}, None, 0, id="a class of another package"),
        pytest.param(ThreadWorker, {"threads": 8}, 8, 0, id="gthread"),
    ],
)
def test_worker_of_gunicorn_is_found_and_gets_heartbeats_if_its_thread_serves_requests(
    gunicorn, kind, settings, threads, beats
):
    worker = kind(**settings)
    gunicorn(worker)
    assert server_threads() == threads
    Heartbeat.of_server().begin_wait()()
    assert worker.beats == beats


def test_child_that_a_worker_of_gunicorn_has_forked_sends_no_heartbeats_for_it(gunicorn):
    worker = SyncWorker()
    gunicorn(worker)
    worker.pid += 1
    assert server_threads() is None and Heartbeat.of_server().rule is None


def test_timeout_is_taken_from_a_request_where_no_worker_object_is_found(gunicorn):
    response = SimpleNamespace(cfg=SimpleNamespace(timeout=8, worker_class_str="sync"))
    start_response = MethodType(lambda self: None, response)
    assert Heartbeat.of_server(settings_of(start_response)).rule == HeartbeatTimeout(8)
    assert settings_of(lambda status, headers: None) is None


def test_hook_announces_the_worker_and_starts_every_worker_that_can_have_peers(gunicorn, folder):
    sticky = StickyWorkers(listed, directory=folder)
    try:
        worker = GunicornWorker(workers=1)
        post_worker_init(worker)
        assert find_worker() is worker
        assert sticky.workers is None
        post_worker_init(GunicornWorker(workers=2))
        assert sticky.workers is not None
    finally:
        sticky.stop()
