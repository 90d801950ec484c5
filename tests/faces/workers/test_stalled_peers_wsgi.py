"""Workers that run and do not react: what becomes of the requests that are forwarded to them; and peers that do not
read what they have asked for.
"""

import fcntl
import os
import socket
from contextlib import closing, suppress

import pytest

from sticky_core.workers.frames import Frames, Kind
from sticky_wsgi.workers import peer as peer_module
from tests.faces.workers.wsgi import DEADLINE, RecordingApp, respond

INSTANCE = "0123456789abcdef"
#: options by which the workers in the slots 1 and 2 get half of all paths each
HALVES = {"key": "path", "slots": 2, "cookie": None}


@pytest.fixture
def stalled(folder):
    """The socket of a worker in the second worker slot that accepts no connection."""
    (folder / "group@wsgi").mkdir(mode=0o700, exist_ok=True)
    group = folder / "group@wsgi"
    with (group / "2.lock").open("w") as lock, socket.socket(socket.AF_UNIX) as listener:
        fcntl.flock(lock, fcntl.LOCK_EX)
        listener.bind(str(group / f"2.{INSTANCE}.sock"))
        listener.listen(100)
        yield listener


def echo(environ, start_response):
    return respond(start_response, environ["wsgi.input"].read())


def descriptors():
    return len(os.listdir("/dev/fd"))


def test_request_goes_to_another_worker_with_its_whole_body_if_its_own_does_not_accept_for_too_long(
    stalled, worker, monkeypatch
):
    monkeypatch.setattr(peer_module, "HELLO_TIMEOUT", 0.05)
    front = worker(RecordingApp(echo), **HALVES)
    before = descriptors()
    responses = [front.request(f"/{number}", method="POST", body=b"a body") for number in range(8)]
    assert {(response.status, response.data) for response in responses} == {("200 OK", b"a body")}
    attempts = {environ["sticky.decision"].attempts for environ in front.app.app.seen}
    assert attempts == {("w1",), ("w2", "w1")}
    assert descriptors() == before


def test_clients_that_give_up_while_their_worker_accepts_nothing_leave_no_descriptor(stalled, worker):
    front = worker(RecordingApp(echo), **HALVES)
    before = descriptors()
    gone = {"waitress.client_disconnected": lambda: True}
    statuses = {front.request(f"/{number}", **gone).status for number in range(12)}
    assert statuses == {"200 OK", "499 Client Closed Request"}
    assert descriptors() == before


def test_query_of_a_worker_that_accepts_nothing_leaves_no_descriptor(stalled, worker, monkeypatch):
    monkeypatch.setattr(peer_module, "QUERY_TIMEOUT", 0.05)
    front = worker(RecordingApp(), key="path")
    before = descriptors()
    assert front.app._worker.peers[2].query_key(Kind.KEY_QUERY, "k") is None
    assert descriptors() == before


def test_key_is_found_although_its_arbiter_does_not_react(stalled, worker, monkeypatch):
    owner, front = (worker(RecordingApp(), key="path", cookie=None) for _ in range(2))
    keys = front.app.workers.keys
    path = next(path for path in map("/{}".format, range(100)) if keys.arbiter(path).name == "w2")
    monkeypatch.setattr(peer_module, "CLAIM_TIMEOUT", 0.1)
    owner.app.workers.keys.learn(path, owner.app.workers.keys.own_id)
    assert front.request(path).status == "200 OK"
    assert (len(owner.app.app.seen), len(front.app.app.seen)) == (1, 0)


def test_thread_that_waits_for_the_hello_of_a_peer_sends_heartbeats(stalled, worker, beats):
    beats.then = stalled.close
    front = worker(RecordingApp(), **HALVES)
    assert {front.request(f"/{number}").status for number in range(8)} == {"200 OK"}
    assert len(beats.threads) >= 3


def test_thread_that_waits_for_the_owner_of_a_key_sends_heartbeats(stalled, worker, beats):
    beats.then = stalled.close
    front = worker(RecordingApp(), key="path", cookie=None)
    assert {front.request(f"/{number}").status for number in range(8)} == {"200 OK"}
    assert len(beats.threads) >= 3


def test_peer_that_queries_and_never_reads_the_replies_loses_its_connection_and_the_others_are_served(pair):
    front, owner, cookie = pair(RecordingApp(), key="url_param(room)")
    query = Frames().pack(Kind.KEY_QUERY, "k")
    with closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(DEADLINE)
        connection.connect(owner.app.workers.slot.path)
        with suppress(BrokenPipeError, ConnectionResetError):
            while True:
                connection.sendall(query * 1000)
    assert front.request(**cookie).status == "200 OK"
    assert len(owner.app.app.seen) == 2


def test_second_claim_on_a_connection_before_the_reply_to_the_first_closes_it(stalled, worker, monkeypatch, caplog):
    monkeypatch.setattr(peer_module, "QUERY_TIMEOUT", 0.5)
    owner = worker(RecordingApp(), key="path")
    with closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(DEADLINE)
        connection.connect(owner.app.workers.slot.path)
        assert Frames().feed(connection.recv(1000)) == [(Kind.HELLO, owner.app.workers.slot.instance)]
        connection.sendall(Frames().pack(Kind.KEY_CLAIM, "k", "w9@9"))
        connection.sendall(Frames().pack(Kind.KEY_CLAIM, "l", "w9@9"))
        assert connection.recv(1000) == b""
    assert "before the reply" in caplog.text
