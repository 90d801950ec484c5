"""Samples of responses, under HAProxy's names."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.errors import ConfigError
from sticky_core.samples import response as res
from sticky_core.samples.parser import parse_response_sample
from tests.core.fakes import RecordedResponse

NOW = 1_700_000_000.0
PAST, FUTURE = formatdate(NOW - 1, usegmt=True), formatdate(NOW + 3600, usegmt=True)


def response(*lines: str) -> RecordedResponse:
    """A response with these headers: `response("location: /")`."""
    split = (line.partition(": ") for line in lines)
    return RecordedResponse(200, [(name, value) for name, _, value in split])


@pytest.mark.parametrize(
    "lines, value",
    [
        (["sid=abc; Path=/"], "abc"),
        (["sid=abc"], "abc"),
        (['sid="abc"; HttpOnly'], "abc"),
        (["sid=a=b"], "a=b"),
        (["sid="], ""),
        (["sid"], None),
        (["SID=abc"], None),
        (["xsid=abc; Path=/sid=def"], None),
        (["a=1", "sid=abc", "b=2"], "abc"),
        (["sid=abc", "sid=def"], "def"),
        ([], None),
    ],
    ids=repr,
)
def test_cook_is_the_last_cookie_of_that_name_that_is_set(lines, value):
    assert res.cook("sid")(response(*(f"set-cookie: {line}" for line in lines))) == value


@pytest.mark.parametrize(
    "line, ends",
    [
        ("sid=abc; Max-Age=0", True),
        ("sid=abc; max-age=-1", True),
        ("sid=abc; Max-Age=00", True),
        (f"sid=abc; Expires={PAST}", True),
        ("sid=abc; Expires=Thu, 01 Jan 1970 00:00:00 GMT", True),
        ("sid=abc; expires=Thu, 01-Jan-70 00:00:01 GMT; path=/", True),
        ("sid=; Path=/", True),
        ('sid=""; Path=/', True),
        (f"sid=abc; Max-Age=60; Expires={PAST}", False),  # RFC 6265, 5.3: Max-Age has precedence
        (f"sid=abc; Max-Age=0; Expires={FUTURE}", True),
        (f"sid=abc; Expires={FUTURE}", False),
        ("sid=abc; Max-Age=60", False),
        ("sid=abc; Max-Age=", False),
        ("sid=abc; Expires=never", False),
        ("sid=abc; Expires=Thu, 99 Foo 9999999 00:00:00 GMT", False),
        ("sid=abc", False),
        ("sid=Max-Age", False),
        ("other=; Max-Age=0", False),
    ],
)
def test_a_logout_takes_the_cookie_away(line, ends):
    assert res.cook("sid").ends(response(f"set-cookie: {line}"), NOW) is ends


def test_the_last_word_counts_of_an_answer_that_deletes_and_sets():
    gone, new = "set-cookie: sid=; Max-Age=0", "set-cookie: sid=abc"
    assert res.cook("sid").ends(response(new, gone), NOW)
    assert not res.cook("sid").ends(response(gone, new), NOW)
    assert not res.cook("sid").ends(response(), NOW)


@pytest.mark.parametrize(
    "sample, value",
    [
        (res.hdr("Mcp-Session-Id"), "abc"),
        (res.hdr("list"), "c"),
        (res.hdr("list", 1), "a"),
        (res.hdr("list", -2), "b"),
        (res.hdr("list", 4), None),
        (res.hdr("absent"), None),
    ],
    ids=repr,
)
def test_hdr_is_one_of_the_values_of_all_headers_of_that_name(sample, value):
    assert sample(response("mcp-session-id: abc", "list: a, b", "list: c")) == value


@pytest.mark.parametrize(
    "location, query, path",
    [
        ("/next?sid=abc", "abc", None),
        ("https://shop.example/next?a=1&sid=abc#sid=def", "abc", None),
        ("?sid=abc", "abc", None),
        ("/next;sid=abc", None, "abc"),
        ("https://shop.example/next;SID=abc/more?sid=def", "def", "abc"),
        ("/next#;sid=abc?sid=abc", None, None),
        ("", None, None),
    ],
)
def test_the_location_has_parameters(location, query, path):
    head = response(f"location: {location}")
    assert (res.url_param("sid")(head), res.path_param("sid")(head)) == (query, path)


def test_an_answer_without_a_location_has_none():
    assert (res.url_param("sid")(response()), res.path_param("sid")(response())) == (None, None)


@pytest.mark.parametrize(
    "text, sample",
    [
        ("res.cook(JSESSIONID)", res.cook("JSESSIONID")),
        ("set-cookie(sid)", res.cook("sid")),
        ("scook(sid)", res.cook("sid")),
        ("res.hdr(Mcp-Session-Id)", res.hdr("mcp-session-id")),
        ("res.fhdr(x)", res.hdr("x")),
        ("shdr(x)", res.hdr("x")),
        ("res.hdr(x,1)", res.hdr("x", 1)),
        ("res.hdr(x, -2)", res.hdr("x", -2)),
    ],
)
def test_sample_in_haproxys_words(text, sample):
    assert parse_response_sample(text) == sample


@pytest.mark.parametrize(
    "text", ["", "cook(a)", "res.cook", "res.cook()", "res.hdr(a,b)", "res.hdr(a,--1)", "res.hdr(a,²)", "res.cook(a"]
)
def test_unknown_word_is_refused_with_the_known_ones(text):
    with pytest.raises(ConfigError, match=r"write res\.cook\(<name>\) or res\.hdr\(<name>\)") as refused:
        parse_response_sample(text)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize(
    "wrong, problem",
    [
        (lambda: res.cook("a b"), r"res\.cook\(a b\): this can't be the name of a cookie"),
        (lambda: res.hdr(""), "a header has a name"),
        (lambda: res.hdr("x", 0), "there is no value 0"),
        (lambda: res.url_param(""), "a parameter has a name"),
        (lambda: res.path_param(""), "a parameter has a name"),
    ],
)
def test_a_sample_of_nothing_is_refused(wrong, problem):
    with pytest.raises(ConfigError, match=problem):
        wrong()


ANYTHING = st.text(st.characters(max_codepoint=255), max_size=60)


@given(st.lists(st.tuples(st.sampled_from(["set-cookie", "location", "x"]), ANYTHING), max_size=5))
def test_no_sample_raises_whatever_the_request_holds(headers):
    head = RecordedResponse(200, headers)
    for sample in (res.cook("x"), res.hdr("x", 2), res.url_param("x"), res.path_param("x")):
        sample(head)
    res.cook("x").ends(head, NOW)
