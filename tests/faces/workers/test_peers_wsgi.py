"""Workers that end and fail: what becomes of the requests that peers have forwarded to them; and peers that send what
they should not.
"""

import os
import select
import socket
import threading
from contextlib import closing, suppress
from pathlib import Path

import pytest

from sticky_core.workers.frames import MAX_FRAME, PIECE, Frames, Kind
from sticky_wsgi.workers.protocol import EAGER_BODY
from tests.faces.workers.wsgi import DEADLINE, HoldingApp, RecordingApp, listed, respond, wait_until

REQUEST = (Kind.REQUEST, "VALID", "BOUND", None, {"REQUEST_METHOD": "GET"}, b"")

BAD_FRAMES = {
    "no frame": b"\0\0\0\1\xc1",
    "a frame that is too long": (MAX_FRAME + 1).to_bytes(4, "big"),
    "no array": b"\0\0\0\1\x01",
    "an unexpected kind": Frames().pack(Kind.END, None),
    "too few items": Frames().pack(*REQUEST[:3]),
    "an unknown claim": Frames().pack(Kind.REQUEST, "KING", *REQUEST[2:]),
    "a key that is no text": Frames().pack(*REQUEST[:3], 4, *REQUEST[4:]),
    "an environ that is no mapping": Frames().pack(*REQUEST[:4], "environ", b""),
    "a body that is no bytes": Frames().pack(*REQUEST[:5], 3),
    "the beginning of a frame": b"\0\0\1\0 ",
}


@pytest.mark.parametrize("data", BAD_FRAMES.values(), ids=BAD_FRAMES)
def test_bad_frame_closes_its_connection_and_nothing_else(pair, data):
    front, owner, cookie = pair(RecordingApp())
    slot = owner.app.workers.slot
    with closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(DEADLINE)
        connection.connect(slot.path)
        assert Frames().feed(connection.recv(1000)) == [(Kind.HELLO, slot.instance)]
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        try:
            assert connection.recv(1000) == b""
        except ConnectionResetError:
            pass
    assert front.request(**cookie).status == "200 OK"


def test_connection_of_another_user_is_closed_at_both_ends(pair, monkeypatch):
    app = RecordingApp()
    front, owner, cookie = pair(app)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(DEADLINE)
        connection.connect(owner.app.workers.slot.path)
        assert connection.recv(1000) == b""
    front.request(**cookie)
    assert app.seen[-1]["sticky.decision"].server == "w1"  # the worker that forwards checks the user as well
    monkeypatch.undo()
    front.request(**cookie)
    assert app.seen[-1]["sticky.decision"].server == "w2"


class FakePeer:
    """Listens in the place of the second worker, and runs `script` on each connection."""

    INSTANCE = "0123456789abcdef"

    def __init__(self, folder, script):
        (folder / "group@wsgi").mkdir(mode=0o700, exist_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "group@wsgi" / f"2.{self.INSTANCE}.sock"))
        self._listener.listen()
        self._script = script
        self.received = []  #: what `script` has returned for each connection
        self._connection = self._listener
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self._connection = connection
                connection.settimeout(DEADLINE)
                try:
                    self.received.append(self._script(connection))
                except ConnectionError:
                    self.received.append(b"")

    def close(self):
        for each in (self._listener, self._connection):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._thread.join(DEADLINE)
        self._listener.close()


@pytest.fixture
def fake_peer(folder, worker):
    """A worker, and a fake peer in the second worker slot; each gets its half of all paths."""
    opened = []

    def start(script, **options):
        opened.append(FakePeer(folder, script))
        return worker(RecordingApp(), key="path", slots=2, cookie=None, **options), opened[0]

    yield start
    for each in opened:
        each.close()


def send_hello(connection, instance=FakePeer.INSTANCE):
    connection.sendall(Frames().pack(Kind.HELLO, instance))


def receive_frame(connection, frames):
    """Return the next frame on a connection; None if it is closed."""
    while data := connection.recv(262144):
        for frame in frames.feed(data):
            return frame
    return None


def closes_at_once(connection):
    """It sends nothing."""


def closes_with_the_request_unread(connection):
    send_hello(connection)
    select.select([connection], [], [], DEADLINE)


def reads_the_request_and_closes(connection):
    send_hello(connection)
    return receive_frame(connection, Frames())


def wants_the_body_and_closes(connection):
    frames = Frames()
    send_hello(connection)
    receive_frame(connection, frames)
    connection.sendall(frames.pack(Kind.WANT_BODY, 10))
    select.select([connection], [], [], DEADLINE)


def sends_the_hello_of_another(connection):
    send_hello(connection, "fedcba9876543210")


def sends_no_frame(connection):
    reads_the_request_and_closes(connection)
    connection.sendall(b"\0\0\0\1\xc1")


def responds_without_a_head(connection):
    reads_the_request_and_closes(connection)
    connection.sendall(Frames().pack(Kind.END, None))


def sends_a_query(connection):
    reads_the_request_and_closes(connection)
    connection.sendall(Frames().pack(Kind.KEY_QUERY, "a key"))


