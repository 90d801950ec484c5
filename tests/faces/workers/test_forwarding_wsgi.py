"""A request that is forwarded to the worker of its client looks there as if it had been accepted there, and so does the
response to the client. Several workers run in one process here; `tests/conformance` has them under real servers.
"""

import io
import threading
from contextlib import closing
from typing import Any

import pytest

from sticky_core.persistence.claim import Claim, Reason
from sticky_core.server.counters import Total
from sticky_core.workers.frames import PIECE
from sticky_core.workers.transaction import RemoteAppError
from sticky_wsgi.workers.protocol import EAGER_BODY
from tests.faces.workers.wsgi import (
    DEADLINE,
    RecordingApp,
    close,
    listed,
    respond,
    run_together,
    wait_until,
)


def test_environ_is_the_same_in_the_own_worker_and_in_a_peer(pair):
    app = RecordingApp()
    front, owner, cookie = pair(app)
    variables = {"path": "/caf\xc3\xa9", "query": "a=%41&b", "HTTP_X_RAW": "\xe9", "RAW_URI": "/caf%C3%A9?a=%41&b"}
    owner.request(**variables, **cookie)
    front.request(**variables, **cookie)
    local, remote = app.seen[-2:]
    assert {name: value for name, value in remote.items() if isinstance(value, (str, bool)) and name in local} == {
        name: value for name, value in local.items() if isinstance(value, (str, bool))
    }
    assert remote["wsgi.version"] == (1, 0)


def test_body_with_a_length_that_is_an_int_is_forwarded(pair):
    app = RecordingApp(lambda environ, start_response: respond(start_response, environ["wsgi.input"].read()))
    front, _, cookie = pair(app)
    environ = front.environ(method="POST", body=b"a small one", **cookie) | {"CONTENT_LENGTH": 11}
    response = front.open(environ)
    assert b"".join(response.body) == b"a small one"
    close(response.body)


def test_objects_in_the_environ_are_not_forwarded(pair):
    app = RecordingApp()
    front, _, cookie = pair(app)
    front.request(**cookie, **{"gunicorn.socket": object(), "some.function": len})
    assert not {"gunicorn.socket", "some.function"} & set(app.seen[-1])


def test_app_of_the_peer_reads_the_decision(pair):
    app = RecordingApp()
    front, _, cookie = pair(app)
    front.request(**cookie)
    decision = app.seen[-1]["sticky.decision"]
    assert (decision.server, decision.claim, decision.reason) == ("w2", Claim.VALID, Reason.BOUND)


BODIES = {
    "none": b"",
    "small": b"a small one",
    "as large as goes with its request": b"x" * EAGER_BODY,
    "larger": b"y" * (EAGER_BODY + 1),
    "many pieces": bytes(range(256)) * 2048,
}


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "chunked"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_body_is_forwarded_whole(pair, body, chunked):
    front, _, cookie = pair(RecordingApp(lambda environ, start: respond(start, environ["wsgi.input"].read())))
    more = {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True} if chunked else {}
    assert front.request(method="POST", body=body, **more, **cookie).data == body


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
def test_forwarded_body_is_read_like_any_other(pair, read, size):
    def serve(environ, start_response):
        return respond(start_response, *[b"<%b>" % piece for piece in read(environ["wsgi.input"])])

    front, owner, cookie = pair(serve)
    body = b"the first line\nthe second\n\nthe last" * size
    local = owner.request(method="POST", body=body, **cookie, **{"wsgi.input": io.BytesIO(body)})
    assert front.request(method="POST", body=body, **cookie).data == local.data


def test_large_body_is_read_from_the_client_only_as_far_as_the_app_reads(pair):
    front, _, cookie = pair(RecordingApp(lambda environ, start: respond(start, environ["wsgi.input"].read(5))))
    source = io.BytesIO(b"x" * 10 * PIECE)
    front.request(method="POST", **cookie, **{"wsgi.input": source, "CONTENT_LENGTH": str(10 * PIECE)})
    assert source.tell() <= PIECE


class Broken(io.BytesIO):
    def read(self, size=-1):
        if self.tell():
            raise ConnectionResetError
        return super().read(size)


@pytest.mark.parametrize("source", [Broken, io.BytesIO], ids=["an exception", "an early end"])
def test_app_gets_an_os_error_if_the_client_disconnects_in_the_middle_of_its_body(pair, source):
    raised = []

    def serve(environ, start_response):
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            raised.append(error)
            raise
        return respond(start_response)

    front, owner, cookie = pair(RecordingApp(serve))
    broken = {"wsgi.input": source(b"x" * 10 * PIECE), "CONTENT_LENGTH": str(11 * PIECE)}
    assert front.request(method="POST", **cookie, **broken).status.startswith("499")
    wait_until(lambda: raised, "an exception in the app")
    # at neither worker is that an error
    accepting, serving = front.app.workers.servers[1], owner.app.workers.own_server
    wait_until(lambda: serving.counters[Total.CLI_ABRT] == 1, "a disconnect at the worker that serves")
    assert accepting.counters[Total.CLI_ABRT] == 1
    assert (accepting.counters[Total.ERESP], serving.counters[Total.ERESP]) == (0, 0)


def test_client_that_disconnects_in_the_middle_of_a_small_body_executes_nothing(pair):
    app = RecordingApp()
    front, _, cookie = pair(app)
    before = len(app.seen)
    short = {"wsgi.input": io.BytesIO(b"12345"), "CONTENT_LENGTH": "10"}
    assert front.request(method="POST", **cookie, **short).status.startswith("499")
    assert len(app.seen) == before


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


