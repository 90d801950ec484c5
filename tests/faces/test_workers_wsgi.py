"""Workers that hand requests to each other, several of them in this one process: what an app and a client see of it is
what they would see without.
"""

import io
import os
import select
import shutil
import socket
import tempfile
import threading
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sticky_core.errors import ConfigError
from sticky_core.persistence.claim import Claim, Reason
from sticky_core.workers.frames import MAX_FRAME, PIECE, Frames, Kind
from sticky_core.workers.transaction import RemoteAppError
from sticky_wsgi import StickyWorkers
from sticky_wsgi.workers.protocol import EAGER_BODY

SECRET = "a-secret-of-the-worker-tests"
DEADLINE = 300.0


class Server:
    """A WSGI server that serves one request at a time, and keeps all that it is told."""

    def __init__(self, app, **says):
        self.app = app
        self.says = says
        self.cookie = None

    def environ(self, path="/", query="", method="GET", body=b"", **more):
        environ = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "192.0.2.7",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            **self.says,
            **more,
        }
        if body and "HTTP_TRANSFER_ENCODING" not in environ:
            environ["CONTENT_LENGTH"] = str(len(body))
        return environ

    def open(self, environ):
        """The head of an answer, and its iterable."""
        told = SimpleNamespace(status="", headers=[], written=[], body=None)

        def start_response(status, headers, exc_info=None):
            told.status, told.headers = status, headers
            return told.written.append

        told.body = self.app(environ, start_response)
        return told

    def ask(self, path="/", query="", method="GET", body=b"", **more):
        """The answer, whole: its status and its body."""
        told = self.open(self.environ(path, query, method, body, **more))
        try:
            items = list(told.body)
        finally:
            close(told.body)
        told.data = b"".join((*told.written, *items))
        for name, value in told.headers:
            if name.lower() == "set-cookie":
                self.cookie = value.partition(";")[0]
        return told


def close(body):
    getattr(body, "close", lambda: None)()


@pytest.fixture
def directory():
    path = Path(tempfile.mkdtemp(prefix="w"))  # pytest's own are too long for sockets
    yield path
    shutil.rmtree(path)


@pytest.fixture
def worker(directory):
    """Starts a worker around an app; all are siblings."""
    started = []

    def start(app, threads=4, **options):
        sticky = StickyWorkers(app, name="kin", directory=directory, secret=SECRET, threads=threads, **options)
        sticky.start()
        started.append(sticky)
        return Server(sticky)

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def pair(worker):
    """Two workers of the same app; and what a client sends that belongs to the second."""

    def start(app, **options):
        front, owner = worker(app, **options), worker(app, **options)
        owner.ask()
        return front, owner, {"HTTP_COOKIE": owner.cookie}

    return start


class Remembers:
    """An app that keeps what it was asked, and answers as it is told."""

    def __init__(self, answer=lambda environ, start_response: said(start_response)):
        self.answer = answer
        self.seen = []

    def __call__(self, environ, start_response):
        self.seen.append(environ)
        return self.answer(environ, start_response)


def said(start_response, *items, status="200 OK"):
    start_response(status, [("Content-Type", "text/plain")])
    return list(items)


def until(condition, what):
    waiting = threading.Event()
    for _ in range(int(DEADLINE / 0.01)):
        if condition():
            return
        waiting.wait(0.01)
    raise AssertionError(f"waited in vain: {what}")


def together(*calls):
    """Run them at once, and wait for all."""
    threads = [threading.Thread(target=call) for call in calls]
    for each in threads:
        each.start()
    for each in threads:
        each.join(DEADLINE)
    assert not any(each.is_alive() for each in threads)


# -- what the app sees


def test_a_request_looks_the_same_to_the_app_wherever_it_is_served(pair):
    app = Remembers()
    front, owner, bound = pair(app)
    said = {"path": "/caf\xc3\xa9", "query": "a=%41&b", "HTTP_X_RAW": "\xe9", "RAW_URI": "/caf%C3%A9?a=%41&b"}
    owner.ask(**said, **bound)
    front.ask(**said, **bound)
    home, away = app.seen[-2:]
    assert {name: value for name, value in away.items() if isinstance(value, (str, bool)) and name in home} == {
        name: value for name, value in home.items() if isinstance(value, (str, bool))
    }
    assert away["wsgi.version"] == (1, 0)


