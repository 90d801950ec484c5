"""The target of a request, and its path, however servers provide them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.http.request_target import (
    decode_path,
    decoded_path,
    problem_of_decoded_path,
    request_path,
    request_target,
    strip_root,
)


@pytest.mark.parametrize(
    "raw, root, path, query, expected",
    [
        pytest.param(b"/a/b", b"", b"/a/b", b"", b"/a/b", id="a path"),
        pytest.param(b"/a/b", b"", b"/a/b", b"c=d", b"/a/b?c=d", id="a path and a query"),
        pytest.param(b"/a?c=d", b"", b"/a", b"", b"/a?c=d", id="a query that came with the path"),
        pytest.param(
            b"/a%2Fb/%7e;x//'", b"", b"/a/b/~;x//'", b"", b"/a%2Fb/%7e;x//'", id="what is quoted stays quoted"
        ),
        pytest.param(b"/%zz%", b"", b"/%zz%", b"", b"/%zz%", id="what is quoted wrongly stays so"),
        pytest.param(b"/%ff\xff", b"", b"/\xff\xff", b"", b"/%ff\xff", id="bytes that are no text"),
        pytest.param(b"/a/../b/./c", b"", b"/b/c", b"", b"/a/../b/./c", id="dots stay"),
        pytest.param(b"/under/a", b"/under", b"/under/a", b"", b"/a", id="less the root"),
        pytest.param(b"/under", b"/under", b"/under", b"", b"/", id="nothing but the root"),
        pytest.param(b"/under", b"/under", b"/under", b"a=b", b"/?a=b", id="nothing but the root and a query"),
        pytest.param(b"/under?a=b", b"/under", b"/under", b"", b"/?a=b", id="the root and a query that came with it"),
        pytest.param(b"/under/", b"/under", b"/under/", b"", b"/", id="the root and a slash"),
        pytest.param(b"/under//a", b"/under", b"/under//a", b"", b"//a", id="the root and two slashes"),
        pytest.param(b"/a", b"/under", b"/under/a", b"", b"/a", id="a server that keeps the root to itself"),
        pytest.param(
            b"/undertow/a", b"/under", b"/undertow/a", b"", b"/undertow/a", id="a longer name is not the root"
        ),
        pytest.param(b"/u%6eder/a", b"/under", b"/under/a", b"", b"/a", id="the root quoted"),
        pytest.param(b"/u%6Eder%2Fx/a", b"/under/x", b"/under/x/a", b"", b"/a", id="a slash of the root quoted"),
        pytest.param(
            b"/a%20b/%c3%a4/c", b"/a b/\xc3\xa4", b"/a b/\xc3\xa4/c", b"", b"/c", id="a root that must be quoted"
        ),
        pytest.param(b"/a%25b/c", b"/a%b", b"/a%b/c", b"", b"/c", id="a root with a percent sign"),
        pytest.param(b"/a%b/c", b"/a%b", b"/a%b/c", b"", b"/c", id="a root with a percent sign that is not quoted"),
        pytest.param(
            b"/under%2fa", b"/under", b"/under/a", b"", b"/under%2fa", id="a quoted slash does not end the root"
        ),
        pytest.param(b"/un", b"/under", b"/un", b"", b"/un", id="less than the root"),
        pytest.param(b"/u%6", b"/under", b"/u%6", b"", b"/u%6", id="less than the root, and half a quote"),
        pytest.param(None, b"", b"/a b/\xc3\xa4?#%", b"", b"/a%20b/%C3%A4%3F%23%25", id="quoted where it is not told"),
        pytest.param(None, b"", b"/:@!$&'()*+,;=~-._", b"", b"/:@!$&'()*+,;=~-._", id="no more quoted than it must be"),
        pytest.param(None, b"/under", b"/under/a b", b"c", b"/a%20b?c", id="no raw path, less the root"),
        pytest.param(None, b"/under", b"/under", b"", b"/", id="no raw path, nothing but the root"),
        pytest.param(None, b"/under", b"/undertow", b"", b"/undertow", id="no raw path, a longer name"),
        pytest.param(None, b"/a b", b"/a b/c", b"", b"/c", id="no raw path, a root that must be quoted"),
        pytest.param(None, b"", b"", b"", b"/", id="no raw path, and nothing"),
        pytest.param(b"http://shop.example/a", b"", b"/a", b"c", b"/a?c", id="the absolute form"),
        pytest.param(b"HTTPS://shop.example:8443/a?b", b"", b"/a", b"", b"/a?b", id="the absolute form, in capitals"),
        pytest.param(b"http://shop.example", b"", b"/", b"", b"/", id="the absolute form without a path"),
        pytest.param(b"http://shop.example?a=/b", b"", b"/", b"", b"/?a=/b", id="the absolute form with a query alone"),
        pytest.param(b"http://shop.example", b"", b"/", b"a=/b", b"/?a=/b", id="the same, and the query apart"),
        pytest.param(
            b"http://shop.example/under/a", b"/under", b"/under/a", b"", b"/a", id="the absolute form less the root"
        ),
        pytest.param(b"/a?b=http://c/d", b"", b"/a", b"", b"/a?b=http://c/d", id="a URL in the query"),
        pytest.param(b"/http://c/d", b"", b"/http://c/d", b"", b"/http://c/d", id="a URL in the path"),
        pytest.param(b"a?b=http://c/d", b"", b"a", b"", b"a?b=http://c/d", id="a URL in the query of what is no path"),
        pytest.param(b"*", b"", b"*", b"", b"*", id="the asterisk"),
        pytest.param(b"*", b"/under", b"*", b"", b"*", id="the asterisk under a root"),
    ],
)
def test_a_target_is_what_the_client_sent_without_the_root(
    raw: bytes | None, root: bytes, path: bytes, query: bytes, expected: bytes
):
    for charset in ("utf-8", "latin-1"):
        root_told, path_told = (text.decode(charset, "surrogateescape") for text in (root, path))
        assert request_target(raw, root_told, path_told, query, charset) == expected


@given(root=st.text("ab%/ä ", max_size=6), rest=st.text("ab%/ä ?", max_size=6), data=st.data())
def test_the_root_is_removed_however_it_is_quoted(root: str, rest: str, data: st.DataObject):
    def quoted(text: str) -> bytes:
        written = b""
        for byte in text.encode():
            must = byte in b" %" or byte > 0x7F
            written += b"%%%02X" % byte if must or data.draw(st.booleans()) else bytes((byte,))
        return written

    behind = b"/" + rest.encode()
    assert strip_root(quoted("/" + root) + behind, b"/" + root.encode()) == behind


@pytest.mark.parametrize(
    "raw, root, path, expected",
    [
        (b"/a%2Fb/%7e?c=/d", "", "/a/b/~", "/a%2Fb/%7e"),
        (b"/under/a?b", "/under", "/under/a", "/a"),
        (b"/under", "/under", "/under", "/"),
        (b"http://shop.example/under/a?b", "/under", "/under/a", "/a"),
        (b"http://shop.example?a=/b", "", "/", "/"),
        (b"/underhttp://shop.example/a?b", "/under", "/underhttp://shop.example/a", "/a"),
        (b"/underhttp://shop.example", "/under", "/underhttp://shop.example", "/"),
        (b"/underhttp:/a", "/under", "/underhttp:/a", "/underhttp:/a"),
        (b"/\xff", "", "", "/\xff"),
        (b"*", "", "*", "*"),
        (None, "/under", "/under/a b?\u00e9", "/a%20b%3F%C3%A9"),
        (None, "", "/\udcff", "/%FF"),
    ],
)
def test_path_is_the_target_without_its_query(raw, root, path, expected):
    assert request_path(raw, root, path) == expected


@pytest.mark.parametrize(
    "path, root, expected",
    [
        ("/a/b", "", "/a/b"),
        ("/under/a", "/under", "/a"),
        ("/under", "/under", ""),
        ("/undertow", "/under", "/undertow"),
        ("/a", "/under", "/a"),
        ("http://shop.example/a", "", "/a"),
        ("http://shop.example/under/a", "/under", "/a"),
        ("http://shop.example", "", ""),
        ("http://shop.example/undertow", "/under", "/undertow"),
        ("/underhttp://shop.example/a", "/under", "/a"),
        ("/underhttp://shop.example/under/a", "/under", "/under/a"),
        ("/http://shop.example/a", "", "/http://shop.example/a"),
        ("", "", ""),
        ("*", "", "*"),
        ("http:/a", "", "http:/a"),
    ],
)
def test_decoded_path_is_without_the_root_and_the_authority(path, root, expected):
    assert decoded_path(path, root) == expected


@pytest.mark.parametrize(
    "path, expected", [("/a", "/a"), ("/%61%2f%zz%", "/a/%zz%"), ("/%C3%A9", "/\xc3\xa9"), ("/\xe9%61", "/\xe9a")]
)
def test_path_is_decoded_to_a_character_per_byte(path, expected):
    assert decode_path(path) == expected


@pytest.mark.parametrize(
    "path, problem",
    [
        ("/a", None),
        ("/100%", None),
        ("/caf\u00e9", None),
        ("/caf%C3%A9", "paths are compared decoded: write '/caf\u00e9'"),
        ("/a%20b", "paths are compared decoded: write '/a b'"),
        ("/a?b", "a path ends before the query: leave out the question mark and what follows"),
    ],
)
def test_path_that_would_never_match_is_named_with_the_way_out(path, problem):
    assert problem_of_decoded_path(path) == problem
