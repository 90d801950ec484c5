"""Heads of requests to an upstream: what is passed on, removed, added or refused."""

import string
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.errors import ConfigError, Failure, ServerFailure
from sticky_core.http import forwarding
from sticky_core.http.forwarding import (
    Forward,
    Framing,
    OutgoingRequest,
    RequestHeads,
    leaves_base_path,
    request_target,
    strip_root,
)
from sticky_core.http.http1 import HOP_BY_HOP, MAX_KNOWN_NAMES, Header
from sticky_core.target import Location

HOST = (b"host", b"shop.example")
CLIENT = "192.0.2.7"
PROXY = "10.0.0.1"
ADDS_NOTHING = Forward(by="none")


def made(
    headers: Iterable[Header] = (HOST,),
    method: str = "GET",
    target: bytes = b"/",
    forward: Forward = ADDS_NOTHING,
    url: str = "http://upstream.example:8080",
    peer: str | None = CLIENT,
    secure: bool = False,
    **more: Any,
) -> OutgoingRequest:
    return RequestHeads(Location.parse(url), forward).build(method, target, headers, peer=peer, secure=secure, **more)


def parsed(head: bytes) -> tuple[bytes, list[Header]]:
    """Parse a head that every parser reads alike, and return its request line and headers."""
    assert head.endswith(b"\r\n\r\n")
    first, *lines = head[:-4].split(b"\r\n")
    for line in (first, *lines):
        assert line
        assert not set(line) & set(b"\r\n\0")
        assert line[:1] not in (b" ", b"\t")
    headers = []
    for line in lines:
        name, colon, value = line.partition(b": ")
        assert colon
        headers.append((name, value))
    return first, headers


def sent(headers: Iterable[Header] = (HOST,), **more: Any) -> list[Header]:
    return parsed(made(headers, **more).head)[1]


def refused(headers: Iterable[Header] = (HOST,), **more: Any) -> str:
    with pytest.raises(ServerFailure) as failure:
        made(headers, **more)
    assert failure.value.failure is Failure.NOT_FORWARDABLE
    assert failure.value.failure.status == 400
    return failure.value.detail


# -- the request line and ordinary headers


def test_a_head_to_the_byte():
    headers = [
        (b"user-agent", b"curl/7.88.1"),
        HOST,
        (b"cookie", b"a=1; b=2"),
        (b"x-name", b"J\xfcrgen \xe2\x82\xac"),
        (b"content-length", b"5"),
        (b"accept", b"*/*"),
    ]
    outgoing = made(headers, "POST", b"/a/%7Eb;c?d=%zz&e='f'", Forward())
    assert outgoing.head == (
        b"POST /a/%7Eb;c?d=%zz&e='f' HTTP/1.1\r\n"
        b"user-agent: curl/7.88.1\r\n"
        b"cookie: a=1; b=2\r\n"
        b"x-name: J\xfcrgen \xe2\x82\xac\r\n"
        b"accept: */*\r\n"
        b"host: shop.example\r\n"
        b"x-forwarded-for: 192.0.2.7\r\n"
        b"x-real-ip: 192.0.2.7\r\n"
        b"x-forwarded-proto: http\r\n"
        b"x-forwarded-host: shop.example\r\n"
        b"content-length: 5\r\n"
        b"\r\n"
    )
    assert outgoing.framing is Framing.LENGTH
    assert (outgoing.length, outgoing.expects_continue, outgoing.has_body) == (5, False, True)


def test_repeated_headers_are_passed_on_in_their_order():
    headers = [
        (b"x-a", b"1"),
        (b"accept", b"a"),
        (b"x-a", b""),
        (b"accept", b"b"),
        (b"cookie", b"a=1"),
        (b"cookie", b"b=2"),
    ]
    assert sent([*headers, HOST]) == [*headers, HOST]


@pytest.mark.parametrize(
    "method",
    ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "PROPFIND", "get", "M-SEARCH", "!#$"],
)
def test_any_method_is_passed_on(method: str):
    assert parsed(made(method=method).head)[0] == method.encode() + b" / HTTP/1.1"


@pytest.mark.parametrize(
    "method",
    [
        pytest.param("CONNECT", id="which would make a tunnel"),
        pytest.param("", id="none"),
        pytest.param("GET /x", id="with a target"),
        pytest.param("GET ", id="with a space"),
        pytest.param("GET\t", id="with a tab"),
        pytest.param("GET\r\nX: y\r\n\r\nGET", id="with a whole head"),
        pytest.param("GET\n", id="with a line feed"),
        pytest.param("GET\0", id="with NUL"),
        pytest.param("G@T", id="with what is no letter of a name"),
        pytest.param("G\xc4T", id="beyond ASCII"),
    ],
)
def test_an_invalid_method_is_refused(method: str):
    assert refused(method=method) == "the method can't be forwarded"


@pytest.mark.parametrize(
    "target, expected",
    [
        pytest.param(b"/", b"/base/", id="the root"),
        pytest.param(b"/a", b"/base/a", id="a path"),
        pytest.param(b"/?a=../..", b"/base/?a=../..", id="dots in the query"),
        pytest.param(b"/a/../b", b"/base/a/../b", id="dots that stay within"),
        pytest.param(b"/%2e%2E%2f", None, id="dots that do not"),
        pytest.param(b"/..", None, id="plain dots that do not"),
    ],
)
def test_the_base_path_of_a_url_precedes_every_path_and_can_not_be_left(target: bytes, expected: bytes | None):
    if expected is None:
        assert "leads out" in refused(target=target, url="http://upstream.example/base/")
    else:
        line, _ = parsed(made(target=target, url="http://upstream.example/base/").head)
        assert line == b"GET %b HTTP/1.1" % expected


