"""What the head of a request to an upstream reports about the client."""

from collections.abc import Sequence
from typing import Any

import pytest

from sticky_core.errors import ConfigError
from sticky_core.http.forwarding import (
    Forward,
)
from sticky_core.http.http1 import Header
from tests.core.http.heads import ADDS_NOTHING, CLIENT, HOST, PROXY, refused, sent

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
KEPT = [header for header in SAID[2:] if header[0] != b"x-real-ip"]

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
        pytest.param(x_forwarded(), CLIENT, SAID, REPLACED, id="x-forwarded, an untrusted peer's headers are replaced"),
        pytest.param(
            x_forwarded(trusted_proxies=("10.0.0.0/8",)), CLIENT, SAID, REPLACED, id="x-forwarded, another is trusted"
        ),
        pytest.param(
            x_forwarded(trusted_proxies=("10.0.0.0/8",)),
            PROXY,
            SAID,
            [*KEPT, (b"x-forwarded-for", JOINED + b", 10.0.0.1"), (b"x-real-ip", b"198.51.100.2")],
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
            x_forwarded(trusted_proxies=("10.0.0.0/8",)),
            PROXY,
            [(b"x-real-ip", b"203.0.113.9")],
            [
                (b"x-forwarded-for", b"10.0.0.1"),
                (b"x-real-ip", b"10.0.0.1"),
                (b"x-forwarded-proto", b"http"),
                (b"x-forwarded-host", b"shop.example"),
            ],
            id="x-forwarded, the client behind a trusted proxy wrote an address",
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
            id="x-forwarded, a trusted proxy with its IPv4 address written as IPv6",
        ),
        # Forwarded
        pytest.param(rfc7239(), CLIENT, [], [(b"forwarded", ELEMENT)], id="forwarded, nothing said before"),
        pytest.param(rfc7239(), CLIENT, SAID, [(b"forwarded", ELEMENT)], id="forwarded, an untrusted peer is replaced"),
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
        pytest.param(
            rfc7239(trusted_proxies=("10.0.0.0/8",)),
            PROXY,
            [(b"x-real-ip", b"203.0.113.9"), *SAID[:2]],
            [
                *SAID[:2],
                (b"x-real-ip", b"198.51.100.2"),
                (b"forwarded", b"for=10.0.0.1;proto=http;host=shop.example"),
            ],
            id="forwarded, X-Real-IP is that of the client behind a trusted proxy",
        ),
        pytest.param(
            rfc7239(trusted_proxies=("10.0.0.0/8",)),
            PROXY,
            [(b"x-real-ip", b"203.0.113.9")],
            [(b"forwarded", b"for=10.0.0.1;proto=http;host=shop.example")],
            id="forwarded, X-Real-IP is removed if the client is not known",
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


# -- names that differ only by underscores

LOOKALIKES = [
    b"x_forwarded_for",
    b"x_forwarded-for",
    b"x-forwarded_proto",
    b"x_forwarded_host",
    b"x_forwarded_port",
    b"X_Real_IP",
    b"x-real_ip",
    b"content_length",
    b"transfer_encoding",
    b"content_type",
    b"proxy_connection",
    b"keep_alive",
    b"idempotency_key",
    b"sec_websocket_key",
    b"sec-websocket_protocol",
]


@pytest.mark.parametrize("name", LOOKALIKES)
@pytest.mark.parametrize(
    ("forward", "peer"),
    [
        (x_forwarded(), CLIENT),
        (x_forwarded(trusted_proxies=("10.0.0.0/8",)), PROXY),
        (x_forwarded(except_nets=("192.0.2.0/24",)), CLIENT),
        (rfc7239(), CLIENT),
        (rfc7239(trusted_proxies=("10.0.0.0/8",)), PROXY),
        (forwardfor(), CLIENT),
        (ADDS_NOTHING, CLIENT),
    ],
    ids=["x-forwarded", "trusted", "excepted", "forwarded", "forwarded, trusted", "forwardfor", "none"],
)
def test_a_name_that_differs_by_underscores_from_one_of_ours_is_not_passed_on(name: bytes, forward: Forward, peer: str):
    """CGI-like servers would take it for the other one."""
    for _ in range(2):  # and so it is remembered
        assert sent([HOST, (name, b"1")], forward=forward, peer=peer) == sent([HOST], forward=forward, peer=peer)


@pytest.mark.parametrize(
    "headers, passed_on",
    [
        pytest.param([(b"x_user", b"1"), (b"a", b"2")], [(b"x_user", b"1"), (b"a", b"2")], id="alone"),
        pytest.param([(b"x_user", b"1"), (b"x_user", b"2")], [(b"x_user", b"1"), (b"x_user", b"2")], id="twice"),
        pytest.param([(b"x_user", b"1"), (b"x-user", b"2")], [(b"x-user", b"2")], id="before the other"),
        pytest.param([(b"x-user", b"2"), (b"X_User", b"1")], [(b"x-user", b"2")], id="behind the other"),
        pytest.param([(b"x-user_id", b"1"), (b"x-user-id", b"2")], [(b"x-user-id", b"2")], id="mixed"),
        pytest.param([(b"x_user", b"1"), (b"user", b"2")], [(b"x_user", b"1"), (b"user", b"2")], id="beside another"),
        pytest.param(
            [(b"connection", b"x-user"), (b"x_user", b"1"), (b"x-user", b"2")], [], id="even if Connection names that"
        ),
        pytest.param([(b"forwarded_", b"1")], [(b"forwarded_", b"1")], id="at the end"),
    ],
)
def test_of_two_names_that_differ_by_underscores_the_one_with_hyphens_is_passed_on(
    headers: list[Header], passed_on: list[Header]
):
    assert sent([*headers, HOST]) == [*passed_on, HOST]


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
