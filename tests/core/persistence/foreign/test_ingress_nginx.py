"""The cookie of ingress-nginx, with values that its Lua code has made in LuaJIT."""

import sys
from collections.abc import Iterator

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.clock import ManualClock
from sticky_core.errors import ConfigError
from sticky_core.persistence.claim import Claim
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.foreign import ingress_nginx
from sticky_core.persistence.foreign.ingress_nginx import Ring, persistent_key, ring_of, ring_points
from sticky_core.server.server import Server
from sticky_core.server.state import Health
from tests.core.fakes import FakeRequest
from tests.core.persistence.foreign.clients import SECRET, app, at, found

SERVICE = "access-router-production-web-80"
BACKEND = "3ec0ac2d8dd2cda20a93dee13e737231"  # the digest of the service, for canaries
PODS = ("10.184.7.40:8080", "10.184.7.41:8080", "10.184.7.42:8080")
URLS = tuple(f"http://{pod}" for pod in PODS)
KEYS = [
    (PODS[0], "ce8f959dcbe10d546cb8a4cc705e10f0"),
    (PODS[1], "6001ea941bacf56eb97addd3ec826862"),
]
BALANCED = [("1700000001.123.31.123456", PODS[0]), ("1700000002.5.32.7", PODS[2])]


# -- persistent


@pytest.mark.parametrize("pod, key", KEYS)
@pytest.mark.parametrize("suffix", ["", f"|{BACKEND}", "|another backend"])
def test_value_of_the_mode_persistent(pod: str, key: str, suffix: str):
    assert persistent_key(SERVICE, pod) == key
    cookie = ingress_nginx(service=SERVICE)
    assert found(cookie, at(*URLS), key + suffix) == f"s{PODS.index(pod) + 1}"
    assert found(cookie, [Server("a", app), Server("b", app, formerly=[pod])], key + suffix) == "b"
    assert found(ingress_nginx(service="another-web-80"), at(*URLS), key + suffix) is None


def test_endpoint_with_ipv6_is_in_brackets():
    value = persistent_key(SERVICE, "[fd00::1]:8080")
    assert found(ingress_nginx(service=SERVICE), at("http://[fd00:0::1]:8080", URLS[0]), value) == "s1"


# -- balanced


@pytest.mark.parametrize("value, pod", BALANCED)
@pytest.mark.parametrize("suffix", ["", f"|{BACKEND}"])
def test_value_of_the_mode_balanced(value: str, pod: str, suffix: str):
    number = PODS.index(pod) + 1
    assert found(ingress_nginx(), at(*URLS), value + suffix) == f"s{number}"
    assert found(ingress_nginx(), at(*reversed(URLS)), value + suffix) == f"s{4 - number}"
    apps = [Server(f"s{number}", app, formerly=[pod]) for number, pod in enumerate(PODS, start=1)]
    assert found(ingress_nginx(), apps, value + suffix) == f"s{number}"


def test_addresses_of_today_do_not_count_beside_former_ones():
    servers = [
        Server(f"s{number}", f"http://127.0.0.1:{number}", formerly=["name", pod][number % 2 :])
        for number, pod in enumerate(PODS, start=1)
    ] + [Server("spare", "http://127.0.0.9:1", backup=True)]
    assert [found(ingress_nginx(), servers, value) for value, _ in BALANCED] == ["s1", "s3"]


def test_endpoints_are_those_of_then():
    cookie = ingress_nginx(endpoints=PODS[::-1])
    servers = [
        Server("s1", URLS[0]),
        Server("new", "http://10.184.7.99:8080"),
        Server("moved", app, formerly=[PODS[2]]),
    ]
    assert [found(cookie, servers, value) for value, _ in BALANCED] == ["s1", "moved"]
    assert found(cookie, servers[:2], BALANCED[1][0]) is None  # the server is gone


def test_every_value_has_a_server():
    for value in ("junk", "x" * 4000, "\x00\xff", "\u20ac", "e" * 40):
        assert found(ingress_nginx(), at(*URLS), value) is not None
    for value in ("x" * 5000, "|", f"|{BACKEND}"):
        assert found(ingress_nginx(), at(*URLS), value) is None


def test_each_endpoint_has_points():
    first, second, *others = ring_points("10.184.7.40:8080")
    assert len({first, second, *others}) == 160
    assert Ring([]).endpoint_of("a") == ""
    ring = Ring(PODS)
    counts = [sum(ring.endpoint_of(str(number)) == pod for number in range(3000)) for pod in PODS]
    assert sum(counts) == 3000 and min(counts) > 600


