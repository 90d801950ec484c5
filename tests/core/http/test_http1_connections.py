"""The end of a connection, and several responses on one connection."""

from collections.abc import Iterator

import pytest

from sticky_core.http.http1 import (
    BadResponse,
    ResponseParser,
)
from tests.core.http.responses import (
    BODIES,
    CHUNKED,
    CONTINUE,
    EARLY,
    INTERIM,
    KEPT,
    LENGTH,
    OK,
    SWITCH,
    UNTIL_CLOSE,
    WHOLE,
    WITHOUT_BODY,
    ParsedResponse,
    outcome,
    read,
    taken,
)

# -- the end of the connection


def test_a_close_before_the_response_is_not_an_error():
    parser = ResponseParser()
    parser.begin_response("GET")
    assert not parser.feed_eof()
    assert (parser.status, parser.reusable) == (0, False)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"H", id="one byte"),
        pytest.param(OK, id="a status line"),
        pytest.param(LENGTH[:-1], id="all but the last byte"),
        pytest.param(CONTINUE, id="an interim response"),
        pytest.param(CONTINUE + OK, id="an interim response and a status line"),
    ],
)
def test_a_head_that_is_cut_short_is_refused(sent: bytes):
    with pytest.raises(BadResponse, match="a head that is cut short"):
        read(sent, closed=True)


@pytest.mark.parametrize(
    "sent, whole",
    [
        pytest.param(WHOLE, True, id="a response with a length"),
        pytest.param(WHOLE[:-1], False, id="a response that is short of its length"),
        pytest.param(LENGTH, False, id="nothing but a head with a length"),
        pytest.param(CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", True, id="a response in chunks"),
        pytest.param(CHUNKED + b"5\r\nhello\r\n0\r\n", False, id="chunks without the end"),
        pytest.param(CHUNKED + b"5\r\nhel", False, id="half a chunk"),
        pytest.param(UNTIL_CLOSE + b"hello", True, id="a response until the end"),
    ],
)
def test_feed_eof_returns_whether_the_response_is_complete(sent: bytes, whole: bool):
    parser = ResponseParser()
    parser.begin_response("GET")
    parser.feed(sent)
    assert parser.feed_eof() is whole
    assert parser.finished is whole


# -- one response after another


def one_after_another() -> Iterator[tuple[str, str, bytes, ParsedResponse]]:
    for name, row in (BODIES | WITHOUT_BODY | INTERIM | KEPT).items():
        if row.got is not None and row.got.reusable:
            yield name, row.method, row.sent, row.got


@pytest.mark.parametrize("method, sent, got", [pytest.param(*rest, id=name) for name, *rest in one_after_another()])
def test_the_next_response_on_the_connection_is_parsed_from_the_start(method: str, sent: bytes, got: ParsedResponse):
    parser = ResponseParser()
    for reads in ([sent], [sent[:-1], sent[-1:]], [sent]):
        parser.begin_response(method)
        assert (parser.finished, parser.status, parser.headers, parser.trailers) == (False, 0, [], [])
        for data in reads:
            parser.feed(data)
        assert (parser.status, parser.headers, taken(parser)) == (got.status, list(got.headers), got.body)
        assert (parser.finished, parser.reusable) == (True, True)
        parser.begin_response("GET")
        parser.feed(CHUNKED + b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n")
        assert (parser.finished, parser.reusable, parser.take_body()) == (True, True, b"hello")


def test_a_100_is_reported_once():
    parser = ResponseParser()
    parser.begin_response("POST")
    parser.awaits_continue = True
    parser.feed(EARLY)
    assert parser.awaits_continue
    parser.feed(CONTINUE)
    assert not parser.awaits_continue
    parser.feed(WHOLE)
    assert (parser.finished, parser.status) == (True, 200)


@pytest.mark.parametrize("accepts", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"Upgrade: websocket\r\n", id="Upgrade alone"),
        pytest.param(b"Connection: upgrade\r\n", id="Connection alone"),
        pytest.param(b"Upgrade: websocket\r\nConnection: close\r\n", id="Connection with another word"),
    ],
)
def test_a_change_of_protocol_needs_both_upgrade_and_connection(fields: bytes, accepts: bool):
    sent = b"HTTP/1.1 101 Switching Protocols\r\n%b\r\n" % fields
    assert outcome(sent + b"\x81\x00", upgrade=accepts) is None
    assert outcome(sent, upgrade=accepts) is None


def test_the_new_protocol_is_returned():
    parser = ResponseParser()
    parser.begin_response("GET", upgrade=True)
    parser.feed(SWITCH)
    assert (parser.status, parser.finished, parser.upgrade) == (101, True, b"websocket")


def test_data_after_a_change_of_protocol_is_returned_unchanged():
    frames = bytes(range(256)) * 10
    got = read(SWITCH + frames, upgrade=True)
    assert (got.status, got.rest, got.body, got.reusable) == (101, frames, b"", False)
