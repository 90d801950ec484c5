"""Samples of requests, under HAProxy's names."""

import base64
import json
from ipaddress import ip_address
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.errors import ConfigError
from sticky_core.samples.converters import digest, field, ipmask, lower, prefix
from sticky_core.samples.parser import parse_sample
from sticky_core.samples.request import (
    Sample,
    bearer,
    cook,
    form,
    hdr,
    json_field,
    jwt,
    method,
    path,
    path_param,
    scheme,
    src,
    url_param,
)
from tests.core.samples.requests import FakeRequest, make_request


@pytest.mark.parametrize("text", ["10.0.0.1", "::1", "2001:db8::1", "::ffff:10.0.0.1"])
def test_src_is_an_address(text):
    assert src(make_request(src=text)) == ip_address(text)


@pytest.mark.parametrize("text", ["", "unix:", "localhost", "10.0.0.256", "1" * 5000])
def test_request_without_an_address_has_no_src(text):
    assert src(make_request(src=text)) is None


def test_path_is_as_it_was_sent():
    assert path(make_request(path="/%2F", query="x=1")) == "/%2F"


FOUR = [("x-forwarded-for", "a, b"), ("other", "z"), ("x-forwarded-for", 'c , "d,e"')]


@pytest.mark.parametrize(
    "sample, value",
    [
        (hdr("x-forwarded-for"), '"d,e"'),
        (hdr("X-Forwarded-For"), '"d,e"'),
        (hdr("x-forwarded-for", 1), "a"),
        (hdr("x-forwarded-for", 4), '"d,e"'),
        (hdr("x-forwarded-for", 5), None),
        (hdr("x-forwarded-for", -2), "c"),
        (hdr("x-forwarded-for", -4), "a"),
        (hdr("x-forwarded-for", -5), None),
        (hdr("absent"), None),
    ],
    ids=repr,
)
def test_hdr_is_one_of_the_values_of_all_headers_of_that_name(sample, value):
    assert sample(make_request(headers=FOUR)) == value


def test_an_empty_header_is_an_empty_sample():
    assert hdr("x")(make_request(headers=[("x", "")])) == ""


@pytest.mark.parametrize(
    "query, value",
    [
        ("user=bob", "bob"),
        ("a=1&user=bob", "bob"),
        ("a=1;user=bob;b", "bob"),
        ("user=bob?user=alice", "bob"),
        ("user=&user=bob", ""),
        ("user", None),
        ("superuser=bob", None),
        ("", None),
    ],
)
def test_url_param_is_the_first_of_that_name(query, value):
    assert url_param("user")(make_request(query=query)) == value


@pytest.mark.parametrize(
    "wrong, problem",
    [
        (lambda: hdr(""), "a header has a name"),
        (lambda: hdr("x", 0), "there is no value 0"),
        (lambda: url_param(""), "a parameter has a name"),
        (lambda: path_param(""), "a parameter has a name"),
        (lambda: cook(""), "this can't be the name of a cookie"),
        (lambda: cook("a b"), r"cook\(a b\): this can't be the name of a cookie"),
        (lambda: prefix(src, 0), "length 0 leaves nothing"),
        (lambda: field(path, 0, "/"), "there is no part 0"),
        (lambda: field(path, 1, ""), "name the delimiters"),
        (lambda: ipmask(src, 33), "a mask has 0..32 bits, and 0..128 for IPv6"),
        (lambda: ipmask(src, 24, -1), "a mask has 0..32 bits, and 0..128 for IPv6"),
        (lambda: parse_sample("src,ipmask(64)"), "a mask has 0..32 bits"),
        (lambda: form(""), "form: a field has a name"),
        (lambda: form("a", 0), "form: a limit of 0 bytes"),
        (lambda: json_field(""), "json_field: a field has a name"),
        (lambda: json_field("a", 1 << 30), "json_field: a limit of 1073741824 bytes"),
        (lambda: jwt(""), "jwt: a claim has a name"),
    ],
)
def test_a_sample_of_nothing_is_refused(wrong, problem):
    with pytest.raises(ConfigError, match=problem):
        wrong()


def test_method_and_scheme_are_those_of_the_request():
    assert (method(make_request()), scheme(make_request())) == ("PUT", "https")


@pytest.mark.parametrize(
    "headers, value",
    [
        (["sid=abc"], "abc"),
        (["a=1; sid=abc; sid=def"], "abc"),
        (["a=1", "sid=abc"], "abc"),
        (['sid="abc"'], "abc"),
        (["sid="], ""),
        (["sid"], None),
        (["SID=abc"], None),
        (["xsid=abc"], None),
        ([], None),
    ],
    ids=repr,
)
def test_cook_is_the_first_cookie_of_that_name(headers, value):
    assert cook("sid")(make_request(headers=[("cookie", text) for text in headers])) == value


