"""Limits of the sizes of responses, and bodies that are counted but not parsed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.http.http1 import (
    MAX_HEAD,
    MAX_INTERIM,
    BadResponse,
    ResponseParser,
)
from tests.core.http.responses import (
    CHUNKED,
    CONTINUE,
    HELLO,
    LENGTH,
    OK,
    UNTIL_CLOSE,
    WHOLE,
    ParsedResponse,
    read,
    taken,
)

# -- limits


def head_of(size: int, line: bytes = b"X-A: %b\r\n") -> bytes:
    """The head of a response without a body, this long."""
    frame = OK + b"Content-Length: 0\r\n" + line + b"\r\n"
    return frame % (b"x" * (size - len(frame % b"")))


@pytest.mark.parametrize("read_size", [1000, 16384, 70000])
def test_a_head_of_the_maximum_length_is_accepted(read_size: int):
    head = head_of(MAX_HEAD)
    assert len(head) == MAX_HEAD
    got = read(*(head[at : at + read_size] for at in range(0, len(head), read_size)))
    assert (got.over, got.reusable, len(got.headers)) == (True, True, 2)


@pytest.mark.parametrize("read_size", [1000, 16384, 70000])
@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"X-A: %b\r\n", id="a long value"),
        pytest.param(b"%b: 1\r\n", id="a long name"),
    ],
)
def test_a_longer_head_is_refused(read_size: int, line: bytes):
    head = head_of(MAX_HEAD + 1, line)
    with pytest.raises(BadResponse, match="a head of more than 65536 bytes"):
        read(*(head[at : at + read_size] for at in range(0, len(head), read_size)))


def test_many_short_headers_count_as_a_long_head():
    with pytest.raises(BadResponse, match="a head of more than"):
        read(OK, *[b"a:b\r\n" * 1000] * 20)


def test_a_long_reason_counts_as_a_long_head():
    with pytest.raises(BadResponse, match="a head of more than"):
        read(b"HTTP/1.1 200 ", *[b"x" * 16384] * 5)


@pytest.mark.parametrize("cut", range(1, 6))
def test_data_received_with_the_end_of_a_long_head_does_not_count(cut: int):
    head = head_of(MAX_HEAD).replace(b"Content-Length: 0\r\nX-A: xx", b"Content-Length: 50000\r\n")
    head = head.replace(b"50000\r\nxx", b"50000\r\nX-A: ")
    assert MAX_HEAD - 10 < len(head) <= MAX_HEAD
    got = read(head[:-cut], head[-cut:] + b"x" * 50000)
    assert (got.over, got.reusable, len(got.body)) == (True, True, 50000)


def test_a_long_body_does_not_count_as_head():
    got = read(OK + b"Content-Length: 200000\r\n\r\n" + b"x" * 200000)
    assert (got.over, len(got.body)) == (True, 200000)


def test_interim_responses_and_the_head_share_one_limit():
    early = b"HTTP/1.1 103 x\r\nLink: %b\r\n\r\n" % (b"x" * 8000)
    with pytest.raises(BadResponse, match="a head of more than"):
        read(*[early] * 9)


def test_the_number_of_interim_responses_is_limited():
    assert read(*[CONTINUE] * MAX_INTERIM, WHOLE) == HELLO
    with pytest.raises(BadResponse, match="more than 16 interim responses"):
        read(*[CONTINUE] * (MAX_INTERIM + 1))


@pytest.mark.parametrize(
    "around",
    [
        pytest.param(b"0\r\n" + b"X-A: 1\r\n" * 1000, id="trailers"),
        pytest.param(b"0\r\nX-A: " + b"x" * 8000, id="one trailer"),
        pytest.param(b"1;" + b"x" * 8000, id="an extension"),
        pytest.param(b"1" + b'\r\nx\r\n1;a="' + b"x" * 8000, id="a quoted extension"),
        pytest.param(b"0" * 8000, id="zeros before a size"),
    ],
)
def test_the_length_of_chunk_lines_is_limited(around: bytes):
    first, more = around[:100], around[-1000:]
    with pytest.raises(BadResponse, match="chunk lines are too long"):
        read(CHUNKED, first, *[more] * 200)


def test_many_short_extensions_are_limited_too():
    with pytest.raises(BadResponse, match="chunk lines are too long"):
        read(CHUNKED, *[(b"1;" + b"x" * 150 + b"\r\nx\r\n") * 10] * 200)


def test_many_small_chunks_are_accepted():
    reads = [b"1\r\nx\r\n" * 1000] * 100
    assert read(CHUNKED, *reads, b"0\r\n\r\n") == ParsedResponse(body=b"x" * 100_000)


def test_trailers_are_accepted_up_to_the_length_of_a_head():
    trailers = b"".join(b"X-%d: %b\r\n" % (number, b"x" * 1000) for number in range(60))
    got = read(CHUNKED + b"0\r\n", trailers, b"\r\n")
    assert (got.over, got.reusable, len(got.trailers)) == (True, True, 60)


# -- bodies that are not parsed


def test_a_body_with_a_length_is_not_copied():
    parser = ResponseParser()
    parser.begin_response("GET")
    parser.feed(OK + b"Content-Length: 3000\r\n\r\n")
    for _ in range(3):
        piece = bytes(1000)
        parser.feed(piece)
        assert parser.take_body() is piece
    assert parser.finished
    assert parser.reusable


def test_a_body_until_the_connection_closes_is_not_copied():
    parser = ResponseParser()
    parser.begin_response("GET")
    parser.feed(UNTIL_CLOSE)
    for _ in range(3):
        piece = bytes(1000)
        parser.feed(piece)
        assert parser.take_body() is piece
    assert not parser.finished
    assert parser.feed_eof()
    assert not parser.reusable


def test_large_parts_are_returned_one_by_one():
    parser = ResponseParser()
    parser.begin_response("GET")
    parser.feed(UNTIL_CLOSE)
    pieces = [bytes([number]) * 20000 for number in range(3)]
    for piece in pieces:
        parser.feed(piece)
    for piece in pieces:
        assert parser.take_body() is piece
    assert parser.take_body() == b""


@given(st.lists(st.integers(1, 20000), max_size=6))
def test_a_body_is_returned_completely_however_it_was_split(sizes: list[int]):
    parser = ResponseParser()
    parser.begin_response("GET")
    parser.feed(OK + b"\r\n")
    pieces = [bytes([number]) * size for number, size in enumerate(sizes)]
    for piece in pieces:
        parser.feed(piece)
    assert taken(parser) == b"".join(pieces)


def test_small_parts_are_joined():
    parser = ResponseParser()
    parser.begin_response("GET")
    assert parser.take_body() == b""
    for piece in (LENGTH + b"he", b"l", b"lo"):
        parser.feed(piece)
    assert parser.take_body() == b"hello"
    assert parser.take_body() == b""