def test_dot_segments_are_passed_on_without_a_base_path():
    assert parsed(made(target=b"/../%2e%2e/a").head)[0] == b"GET /../%2e%2e/a HTTP/1.1"


def test_the_asterisk_form_is_for_options_only_and_gets_no_base_path():
    assert parsed(made(method="OPTIONS", target=b"*", url="http://a/base").head)[0] == b"OPTIONS * HTTP/1.1"
    assert refused(target=b"*") == "the request target is not a path"


@pytest.mark.parametrize(
    "target",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"a", id="a path without a slash"),
        pytest.param(b"?a", id="a query alone"),
        pytest.param(b"http://shop.example/", id="a URL"),
        pytest.param(b"shop.example:443", id="an authority"),
    ],
)
def test_a_target_that_is_not_a_path_is_refused(target: bytes):
    assert refused(target=target) == "the request target is not a path"


@pytest.mark.parametrize("byte", [*range(0x21), 0x7F])
def test_a_byte_that_would_end_the_target_is_refused(byte: int):
    for target in (b"/a%cb" % byte, b"/%c" % byte, b"/?a=%cb" % byte):
        assert refused(target=target) == "the request target contains control characters or spaces"


@pytest.mark.parametrize("byte", [byte for byte in range(0x21, 0x100) if byte != 0x7F])
def test_every_other_byte_of_a_target_is_passed_on(byte: int):
    assert parsed(made(target=b"/a%cb" % byte).head)[0] == b"GET /a%cb HTTP/1.1" % byte


# -- targets


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
    "target, leaves",
    [
        pytest.param(b"/", False, id="the root"),
        pytest.param(b"/a/b/../..", False, id="down and up again"),
        pytest.param(b"/a/b/../../..", True, id="further up than down"),
        pytest.param(b"/..", True, id="up"),
        pytest.param(b"/../a", True, id="up and down"),
        pytest.param(b"/./..", True, id="a dot goes no level down"),
        pytest.param(b"/a//../..", True, id="an empty name goes no level down"),
        pytest.param(b"/a/.../..", False, id="three dots are a name"),
        pytest.param(b"/..a/a..", False, id="dots at the ends of names"),
        pytest.param(b"/?/../..", False, id="dots in the query"),
        pytest.param(b"/%2e%2e", True, id="quoted dots"),
        pytest.param(b"/.%2E/", True, id="one quoted dot"),
        pytest.param(b"/a%2f..%2f..", True, id="quoted slashes"),
        pytest.param(b"/a\\..\\..", True, id="backslashes"),
        pytest.param(b"/a%5c..%5C..", True, id="quoted backslashes"),
        pytest.param(b"/..;a=b/", True, id="with a parameter"),
        pytest.param(b"/a/..;/..;/", True, id="with empty parameters"),
        pytest.param(b"/..%3ba", True, id="with a quoted parameter"),
        pytest.param(b"/..#", True, id="before a fragment"),
        pytest.param(b"/..%23a", True, id="before a quoted fragment"),
        pytest.param(b"/..%3Fa", True, id="before a quoted query"),
        pytest.param(b"/..%00a", True, id="before NUL, where C ends a name"),
        pytest.param(b"/a#/../..", True, id="after a fragment, for servers that know none"),
        pytest.param(b"/;/..", True, id="a parameter of an empty name"),
    ],
)
def test_dot_segments_that_leave_the_base_path_are_found_however_they_are_written(target: bytes, leaves: bool):
    assert leaves_base_path(target) is leaves


# -- hop by hop


@pytest.mark.parametrize(
    "name",
    [
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"upgrade",
    ],
)
def test_hop_by_hop_headers_are_not_passed_on(name: bytes):
    assert sent([HOST, (name, b"x"), (b"x-a", b"1")]) == [(b"x-a", b"1"), HOST]


@pytest.mark.parametrize(
    "connection, gone",
    [
        pytest.param([b"x-a"], {b"x-a"}, id="a name"),
        pytest.param([b"X-A"], {b"x-a"}, id="in capitals"),
        pytest.param([b"close, x-a,\tx-b ,"], {b"x-a", b"x-b"}, id="several"),
        pytest.param([b"x-a", b"x-b"], {b"x-a", b"x-b"}, id="in several lines"),
        pytest.param([b"accept"], {b"accept"}, id="a well-known one"),
        pytest.param([b"x-", b"x", b""], set(), id="none that is there"),
        pytest.param([b"cookie, authorization, content-type, cache-control"], set(), id="what others depend on"),
        pytest.param([b"host, content-length"], set(), id="what frames the request"),
        pytest.param([b"x-forwarded-for, x-forwarded-proto, x-real-ip"], set(), id="what is said of the client"),
        pytest.param([b"transfer-encoding, expect"], set(), id="what is decided apart"),
    ],
)
def test_headers_named_in_connection_are_removed_except_those_that_servers_depend_on(
    connection: list[bytes], gone: set[bytes]
):
    headers = [
        (b"x-a", b"1"),
        (b"x-b", b"2"),
        (b"accept", b"*/*"),
        (b"cookie", b"a=1"),
        (b"authorization", b"Basic eDp5"),
        (b"content-type", b"text/plain"),
        (b"cache-control", b"no-cache"),
        HOST,
        (b"x-forwarded-for", b"198.51.100.1"),
        (b"x-forwarded-proto", b"https"),
        (b"x-real-ip", b"198.51.100.1"),
        (b"content-length", b"5"),
        (b"expect", b"100-continue"),
    ]
    passed_on = [header for header in headers if header[0] not in gone]
    for order in (
        [*((b"connection", value) for value in connection), *headers],
        [*headers, *((b"connection", value) for value in connection)],
    ):
        assert sent(order) == [*passed_on[:-2], *passed_on[-2:]]