@pytest.mark.parametrize(
    "script, status",
    [
        pytest.param(closes_at_once, "200", id="it closes at once"),
        pytest.param(closes_with_the_request_unread, "200", id="it closes before it has read the request"),
        pytest.param(sends_the_hello_of_another, "200", id="it is another worker than expected"),
        pytest.param(reads_the_request_and_closes, "502", id="it closes after it has read the request"),
        pytest.param(wants_the_body_and_closes, "502", id="it closes before it has read the body"),
        pytest.param(sends_no_frame, "502", id="it sends no frame"),
        pytest.param(responds_without_a_head, "502", id="it responds without a head"),
        pytest.param(sends_a_query, "502", id="it sends a query instead of a response"),
    ],
)
def test_request_goes_to_another_worker_only_if_the_peer_can_not_have_executed_it(fake_peer, script, status):
    front, other = fake_peer(script)
    statuses = {front.request(f"/{number}", method="POST", body=b"x" * 2 * PIECE).status[:3] for number in range(12)}
    assert other.received
    assert statuses == {"200", status}


def test_peer_that_reads_slowly_receives_everything(fake_peer):
    def reads_slowly(connection):
        frames = Frames()
        send_hello(connection)
        threading.Event().wait(0.3)  # longer than a write waits before it checks the client
        frame = receive_frame(connection, frames)
        connection.sendall(frames.pack(Kind.END, None, ("200 OK", ()), frame[4]["HTTP_X_LARGE"].encode()))

    front, other = fake_peer(reads_slowly)
    text = "x" * 1_000_000
    responses = {front.request(f"/{number}", HTTP_X_LARGE=text).data for number in range(4)}
    assert other.received
    assert responses <= {b"", text.encode()} and text.encode() in responses


def test_nothing_is_sent_to_the_socket_of_another_user(fake_peer, monkeypatch):
    def listens(connection):
        send_hello(connection)
        return connection.recv(1000)

    front, other = fake_peer(listens)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert {front.request(f"/{number}").status for number in range(12)} == {"200 OK"}
    wait_until(lambda: other.received, "a connection")
    assert set(other.received) == {b""}


def test_surplus_response_is_not_taken_for_the_next_one(fake_peer):
    def responds_twice(connection):
        frames = Frames()
        send_hello(connection)
        while receive_frame(connection, frames) is not None:
            connection.sendall(
                b"".join(frames.pack(Kind.END, None, ("200 OK", ()), text) for text in (b"the response", b"another"))
            )

    front, other = fake_peer(responds_twice)
    responses = {front.request(f"/{number}").data for number in range(12)}
    assert len(other.received) > 1 or responses == {b"", b"the response"}
    assert b"another" not in responses


@pytest.mark.parametrize(
    "size", [10, EAGER_BODY, 3 * PIECE], ids=["small", "as large as goes with its request", "large"]
)
@pytest.mark.parametrize("before", [False, True], ids=["a new connection", "an idle connection"])
def test_request_that_the_stopped_worker_has_not_read_is_replayed_with_its_whole_body(pair, before, size):
    front, owner, cookie = pair(RecordingApp(lambda environ, start: respond(start, environ["wsgi.input"].read())))
    if before:
        front.request(**cookie)
    owner.app.stop()
    body = b"z" * size
    assert front.request(method="POST", body=body, **cookie).data == body


@pytest.mark.parametrize(
    "retry_on, method, status",
    [
        pytest.param("conn-failure", "GET", "502", id="it may have been executed"),
        pytest.param("conn-failure empty-response", "POST", "502", id="it may have been, and must not be twice"),
        pytest.param("conn-failure empty-response", "GET", "200", id="it may be executed twice"),
    ],
)
def test_request_at_a_stopped_worker_is_replayed_only_if_that_is_harmless(pair, retry_on, method, status):
    front, owner, cookie = pair(RecordingApp(), retry_on=retry_on, drain=0.1)

    def cut(environ, start_response):
        """It stops with a short drain, so its connections are aborted."""
        owner.app.app.respond = listed
        owner.app.stop()
        return respond(start_response)

    owner.app.app.respond = cut
    assert front.request(method=method, body=b"x", **cookie).status.startswith(status)


def test_worker_that_stops_serves_the_forwarded_requests_in_flight(pair):
    crowd = HoldingApp()
    front, owner, cookie = pair(crowd)
    path = Path(owner.app.workers.slot.path)
    responses = []
    requesting = threading.Thread(target=lambda: responses.append(front.request("/wait", **cookie).status))
    requesting.start()
    wait_until(lambda: crowd.inside, "the request in flight")
    ending = threading.Thread(target=owner.app.stop)
    ending.start()
    wait_until(lambda: not path.exists(), "the removal of its socket")
    crowd.gate.set()
    requesting.join(DEADLINE)
    ending.join(DEADLINE)
    assert responses == ["200 OK"]


def test_drain_timeout_ends_the_forwarded_requests_in_flight(worker):
    crowd = HoldingApp()
    front, owner = worker(RecordingApp(), drain=0.1), worker(crowd, drain=0.1)
    owner.request()
    responses = []
    cookie = {"HTTP_COOKIE": owner.cookie}
    requesting = threading.Thread(target=lambda: responses.append(front.request("/wait", **cookie).status))
    requesting.start()
    wait_until(lambda: crowd.inside, "the request in flight")
    owner.app.stop()
    requesting.join(DEADLINE)
    assert responses == ["502 Bad Gateway"]
    crowd.gate.set()
