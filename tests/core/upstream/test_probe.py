"""What a check sends to a server, and how it judges what it receives, without a connection."""

import gc
import random
import weakref
from typing import Any

import pytest

pytest.importorskip("httptools")

from sticky_core.backend.backend import Backend
from sticky_core.errors import Failure
from sticky_core.health.agent import MAX_LINE, AgentCheck
from sticky_core.health.check import Check, CheckResult, CheckStatus
from sticky_core.health.runtime import CheckRuntime
from sticky_core.server.server import Server
from sticky_core.upstream.probe import (
    AgentProbe,
    HttpProbe,
    ProbeFactory,
    checks_of,
    result_from_exception,
    result_from_failure,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def probe(check: Check, url: str = "http://10.0.0.1:8080/base", **options: Any) -> HttpProbe:
    made = ProbeFactory(Server("s1", url, **options), CheckRuntime(check, random.Random(1))).make()
    assert isinstance(made, HttpProbe)
    return made


def judge(check: Check, *received: bytes) -> CheckResult | None:
    """Feed what was received until there is a result; empty bytes are the end of the connection."""
    http_probe = probe(check)
    assert http_probe.on_connected() is None
    for data in received:
        result = http_probe.feed(data)
        if result is not None:
            return result
    return None


def test_a_request_asks_for_the_path_after_the_base_path():
    assert probe(Check("/health")).target.request == (
        b"GET /base/health HTTP/1.1\r\nhost: 10.0.0.1:8080\r\nconnection: close\r\n\r\n"
    )


def test_a_request_has_the_method_headers_and_body_of_the_check():
    check = Check("/h", method="post", headers={"Host": "shop.example", "X-Check": "1"}, body="ping")
    assert probe(check, "http://10.0.0.1").target.request == (
        b"POST /h HTTP/1.1\r\nHost: shop.example\r\nX-Check: 1\r\ncontent-length: 4\r\nconnection: close\r\n\r\nping"
    )


@pytest.mark.parametrize(
    "url, options, expected",
    [
        ("http://10.0.0.1", {}, ("10.0.0.1", 80, None, False)),
        ("https://10.0.0.1", {}, ("10.0.0.1", 443, None, True)),
        ("http://10.0.0.1", {"port": 81}, ("10.0.0.1", 81, None, False)),
        ("https://10.0.0.1", {"port": 81}, ("10.0.0.1", 81, None, True)),
        ("unix:/run/app.sock", {}, ("localhost", 80, "/run/app.sock", False)),
    ],
    ids=["http", "https", "a port of its own", "a port of its own, with TLS", "a UNIX socket"],
)
def test_a_check_connects_where_the_server_listens(url: str, options: dict[str, Any], expected: tuple[object, ...]):
    target = probe(Check("/", **options), url).target
    assert (target.host, target.port, target.socket, target.tls) == expected


@pytest.mark.parametrize(
    "received", [OK, OK[:-3], b"SSH-2.0-OpenSSH_9.2\r\n", b""], ids=["complete", "a part", "no HTTP", "closed"]
)
def test_a_check_leaves_nothing_to_the_garbage_collector(received: bytes):
    http_probe = probe(Check("/"))
    http_probe.on_connected()
    assert http_probe.feed(received) is not None
    reference = weakref.ref(http_probe._parser)
    gc.disable()
    try:
        del http_probe
        assert reference() is None
    finally:
        gc.enable()


def test_without_a_path_an_established_connection_is_enough():
    assert probe(Check()).on_connected() == CheckResult(CheckStatus.L4OK)


@pytest.mark.parametrize(
    "received, status, code",
    [
        ([OK], "L7OK", 200),
        ([OK[:9], OK[9:]], "L7OK", 200),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", OK], "L7OK", 200),
        ([OK.replace(b"200 OK", b"503 Busy")], "L7STS", 503),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"], "L7OK", 200),
        ([b"SSH-2.0-OpenSSH\r\n"], "L7RSP", 0),
        ([b"HTTP/1.1 2", b""], "L7RSP", 0),
        ([b""], "SOCKERR", 0),
    ],
    ids=["200", "in parts", "after 100", "503", "only the head", "not HTTP", "a head cut short", "closed"],
)
def test_a_response_is_judged(received: list[bytes], status: str, code: int):
    result = judge(Check("/"), *received)
    assert result is not None
    assert (result.status, result.code) == (CheckStatus[status], code)


def test_a_rule_about_the_body_waits_for_the_body():
    check = Check("/", expect="string hello")
    head, body = OK[:-5], OK[-5:]
    assert judge(check, head) is None
    result = judge(check, head, body)
    assert result is not None
    assert result.status is CheckStatus.L7OK
    result = judge(check, head, body[:2], b"")
    assert result is not None
    assert result.status is CheckStatus.L7RSP


@pytest.mark.parametrize(
    "failure, status",
    [
        (Failure.REFUSED, "L4CON"),
        (Failure.CONNECT_TIMEOUT, "L4TOUT"),
        (Failure.TLS, "L6RSP"),
        (Failure.TIMEOUT, "L7TOUT"),
        (Failure.CLOSED, "SOCKERR"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_a_failure_of_the_server_is_a_result(failure: Failure, status: str):
    assert result_from_failure(failure) == CheckResult(CheckStatus[status], info=failure.text)


def test_an_exception_of_an_app_counts_as_500():
    assert result_from_exception(KeyError("db")) == CheckResult(CheckStatus.L7STS, 500, "KeyError: 'db'")


def agent() -> AgentProbe:
    options = AgentCheck(9000, send="state\n")
    server = Server("s1", "http://10.0.0.1", agent_check=options)
    made = ProbeFactory(server, CheckRuntime(Check(), random.Random(1)), options).make()
    assert isinstance(made, AgentProbe)
    return made


def test_an_agent_is_queried_at_its_port_of_the_host():
    query = agent()
    target = query.target
    assert (target.host, target.port, target.request, query.on_connected()) == ("10.0.0.1", 9000, b"state\n", None)


@pytest.mark.parametrize(
    "received",
    [[b"up 50%\n"], [b"up ", b"50%\n"], [b"up 50%", b""]],
    ids=["a line", "in parts", "closed instead of a line end"],
)
def test_a_reply_of_an_agent_ends_with_its_line_or_the_connection(received: list[bytes]):
    query = agent()
    results = [query.feed(data) for data in received]
    assert results[:-1] == [None] * (len(received) - 1)
    assert results[-1] == CheckResult(CheckStatus.L7OK)
    assert query.reply is not None
    assert (query.reply.up, query.reply.percent) == (True, 50)


def test_an_agent_that_closes_without_a_reply_has_failed():
    result = agent().feed(b"")
    assert result is not None
    assert result.status is CheckStatus.SOCKERR


def test_a_line_that_does_not_end_is_parsed_at_its_maximum_length():
    query = agent()
    assert query.feed(b"x" * (MAX_LINE - 1)) is None
    result = query.feed(b"x")
    assert result is not None
    assert result.status is CheckStatus.L7RSP


def test_a_url_is_parsed_once_for_all_probes_until_the_server_moves():
    server = Server("s1", "http://10.0.0.1:8080")
    Backend("web", [server], check=Check("/health"))
    assert server.checking is not None
    factory = ProbeFactory(server, server.checking)
    target = factory.make().target
    assert factory.make().target is target
    server.target = "http://10.0.0.2:8080"
    moved = factory.make().target
    assert (moved.host, moved.request) == ("10.0.0.2", target.request.replace(b"10.0.0.1", b"10.0.0.2"))


@pytest.mark.parametrize(
    "url, version",
    [
        ("http://10.0.0.1", 4),
        ("http://[::1]:8080", 6),
        ("http://app.example", None),
        ("http://[fe80::1%25eth0]", None),
        ("unix:/run/app.sock", None),
    ],
    ids=["IPv4", "IPv6", "a name", "IPv6 with a scope", "a UNIX socket"],
)
def test_an_address_need_not_be_resolved(url: str, version: int | None):
    assert probe(Check("/"), url).target.ip_version == version


def test_a_server_has_its_check_and_that_of_its_agent():
    options = AgentCheck(9000)
    both, none = Server("s1", "http://10.0.0.1", agent_check=options), Server("s2", "http://10.0.0.2", check=False)
    Backend("web", [both, none], check=Check())
    assert list(checks_of(both)) == [(both.checking, None), (both.agent, options)]
    assert list(checks_of(none)) == []