def test_connection_close_concerns_the_clients_connection_only():
    outgoing = made([HOST, (b"connection", b"close")])
    assert b"close" not in outgoing.head


def test_upgrade_lines_are_added_and_those_of_the_client_removed():
    outgoing = made(
        [HOST, (b"connection", b"upgrade"), (b"upgrade", b"x")], upgrade=(b"connection: upgrade", b"upgrade: y")
    )
    assert parsed(outgoing.head)[1] == [(b"connection", b"upgrade"), (b"upgrade", b"y"), HOST]


def test_upgrade_lines_with_a_line_break_are_refused():
    for line in (b"sec-websocket-protocol: a\nb", b"sec-websocket-protocol: a\r\nb"):
        with pytest.raises(ServerFailure):
            made([HOST], upgrade=(line,))


@pytest.mark.parametrize(
    "te, trailers, said",
    [
        pytest.param([b"trailers"], True, True, id="asked for and possible"),
        pytest.param([b"gzip;q=0.5, Trailers"], True, True, id="among others"),
        pytest.param([b"trailers", b"trailers"], True, True, id="twice"),
        pytest.param([b"trailers"], False, False, id="not possible"),
        pytest.param([b"gzip"], True, False, id="not asked for"),
        pytest.param([], True, False, id="not said"),
    ],
)
def test_trailers_are_requested_if_they_can_be_passed_on(te: list[bytes], trailers: bool, said: bool):
    headers = sent([HOST, *((b"te", value) for value in te)], accepts_trailers=trailers)
    assert headers == [*([(b"connection", b"te"), (b"te", b"trailers")] if said else []), HOST]  # RFC 9110, 10.1.4


# -- how the body ends


LENGTH, CHUNKED = b"content-length", b"transfer-encoding"


@pytest.mark.parametrize(
    "said, is_undeclared, framing, length, lines",
    [
        pytest.param([], False, Framing.NONE, 0, [], id="nothing"),
        pytest.param([], True, Framing.UNDECLARED, 0, [], id="nothing, and a body may come all the same"),
        pytest.param([(LENGTH, b"5")], False, Framing.LENGTH, 5, [(LENGTH, b"5")], id="a length"),
        pytest.param(
            [(LENGTH, b"5")], True, Framing.LENGTH, 5, [(LENGTH, b"5")], id="a length, where it need not be said"
        ),
        pytest.param([(LENGTH, b"0")], False, Framing.LENGTH, 0, [(LENGTH, b"0")], id="a length of 0"),
        pytest.param(
            [(LENGTH, b"005")], False, Framing.LENGTH, 5, [(LENGTH, b"5")], id="a length with zeros before it"
        ),
        pytest.param([(LENGTH, b"5")] * 2, False, Framing.LENGTH, 5, [(LENGTH, b"5")], id="one length twice"),
        pytest.param([(CHUNKED, b"chunked")], False, Framing.CHUNKED, 0, [(CHUNKED, b"chunked")], id="chunked"),
        pytest.param([(CHUNKED, b" Chunked\t")], False, Framing.CHUNKED, 0, [(CHUNKED, b"chunked")], id="Chunked"),
    ],
)
def test_a_body_is_framed_as_the_client_declared(
    said: list[Header], is_undeclared: bool, framing: Framing, length: int, lines: list[Header]
):
    for order in ([HOST, *said], [*said, HOST]):
        outgoing = made(order, "POST", is_undeclared=is_undeclared)
        assert (outgoing.framing, outgoing.length) == (framing, length)
        assert parsed(outgoing.head)[1] == [HOST, *lines]
        assert outgoing.has_body == (framing is not Framing.NONE and (framing is not Framing.LENGTH or length > 0))


@pytest.mark.parametrize(
    "said",
    [
        pytest.param([(LENGTH, b"5"), (CHUNKED, b"chunked")], id="a length and chunked"),
        pytest.param([(CHUNKED, b"chunked"), (LENGTH, b"5")], id="chunked and a length"),
        pytest.param([(LENGTH, b"0"), (CHUNKED, b"chunked")], id="a length of 0 and chunked"),
        pytest.param([(LENGTH, b"5"), (LENGTH, b"6")], id="two lengths"),
        pytest.param([(LENGTH, b"0"), (LENGTH, b"6")], id="two lengths, one of 0"),
        pytest.param([(LENGTH, b"5, 5")], id="one length twice in a line"),
        pytest.param([(LENGTH, b"")], id="an empty length"),
        pytest.param([(LENGTH, b"-5")], id="a length below 0"),
        pytest.param([(LENGTH, b"+5")], id="a length with a sign"),
        pytest.param([(LENGTH, b" 5")], id="a length with a space"),
        pytest.param([(LENGTH, b"0x5")], id="a length in hexadecimal"),
        pytest.param([(LENGTH, b"5.0")], id="a length with a fraction"),
        pytest.param([(LENGTH, b"1_0")], id="a length with an underscore"),
        pytest.param([(LENGTH, b"five")], id="a length in letters"),
        pytest.param([(LENGTH, "٥".encode())], id="a length of other digits"),  # noqa: RUF001
        pytest.param([(LENGTH, b"\xb2")], id="a length of a small 2"),
        pytest.param([(LENGTH, b"9" * 19)], id="a length beyond any"),
        pytest.param([(LENGTH, b"9" * 5000)], id="a length of 5000 digits"),
        pytest.param([(CHUNKED, b"gzip")], id="another coding"),
        pytest.param([(CHUNKED, b"gzip, chunked")], id="another coding before chunked"),
        pytest.param([(CHUNKED, b"chunked, gzip")], id="another coding behind chunked"),
        pytest.param([(CHUNKED, b"identity")], id="identity"),
        pytest.param([(CHUNKED, b"chunked, chunked")], id="chunked twice in a line"),
        pytest.param([(CHUNKED, b"chunked")] * 2, id="chunked twice"),
        pytest.param([(CHUNKED, b"gzip"), (CHUNKED, b"chunked")], id="two codings"),
        pytest.param([(CHUNKED, b"")], id="an empty coding"),
        pytest.param([(CHUNKED, b"\x0bchunked")], id="chunked behind a vertical tab"),
        pytest.param([(CHUNKED, b'"chunked"')], id="chunked in quotes"),
        pytest.param([(CHUNKED, b"chunked;a=b")], id="chunked with a parameter"),
        pytest.param([(CHUNKED, b"xchunked")], id="a longer word"),
    ],
)
def test_an_ambiguous_body_length_is_refused(said: list[Header]):
    refused([HOST, *said], method="POST")
    refused([HOST, *((name.title(), value) for name, value in said)], method="POST")


