"""Heartbeats of a WSGI worker that waits, and the end of one with an app that hangs: what happens to gunicorn's workers
of the class `sync`, here without gunicorn.
"""

import os
import signal
import threading
from typing import Any

from sticky_core.workers.heartbeat import NOT_IN_APP, HeartbeatTimeout
from sticky_wsgi.workers.gunicorn import Heartbeat
from sticky_wsgi.workers.transaction import Permits
from tests.faces.workers.wsgi import DEADLINE, Beats, HoldingApp, SeenRule, respond, run_together, wait_until


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
    monkeypatch.setattr(Heartbeat, "of_server", lambda: Heartbeat(HeartbeatTimeout(0.01), lambda: None))
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
