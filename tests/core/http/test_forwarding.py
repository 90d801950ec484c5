"""Heads of requests to an upstream: what is passed on, removed, added or refused."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.errors import ServerFailure
from sticky_core.http import forwarding
from sticky_core.http.forwarding import (
    Forward,
    Framing,
    RequestHeads,
    leaves_base_path,
)
from sticky_core.http.http1 import HOP_BY_HOP, MAX_KNOWN_NAMES, Header
from sticky_core.target import Location
from tests.core.http.heads import ADDS_NOTHING, CHUNKED, CLIENT, HOST, LENGTH, PROXY, made, parsed, refused, sent

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
        b"proxy-connection",
        b"te",
        b"trailer",
        b"upgrade",
    ],
)
def test_hop_by_hop_headers_are_not_passed_on(name: bytes):
    assert sent([HOST, (name, b"x"), (b"x-a", b"1")]) == [(b"x-a", b"1"), HOST]


def test_proxy_authorization_is_passed_on_as_by_haproxy():
    credentials = b"proxy-authorization", b"Basic YTpi"
    assert sent([HOST, credentials]) == [credentials, HOST]
    assert sent([HOST, (b"connection", b"proxy-authorization"), credentials]) == [HOST]


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


def test_memory_for_hosts_is_bounded():
    heads = RequestHeads(Location.parse("http://upstream.example"), Forward())
    for number in range(100):
        heads.build("GET", b"/", [(b"host", b"%d" % number + b"x" * 60000)], peer=None, secure=False)
    assert len(heads._cached) == 0
    for number in range(3000):
        heads.build("GET", b"/", [(b"host", b"%d.example" % number)], peer=None, secure=False)
    assert 1024 <= len(heads._cached) <= 2048


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