@pytest.mark.parametrize(
    "framing, length, line",
    [
        pytest.param(Framing.LENGTH, 5, [(LENGTH, b"5")], id="a length"),
        pytest.param(Framing.CHUNKED, 0, [(CHUNKED, b"chunked")], id="chunked"),
        pytest.param(Framing.NONE, 0, [], id="none after all"),
    ],
)
def test_an_undeclared_framing_can_be_set_later(framing: Framing, length: int, line: list[Header]):
    outgoing = made([HOST, (b"x-a", b"1")], "POST", is_undeclared=True).with_framing(framing, length)
    assert (outgoing.framing, outgoing.length) == (framing, length)
    assert parsed(outgoing.head) == (b"POST / HTTP/1.1", [(b"x-a", b"1"), HOST, *line])


@pytest.mark.parametrize(
    "value, said, continues",
    [
        pytest.param(b"100-continue", [(LENGTH, b"5")], True, id="with a length"),
        pytest.param(b"100-Continue", [(CHUNKED, b"chunked")], True, id="with chunks"),
        pytest.param(b"100-continue", [], False, id="without a body"),
        pytest.param(b"100-continue", [(LENGTH, b"0")], False, id="with a body of no length"),
        pytest.param(b"200-ok", [(LENGTH, b"5")], False, id="another expectation"),
    ],
)
@pytest.mark.parametrize("is_undeclared", [False, True])
def test_expect_100_continue_is_passed_on_if_there_is_a_body(
    value: bytes, said: list[Header], continues: bool, is_undeclared: bool
):
    outgoing = made([HOST, (b"expect", value), *said], "POST", is_undeclared=is_undeclared)
    assert outgoing.expects_continue is continues
    assert parsed(outgoing.head)[1] == [
        HOST,
        *[(name, value.lower()) for name, value in said],
        *([(b"expect", b"100-continue")] if continues else []),
    ]


# -- names and values


BREAKS = {
    "CR LF": b"\r\n",
    "LF": b"\n",
    "CR": b"\r",
    "NUL": b"\0",
    "a folded line": b"\r\n ",
    "a whole head": b"\r\n\r\nGET / HTTP/1.1\r\n",
}


@pytest.mark.parametrize("broken", [pytest.param(broken, id=name) for name, broken in BREAKS.items()])
@pytest.mark.parametrize(
    "name",
    [
        b"x-a",
        b"accept",
        b"cookie",
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"forwarded",
        b"X-Capital",
    ],
)
def test_a_value_with_a_line_break_or_nul_is_refused(name: bytes, broken: bytes):
    for value in (b"1" + broken, b"1" + broken + b"X: y", broken + b"1"):
        for by in (Forward(trusted_proxies=("*",)), Forward(by="forwarded", trusted_proxies=("*",)), ADDS_NOTHING):
            refused([*([HOST] if name != b"host" else []), (name, value)], forward=by)


@pytest.mark.parametrize("broken", [pytest.param(broken, id=name) for name, broken in BREAKS.items()])
def test_a_peer_with_a_line_break_or_nul_is_refused_or_unknown(broken: bytes):
    peer = "192.0.2.7" + broken.decode()
    refused(peer=peer, forward=Forward())
    refused(peer=peer, forward=Forward(by="forwardfor"))
    assert (b"forwarded", b"for=unknown;proto=http;host=shop.example") in sent(
        peer=peer, forward=Forward(by="forwarded")
    )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(b"", id="none"),
        pytest.param(b"x a", id="with a space"),
        pytest.param(b"x-a ", id="with a space before the colon"),
        pytest.param(b"x-a\t", id="with a tab before the colon"),
        pytest.param(b" x-a", id="with a space first"),
        pytest.param(b"x:a", id="with a colon"),
        pytest.param(b"x\na", id="with a line feed"),
        pytest.param(b"x\ra", id="with a carriage return"),
        pytest.param(b"x\r\na", id="with a line break"),
        pytest.param(b"x\0a", id="with NUL"),
        pytest.param(b"x\x0ba", id="with a vertical tab"),
        pytest.param(b'"x"', id="in quotes"),
        pytest.param(b"x\xe4", id="beyond ASCII"),
        pytest.param(b"content-length ", id="a length with a space before the colon"),
        pytest.param(b"transfer-encoding\n", id="a coding with a line feed"),
    ],
)
def test_an_invalid_header_name_is_refused(name: bytes):
    for _ in range(2):  # nor is it remembered
        assert refused([HOST, (name, b"1")]) == "invalid header name"


@pytest.mark.parametrize("character", [*(string.digits + string.ascii_lowercase + "!#$%&'*+-.^_`|~")])
def test_every_valid_header_name_is_passed_on(character: str):
    header = b"x-%ca" % ord(character), b"1"
    assert sent([header, HOST]) == [header, HOST]


