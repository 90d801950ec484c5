"""Caddy's cookie, with values that Caddy 2.11.7 has written."""

import pytest

from sticky_core.errors import ConfigError
from sticky_core.persistence.foreign import caddy
from sticky_core.persistence.foreign.caddy import caddy_value
from sticky_core.server.server import Server
from tests.core.persistence.foreign.clients import app, at, found

PLAIN = "138bcb7d7bb22d08b0194b6e1bf03d181cffe691cab695430f97e77ddfdc4b69"
KEYED = "8b79997e5c03c09b1a0734e0a7480c1a449fd1522c4b4772c74489cb10bde1d3"


@pytest.mark.parametrize("secret, dial, value", [("", "127.0.0.1:18081", PLAIN), ("s3cret", "127.0.0.1:18082", KEYED)])
def test_value_is_that_of_caddy(secret: str, dial: str, value: str):
    assert caddy_value(secret, dial) == value
    servers = at("http://127.0.0.1:18081", "http://127.0.0.1:18082")
    assert found(caddy(secret=secret), servers, value) == {"18081": "s1", "18082": "s2"}[dial[-5:]]
    assert found(caddy(secret=secret), servers, f'"{value}"') is not None
    assert found(caddy(secret="another"), servers, value) is None


@pytest.mark.parametrize(
    "text, dial",
    [
        pytest.param("http://10.0.0.1", "10.0.0.1:80", id="port of http"),
        pytest.param("https://10.0.0.1/base", "10.0.0.1:443", id="port of https"),
        pytest.param("http://App.example:8080", "App.example:8080", id="case of a name"),
        pytest.param("http://App.example", "App.example:80", id="case of a name without a port"),
        pytest.param("http://[0:0::1]:8080", "[::1]:8080", id="shortest IPv6"),
        pytest.param("http://[0:0::1]:8080", "[0:0::1]:8080", id="IPv6 as typed"),
        pytest.param("http://[::1]", "[::1]:80", id="IPv6 without a port"),
        pytest.param("unix:/run/a.sock", "unix//run/a.sock", id="UNIX socket"),
        pytest.param("http://unix:/run/a.sock:/base", "unix//run/a.sock", id="UNIX socket of nginx"),
    ],
)
def test_server_is_found_by_its_url_and_by_what_it_was_called(text: str, dial: str):
    value = caddy_value("k", dial)
    assert found(caddy(secret="k"), at(text, "http://10.9.9.9"), value) == "s1"
    assert found(caddy(secret="k"), at("http://10.8.8.8", "http://10.9.9.9", formerly=[text]), value) == "s1"


@pytest.mark.parametrize(
    "text, dial",
    [
        pytest.param("10.0.0.1:80", "10.0.0.1:80", id="address"),
        pytest.param("10.0.0.1", "10.0.0.1:80", id="without a port"),
        pytest.param("unix//run/a.sock", "unix//run/a.sock", id="UNIX socket of Caddy"),
        pytest.param("{http.vars.up}", "{http.vars.up}", id="placeholder"),
    ],
)
def test_app_is_found_by_what_it_was_called(text: str, dial: str):
    assert found(caddy(), [Server("a", app), Server("b", app, formerly=[text])], caddy_value("", dial)) == "b"


def test_secret_must_be_a_text():
    with pytest.raises(ConfigError, match=r"^accepts\.caddy lb: secret=b'k' has the wrong type: write the secret"):
        caddy(secret=b"k")  # type: ignore[arg-type]
    assert "s3cret" not in repr(caddy(secret="s3cret"))
