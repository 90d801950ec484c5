"""Cookies of HAProxy and nginx, as `Cookie` and `NginxCookie` accept them, with values that HAProxy 2.8.25 and nginx
1.31.3 have written.
"""

from collections.abc import Sequence

import pytest

from sticky_core.clock import ManualClock
from sticky_core.persistence.claim import PersistenceResult
from sticky_core.persistence.cookie import dates
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.nginx import NginxCookie, nginx_id
from sticky_core.persistence.persistence import Persist
from sticky_core.persistence.xxh64 import dynamic_id
from sticky_core.server.server import Server
from tests.core.fakes import FakeRequest
from tests.core.persistence.foreign.clients import SECRET, at

NOW = 1_700_000_000
URLS = (
    "http://127.0.0.1:18081",
    "http://127.0.0.1:18082",
    "http://[::1]:18081",
    "http://[::ffff:127.0.0.1]:18081",
)


def accepted(cookie: Persist, value: str, servers: Sequence[Server] = ()) -> PersistenceResult:
    engine = Cookie("NEW", secret=SECRET, accepts=[cookie]).build("web", servers or at(*URLS), ManualClock(NOW))
    return engine.recognise(FakeRequest((f"SRV={value}",)))


def bound_to(cookie: Persist, value: str, servers: Sequence[Server] = ()) -> str | None:
    """Return the name of the server that a client with this value goes to; None: balance chooses."""
    result = accepted(cookie, value, servers)
    return result.server.name if result.is_bound and result.server is not None else None


PLAIN = Cookie("SRV", signed=False)
DATED = Cookie("SRV", signed=False, maxidle=1000, maxlife=5000)


@pytest.mark.parametrize("unix, text", [(1700000000, "ZVPxA"), (1700000001, "ZVPxB"), (1796093888, "aw43w")])
def test_dates_of_haproxy(unix: int, text: str):
    assert dates.encode(unix) == text
    assert dates.decode(text) == -(-unix // 4) * 4


@pytest.mark.parametrize(
    "cookie, value, server",
    [
        pytest.param(PLAIN, "s1", "s1", id="name"),
        pytest.param(PLAIN, "s2", "s2", id="another name"),
        pytest.param(PLAIN, "S1", None, id="other case"),
        pytest.param(PLAIN, '"s1"', None, id="quotes"),
        pytest.param(PLAIN, "s1|ZVPxA", "s1", id="date that is not configured"),
        pytest.param(PLAIN, "s1|AAAAB|AAAAB", "s1", id="old dates that are not configured"),
        pytest.param(PLAIN, "s1|", "s1", id="bar without a date"),
        pytest.param(PLAIN, "s1|a|b|c", "s1", id="cut at the first bar"),
        pytest.param(DATED, "s1|ZVPxA|ZVPxA", "s1", id="dates"),
        pytest.param(DATED, "s1", "s1", id="no dates"),
        pytest.param(DATED, "s1|!!!!!|ZVPx", "s1", id="malformed dates"),
        pytest.param(DATED, "s1|" + dates.encode(NOW - 1004) + "|ZVPxA", None, id="idle for too long"),
        pytest.param(DATED, "s1|ZVPxA|" + dates.encode(NOW - 5004), None, id="too old"),
        pytest.param(DATED, "s1|" + dates.encode(NOW + 86400), "s1", id="a day ahead"),
        pytest.param(DATED, "s1|" + dates.encode(NOW + 86404), None, id="more than a day ahead"),
        pytest.param(Cookie("SRV", mode="prefix", signed=False), "s1~abc", "s1", id="prefix"),
        pytest.param(Cookie("SRV", mode="prefix", signed=False), "s1~a~b", "s1", id="cut at the first tilde"),
        pytest.param(Cookie("SRV", mode="prefix", signed=False), "s1", "s1", id="prefix without a value"),
        pytest.param(Cookie("SRV", mode="prefix", signed=False), "s9~abc", None, id="unknown prefix"),
    ],
)
def test_value_of_haproxy(cookie: Cookie, value: str, server: str | None):
    assert bound_to(cookie, value) == server


@pytest.mark.parametrize(
    "host, port, value",
    [
        ("127.0.0.1", 18081, "85a427c55b2c4e8f"),
        ("127.0.0.1", 18082, "dcf48055f64e207a"),
        ("::1", 18081, "f4ed566acd2b637e"),
        ("::ffff:127.0.0.1", 18081, "86b0ec4011fac1da"),
    ],
)
def test_dynamic_value_of_haproxy(host: str, port: int, value: str):
    assert dynamic_id("MYKEY", host, port) == value
    number = [f"http://{f'[{host}]' if ':' in host else host}:{port}" in url for url in URLS].index(True)
    cookie = Cookie("SRV", signed=False, dynamic="MYKEY")
    assert bound_to(cookie, value) == f"s{number + 1}"
    named = [Server("a", URLS[number], cookie="word"), Server("b", URLS[(number + 1) % 4])]
    assert bound_to(cookie, value, named) is None  # the word counts
    assert bound_to(cookie, "word", named) == "a"


@pytest.mark.parametrize(
    "url, value",
    [
        (URLS[0], "7f3797d6a7e152c9ae2760fc816c6014"),
        (URLS[1], "4900f59d6c4a944fb53a6d384b54b275"),
        (URLS[3], "b1867188e467659af1dda2961c4f72e5"),
    ],
)
def test_value_of_nginx(url: str, value: str):
    assert nginx_id(Server("a", url)) == value
    assert bound_to(NginxCookie("SRV"), value) == f"s{URLS.index(url) + 1}"
    assert bound_to(NginxCookie("SRV"), value.upper()) is None
    assert bound_to(NginxCookie("SRV"), f'"{value}"') is None
    named = [Server("a", url, cookie="route"), Server("b", "http://10.0.0.1")]
    assert bound_to(NginxCookie("SRV"), value, named) is None  # the route counts
    assert bound_to(NginxCookie("SRV"), "route", named) == "a"
