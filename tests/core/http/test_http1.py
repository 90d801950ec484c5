"""Responses parsed from a connection: which are valid, their headers, and the parser."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.errors import ConfigError
from sticky_core.http import http1
from sticky_core.http.http1 import (
    BadResponse,
    ResponseParser,
    connection_options,
    is_removable,
)
from tests.core.http.responses import (
    ANSWERS,
    BEHIND,
    BODIES,
    CHUNKED,
    CLOSED,
    ENDS,
    INTERIM,
    KEPT,
    NO_ANSWER,
    OK,
    WHOLE,
    WITHOUT_BODY,
    ParsedResponse,
    ResponseCase,
    feed_and_finish,
    length,
    read,
    rows,
)

# -- what a response is


@rows(BODIES)
def test_a_body_ends_where_its_framing_says(row: ResponseCase):
    assert row.outcome() == row.got


@rows(WITHOUT_BODY)
def test_some_responses_have_no_body_whatever_they_declare(row: ResponseCase):
    assert row.outcome() == row.got


@rows(INTERIM)
def test_an_interim_response_is_never_taken_for_the_final_one(row: ResponseCase):
    assert row.outcome() == row.got


@rows(KEPT)
def test_a_persistent_connection_is_reusable(row: ResponseCase):
    assert row.outcome() == row.got


@rows(CLOSED)
def test_a_connection_that_the_server_closes_is_not_reusable(row: ResponseCase):
    assert row.got is not None
    got = row.outcome()
    assert got == ParsedResponse(row.got.status, row.got.headers, row.got.body, reusable=False)


@pytest.mark.parametrize("sent", [pytest.param(sent, id=name) for name, sent in NO_ANSWER.items()])
def test_an_invalid_or_ambiguous_response_is_refused(sent: bytes):
    with pytest.raises(BadResponse):
        read(sent, closed=True)


@pytest.mark.parametrize("more", [pytest.param(more, id=name) for name, more in BEHIND.items()])
@pytest.mark.parametrize("method, end", [pytest.param(*end, id=name) for name, end in ENDS.items()])
def test_data_after_a_response_is_dropped_and_ends_the_connection(method: str, end: bytes, more: bytes):
    alone = read(end, method=method)
    assert alone.over
    assert alone.reusable
    assert read(end + more, method=method) == ParsedResponse(
        alone.status, alone.headers, alone.body, alone.trailers, reusable=False
    )


@pytest.mark.parametrize("more", [pytest.param(more, id=name) for name, more in BEHIND.items()])
@pytest.mark.parametrize("method, end", [pytest.param(*end, id=name) for name, end in ENDS.items()])
def test_data_that_arrives_later_is_refused_and_ends_the_connection(method: str, end: bytes, more: bytes):
    assert read(end, more, method=method) == read(end + more, method=method)


def test_data_before_the_first_request_is_refused():
    parser = ResponseParser()
    with pytest.raises(BadResponse, match="data after the response"):
        parser.feed(WHOLE)
    assert not parser.reusable


def test_no_response_is_accepted_after_an_invalid_one():
    parser = ResponseParser()
    parser.begin_response("GET")
    for sent in (b"SSH-2.0-OpenSSH_9.2\r\n", WHOLE, WHOLE):
        with pytest.raises(BadResponse):
            parser.feed(sent)
        assert (parser.status, parser.finished, parser.reusable, parser.take_body()) == (0, False, False, b"")


@pytest.mark.parametrize("sent", [pytest.param(sent, id=name) for name, sent in NO_ANSWER.items()])
def test_an_invalid_response_has_no_status_and_is_not_finished(sent: bytes):
    parser = ResponseParser()
    parser.begin_response("GET")
    with pytest.raises(BadResponse):
        feed_and_finish(parser, sent)
    assert (parser.status, parser.finished, parser.take_body()) == (0, False, b"")


@pytest.mark.parametrize("spoilt", [b"5\nhello", b"x", b"5\r\nhellox"])
def test_a_head_that_was_returned_stays_when_its_body_is_invalid(spoilt: bytes):
    parser = ResponseParser()
    parser.begin_response("GET")
    parser.feed(CHUNKED + b"1\r\nx\r\n")
    with pytest.raises(BadResponse):
        parser.feed(spoilt)
    assert (parser.status, parser.finished, parser.reusable) == (200, False, False)


@pytest.mark.parametrize("sent", [pytest.param(sent, id=name) for name, sent in NO_ANSWER.items()])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_connection_without_a_valid_response_is_never_reusable(sent: bytes, method: str):
    parser = ResponseParser()
    parser.begin_response(method)
    try:
        feed_and_finish(parser, sent)
    except BadResponse:
        pass
    assert not (parser.finished and parser.reusable)


# -- however the data is split


@rows(ANSWERS)
def test_every_split_in_two_gives_the_same_response(row: ResponseCase):
    whole = row.outcome()
    for cut in range(1, len(row.sent)):
        if len(row.sent) > 2000 and 100 < cut < len(row.sent) - 100 and cut % 97:
            continue
        assert row.outcome(row.sent[:cut], row.sent[cut:]) == whole, f"cut at {cut}"


@rows(ANSWERS)
def test_feeding_byte_by_byte_gives_the_same_response(row: ResponseCase):
    assert row.outcome(*(row.sent[at : at + 1] for at in range(len(row.sent)))) == row.outcome()


@given(data=st.data(), row=st.sampled_from(list(ANSWERS.values())))
def test_many_splits_give_the_same_response(data: st.DataObject, row: ResponseCase):
    cuts = sorted(data.draw(st.sets(st.integers(1, len(row.sent) - 1), max_size=8)))
    reads = [row.sent[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(row.sent)], strict=True)]
    assert row.outcome(*reads) == row.outcome()


# -- headers


def test_headers_keep_their_order_and_bytes_with_names_in_lower_case():
    sent = (
        OK + b"Set-Cookie: a=1; Expires=Wed, 01 Jan 2031 00:00:00 GMT\r\nX-Name:  \t J\xfcrgen \xe2\x82\xac\t \r\n"
        b'SET-COOKIE: b=2\r\nVary: a\r\nVary: b\r\nX-Empty:\r\nETag: W/"x"\r\nContent-Length: 0\r\n\r\n'
    )
    assert read(sent).headers == (
        (b"set-cookie", b"a=1; Expires=Wed, 01 Jan 2031 00:00:00 GMT"),
        (b"x-name", b"J\xfcrgen \xe2\x82\xac"),
        (b"set-cookie", b"b=2"),
        (b"vary", b"a"),
        (b"vary", b"b"),
        (b"x-empty", b""),
        (b"etag", b'W/"x"'),
        (b"content-length", b"0"),
    )


@pytest.mark.parametrize(
    "name",
    [
        "Connection",
        "Keep-Alive",
        "Proxy-Authenticate",
        "Proxy-Authorization",
        "Proxy-Connection",
        "TE",
        "Trailer",
        "Upgrade",
        "HTTP2-Settings",
        "Date",
        "Server",
    ],
)
def test_hop_by_hop_headers_and_those_of_the_web_server_are_dropped(name: str):
    for written in (name, name.lower(), name.upper()):
        sent = OK + b"X-A: 1\r\n%b: x\r\nContent-Length: 0\r\n\r\n" % written.encode()
        assert read(sent).headers == ((b"x-a", b"1"), length(b"0"))


@pytest.mark.parametrize(
    "connection, gone",
    [
        pytest.param("x-a", {"x-a"}, id="a name"),
        pytest.param("X-A", {"x-a"}, id="in capitals"),
        pytest.param(" x-a ,,\tx-b, ", {"x-a", "x-b"}, id="several, with what may stand between them"),
        pytest.param("close, x-b", {"x-b"}, id="beside close"),
        pytest.param("etag", {"etag"}, id="a well-known one"),
        pytest.param("x-", set(), id="the beginning of one"),
        pytest.param("content-length", set(), id="the length"),
        pytest.param("Content-Type, Set-Cookie, Cache-Control", set(), id="what others depend on"),
        pytest.param("x-forwarded-host", set(), id="what is said of the client"),
    ],
)
def test_headers_named_in_connection_are_dropped_except_those_that_clients_depend_on(connection: str, gone: set[str]):
    headers = {"x-a": "1", "x-b": "2", "etag": "x", "content-length": "0", "content-type": "text/plain"}
    headers |= {"set-cookie": "a=1", "cache-control": "private", "x-forwarded-host": "shop.example"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    passed = tuple((name.encode(), value.encode()) for name, value in headers.items() if name not in gone)
    for sent in (f"Connection: {connection}\r\n{lines}", f"{lines}Connection: {connection}\r\n"):
        assert read(OK + sent.encode() + b"\r\n").headers == passed


def test_connection_may_come_in_several_lines():
    sent = OK + b"Connection: x-a\r\nX-A: 1\r\nX-B: 2\r\nConnection: x-b\r\nContent-Length: 0\r\n\r\n"
    assert read(sent).headers == (length(b"0"),)


@pytest.mark.parametrize(
    "value, names",
    [
        pytest.param(b"", [], id="none"),
        pytest.param(b"close", [b"close"], id="one"),
        pytest.param(b"Keep-Alive, X-A", [b"keep-alive", b"x-a"], id="two"),
        pytest.param(b" , \t,x ,", [b"x"], id="with gaps"),
    ],
)
def test_names_in_a_connection_header(value: bytes, names: list[bytes]):
    assert connection_options(value) == names


@pytest.mark.parametrize("name", [b"host", b"cookie", b"content-length", b"authorization", b"x-forwarded-for"])
def test_headers_that_connection_can_not_remove(name: bytes):
    assert not is_removable(name)


@pytest.mark.parametrize("name", [b"x-a", b"te", b"x-forward", b"etag"])
def test_headers_that_connection_can_remove(name: bytes):
    assert is_removable(name)


def test_the_names_in_the_trailer_header_are_returned():
    parser = ResponseParser()
    parser.begin_response("GET")
    parser.feed(CHUNKED[:-2] + b"Trailer: X-Sum\r\n\r\n")
    assert parser.trailer_names == b"X-Sum"


# -- the parser


def test_a_missing_httptools_is_reported_with_the_way_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "httptools", None)
    for use in (http1.require, ResponseParser):
        with pytest.raises(ConfigError, match=r"pip install 'sticky-sessions\[proxy\]'"):
            use()


def test_the_parser_is_not_imported_before_it_is_needed():
    script = "import sys, sticky_core.http.http1; sys.exit('httptools' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_memory_for_invented_names_is_bounded(monkeypatch: pytest.MonkeyPatch):
    known = dict(http1._HEADERS)
    monkeypatch.setattr(http1, "_HEADERS", known)
    got = read(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + b"X" * 6000 + b": 1\r\nX-Not-Kept: 2\r\nDATE: 3\r\n\r\n")
    assert list(got.headers) == [(b"content-length", b"0"), (b"x" * 6000, b"1"), (b"x-not-kept", b"2")]
    assert max(map(len, known)) <= http1.MAX_KNOWN_NAME_LENGTH
    for number in range(0, http1.MAX_KNOWN_NAMES + 100, 100):
        names = b"".join(b"X-Invented-%d: 1\r\n" % (number + each) for each in range(100))
        got = read(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + names + b"\r\n")
        assert len(got.headers) == 101
    assert len(known) <= http1.MAX_KNOWN_NAMES