def test_what_is_no_text_stays_behind(pair):
    app = Remembers()
    front, _, bound = pair(app)
    front.ask(**bound, **{"gunicorn.socket": object(), "some.function": len})
    assert not {"gunicorn.socket", "some.function"} & set(app.seen[-1])


def test_the_app_reads_whose_the_request_is(pair):
    app = Remembers()
    front, _, bound = pair(app)
    front.ask(**bound)
    decision = app.seen[-1]["sticky.decision"]
    assert (decision.server, decision.claim, decision.reason) == ("w2", Claim.VALID, Reason.BOUND)


BODIES = {
    "none": b"",
    "small": b"a small one",
    "as large as goes along": b"x" * EAGER_BODY,
    "larger": b"y" * (EAGER_BODY + 1),
    "many pieces": bytes(range(256)) * 2048,
}


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "chunked"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body_arrives_whole(pair, body, chunked):
    front, _, bound = pair(Remembers(lambda environ, start: said(start, environ["wsgi.input"].read())))
    more = {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True} if chunked else {}
    assert front.ask(method="POST", body=body, **more, **bound).data == body


READERS = {
    "by lines": lambda input: [*input],
    "a line, then the rest": lambda input: [input.readline(), input.read()],
    "in small pieces": lambda input: [*iter(lambda: input.read(1000), b"")],
    "lines with a limit": lambda input: [*iter(lambda: input.readline(7), b"")],
    "all lines": lambda input: input.readlines(),
    "only its beginning": lambda input: [input.read(5)],
    "not at all": lambda input: [],
    "beyond its end": lambda input: [input.read(), input.read(1), input.readline()],
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("size", [1, 4000], ids=["small", "large"])
def test_a_body_is_read_as_any_other(pair, read, size):
    def answer(environ, start_response):
        return said(start_response, *[b"<%b>" % piece for piece in read(environ["wsgi.input"])])

    front, owner, bound = pair(answer)
    body = b"the first line\nthe second\n\nthe last" * size
    at_home = owner.ask(method="POST", body=body, **bound, **{"wsgi.input": io.BytesIO(body)})
    assert front.ask(method="POST", body=body, **bound).data == at_home.data


def test_a_large_body_is_read_only_as_far_as_the_app_asks(pair):
    front, _, bound = pair(Remembers(lambda environ, start: said(start, environ["wsgi.input"].read(5))))
    told = io.BytesIO(b"x" * 10 * PIECE)
    front.ask(method="POST", **bound, **{"wsgi.input": told, "CONTENT_LENGTH": str(10 * PIECE)})
    assert told.tell() <= PIECE


def test_a_client_that_leaves_in_the_middle_of_its_body_is_an_error_to_the_app(pair):
    class Broken(io.BytesIO):
        def read(self, size=-1):
            if self.tell():
                raise ConnectionResetError
            return super().read(size)

    raised = []

    def answer(environ, start_response):
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            raised.append(error)
            raise
        return said(start_response)

    front, _, bound = pair(Remembers(answer))
    broken = {"wsgi.input": Broken(b"x" * 10 * PIECE), "CONTENT_LENGTH": str(10 * PIECE)}
    assert front.ask(method="POST", **bound, **broken).status.startswith("499")
    until(lambda: raised, "the app hears of it")


# -- what the client sees


def listed(environ, start_response):
    return said(start_response, b"one ", b"", b"two")


def generated(environ, start_response):
    start_response("201 Created", [("X-A", "1"), ("X-A", "2")])
    yield b"one "
    yield b""
    yield b"two"


def late(environ, start_response):
    yield b""
    start_response("200 OK", [])
    yield b"late"


def written(environ, start_response):
    write = start_response("200 OK", [])
    write(b"one ")
    write(b"two ")
    return [b"three"]


def taken_back(environ, start_response):
    start_response("200 OK", [("X-First", "yes")])
    try:
        raise ValueError
    except ValueError as error:
        start_response("500 Oh", [("X-Second", "yes")], (ValueError, error, error.__traceback__))
    return [b"sorry"]


def bodiless(environ, start_response):
    start_response("204 No Content", [])
    return ()


def one_large_item(environ, start_response):
    return said(start_response, bytes(range(256)) * 4096)


def many_large_items(environ, start_response):
    start_response("200 OK", [])
    return (bytes([number]) * (PIECE + 1) for number in range(20))


ANSWERS = (listed, generated, late, written, taken_back, bodiless, one_large_item, many_large_items)


@pytest.mark.parametrize("app", ANSWERS, ids=[app.__name__.replace("_", " ") for app in ANSWERS])
def test_an_answer_is_the_same_wherever_it_comes_from(pair, app):
    front, owner, bound = pair(app)
    home, away = owner.ask(**bound), front.ask(**bound)
    assert (away.status, away.headers, away.data) == (home.status, home.headers, home.data)


def broken_at_once(environ, start_response):
    start_response("200 OK", [])
    raise LookupError("the app is broken")


def broken_in_the_middle(environ, start_response):
    start_response("200 OK", [])
    yield b"half"
    raise LookupError("the app is broken")


def broken_by_an_end(environ, start_response):
    raise SystemExit("LookupError: the app is broken")


@pytest.mark.parametrize(
    "app, came",
    [
        pytest.param(broken_at_once, [], id="at once"),
        pytest.param(broken_in_the_middle, [b"half"], id="in the middle"),
        pytest.param(broken_by_an_end, [], id="by wanting to end"),
    ],
)
def test_an_exception_out_of_the_app_is_raised_where_the_request_came_in(pair, app, came):
    front, owner, bound = pair(Remembers())
    owner.app.app.answer = app
    items: list[Any] = []
    with pytest.raises(RemoteAppError, match="LookupError: the app is broken"):
        collect(front, bound, items)
    assert items == came
    owner.app.app.answer = listed
    assert front.ask(**bound).data == b"one two"


def test_an_app_that_does_not_answer_is_told_on(pair):
    front, owner, bound = pair(Remembers())
    owner.app.app.answer = lambda environ, start_response: [b"no head"]
    with pytest.raises(RemoteAppError, match="start_response"):
        front.ask(**bound)


def collect(server, bound, items):
    """Add to `items` what comes of an answer."""
    with closing(server.open(server.environ(**bound)).body) as body:
        for item in body:
            items.append(item)


class Iterable:
    """An app's iterable that knows how far it was read, and how often it was closed."""

    def __init__(self, items):
        self._items = items
        self.told = 0
        self.closed = 0

    def __iter__(self):
        for item in self._items:
            self.told += 1
            yield item

    def close(self):
        self.closed += 1


def test_an_answer_waits_for_a_slow_reader(pair):
    iterable = Iterable(b"x" * PIECE for _ in range(200))

    def answer(environ, start_response):
        start_response("200 OK", [])
        return iterable

    front, owner, bound = pair(Remembers())
    owner.app.app.answer = answer
    told = front.open(front.environ(**bound))
    with closing(told.body):
        items = iter(told.body)
        for _ in range(10):
            next(items)
        assert iterable.told < 50
        assert len(list(items)) == 190
    until(lambda: iterable.closed, "the end of the app's iterable")
    assert iterable.closed == 1


def test_an_answer_that_nobody_reads_on_is_closed(pair):
    iterable = Iterable(b"x" * PIECE for _ in range(200))

    def answer(environ, start_response):
        start_response("200 OK", [])
        return iterable

    front, owner, bound = pair(Remembers())
    owner.app.app.answer = answer
    close(front.open(front.environ(**bound)).body)
    until(lambda: iterable.closed, "the end of the app's iterable")
    assert iterable.told < 200


def test_the_app_can_see_that_the_client_has_left(pair):
    here, gone, seen = threading.Event(), threading.Event(), threading.Event()

    def answer(environ, start_response):
        here.set()
        until(environ["waitress.client_disconnected"], "the client leaves")
        seen.set()
        return said(start_response)

    front, owner, bound = pair(Remembers())
    owner.app.app.answer = answer

    def leave():
        assert here.wait(DEADLINE)
        gone.set()

    statuses = []
    more = {"waitress.client_disconnected": gone.is_set}
    together(leave, lambda: statuses.append(front.ask(**bound, **more).status))
    assert statuses == ["499 Client Closed Request"]
    assert seen.wait(DEADLINE)


# -- places


class Crowd:
    """An app that knows how many are in it at once, and can be made to wait."""

    def __init__(self):
        self.gate = threading.Event()
        self.inside = self.most = 0
        self._lock = threading.Lock()

    def __call__(self, environ, start_response):
        if environ["PATH_INFO"] == "/":
            return said(start_response)
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        try:
            assert self.gate.wait(DEADLINE)
        finally:
            with self._lock:
                self.inside -= 1
        return said(start_response)


@pytest.mark.parametrize("threads", [1, 3])
def test_own_requests_and_those_handed_over_share_the_places_of_a_worker(worker, threads):
    crowd = Crowd()
    front, owner = worker(Remembers(), threads=8), worker(crowd, threads=threads)
    owner.ask()
    bound = {"HTTP_COOKIE": owner.cookie}
    calls = [lambda each=each: each.ask("/wait", **bound) for each in (front, owner) * 4]

    def open_the_gate():
        until(lambda: crowd.inside == threads, "all places are taken")
        crowd.gate.set()

    together(open_the_gate, *calls)
    assert crowd.most == threads
    # one more, which listens
    assert sum(each.name == "kin w2" for each in threading.enumerate()) <= threads + 1


def test_no_place_is_held_while_handing_over(worker):
    """Two workers with one place each hand a request to each other, and each is served while the other waits."""
    both = threading.Barrier(2)

    def app(environ, start_response):
        if environ["PATH_INFO"] != "/":
            both.wait(DEADLINE)
        return said(start_response)

    one, two = worker(app, threads=1), worker(app, threads=1)
    one.ask()
    two.ask()
    together(
        lambda: one.ask("/meet", HTTP_COOKIE=two.cookie),
        lambda: two.ask("/meet", HTTP_COOKIE=one.cookie),
    )
    assert not both.broken


def test_a_place_is_held_until_the_answer_is_closed(worker):
    def app(environ, start_response):
        start_response("200 OK", [])
        return iter([b"one", b"two"])

    front, owner = worker(app), worker(app, threads=1)
    owner.ask()
    held = owner.open(owner.environ())
    answers = []
    asking = threading.Thread(target=lambda: answers.append(front.ask(HTTP_COOKIE=owner.cookie).data))
    asking.start()
    until(lambda: owner.app.workers.own_server.in_flight, "the request has come")
    assert not answers
    close(held.body)
    asking.join(DEADLINE)
    assert answers == [b"onetwo"]


# -- what goes wrong


REQUEST = (Kind.REQUEST, "VALID", "BOUND", {"REQUEST_METHOD": "GET"}, b"")

BAD = {
    "no frame": b"\0\0\0\1\xc1",
    "too long a frame": (MAX_FRAME + 1).to_bytes(4, "big"),
    "no array": b"\0\0\0\1\x01",
    "another kind": Frames().pack(Kind.END, None),
    "too few parts": Frames().pack(*REQUEST[:3]),
    "a claim that is none": Frames().pack(Kind.REQUEST, "KING", *REQUEST[2:]),
    "an environ that is none": Frames().pack(*REQUEST[:3], "environ", b""),
    "a body that is none": Frames().pack(*REQUEST[:4], 3),
    "the beginning of a frame": b"\0\0\1\0 ",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_a_bad_frame_closes_its_line_and_nothing_else(pair, data):
    front, owner, bound = pair(Remembers())
    slot = owner.app.workers.slot
    with closing(socket.socket(socket.AF_UNIX)) as line:
        line.settimeout(DEADLINE)
        line.connect(slot.path)
        assert Frames().feed(line.recv(1000)) == [(Kind.HELLO, slot.instance)]
        line.sendall(data)
        line.shutdown(socket.SHUT_WR)
        try:
            assert line.recv(1000) == b""
        except ConnectionResetError:
            pass
    assert front.ask(**bound).status == "200 OK"


def test_another_user_is_sent_away(pair, monkeypatch):
    app = Remembers()
    front, owner, bound = pair(app)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with closing(socket.socket(socket.AF_UNIX)) as line:
        line.settimeout(DEADLINE)
        line.connect(owner.app.workers.slot.path)
        assert line.recv(1000) == b""
    front.ask(**bound)
    assert app.seen[-1]["sticky.decision"].server == "w1"  # who hands over looks as well
    monkeypatch.undo()
    front.ask(**bound)
    assert app.seen[-1]["sticky.decision"].server == "w2"


class Stub:
    """Something that listens where the second worker would, and does what it is told on each line."""

    LIFE = "0123456789abcdef"

    def __init__(self, directory, play):
        (directory / "kin").mkdir(mode=0o700, exist_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / "kin" / f"2.{self.LIFE}.sock"))
        self._listener.listen()
        self._play = play
        self.came = []  #: what was said on each line
        self._line = self._listener
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            with line:
                self._line = line
                line.settimeout(DEADLINE)
                try:
                    self.came.append(self._play(line))
                except ConnectionError:
                    self.came.append(b"")

    def close(self):
        for each in (self._listener, self._line):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._thread.join(DEADLINE)
        self._listener.close()


@pytest.fixture
def stub(directory, worker):
    """A worker, and what stands at the second slot; each gets its half of all paths."""
    opened = []

    def start(play, **options):
        opened.append(Stub(directory, play))
        return worker(Remembers(), key="path", slots=2, cookie=None, **options), opened[0]

    yield start
    for each in opened:
        each.close()


def greet(line, life=Stub.LIFE):
    line.sendall(Frames().pack(Kind.HELLO, life))


def heard(line, frames):
    """The next frame on a line; None if there is none."""
    while data := line.recv(262144):
        for frame in frames.feed(data):
            return frame
    return None


def hangs_up(line):
    """Without a word."""


def hangs_up_unread(line):
    greet(line)
    select.select([line], [], [], DEADLINE)


def takes_and_goes(line):
    greet(line)
    return heard(line, Frames())


def wants_the_body_and_goes(line):
    frames = Frames()
    greet(line)
    heard(line, frames)
    line.sendall(frames.pack(Kind.WANT_BODY, 10))
    select.select([line], [], [], DEADLINE)


def greets_as_another(line):
    greet(line, "fedcba9876543210")


def talks_nonsense(line):
    takes_and_goes(line)
    line.sendall(b"\0\0\0\1\xc1")


def answers_without_a_head(line):
    takes_and_goes(line)
    line.sendall(Frames().pack(Kind.END, None))


def asks_what_it_should_not(line):
    takes_and_goes(line)
    line.sendall(Frames().pack(Kind.KEY_QUERY, "a key"))


@pytest.mark.parametrize(
    "play, status",
    [
        pytest.param(hangs_up, "200", id="hangs up at once"),
        pytest.param(hangs_up_unread, "200", id="hangs up before it has read the request"),
        pytest.param(greets_as_another, "200", id="is another than was expected"),
        pytest.param(takes_and_goes, "502", id="goes with the request in its hands"),
        pytest.param(wants_the_body_and_goes, "502", id="goes before it has read the body"),
        pytest.param(talks_nonsense, "502", id="talks nonsense"),
        pytest.param(answers_without_a_head, "502", id="answers without a head"),
        pytest.param(asks_what_it_should_not, "502", id="asks instead of answering"),
    ],
)
def test_a_request_goes_elsewhere_only_if_it_is_known_that_nobody_has_executed_it(stub, play, status):
    front, other = stub(play)
    statuses = {front.ask(f"/{number}", method="POST", body=b"x" * 2 * PIECE).status[:3] for number in range(12)}
    assert other.came
    assert statuses == {"200", status}


def test_a_sibling_that_reads_slowly_is_told_all(stub):
    def reads_slowly(line):
        frames = Frames()
        greet(line)
        threading.Event().wait(0.3)  # longer than a write waits before it looks for its client
        frame = heard(line, frames)
        line.sendall(frames.pack(Kind.END, None, ("200 OK", ()), frame[3]["HTTP_X_LARGE"].encode()))

    front, other = stub(reads_slowly)
    text = "x" * 1_000_000
    answers = {front.ask(f"/{number}", HTTP_X_LARGE=text).data for number in range(4)}
    assert other.came
    assert answers <= {b"", text.encode()} and text.encode() in answers


def test_nothing_is_said_to_what_is_another_users(stub, monkeypatch):
    def listens(line):
        greet(line)
        return line.recv(1000)

    front, other = stub(listens)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert {front.ask(f"/{number}").status for number in range(12)} == {"200 OK"}
    until(lambda: other.came, "somebody has knocked")
    assert set(other.came) == {b""}


def test_what_was_said_too_much_is_not_taken_for_the_next_answer(stub):
    def says_too_much(line):
        frames = Frames()
        greet(line)
        while heard(line, frames) is not None:
            line.sendall(
                b"".join(frames.pack(Kind.END, None, ("200 OK", ()), text) for text in (b"the answer", b"another"))
            )

    front, other = stub(says_too_much)
    answers = {front.ask(f"/{number}").data for number in range(12)}
    assert len(other.came) > 1 or answers == {b"", b"the answer"}
    assert b"another" not in answers


def test_a_client_of_a_worker_that_has_ended_is_served_elsewhere_and_told_a_new_mark(pair):
    app = Remembers()
    front, owner, bound = pair(app)
    front.ask(**bound)
    owner.app.stop()
    answer = front.ask(**bound)
    decision = app.seen[-1]["sticky.decision"]
    assert (decision.server, decision.claim, decision.reason) == ("w1", Claim.INVALID, Reason.OTHER_INSTANCE)
    assert front.cookie.startswith("STICKYWORKER=w1@")
    again = front.ask(HTTP_COOKIE=front.cookie)
    assert not [name for name, _ in again.headers if name.lower() == "set-cookie"]
    assert answer.status == "200 OK"


def test_a_client_that_must_not_see_an_empty_session_is_told_that_it_is_gone(pair):
    front, owner, bound = pair(Remembers(), on_lost="gone")
    owner.app.stop()
    answer = front.ask(**bound)
    assert answer.status.startswith("410")
    (text,) = [value for name, value in answer.headers if name.lower() == "set-cookie"]
    assert text.startswith("STICKYWORKER=; Expires=")


@pytest.mark.parametrize("size", [10, EAGER_BODY, 3 * PIECE], ids=["small", "as large as goes along", "large"])
@pytest.mark.parametrize("before", [False, True], ids=["a new line", "a line that was idle"])
def test_a_request_that_the_dead_worker_has_not_read_goes_to_the_next_with_its_whole_body(pair, before, size):
    front, owner, bound = pair(Remembers(lambda environ, start: said(start, environ["wsgi.input"].read())))
    if before:
        front.ask(**bound)
    owner.app.stop()
    body = b"z" * size
    assert front.ask(method="POST", body=body, **bound).data == body


@pytest.mark.parametrize(
    "retry_on, method, status",
    [
        pytest.param("conn-failure", "GET", "502", id="it may have been executed"),
        pytest.param("conn-failure empty-response", "POST", "502", id="it may have been, and must not be twice"),
        pytest.param("conn-failure empty-response", "GET", "200", id="it may be executed twice"),
    ],
)
def test_a_request_that_was_at_the_dead_worker_is_told_again_only_if_that_does_no_harm(pair, retry_on, method, status):
    front, owner, bound = pair(Remembers(), retry_on=retry_on, drain=0.1)

    def cut(environ, start_response):
        """It ends without patience, so its lines are cut."""
        owner.app.app.answer = listed
        owner.app.stop()
        return said(start_response)

    owner.app.app.answer = cut
    assert front.ask(method=method, body=b"x", **bound).status.startswith(status)


def test_an_answer_of_a_sibling_may_be_held_back_as_any_other(pair):
    def answer(environ, start_response):
        server = environ["sticky.decision"].server
        return said(start_response, server.encode(), status="503 Busy" if server == "w2" else "200 OK")

    front, _, bound = pair(Remembers(answer), retry_on="503")
    for _ in range(3):
        told = front.ask(**bound)
        assert (told.status, told.data) == ("200 OK", b"w1")


def test_a_worker_that_ends_serves_first_what_was_handed_over_to_it(pair):
    crowd = Crowd()
    front, owner, bound = pair(crowd)
    path = Path(owner.app.workers.slot.path)
    answers = []
    asking = threading.Thread(target=lambda: answers.append(front.ask("/wait", **bound).status))
    asking.start()
    until(lambda: crowd.inside, "the request is there")
    ending = threading.Thread(target=owner.app.stop)
    ending.start()
    until(lambda: not path.exists(), "it is on its way out")
    crowd.gate.set()
    asking.join(DEADLINE)
    ending.join(DEADLINE)
    assert answers == ["200 OK"]


def test_a_worker_that_ends_is_not_kept_by_who_does_not_end(worker):
    crowd = Crowd()
    front, owner = worker(Remembers(), drain=0.1), worker(crowd, drain=0.1)
    owner.ask()
    answers = []
    bound = {"HTTP_COOKIE": owner.cookie}
    asking = threading.Thread(target=lambda: answers.append(front.ask("/wait", **bound).status))
    asking.start()
    until(lambda: crowd.inside, "the request is there")
    owner.app.stop()
    asking.join(DEADLINE)
    assert answers == ["502 Bad Gateway"]
    crowd.gate.set()


# -- alone, and keys


@pytest.mark.parametrize(
    "says",
    [
        pytest.param({"wsgi.multiprocess": False}, id="one process"),
        pytest.param({"wsgi.run_once": True}, id="a process for each request"),
    ],
)
def test_who_is_alone_marks_nobody(directory, says):
    app = Remembers()
    alone = Server(StickyWorkers(app, directory=directory), **says)
    answer = alone.ask()
    assert alone.cookie is None and "sticky.decision" not in app.seen[-1]
    assert answer.status == "200 OK" and alone.app.workers is None


def test_a_key_says_where_a_request_belongs(worker):
    keyed = {"key": "url_param(room)", "slots": 2}
    apps = [Remembers(), Remembers()]
    workers = [worker(app, **keyed) for app in apps]
    for number in range(12):
        for each in workers:
            each.ask(query=f"room={number}")
    rooms = [{environ["QUERY_STRING"] for environ in app.seen} for app in apps]
    assert rooms[0] and rooms[1] and not rooms[0] & rooms[1]


@pytest.mark.parametrize("number", [2, 4], ids=["two workers", "four workers"])
def test_a_key_is_known_to_all_once_one_has_it(worker, number):
    apps = [Remembers() for _ in range(number)]
    workers = [worker(app, key="url_param(room)", cookie=None) for app in apps]
    for turn in range(3 * number):
        for room in range(2 * number):
            workers[(room + turn) % number].ask(query=f"room={room}")
    rooms = [{environ["QUERY_STRING"] for environ in app.seen} for app in apps]
    assert [len(each) for each in rooms] == [2] * number  # each where it came first


def test_a_key_that_the_app_gives_out_is_known_wherever_it_comes_next(worker):
    def give(environ, start_response):
        start_response("200 OK", [("Mcp-Session-Id", "a-new-one")])
        return []

    apps = [Remembers(give), Remembers(), Remembers()]
    workers = [worker(app, key="hdr(Mcp-Session-Id)", cookie=None) for app in apps]
    workers[0].ask()
    for each in workers:
        each.ask(HTTP_MCP_SESSION_ID="a-new-one")
    assert [len(app.seen) for app in apps] == [4, 0, 0]


def test_a_key_that_was_given_out_from_afar_is_known_to_who_has_given_it(worker):
    def give(environ, start_response):
        start_response("200 OK", [("Mcp-Session-Id", "a-new-one")] if environ["PATH_INFO"] == "/give" else [])
        return []

    apps = [Remembers(give) for _ in range(3)]
    front, owner, third = (worker(app, key="hdr(Mcp-Session-Id)") for app in apps)
    owner.ask()
    front.ask("/give", HTTP_COOKIE=owner.cookie)
    front.app.stop()
    third.ask(HTTP_MCP_SESSION_ID="a-new-one")
    assert [len(app.seen) for app in apps] == [0, 3, 0]


def test_a_key_that_is_new_to_all_at_once_is_one_workers(worker):
    apps = [Remembers() for _ in range(4)]
    workers = [worker(app, key="url_param(room)", cookie=None) for app in apps]
    for room in range(10):
        together(*[lambda each=each, room=room: each.ask(query=f"room={room}") for each in workers * 2])
    owners = [[app for app in apps if any(e["QUERY_STRING"] == f"room={room}" for e in app.seen)] for room in range(10)]
    assert [len(each) for each in owners] == [1] * 10


def test_a_key_is_asked_for_where_all_places_are_taken(worker):
    crowd = Crowd()
    front, owner = (worker(crowd, threads=1, key="url_param(room)", cookie=None) for _ in range(2))
    owner.ask(query="room=a")
    held = [threading.Thread(target=each.ask, args=("/wait", "room=a")) for each in (front, owner, front)]
    for each in held:
        each.start()
    until(lambda: crowd.inside, "its place is taken")
    for room in range(6):  # some of them are the busy one's to give away
        assert front.ask(query=f"room={room}").status == "200 OK"
    crowd.gate.set()
    for each in held:
        each.join(DEADLINE)


def test_everything_that_is_wrong_is_said_at_once():
    with pytest.raises(ConfigError) as caught:
        StickyWorkers(Remembers(), threads=0, on_lost="sorry", name="a b")  # type: ignore[arg-type]
    assert len(caught.value.problems) == 3