def test_names_in_capitals_are_treated_alike():
    headers = [
        (b"Host", b"shop.example"),
        (b"X-Gone", b"1"),
        (b"X-Kept", b"2"),
        (b"Keep-Alive", b"3"),
        (b"X-Forwarded-For", b"198.51.100.1"),
        (b"X-Forwarded-Prefix", b"/x"),
        (b"Content-Length", b"5"),
        (b"Connection", b"x-gone"),
    ]
    for _ in range(2):
        assert sent(headers, method="POST", forward=Forward(), peer=None) == [
            (b"x-kept", b"2"),
            HOST,
            (b"x-forwarded-proto", b"http"),
            (b"x-forwarded-host", b"shop.example"),
            (b"content-length", b"5"),
        ]


def test_memory_for_unknown_names_is_bounded():
    known = forwarding._NAMES
    before = len(known)
    try:
        for number in range(MAX_KNOWN_NAMES + 100):
            made([HOST, (b"x-unknown-%d" % number, b"1")])
        assert len(known) <= MAX_KNOWN_NAMES
        made([HOST, (b"x" * 60000, b"1")])
        assert max(map(len, known)) <= 64
        # known and unknown names are still distinguished
        headers = [(b"x-never-seen", b"1"), (b"x-forwarded-unknown", b"2"), (b"accept", b"3"), HOST]
        assert sent(headers, forward=Forward(), peer=None) == [
            (b"x-never-seen", b"1"),
            (b"accept", b"3"),
            HOST,
            (b"x-forwarded-proto", b"http"),
            (b"x-forwarded-host", b"shop.example"),
        ]
    finally:
        for name in list(known)[before:]:
            del known[name]


# -- Host


@pytest.mark.parametrize(
    "host, expected",
    [
        pytest.param("keep", b"shop.example", id="the client's"),
        pytest.param("upstream", b"upstream.example:8080", id="the URL's"),
        pytest.param("other.example:81", b"other.example:81", id="another"),
    ],
)
def test_host_is_kept_or_set(host: str, expected: bytes):
    assert sent(forward=Forward(by="none", host=host)) == [(b"host", expected)]


@pytest.mark.parametrize(
    "url, expected",
    [
        pytest.param("http://upstream.example", b"upstream.example", id="without a port"),
        pytest.param("https://upstream.example:443", b"upstream.example", id="with the port that goes without saying"),
        pytest.param("http://[2001:db8::1]:8080", b"[2001:db8::1]:8080", id="IPv6"),
        pytest.param("unix:/run/app.sock", b"localhost", id="a UNIX socket"),
    ],
)
def test_a_request_without_host_gets_that_of_the_url(url: str, expected: bytes):
    assert sent([], url=url) == [(b"host", expected)]


def test_one_host_twice_is_one_host():
    assert sent([HOST, HOST]) == [HOST]


@pytest.mark.parametrize(
    "hosts",
    [
        pytest.param([b"shop.example", b"other.example"], id="two"),
        pytest.param([b"shop.example", b""], id="one and none"),
        pytest.param([b"shop.example,other.example"], id="two in one line, as gunicorn tells them"),
        pytest.param([b"shop.example other.example"], id="two with a space between them"),
        pytest.param([b"user@shop.example"], id="a user"),
        pytest.param([b"shop.example/path"], id="a path"),
        pytest.param([b"shop.example?a"], id="a query"),
        pytest.param([b"shop.example#a"], id="a fragment"),
        pytest.param([b"shop.example\\a"], id="a backslash"),
        pytest.param([b'"shop.example"'], id="in quotes"),
        pytest.param([b"<shop.example>"], id="in brackets"),
        pytest.param([b"shop.example\x0b"], id="with a control character"),
    ],
)
def test_an_invalid_host_or_two_different_ones_are_refused(hosts: list[bytes]):
    for host in ("keep", "upstream"):
        assert "Host" in refused([(b"host", value) for value in hosts], forward=Forward(by="none", host=host))


@pytest.mark.parametrize(
    "host",
    [
        b"",
        b"shop.example:8080",
        b"192.0.2.1",
        b"[2001:db8::1]:80",
        b"a_b.example",
        b"sh\xc3\xb6p.example",
        b"sh%C3%B6p",
    ],
)
def test_every_valid_host_is_kept(host: bytes):
    assert sent([(b"host", host)]) == [(b"host", host)]


# -- headers about the client


SAID = [
    (b"x-forwarded-for", b"198.51.100.1"),
    (b"x-forwarded-for", b"198.51.100.2, 10.0.0.9"),
    (b"x-forwarded-proto", b"https"),
    (b"x-forwarded-host", b"outside.example"),
    (b"x-forwarded-port", b"8443"),
    (b"x-real-ip", b"198.51.100.1"),
    (b"forwarded", b"for=198.51.100.1;proto=https"),
]
JOINED = b"198.51.100.1, 198.51.100.2, 10.0.0.9"
KEPT = SAID[2:]

REPLACED = [
    (b"x-forwarded-for", CLIENT.encode()),
    (b"x-real-ip", CLIENT.encode()),
    (b"x-forwarded-proto", b"http"),
    (b"x-forwarded-host", b"shop.example"),
]
ELEMENT = b"for=192.0.2.7;proto=http;host=shop.example"


def x_forwarded(**more: Any) -> Forward:
    return Forward(by="x-forwarded", **more)


def rfc7239(**more: Any) -> Forward:
    return Forward(by="forwarded", **more)


def forwardfor(**more: Any) -> Forward:
    return Forward(by="forwardfor", **more)