def test_ring_follows_the_servers():
    servers = at(*URLS)
    engine = ingress_nginx().build("web", servers, ManualClock())
    request = FakeRequest((f"INGRESSCOOKIE={BALANCED[1][0]}",))
    assert engine.recognise(request).server is servers[2]
    copied = engine.with_servers(servers[:2], [], servers[2:])
    assert copied.recognise(request).server in servers[:2]
    assert engine.recognise(request).server is servers[2]
    servers[1].target = "http://10.184.7.43:8080"
    engine.state_changed(servers[1])
    fresh = ingress_nginx().build("web", servers, ManualClock())
    for number in range(200):
        request = FakeRequest((f"INGRESSCOOKIE={number}",))
        assert engine.recognise(request).server is fresh.recognise(request).server
    servers[2].health = Health.DOWN  # it keeps its place
    engine.state_changed(servers[2])
    assert engine.recognise(FakeRequest((f"INGRESSCOOKIE={BALANCED[1][0]}",))).claim is Claim.DOWN


# -- wrong


@pytest.mark.parametrize(
    "options, problems",
    [
        ({"service": ""}, ["service is empty: write <namespace>-<service>-<port>"]),
        ({"service": 3}, ["service=3 has the wrong type: write <namespace>"]),
        ({"service": "shop"}, ["service='shop' has no namespace or no port"]),
        ({"service": "shop-80"}, ["service='shop-80' has no namespace or no port"]),
        ({"service": "default/shop:80"}, ["service='default/shop:80' has no namespace or no port"]),
        ({"service": "a-b-80", "endpoints": [PODS[0]]}, ["endpoints have no effect with service"]),
        ({"endpoints": PODS[0]}, [f"endpoints={PODS[0]!r} is no list: write ['10.184.7.40:8080', ...]"]),
        ({"endpoints": []}, ["endpoints is empty: write"]),
        ({"endpoints": ["a", 3]}, ["endpoint 'a' is no address with a port", "endpoint 3 is no address"]),
        ({"name": "a b", "service": ""}, ["a cookie's name is made", "service is empty"]),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], problems: list[str]):
    with pytest.raises(ConfigError) as caught:
        ingress_nginx(**options)  # type: ignore[arg-type]
    name = options.get("name", "INGRESSCOOKIE")
    for told, expected in zip(caught.value.problems, problems, strict=True):
        assert told.startswith(f"accepts.ingress_nginx {name}: {expected}")


def test_ring_needs_the_address_of_every_server():
    cookie = Cookie("NEW", secret=SECRET, accepts=[ingress_nginx()])
    servers = [*at(*URLS), Server("a", app), Server("b", app, formerly=["10.184.7.99:8080"])]
    with pytest.raises(ConfigError) as caught:
        Backend("web", servers, persist=cookie)
    (told,) = caught.value.problems
    assert "accepts.ingress_nginx INGRESSCOOKIE: server a has no IP address, and" in told


def test_endpoints_that_no_server_has_are_reported():
    cookie = Cookie("NEW", secret=SECRET, accepts=[ingress_nginx(endpoints=PODS)])
    with pytest.raises(ConfigError, match="no server has one of the endpoints: write in formerly="):
        Backend("web", at("http://10.0.0.1:80"), persist=cookie)


def test_host_names_in_urls_are_no_pods():
    """A ring of host names would send every client to some server, and nothing would show it."""
    cookie = Cookie("NEW", secret=SECRET, accepts=[ingress_nginx()])
    with pytest.raises(ConfigError, match="server s1 has no IP address, and which server"):
        Backend("web", at("http://shop-0.shop:8080", URLS[0]), persist=cookie)
    Backend("web", [Server("s1", "http://shop-0.shop:8080", formerly=[PODS[0]])], persist=cookie)


def test_ring_is_made_once_whatever_servers_come_and_go(monkeypatch: pytest.MonkeyPatch):
    endpoints = [f"10.184.9.{number}:8080" for number in range(1, 20)]
    made: list[str] = []

    def points(endpoint: str) -> Iterator[int]:
        made.append(endpoint)
        return ring_points(endpoint)

    # the package has the function of the same name in the place of the module
    monkeypatch.setattr(sys.modules[ring_points.__module__], "ring_points", points)
    ring_of.cache_clear()
    servers = at("http://10.184.9.1:8080", "http://10.184.9.2:8080")
    engine = ingress_nginx("lb", endpoints=endpoints).build("web", servers, ManualClock())
    for _ in range(3):
        engine.recognise(FakeRequest(("lb=1700000002.5.32.8|a",)))
        other = Server("other", "http://10.0.0.9:80")
        engine = engine.with_servers([*servers, other], [other], []).with_servers(servers, [], [other])
    assert sorted(made) == sorted(endpoints)
