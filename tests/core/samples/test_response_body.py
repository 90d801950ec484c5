"""Samples of the bodies of responses, and the reader that reads no more of a body than they need."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.errors import ConfigError
from sticky_core.persistence.stick.config import Learn, Stick
from sticky_core.samples import request as samples
from sticky_core.samples import response as res
from sticky_core.samples.parser import parse_learned_sample
from sticky_core.samples.response_body import BodyReader
from sticky_core.stick_table.table import StickTable

OPEN_PACKET = b'0{"sid":"4prqvK-qQYlf7NVKAAAA","upgrades":["websocket"],"pingTimeout":20000,"maxPayload":1000000}'
ENDPOINT = b"event: endpoint\r\ndata: /messages/?session_id=9f8e\r\n\r\n"


@pytest.mark.parametrize(
    "name, body, key",
    [
        pytest.param("sid", b'{"sid": "abc"}', "abc", id="an object"),
        pytest.param("sid", b' \n{"a": [1, {"sid": 2}], "sid": 17, "b": 1}', "17", id="a number behind others"),
        pytest.param("session.id", b'{"id": 1, "session": {"id": "x"}}', "x", id="of an inner object"),
        pytest.param("sid", OPEN_PACKET, "4prqvK-qQYlf7NVKAAAA", id="Engine.IO"),
        pytest.param("sid", b"97:" + OPEN_PACKET, "4prqvK-qQYlf7NVKAAAA", id="Engine.IO 3"),
        pytest.param("sid", b"\x00\x09\x07\xff" + OPEN_PACKET, "4prqvK-qQYlf7NVKAAAA", id="Engine.IO 3, binary"),
        pytest.param("sid", b")]}',\n" + b'{"sid": "abc"}', "abc", id="behind a line against script inclusion"),
        pytest.param("é", '{"é": "ü"}'.encode(), "Ã¼", id="not ASCII"),
        pytest.param("é", rb'{"\u00e9": "abc"}', "abc", id="a name with an escape"),
        pytest.param("sid", b'[{"sid": "abc"}]', None, id="in a list"),
        pytest.param("sid", b'___eio[0]("0{\\"sid\\":\\"abc\\"}");', None, id="JSONP"),
        pytest.param("sid", b"x" * 33 + b'{"sid": "abc"}', None, id="too far from the beginning"),
        pytest.param("sid", b'{"sid": null}', None, id="null"),
        pytest.param("sid", b'{"sid": ["abc"]}', None, id="a list"),
        pytest.param("sid", b'{"id": "sid"}', None, id="another name"),
        pytest.param("sid", b'{"sid": "abc', None, id="cut"),
        pytest.param("sid", b'{"sid": 17', None, id="a number that may go on"),
        pytest.param("sid", b"<html>", None, id="no JSON"),
        pytest.param("sid", b"", None, id="nothing"),
    ],
)
def test_json_field_is_a_field_of_the_object_with_which_the_body_begins(name, body, key):
    assert res.json_field(name).find(body, True) == key
    assert read([body], res.json_field(name)) == key


@pytest.mark.parametrize(
    "body, key",
    [
        pytest.param(b"event: endpoint\ndata: /messages?session_id=abc\n\n", "abc", id="LF"),
        pytest.param(ENDPOINT, "9f8e", id="CRLF"),
        pytest.param(ENDPOINT.replace(b"\r\n", b"\r"), "9f8e", id="CR"),
        pytest.param(b"data:/m?session_id=abc&x=1\nevent:endpoint\n\n", "abc", id="data first, no spaces"),
        pytest.param(b"\xef\xbb\xbf: ping\n\nevent: x\ndata: 1\n\n" + ENDPOINT, "9f8e", id="behind others"),
        pytest.param(b"event: endpoint\ndata: http://h:1/m?a=b&session_id=abc#f\n\n", "abc", id="a whole URL"),
        pytest.param(b"event: endpoint\ndata: /m?session_id=a\n", None, id="not at its end"),
        pytest.param(b"event: endpoint\ndata: /m?session_id=a", None, id="cut"),
        pytest.param(b"event: message\ndata: /m?session_id=a\n\n", None, id="another event"),
        pytest.param(b"event: endpoint\ndata: /m?session=a\n\n", None, id="another parameter"),
        pytest.param(b"event: endpoint\n\ndata: /m?session_id=a\n\n", None, id="an event without data before"),
    ],
)
def test_sse_endpoint_is_a_parameter_of_the_url_in_that_event(body, key):
    assert res.sse_endpoint("session_id").find(body, False) == key


@pytest.mark.parametrize(
    "body, is_whole, key",
    [
        (b"sid=abc&expires=60", False, "abc"),
        (b"expires=60&sid=a%20b&x=", False, "a%20b"),
        (b"expires=60&sid=abc", True, "abc"),
        (b"sid=abc\r\n", True, "abc"),
        (b"expires=60&sid=abc", False, None),
        (b"xsid=abc&y=", True, None),
        (b"", True, None),
    ],
    ids=repr,
)
def test_body_param_is_a_parameter_that_has_ended(body, is_whole, key):
    assert res.body_param("sid").find(body, is_whole) == key


@pytest.mark.parametrize(
    "sample, accepted, refused",
    [
        (res.json_field("a"), ["application/json", "text/plain", "application/problem+json", ""], ["text/html"]),
        (res.body_param("a"), ["application/x-www-form-urlencoded", "text/plain"], ["text/html", ""]),
        (res.sse_endpoint("a"), ["text/event-stream"], ["text/plain", "application/json", ""]),
    ],
    ids=repr,
)
def test_sample_reads_bodies_of_its_content_types_only(sample, accepted, refused):
    assert [sample.accepts(each) for each in accepted] == [True] * len(accepted)
    assert not any(map(sample.accepts, refused))


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: res.json_field(""), id="no field"),
        pytest.param(lambda: res.body_param(""), id="no parameter"),
        pytest.param(lambda: res.sse_endpoint(""), id="no parameter of an endpoint"),
        pytest.param(lambda: res.json_field("a", 0), id="no bytes"),
        pytest.param(lambda: res.sse_endpoint("a", 1 << 24), id="16 MB"),
    ],
)
def test_sample_that_can_not_work_is_refused(build):
    with pytest.raises(ConfigError):
        build()


@pytest.mark.parametrize(
    "text, sample",
    [
        ("res.json_field(session.id)", res.json_field("session.id")),
        ("res.body_param(sid)", res.body_param("sid")),
        ("res.sse_endpoint(session_id)", res.sse_endpoint("session_id")),
        ("res.hdr(X-Session)", res.hdr("X-Session")),
    ],
)
def test_sample_is_written_in_the_words_of_haproxy_too(text, sample):
    assert parse_learned_sample(text) == sample


@pytest.mark.parametrize("text", ["json_field(sid)", "res.json_field", "res.json_field()", "hdr(X)", ""])
def test_other_words_are_no_sample(text):
    with pytest.raises(ConfigError, match="write res"):
        parse_learned_sample(text)


def test_stick_rules_refuse_samples_of_bodies_and_name_what_reads_them():
    sample: Any = res.json_field("sid")
    for build in (
        lambda: Stick.store_response(sample, StickTable("string")),
        lambda: Learn(create=sample, lookup=samples.url_param("sid")),
    ):
        with pytest.raises(ConfigError, match=r"json_field.*only StickyWorkers\(learn=...\) does"):
            build()


# The reader


def read(pieces, *found_by, length=None):
    """Return the first key that a reader of these pieces finds, the last of them the end of the body."""
    reader = BodyReader(found_by, length)
    for number, piece in enumerate(pieces, 1):
        if reader.is_done:
            return None
        key = reader.read(piece, number == len(pieces))
        if key is not None:
            assert reader.is_done
            return key
    return None


BODIES: dict[str, tuple[res.BodySample, bytes]] = {
    "JSON": (res.json_field("sid"), json.dumps({"a": {"sid": 1}, "sid": "abc", "b": 2}).encode()),
    "events": (res.sse_endpoint("sid"), b": hello\n\nevent: endpoint\ndata: /m?sid=abc&x=1\n\nevent: more\n\n"),
    "parameters": (res.body_param("sid"), b"expires=60&sid=abc&b=1"),
}


@pytest.mark.parametrize("kind", BODIES)
@given(cuts=st.lists(st.integers(1, 12)))
def test_key_is_found_wherever_the_body_is_cut_and_with_the_piece_that_completes_it(kind, cuts):
    sample, body = BODIES[kind]
    complete = next(end for end in range(len(body) + 1) if sample.find(body[:end], False) == "abc")
    reader = BodyReader([sample], None)
    at = 0
    for cut in [*cuts, len(body)]:
        key = reader.read(body[at : at + cut], at + cut >= len(body))
        at += cut
        assert (key is not None) == (at >= complete)
        if key is not None:
            assert (key, reader.is_done) == ("abc", True)
            return


def test_last_parameter_is_found_once_the_content_length_is_reached():
    reader = BodyReader([res.body_param("sid")], 7)
    assert reader.read(b"sid=a", False) is None
    assert reader.read(b"bc", False) == "abc"


def test_no_more_than_the_limit_is_read():
    sample = res.json_field("sid", limit=20)
    late = b'{"a": "xxxxxxxxxx", "sid": "abc"}'
    assert read([late], sample) is None
    reader = BodyReader([sample], None)
    assert reader.read(late[:10], False) is None and not reader.is_done
    assert reader.read(late[10:], False) is None and reader.is_done
    assert read([b'{"sid": "abc", "xxxxxxxxxxxxxxxxx": 1}'], sample) == "abc"
    assert read([late], sample, res.json_field("sid")) == "abc"  # each sample has its own limit


def test_body_in_very_many_pieces_is_given_up_soon_after_the_name_was_found():
    reader = BodyReader([res.json_field("sid")], None)
    pieces = [b'{"sid": ', *[b" "] * 1000]
    count = 0
    for piece in pieces:
        if reader.is_done:
            break
        count += 1
        reader.read(piece, False)
    assert count == 64


def test_first_sample_that_finds_a_key_counts():
    assert read([b'{"a": 1, "b": 2}'], res.json_field("b"), res.json_field("a")) == "2"
    assert read([b"a=1&b=2"], res.json_field("b"), res.body_param("a")) == "1"