@pytest.mark.parametrize(
    "forward, peer, said, expected",
    [
        # X-Forwarded-*
        pytest.param(x_forwarded(), CLIENT, [], REPLACED, id="x-forwarded, nothing said before"),
        pytest.param(x_forwarded(), CLIENT, SAID, REPLACED, id="x-forwarded, a stranger's word is replaced"),
        pytest.param(
            x_forwarded(trusted_proxies=("10.0.0.0/8",)), CLIENT, SAID, REPLACED, id="x-forwarded, another is trusted"
        ),
        pytest.param(
            x_forwarded(trusted_proxies=("10.0.0.0/8",)),
            PROXY,
            SAID,
            [*KEPT, (b"x-forwarded-for", JOINED + b", 10.0.0.1")],
            id="x-forwarded, a trusted proxy's word is extended",
        ),
        pytest.param(
            x_forwarded(trusted_proxies=("10.0.0.0/8",)),
            PROXY,
            SAID[:2],
            [
                (b"x-forwarded-for", JOINED + b", 10.0.0.1"),
                (b"x-real-ip", b"198.51.100.2"),
                (b"x-forwarded-proto", b"http"),
                (b"x-forwarded-host", b"shop.example"),
            ],
            id="x-forwarded, the client is the first that is no proxy of ours",
        ),
        pytest.param(
            x_forwarded(trusted_proxies=("10.0.0.0/8",)),
            PROXY,
            [(b"x-forwarded-proto", b"https")],
            [
                (b"x-forwarded-proto", b"https"),
                (b"x-forwarded-for", b"10.0.0.1"),
                (b"x-real-ip", b"10.0.0.1"),
                (b"x-forwarded-host", b"shop.example"),
            ],
            id="x-forwarded, a trusted proxy that says one thing",
        ),
        pytest.param(
            x_forwarded(trusted_proxies=("*",)),
            CLIENT,
            [(b"x-forwarded-for", b"198.51.100.1, 203.0.113.1")],
            [
                (b"x-forwarded-for", b"198.51.100.1, 203.0.113.1, 192.0.2.7"),
                (b"x-real-ip", b"198.51.100.1"),
                (b"x-forwarded-proto", b"http"),
                (b"x-forwarded-host", b"shop.example"),
            ],
            id="x-forwarded, all are trusted",
        ),
        pytest.param(
            x_forwarded(trusted_proxies=("10.0.0.0/8",), if_none=True),
            PROXY,
            SAID[:1],
            [
                (b"x-forwarded-for", b"198.51.100.1"),
                (b"x-real-ip", b"198.51.100.1"),
                (b"x-forwarded-proto", b"http"),
                (b"x-forwarded-host", b"shop.example"),
            ],
            id="x-forwarded, not extended if it is there",
        ),
        pytest.param(x_forwarded(if_none=True), CLIENT, SAID, REPLACED, id="x-forwarded, if none that is believed"),
        pytest.param(x_forwarded(except_nets=("192.0.2.0/24",)), CLIENT, [], [], id="x-forwarded, an exception"),
        pytest.param(
            x_forwarded(except_nets=("192.0.2.0/24",)), CLIENT, SAID, SAID, id="x-forwarded, an exception's word stands"
        ),
        pytest.param(
            x_forwarded(except_nets=("192.0.2.0/24",)),
            "198.51.100.9",
            SAID,
            [
                (b"x-forwarded-for", b"198.51.100.9"),
                (b"x-real-ip", b"198.51.100.9"),
                (b"x-forwarded-proto", b"http"),
                (b"x-forwarded-host", b"shop.example"),
            ],
            id="x-forwarded, no exception",
        ),
        pytest.param(
            x_forwarded(),
            None,
            SAID,
            [(b"x-forwarded-proto", b"http"), (b"x-forwarded-host", b"shop.example")],
            id="x-forwarded, a UNIX socket has no address",
        ),
        pytest.param(
            x_forwarded(trusted_proxies=("unix",)),
            None,
            SAID[:1],
            [
                (b"x-forwarded-for", b"198.51.100.1"),
                (b"x-real-ip", b"198.51.100.1"),
                (b"x-forwarded-proto", b"http"),
                (b"x-forwarded-host", b"shop.example"),
            ],
            id="x-forwarded, a UNIX socket that is trusted",
        ),
        pytest.param(
            x_forwarded(except_nets=("unix",)), None, SAID, SAID, id="x-forwarded, a UNIX socket that is an exception"
        ),
        pytest.param(
            x_forwarded(),
            "2001:db8::7",
            [],
            [
                (b"x-forwarded-for", b"2001:db8::7"),
                (b"x-real-ip", b"2001:db8::7"),
                (b"x-forwarded-proto", b"http"),
                (b"x-forwarded-host", b"shop.example"),
            ],
            id="x-forwarded, IPv6",
        ),
        pytest.param(
            x_forwarded(trusted_proxies=("10.0.0.0/8",)),
            "::ffff:10.0.0.1",
            SAID[:1],
            [
                (b"x-forwarded-for", b"198.51.100.1, ::ffff:10.0.0.1"),
                (b"x-real-ip", b"198.51.100.1"),
                (b"x-forwarded-proto", b"http"),
                (b"x-forwarded-host", b"shop.example"),
            ],
            id="x-forwarded, a trusted proxy whose IPv4 address is written as IPv6",
        ),
        # Forwarded
        pytest.param(rfc7239(), CLIENT, [], [(b"forwarded", ELEMENT)], id="forwarded, nothing said before"),
        pytest.param(rfc7239(), CLIENT, SAID, [(b"forwarded", ELEMENT)], id="forwarded, a stranger's word is replaced"),
        pytest.param(
            rfc7239(trusted_proxies=("10.0.0.0/8",)),
            PROXY,
            SAID[-1:],
            [(b"forwarded", b"for=198.51.100.1;proto=https, for=10.0.0.1;proto=http;host=shop.example")],
            id="forwarded, a trusted proxy's word is extended",
        ),
        pytest.param(
            rfc7239(trusted_proxies=("10.0.0.0/8",), if_none=True),
            PROXY,
            SAID[-1:],
            SAID[-1:],
            id="forwarded, not extended if it is there",
        ),
        pytest.param(
            rfc7239(trusted_proxies=("10.0.0.0/8",)),
            PROXY,
            SAID[:1],
            [(b"x-forwarded-for", b"198.51.100.1"), (b"forwarded", b"for=10.0.0.1;proto=http;host=shop.example")],
            id="forwarded, a trusted proxy that says it otherwise",
        ),
        pytest.param(rfc7239(except_nets=("192.0.2.7",)), CLIENT, SAID, SAID, id="forwarded, an exception"),
        pytest.param(
            rfc7239(),
            "2001:db8::7",
            [],
            [(b"forwarded", b'for="[2001:db8::7]";proto=http;host=shop.example')],
            id="forwarded, IPv6 in brackets and quotes",
        ),
        pytest.param(
            rfc7239(),
            "fe80::7%eth0",
            [],
            [(b"forwarded", b'for="[fe80::7]";proto=http;host=shop.example')],
            id="forwarded, the zone of an IPv6 address is left out",
        ),
        pytest.param(
            rfc7239(),
            None,
            [],
            [(b"forwarded", b"for=unknown;proto=http;host=shop.example")],
            id="forwarded, a UNIX socket has no address",
        ),
        pytest.param(
            rfc7239(),
            "1.2.3.4;host=evil, for=x",
            [],
            [(b"forwarded", b"for=unknown;proto=http;host=shop.example")],
            id="forwarded, what is no address is unknown",
        ),
        pytest.param(
            rfc7239(),
            "1.2.3.4:80",
            [],
            [(b"forwarded", b"for=unknown;proto=http;host=shop.example")],
            id="forwarded, nor is an address with a port",
        ),
        # option forwardfor
        pytest.param(forwardfor(), CLIENT, [], REPLACED[:1], id="forwardfor, nothing said before"),
        pytest.param(forwardfor(), CLIENT, SAID, [*SAID, REPLACED[0]], id="forwardfor, a line more, and no edits"),
        pytest.param(forwardfor(if_none=True), CLIENT, SAID, SAID, id="forwardfor if-none, there is one"),
        pytest.param(
            forwardfor(if_none=True), CLIENT, SAID[2:], [*SAID[2:], REPLACED[0]], id="forwardfor if-none, there is none"
        ),
        pytest.param(forwardfor(except_nets=("192.0.2.7",)), CLIENT, SAID, SAID, id="forwardfor except, the client"),
        pytest.param(
            forwardfor(except_nets=("127.0.0.0/8",)), CLIENT, [], REPLACED[:1], id="forwardfor except, another client"
        ),
        pytest.param(forwardfor(), None, SAID, SAID, id="forwardfor, a UNIX socket has no address"),
        # nothing
        pytest.param(ADDS_NOTHING, CLIENT, [], [], id="none"),
        pytest.param(ADDS_NOTHING, CLIENT, SAID, SAID, id="none, and nothing touched"),
    ],
)
def test_the_headers_about_the_client(
    forward: Forward, peer: str | None, said: Sequence[Header], expected: Sequence[Header]
):
    assert sent([HOST, *said], forward=forward, peer=peer) == [HOST, *expected]


