"""The cookie of nginx-sticky-module-ng, with the values of its own tests."""

import hashlib
import hmac
from ipaddress import ip_address

import pytest

from sticky_core.clock import ManualClock
from sticky_core.errors import ConfigError
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.foreign import nginx_sticky_module
from sticky_core.persistence.foreign.nginx_sticky_module import socket_address
from sticky_core.server.server import Server
from tests.core.fakes import FakeRequest
from tests.core.persistence.foreign.clients import SECRET, app, at, found, replaced

OLD = "http://127.0.0.1:1984"


@pytest.mark.parametrize(
    "options, value",
    [
        pytest.param({}, "908c1a9fb15095f454c085282da20d92", id="by default"),
        pytest.param({"hash": "md5"}, "908c1a9fb15095f454c085282da20d92", id="md5"),
        pytest.param({"hash": "sha1"}, "4262de333a18749d31416a617184734678797276", id="sha1"),
        pytest.param({"hmac": "md5", "hmac_key": "secret"}, "d20fd0a9eb6864058781ed6104e4c9fd", id="hmac"),
        pytest.param({"text": "md5"}, "f6082e846954099610d58161bf189f37", id="text, md5"),
        pytest.param({"text": "raw"}, "127.0.0.1:1984", id="text"),
    ],
)
def test_value_up_to_1_2_6(options: dict[str, str], value: str):
    cookie = nginx_sticky_module(**options)  # type: ignore[arg-type]
    assert found(cookie, at("http://127.0.0.1:1985", OLD), value) == "s2"
    assert found(cookie, [Server("a", app), Server("b", app, formerly=["127.0.0.1:1984"])], value) == "b"
    assert found(cookie, at("http://127.0.0.1:1985", OLD), f'"{value}"') is None  # nginx knows no quotes


@pytest.mark.parametrize(
    "options, value",
    [
        pytest.param({}, "05ef642f508b1e5b76612ddbd5f89a4c", id="md5"),
        pytest.param({"hash": "sha1"}, hashlib.sha1(b"10.0.0.1:8080").hexdigest(), id="sha1"),
        pytest.param(
            {"hmac": "sha1", "hmac_key": "k"}, hmac.new(b"k", b"10.0.0.1:8080", "sha1").hexdigest(), id="hmac"
        ),
    ],
)
def test_value_since_2017(options: dict[str, str], value: str):
    cookie = nginx_sticky_module(**options)  # type: ignore[arg-type]
    assert found(cookie, at("http://10.0.0.2:8080", "http://10.0.0.1:8080/base"), value) == "s2"


@pytest.mark.parametrize(
    "url, typed",
    [
        ("http://App.example", "App.example"),
        ("http://App.example", "App.example:80"),
        ("http://10.0.0.1", "10.0.0.1"),
        ("http://[::1]:80", "[::1]"),
        ("unix:/run/a.sock", "unix:/run/a.sock"),
    ],
)
def test_server_is_found_as_it_was_typed(url: str, typed: str):
    value = hashlib.md5(typed.encode()).hexdigest()
    assert found(nginx_sticky_module(), at("http://10.9.9.9", url), value) == "s2"
    assert found(nginx_sticky_module(), at("http://10.9.9.9", formerly=[url]), value) == "s1"


def test_addresses_are_those_of_linux():
    assert socket_address(ip_address("127.0.0.1"), 1984).hex() == "020007c07f0000010000000000000000"
    ipv6 = socket_address(ip_address("::1"), 80)
    assert ipv6.hex() == "0a000050" + "00000000" + "00" * 15 + "01" + "00000000"
    assert found(nginx_sticky_module(), at("http://[::1]"), hashlib.md5(ipv6).hexdigest()) == "s1"


# -- in front of the application's value


@pytest.mark.parametrize("given, delimiter", [(None, " "), (".", "."), ("--", "--")])
def test_server_gets_the_value_of_the_application(given: str | None, delimiter: str):
    cookie = nginx_sticky_module("SID", transfer=True, delimiter=given)
    engine = Cookie("NEW", secret=SECRET, accepts=[cookie]).build("web", at(OLD), ManualClock())
    value = "908c1a9fb15095f454c085282da20d92"
    for sent, got in (
        (f"SID={value}{delimiter}abc{delimiter}d; a=1", f"SID=abc{delimiter}d; a=1"),
        (f"SID=elsewhere{delimiter}abc; a=1", f"SID=elsewhere{delimiter}abc; a=1"),
        ("SID=abc", "SID=abc"),
    ):
        request = FakeRequest((sent,))
        result = engine.recognise(request)
        assert request.cookies == (got,)
        assert result.is_bound is (sent != got)
        assert "abc" not in repr(result)  # it is the application's session
    assert len(replaced(cookie, at(OLD), f"{value}{delimiter}abc")) == 1  # it is not deleted


# -- wrong


@pytest.mark.parametrize(
    "options, problems",
    [
        ({"hash": "index"}, ["hash='index' counts the servers: write accepts.table("]),
        ({"hash": "sha256"}, ["hash 'sha256' is none of md5, sha1"]),
        ({"hmac": "sha", "hmac_key": "k"}, ["hmac 'sha' is none of md5, sha1: write 'sha1'"]),
        ({"text": "hex"}, ["text 'hex' is none of raw, md5, sha1"]),
        ({"hmac": "md5"}, ["hmac needs its key: write hmac_key="]),
        ({"hmac": "md5", "hmac_key": ""}, ["hmac needs its key: write hmac_key="]),
        ({"hmac_key": "k"}, ["hmac_key has no effect without hmac"]),
        ({"hmac": "md5", "hmac_key": b"k"}, ["hmac_key=b'k' has the wrong type"]),
        ({"hash": "md5", "text": "raw"}, ["hash and text exclude each other"]),
        ({"delimiter": "."}, ["delimiter has no effect without transfer"]),
        ({"transfer": True, "delimiter": ";"}, ["delimiter ';' can't be in a cookie"]),
        ({"transfer": True, "path": "/"}, ["path has no effect on a cookie that is the application's"]),
        ({"transfer": True, "domain": "a.example"}, ["domain has no effect without path"]),
        ({"name": "a b", "hmac": "md5"}, ["a cookie's name is made", "hmac needs its key"]),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], problems: list[str]):
    with pytest.raises(ConfigError) as caught:
        nginx_sticky_module(**options)  # type: ignore[arg-type]
    name = options.get("name", "route")
    for told, expected in zip(caught.value.problems, problems, strict=True):
        assert told.startswith(f"accepts.nginx_sticky_module {name}: {expected}")
    assert "s3cret" not in repr(nginx_sticky_module(hmac="md5", hmac_key="s3cret"))
