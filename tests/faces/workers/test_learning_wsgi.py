"""Keys in the bodies of responses over WSGI: the worker knows a key before the client does, and passes on what the app
returns or writes as it is.
"""

import io
from wsgiref.util import FileWrapper

import pytest

from sticky_core.samples import response as res
from tests.faces.workers.wsgi import RecordingApp, close

LEARN = {"key": "url_param(sid)", "learn": res.json_field("sid")}
PIECES = [b'0{"a": 1', b', "sid": "ab', b'c"}', b"more", b"and more"]
HEADERS = [("Content-Type", "text/plain")]


class CloseableItems:
    def __init__(self, items):
        self._items = iter(items)
        self.closed = 0

    def __iter__(self):
        return self._items

    def close(self):
        self.closed += 1


def learned(server):
    keys = server.app.workers.keys
    return keys.last_owner("abc") is not None


def start_and_yield(environ, start_response):
    start_response("200 OK", HEADERS)  # with the first item, not before
    yield from PIECES


def start_and_return(environ, start_response):
    start_response("200 OK", HEADERS)
    return CloseableItems(PIECES)


@pytest.mark.parametrize("serve", [start_and_yield, start_and_return], ids=["generator", "iterable"])
def test_worker_knows_the_key_when_the_server_gets_the_item_that_completes_it(worker, serve):
    app = RecordingApp(serve)
    server = worker(app, **LEARN)
    response = server.open(server.environ())
    seen = [(item, learned(server)) for item in response.body]
    close(response.body)
    assert seen == list(zip(PIECES, [False, False, True, True, True], strict=True))


@pytest.mark.parametrize("serve", [start_and_yield, start_and_return], ids=["generator", "iterable"])
def test_worker_that_serves_a_forwarded_request_knows_the_key(pair, serve):
    front, owner, cookie = pair(RecordingApp(serve), **LEARN)
    owner.app.workers.keys.table.clear()
    assert front.request(**cookie).data == b"".join(PIECES)
    assert (learned(owner), learned(front)) == (True, False)


def test_iterable_of_the_app_is_closed_once(worker):
    items = CloseableItems(PIECES)

    def serve(environ, start_response):
        start_response("200 OK", HEADERS)
        return items

    assert worker(RecordingApp(serve), **LEARN).request().data == b"".join(PIECES)
    assert items.closed == 1


def test_key_that_is_written_is_known_before_it_is_passed_on(worker):
    def serve(environ, start_response):
        write = start_response("200 OK", HEADERS)
        for piece in PIECES:
            write(piece)
            known.append(learned(server))
        return []

    known: list[bool] = []
    server = worker(RecordingApp(serve), **LEARN)
    assert server.request().written == PIECES
    assert known == [False, False, True, True, True]


def test_last_parameter_of_a_body_without_a_length_is_known_at_its_end(worker):
    def serve(environ, start_response):
        start_response("200 OK", HEADERS)
        yield from (b"a=1&sid=", b"abc")

    server = worker(RecordingApp(serve), key="url_param(sid)", learn=res.body_param("sid"))
    body = server.open(server.environ()).body
    items = iter(body)
    assert (next(items), next(items), learned(server)) == (b"a=1&sid=", b"abc", False)
    assert (next(items, None), learned(server)) == (None, True)
    close(body)


@pytest.mark.parametrize("wrapped", [True, False], ids=["file", "list"])
def test_body_that_the_server_recognises_by_its_type_is_returned_as_it_is(worker, wrapped):
    content = b"".join(PIECES)
    bodies = []

    def serve(environ, start_response):
        start_response("200 OK", HEADERS)
        bodies.append(environ["wsgi.file_wrapper"](io.BytesIO(content)) if wrapped else [content])
        return bodies[-1]

    server = worker(RecordingApp(serve), **LEARN)
    body = server.open(server.environ(**{"wsgi.file_wrapper": FileWrapper})).body
    assert body is bodies[0]
    assert learned(server) is not wrapped
    close(body)


def test_response_that_is_started_again_after_an_error_issues_nothing(worker):
    def serve(environ, start_response):
        start_response("200 OK", HEADERS)
        try:
            raise ValueError
        except ValueError as error:
            start_response("500 Error", HEADERS, (ValueError, error, error.__traceback__))
        return PIECES

    server = worker(RecordingApp(serve), **LEARN)
    assert server.request().status == "500 Error"
    assert not learned(server)