def test_the_proto_is_https_with_tls():
    assert (b"x-forwarded-proto", b"https") in sent(forward=Forward(), secure=True)
    assert (b"forwarded", ELEMENT.replace(b"http", b"https")) in sent(forward=Forward(by="forwarded"), secure=True)


@pytest.mark.parametrize("host", ["upstream", "other.example"])
def test_the_clients_host_is_forwarded_if_another_host_is_sent(host: str):
    assert (b"x-forwarded-host", b"shop.example") in sent(forward=Forward(host=host))
    assert (b"forwarded", ELEMENT) in sent(forward=Forward(by="forwarded", host=host))


def test_no_host_is_forwarded_without_a_host():
    assert sent([], forward=Forward()) == [(b"host", b"upstream.example:8080"), *REPLACED[:3]]
    assert sent([], forward=Forward(by="forwarded"))[1:] == [(b"forwarded", b"for=192.0.2.7;proto=http")]


@pytest.mark.parametrize(
    "host, quoted",
    [
        pytest.param(b"shop.example", b"shop.example", id="a name"),
        pytest.param(b"shop.example:8080", b'"shop.example:8080"', id="a name and a port"),
        pytest.param(b"[2001:db8::1]", b'"[2001:db8::1]"', id="IPv6"),
        pytest.param(b"", b'""', id="empty"),
        pytest.param(b"a;b=c", b'"a;b=c"', id="what would begin another pair"),
    ],
)
def test_a_host_is_quoted_in_forwarded_if_necessary(host: bytes, quoted: bytes):
    forwarded = sent([(b"host", host)], forward=Forward(by="forwarded"))[1]
    assert forwarded == (b"forwarded", b"for=192.0.2.7;proto=http;host=" + quoted)


# -- invalid options