def replaced(environ, start_response):
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
    return respond(start_response, bytes(range(256)) * 4096)


def many_large_items(environ, start_response):
    start_response("200 OK", [])
    return (bytes([number]) * (PIECE + 1) for number in range(20))


RESPONSES = (listed, generated, late, written, replaced, bodiless, one_large_item, many_large_items)


@pytest.mark.parametrize("app", RESPONSES, ids=[app.__name__.replace("_", " ") for app in RESPONSES])
def test_response_is_the_same_from_the_own_worker_and_from_a_peer(pair, app):
    front, owner, cookie = pair(app)
    local, remote = owner.request(**cookie), front.request(**cookie)
    assert (remote.status, remote.headers, remote.data) == (local.status, local.headers, local.data)


def raises_at_once(environ, start_response):
    start_response("200 OK", [])
    raise LookupError("the app is broken")


def raises_in_the_middle(environ, start_response):
    start_response("200 OK", [])
    yield b"half"
    raise LookupError("the app is broken")


def raises_system_exit(environ, start_response):
    raise SystemExit("LookupError: the app is broken")


@pytest.mark.parametrize(
    "app, expected",
    [
        pytest.param(raises_at_once, [], id="at once"),
        pytest.param(raises_in_the_middle, [b"half"], id="in the middle"),
        pytest.param(raises_system_exit, [], id="SystemExit"),
    ],
)
def test_exception_of_the_app_is_raised_in_the_worker_that_accepted_the_request(pair, app, expected):
    front, owner, cookie = pair(RecordingApp())
    owner.app.app.respond = app
    items: list[Any] = []
    with pytest.raises(RemoteAppError, match="LookupError: the app is broken"):
        collect(front, cookie, items)
    assert items == expected
    owner.app.app.respond = listed
    assert front.request(**cookie).data == b"one two"


def test_app_that_does_not_call_start_response_is_reported(pair):
    front, owner, cookie = pair(RecordingApp())
    owner.app.app.respond = lambda environ, start_response: [b"no head"]
    with pytest.raises(RemoteAppError, match="start_response"):
        front.request(**cookie)


def collect(server, cookie, items):
    """Add the pieces of a response to `items`."""
    with closing(server.open(server.environ(**cookie)).body) as body:
        for item in body:
            items.append(item)


class RecordedBody:
    """An app's iterable that counts how many of its items were read, and how often it was closed."""

    def __init__(self, items):
        self._items = items
        self.items_read = 0
        self.closed = 0

    def __iter__(self):
        for item in self._items:
            self.items_read += 1
            yield item

    def close(self):
        self.closed += 1


def test_response_waits_for_a_slow_client(pair):
    iterable = RecordedBody(b"x" * PIECE for _ in range(200))

    def serve(environ, start_response):
        start_response("200 OK", [])
        return iterable

    front, owner, cookie = pair(RecordingApp())
    owner.app.app.respond = serve
    response = front.open(front.environ(**cookie))
    with closing(response.body):
        items = iter(response.body)
        for _ in range(10):
            next(items)
        assert iterable.items_read < 50
        assert len(list(items)) == 190
    wait_until(lambda: iterable.closed, "the end of the app's iterable")
    assert iterable.closed == 1


def test_response_that_the_server_closes_early_is_closed_at_the_peer(pair):
    iterable = RecordedBody(b"x" * PIECE for _ in range(200))

    def serve(environ, start_response):
        start_response("200 OK", [])
        return iterable

    front, owner, cookie = pair(RecordingApp())
    owner.app.app.respond = serve
    close(front.open(front.environ(**cookie)).body)
    wait_until(lambda: iterable.closed, "the end of the app's iterable")
    assert iterable.items_read < 200


def test_app_can_see_that_the_client_has_disconnected(pair):
    reached, gone, seen = threading.Event(), threading.Event(), threading.Event()

    def serve(environ, start_response):
        reached.set()
        wait_until(environ["waitress.client_disconnected"], "the disconnect of the client")
        seen.set()
        return respond(start_response)

    front, owner, cookie = pair(RecordingApp())
    owner.app.app.respond = serve

    def disconnect():
        assert reached.wait(DEADLINE)
        gone.set()

    statuses = []
    more = {"waitress.client_disconnected": gone.is_set}
    run_together(disconnect, lambda: statuses.append(front.request(**cookie, **more).status))
    assert statuses == ["499 Client Closed Request"]
    assert seen.wait(DEADLINE)


def test_thread_that_goes_on_after_the_end_of_its_request_sends_nothing_into_the_next(pair):
    kept = []

    def serve(environ, start_response):
        if environ["PATH_INFO"] == "/first":
            kept.append((environ["wsgi.input"], start_response("200 OK", [])))
            return [b"first"]
        if environ["PATH_INFO"] == "/second":
            ((body, write),) = kept
            with pytest.raises(OSError, match="the request has ended"):
                write(b"late")
            assert body.read(10) == b""
        start_response("200 OK", [])
        return [b"second"]

    front, _, cookie = pair(RecordingApp(serve))
    large = b"x" * 100_000  # so much is sent as the app reads it
    assert front.request("/first", method="POST", body=large, **cookie).data == b"first"
    assert front.request("/second", **cookie).data == b"second"