@pytest.mark.parametrize(
    "where, value",
    [
        ("/cart;jsessionid=abc", "abc"),
        ("/cart;JSESSIONID=abc", "abc"),
        ("/cart;v=1;jsessionid=abc", "abc"),
        ("/shop;jsessionid=abc/cart;v=1", "abc"),
        ("/a;jsessionid=abc;jsessionid=def", "abc"),
        ("/cart;jsessionid=a%2Fb", "a%2Fb"),
        ("/cart;jsessionid=", ""),
        ("/cart;jsessionid", None),
        ("/cart;xjsessionid=abc", None),
        ("/jsessionid=abc", None),
        ("/", None),
        ("", None),
    ],
)
def test_path_param_is_the_first_of_that_name_in_any_segment(where, value):
    assert path_param("jsessionid")(make_request(path=where)) == value


# Bodies

FORM = [("content-type", "application/x-www-form-urlencoded; charset=utf-8")]
JSON = [("content-type", "application/json")]


@pytest.mark.parametrize(
    "body, value",
    [
        (b"user=bob", "bob"),
        (b"a=1&user=bob&user=alice", "bob"),
        (b"user=", ""),
        (b"user=b%6fb+x", "b%6fb+x"),
        (b"user=caf\xe9", "caf\xe9"),
        (b"superuser=bob", None),
        (b"user", None),
        (b"", None),
        (b"x" * 11 + b"&user=bob", "bob"),  # all of the 20 bytes that are looked at
        (b"x" * 12 + b"&user=bob", None),  # one too many: the field may go on
        (b"user=bob&" + b"x" * 1000, "bob"),
        (b"user=" + b"x" * 1000, None),
        (b"\0\xff&&==&user=bob", "bob"),
    ],
    ids=repr,
)
def test_form_is_a_field_that_ends_within_the_limit(body, value):
    request = make_request(headers=FORM, body=body)
    assert form("user", 20)(request) == value
    assert cast(FakeRequest, request).peeked <= 21


