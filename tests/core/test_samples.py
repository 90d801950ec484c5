"""Samples: what is looked at in a request, in HAProxy's names."""

from collections.abc import Iterable
from ipaddress import ip_address
from typing import cast

import pytest

from sticky_core.errors import ConfigError
from sticky_core.request import Request
from sticky_core.samples import hdr, in_bytes, listed, named, path, src, url_param


class Asked:
    def __init__(self, src: str, path: str, query: str, headers: Iterable[tuple[str, str]]) -> None:
        self.src, self.path, self.query, self._headers = src, path, query, headers

    def header(self, name: str) -> list[str]:
        return [value for key, value in self._headers if key == name]


def client(src: str = "", path: str = "/", query: str = "", headers: Iterable[tuple[str, str]] = ()) -> Request:
    return cast(Request, Asked(src, path, query, headers))


@pytest.mark.parametrize("text", ["10.0.0.1", "::1", "2001:db8::1", "::ffff:10.0.0.1"])
def test_src_is_an_address(text):
    assert src(client(src=text)) == ip_address(text)


@pytest.mark.parametrize("text", ["", "unix:", "localhost", "10.0.0.256", "1" * 5000])
def test_who_has_no_address_has_no_src(text):
    assert src(client(src=text)) is None


def test_path_is_as_it_was_sent():
    assert path(client(path="/%2F", query="x=1")) == "/%2F"


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
    assert sample(client(headers=FOUR)) == value


def test_an_empty_header_is_an_empty_sample():
    assert hdr("x")(client(headers=[("x", "")])) == ""


@pytest.mark.parametrize(
    "values, parts",
    [
        ([], []),
        ([""], [""]),
        (["a,,b"], ["a", "", "b"]),
        ([" a\t, b "], ["a", "b"]),
        (['"a,b",c'], ['"a,b"', "c"]),
        ([r'"a\",b",c'], [r'"a\",b"', "c"]),
        (['"a,b'], ['"a,b']),
        (["a", "b"], ["a", "b"]),
    ],
    ids=repr,
)
def test_a_list_is_divided_by_commas_outside_of_quotes(values, parts):
    assert listed(values) == parts


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
    assert url_param("user")(client(query=query)) == value


@pytest.mark.parametrize(
    "key, data",
    [
        ("a\xe9", b"a\xe9"),
        ("名", "名".encode()),
        (b"\0", b"\0"),
        (7, b"\0\0\0\0\0\0\0\7"),
        (-1, b"\xff" * 8),
        (ip_address("10.0.0.1"), b"\x0a\0\0\1"),
        (ip_address("::1"), b"\0" * 15 + b"\1"),
    ],
    ids=repr,
)
def test_a_key_is_hashed_as_haproxy_has_it_in_bytes(key, data):
    assert in_bytes(key) == data


@pytest.mark.parametrize(
    "text, sample",
    [
        ("src", src),
        ("path", path),
        ("hdr(X-User)", hdr("X-User")),
        ("req.hdr(X-User)", hdr("X-User")),
        ("hdr(x-forwarded-for,1)", hdr("x-forwarded-for", 1)),
        ("hdr(x-forwarded-for, -2)", hdr("x-forwarded-for", -2)),
        ("url_param(userid)", url_param("userid")),
        ("urlp(userid)", url_param("userid")),
    ],
)
def test_a_sample_may_be_named_by_haproxy_s_word(text, sample):
    assert named(text) == sample


@pytest.mark.parametrize(
    "text", ["", "dst", "src(1)", "hdr", "hdr()", "hdr(a,b)", "url_param", "path()", "SRC", "hdr(a"]
)
def test_another_word_is_refused_with_those_that_there_are(text):
    with pytest.raises(ConfigError, match=r"write src, path, hdr\(<name>\) or url_param\(<name>\)") as refused:
        named(text)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize(
    "wrong, problem",
    [
        (lambda: hdr(""), "a header has a name"),
        (lambda: hdr("x", 0), "there is no value 0"),
        (lambda: url_param(""), "a parameter has a name"),
    ],
)
def test_a_sample_of_nothing_is_refused(wrong, problem):
    with pytest.raises(ConfigError, match=problem):
        wrong()