@pytest.mark.parametrize(
    "asked, problem",
    [
        pytest.param({"host": ""}, "forward: host '' can't be written in a Host header", id="an empty host"),
        pytest.param(
            {"host": "a b"}, "forward: host 'a b' can't be written in a Host header", id="a host with a space"
        ),
        pytest.param({"host": "a\r\nb"}, r"forward: host 'a\r\nb' can't be written", id="a host with a line break"),
        pytest.param({"host": "shöp"}, "forward: host 'shöp' can't be written", id="a host beyond ASCII"),
        pytest.param({"host": "http://a"}, "forward: host 'http://a' can't be written", id="a URL for a host"),
        pytest.param(
            {"by": "x-forward"}, "forward: by 'x-forward' is not one of 'x-forwarded', 'forwarded'", id="another way"
        ),
        pytest.param(
            {"trusted_proxies": ("10.0.0.1/8",)}, "trusted_proxies: '10.0.0.1/8' is not a network", id="bits of a host"
        ),
        pytest.param(
            {"except_nets": ("everyone",)}, "except_nets: 'everyone' is not a network: write '10.0.0.0/8'", id="a word"
        ),
        pytest.param(
            {"trusted_proxies": "10.0.0.0/8"},
            "trusted_proxies='10.0.0.0/8' is a str: write trusted_proxies=('10.0.0.0/8',)",
            id="a text for networks",
        ),
        pytest.param(
            {"by": "none", "trusted_proxies": ("*",)},
            "trusted_proxies has no effect with by='none'",
            id="trust in vain",
        ),
        pytest.param(
            {"by": "forwardfor", "trusted_proxies": ("*",)},
            "trusted_proxies has no effect with by='forwardfor'",
            id="trust in vain with forwardfor",
        ),
    ],
)
def test_invalid_options_are_refused(asked: dict[str, Any], problem: str):
    with pytest.raises(ConfigError) as error:
        Forward(**asked)
    assert len(error.value.problems) == 1
    assert problem in error.value.problems[0]


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as error:
        Forward(host=" ", by="all", trusted_proxies=("a", "b"), except_nets="c")  # type: ignore[arg-type]
    assert len(error.value.problems) == 5


# -- any input


ODD = b"\r\n\0 \t:;,x\x0b\x7f\xff"
odd_text = st.binary(max_size=8) | st.lists(st.sampled_from([*ODD, *b"abAB-"]), max_size=5).map(bytes)
some_names = odd_text | st.sampled_from(
    b"x-a X-B accept cookie host content-length Content-Length transfer-encoding Transfer-Encoding connection te "
    b"expect upgrade x-forwarded-for x-real-ip forwarded".split()
)
some_values = odd_text | st.sampled_from(
    b"1 5 chunked close x-a trailers 100-continue shop.example a=1 \xc3\xa4".split()
)
some_targets = st.binary(max_size=8).map(b"/".__add__) | st.sampled_from([b"/", b"/a?b", b"*", b"/ HTTP/1.1\r\nX: y"])
some_methods = st.sampled_from(["GET", "POST", "OPTIONS"]) | st.text(max_size=4)
some_peers = st.none() | st.sampled_from([CLIENT, PROXY, "::1", ""]) | st.text(max_size=6)
ways = st.sampled_from(
    [
        ADDS_NOTHING,
        Forward(),
        Forward(trusted_proxies=("*",)),
        Forward(by="forwarded"),
        Forward(by="forwarded", trusted_proxies=("*",), host="upstream"),
        Forward(by="forwardfor", if_none=True),
    ]
)


@given(
    some_methods,
    some_targets,
    st.lists(st.tuples(some_names, some_values), max_size=5),
    ways,
    some_peers,
    st.booleans(),
)
def test_any_input_gives_one_request_or_none(
    method: str, target: bytes, headers: list[Header], forward: Forward, peer: str | None, trailers: bool
):
    h11 = pytest.importorskip("h11")
    try:
        outgoing = made(headers, method, target, forward, peer=peer, accepts_trailers=trailers)
    except ServerFailure:
        refused(headers, method=method, target=target, forward=forward, peer=peer, accepts_trailers=trailers)
        return
    line, lines = parsed(outgoing.head)
    assert line == b"%b %b HTTP/1.1" % (method.encode(), target)

    framed = {name for name, _ in lines} & {LENGTH, CHUNKED}
    assert (
        framed
        == {
            Framing.NONE: set(),
            Framing.LENGTH: {LENGTH},
            Framing.CHUNKED: {CHUNKED},
        }[outgoing.framing]
    )
    for name in (b"host", LENGTH, CHUNKED):
        assert [key for key, _ in lines].count(name) <= 1
    named = {
        name.strip(b" \t")
        for key, value in headers
        if key.lower() == b"connection"
        for name in value.lower().split(b",")
    }
    decided = {b"host", b"expect", b"forwarded", b"x-real-ip", LENGTH, *HOP_BY_HOP}
    plain = [
        (name.lower(), value)
        for name, value in headers
        if name.lower() not in decided
        and not name.lower().startswith(b"x-forwarded-")
        and not (name.lower() in named and name.lower() != b"cookie")
    ]
    assert lines[: len(plain)] == plain

    if max(target) > 0x7E or set(outgoing.head) & set(b"\x0b\x0c"):
        return  # h11 takes neither
    server = h11.Connection(h11.SERVER)
    server.receive_data(outgoing.head)
    request = server.next_event()
    assert isinstance(request, h11.Request)
    assert (request.method, request.target) == (method.encode(), target)
    assert list(request.headers) == [(name, value.strip(b" \t")) for name, value in lines]
    body = {Framing.NONE: b"", Framing.LENGTH: b"x" * min(outgoing.length, 100), Framing.CHUNKED: b"0\r\n\r\n"}
    if outgoing.length <= 100:
        if outgoing.has_body:
            server.receive_data(body[outgoing.framing])
        events = [server.next_event() for _ in range(2 if outgoing.length else 1)]
        assert isinstance(events[-1], h11.EndOfMessage)
        assert server.trailing_data == (b"", False)