@pytest.mark.parametrize(
    "body, name, value",
    [
        (b'{"user": "bob"}', "user", "bob"),
        (b'{"user": 7}', "user", "7"),
        (b'{"user": -1.5}', "user", "-1.5"),
        (b'{"user": true}', "user", None),
        (b'{"user": null}', "user", None),
        (b'{"user": ["bob"]}', "user", None),
        (b'{"user": {"id": "7"}}', "user.id", "7"),
        (b'{"user": {"id": "7"}}', "user", None),
        (b'{"user": "bob"}', "user.id", None),
        (b'{"user": "a", "user": "b"}', "user", "a"),
        (b'{"other": "bob"}', "user", None),
        (b'["user"]', "user", None),
        (b'"user"', "user", None),
        (b"", "user", None),
        (b"{", "user", None),
        (b'{"user": "bob"', "user", None),
        (b"\xff\xfe{}", "user", None),
        ('{"user": "café"}'.encode(), "user", "caf\xc3\xa9"),
        ('{"user": "bob"}'.encode("utf-16"), "user", "bob"),
        (b'{"user": "\\ud800"}', "user", None),
        (b'{"user": "a\\u0000b"}', "user", None),
        (b'{"user": ""}', "user", ""),
        (b'{"user": ' + b"9" * 10_000 + b"}", "user", None),
        (b'{"user": "bob", "more": ' + b"[" * 16_000 + b"}", "user", "bob"),
        (b'{"more": ' + b"[" * 16_000 + b"]" * 16_000 + b', "user": "bob"}', "user", None),
        (b'{"a":' * 3_000 + b"1" + b"}" * 3_000, "a.a", None),
        (b'{"user": "bob"}' + b" " * 20_000, "user", "bob"),
        (b'{"user": "bob", "text": "' + b"x" * 20_000 + b'"}', "user", "bob"),
        (b'{"text": "' + b"x" * 20_000 + b'", "user": "bob"}', "user", None),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_json_field_is_a_text_or_a_number_of_a_document_within_the_limit(body, name, value):
    request = make_request(headers=JSON, body=body)
    assert json_field(name)(request) == value
    assert cast(FakeRequest, request).peeked <= 16385


@pytest.mark.parametrize("limit", [1, 8, 9, 10, 16, 17, 18, 19, 40])
def test_json_field_ends_within_the_limit_or_is_none(limit):
    body = b'{"user": 123.5e7, "text": ""}'
    assert json_field("user", limit)(make_request(headers=JSON, body=body)) == ("1235000000.0" if limit >= 17 else None)


@pytest.mark.parametrize(
    "sample, headers, start",
    [(form("user", 50), FORM, b"user=bob&text="), (json_field("user", 50), JSON, b'{"user": "bob", "text": "')],
    ids=["a form", "JSON"],
)
def test_key_does_not_change_when_the_body_grows_past_the_limit(sample, headers, start):
    assert {sample(make_request(headers=headers, body=start + b"x" * size)) for size in range(200)} == {"bob"}


@pytest.mark.parametrize(
    "sample, headers, body, notes",
    [
        (form("a", 20), FORM, b"b=" + b"x" * 20 + b"&a=1", ["form('a'): not within the first 20 bytes of the body"]),
        (form("a", 20), FORM, b"a=" + b"x" * 20, ["form('a'): not within the first 20 bytes of the body"]),
        (form("a", 20), FORM, b"a=1&b=" + b"x" * 20, []),
        (form("a", 20), FORM, b"b=1", []),
        (
            json_field("a.b", 20),
            JSON,
            b'{"c": "' + b"x" * 20 + b'", "a": {"b": 1}}',
            ["json_field('a.b'): not within the first 20 bytes of the body"],
        ),
        (
            json_field("a\n\u00e9", 20),
            JSON,
            b"{" + b" " * 20,
            ["json_field('a\\n\\xe9'): not within the first 20 bytes of the body"],
        ),
        (json_field("a", 20), JSON, b'{"a": 1, "c": "' + b"x" * 20, []),
        (json_field("a", 20), JSON, b'{"c": 1}' + b" " * 20, []),
        (json_field("a", 20), JSON, b'{"a": {}, "c": "' + b"x" * 20, []),
        (json_field("a", 20), JSON, b'{"c": 1', []),
        (json_field("a", 20), [], b"x" * 50, []),
    ],
)
def test_missing_key_of_a_body_that_is_too_long_is_noted(sample, headers, body, notes):
    request = make_request(headers=headers, body=body)
    sample(request)
    assert cast(FakeRequest, request).missing_keys == notes


@pytest.mark.parametrize(
    "kind, sample",
    [
        ("", form("user")),
        ("text/plain", form("user")),
        ("multipart/form-data", form("user")),
        ("", json_field("user")),
        ("text/plain", json_field("user")),
        ("application/jsonx", json_field("user")),
    ],
)
def test_a_body_of_another_kind_is_not_read(kind, sample):
    request = make_request(headers=[("content-type", kind)] if kind else [], body=b'{"user": "bob"}')
    assert sample(request) is None
    assert cast(FakeRequest, request).peeked == 0


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"])
def test_json_has_many_names(kind):
    assert json_field("user")(make_request(headers=[("content-type", kind)], body=b'{"user": "bob"}')) == "bob"


# Tokens


def token(payload: object, whole: str = "{}.{}.{}") -> str:
    """A JSON Web Token, with a signature that is not valid."""
    text = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return whole.format("eyJhbGciOiJub25lIn0", base64.urlsafe_b64encode(text).decode().rstrip("="), "sig")


@pytest.mark.parametrize(
    "sent, value",
    [
        (token({"sub": "bob"}), "bob"),
        (token({"sub": 7}), "7"),
        (token({"sub": "??>>~~"}), "??>>~~"),  # its base64 has the characters that are safe in a URL
        (token({"sub": ["bob"]}), None),
        (token({}), None),
        (token([]), None),
        (token(b""), None),
        (token(b"\xff\xfe\xfd"), None),
        (token(b"[" * 60_000), None),
        (token(b'{"sub":' + b"9" * 60_000 + b"}"), None),
        (token({"sub": "bob"}, "{0}.{1}"), None),
        (token({"sub": "bob"}, "{0}.{1}.{2}.more"), None),
        (token({"sub": "bob"}, "{0}.{1}x.{2}"), None),
        ("..", None),
        ("a.\xe9.c", None),
        ("a.%%%.c", None),
        ("", None),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_claim_of_a_jwt_is_read_without_verification(sent, value):
    assert jwt("sub")(make_request(headers=[("authorization", f"Bearer {sent}")])) == value


def test_jwt_may_be_in_another_sample():
    assert jwt("sub", cook("id"))(make_request(headers=[("cookie", f"id={token({'sub': 'bob'})}")])) == "bob"
    assert jwt("realm.id", hdr("x-token"))(make_request(headers=[("x-token", token({"realm": {"id": 7}}))])) == "7"


@pytest.mark.parametrize(
    "value, found",
    [("Bearer abc", "abc"), ("bearer  abc", "abc"), ("Bearer", ""), ("Basic abc", None), ("", None)],
)
def test_a_bearer_s_token_is_what_follows_the_word(value, found):
    assert bearer(make_request(headers=[("authorization", value)])) == found
    assert bearer(make_request()) is None


ANYTHING = st.text(st.characters(max_codepoint=255), max_size=60)
SAMPLES: list[Sample] = [
    *(src, path, method, scheme, bearer, cook("a"), hdr("a", 2), url_param("a"), path_param("a")),
    *(form("a", 40), json_field("a", 40), jwt("a"), jwt("a", hdr("a"))),
]


@given(
    where=ANYTHING,
    query=ANYTHING,
    texts=st.lists(st.tuples(st.sampled_from(["a", "cookie", "authorization", "content-type"]), ANYTHING), max_size=6),
    kind=st.sampled_from([FORM, JSON, []]),
    body=st.binary(max_size=60),
)
def test_no_sample_raises_whatever_the_request_holds(where, query, texts, kind, body):
    request = make_request(where, where, query, [*texts, *kind], body)
    for sample in SAMPLES:
        for each in (sample, lower(sample), prefix(sample, 3), digest(sample), field(sample, -1, ";]"), ipmask(sample)):
            each(request)
