"""Envoy's stateful session, with the values of its own tests."""

import random
from base64 import b64encode

import pytest

from sticky_core.persistence.foreign import envoy
from sticky_core.persistence.foreign.envoy import address_in
from sticky_core.server.server import Server
from tests.core.persistence.foreign.clients import app, at, found

VALUES = [
    pytest.param("CgoxLjIuMy40Ojgw", id="message"),
    pytest.param("CgoxLjIuMy40OjgwEO0H", id="message with a date"),
    pytest.param("MS4yLjMuNDo4MA==", id="text of old versions"),
]


def encoded(data: bytes) -> str:
    return b64encode(data).decode()


@pytest.mark.parametrize("value", VALUES)
def test_value_is_that_of_envoy(value: str):
    assert address_in(value) == address_in(f'"{value}"') == "1.2.3.4:80"
    servers = at("http://1.2.3.4:8080", "http://1.2.3.4:80")
    assert found(envoy("session"), servers, value) == "s2"
    assert found(envoy("session"), servers, f'"{value}"') == "s2"
    assert found(envoy("session"), at("http://10.9.9.9", formerly=["1.2.3.4:80"]), value) == "s1"
    assert found(envoy("session"), [Server("a", app, formerly=["1.2.3.4:80"])], value) == "a"


@pytest.mark.parametrize(
    "url, address",
    [
        ("http://10.0.0.1", "10.0.0.1:80"),
        ("https://[0::1]", "[::1]:443"),
        ("http://[::ffff:127.0.0.1]:8080", "[::ffff:127.0.0.1]:8080"),
        ("unix:/run/a.sock", "/run/a.sock"),
    ],
)
def test_server_is_found_by_its_address(url: str, address: str):
    for data in (address.encode(), b"\n" + bytes([len(address)]) + address.encode()):
        assert found(envoy("session"), at("http://10.9.9.9", url), encoded(data)) == "s2"


def test_text_that_is_a_message_as_well_is_a_text():
    assert address_in(encoded(b"10.0.0.1:80")) == "10.0.0.1:80"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\n", id="no length"),
        pytest.param(b"\n\x7f1.2.3.4:80", id="length behind the end"),
        pytest.param(b"\n\x0a1.2.3.4:80\x10", id="date without a value"),
        pytest.param(b"\n\x0a1.2.3.4:80\x10" + b"\xff" * 10, id="varint without an end"),
        pytest.param(b"\n\x0a1.2.3.4:80\x13", id="type of field that there is not"),
        pytest.param(b"\n" + b"\xff" * 9 + b"\x01" + b"1.2.3.4:80", id="length of 64 bits"),
    ],
)
def test_malformed_message_names_no_server(data: bytes):
    assert address_in(encoded(data)) == ""


def test_any_bytes_are_read_without_an_error():
    rng = random.Random(1)
    for _ in range(2000):
        address_in(encoded(b"\n" + rng.randbytes(rng.randrange(40))))
        address_in(rng.randbytes(rng.randrange(40)).decode("latin-1"))
