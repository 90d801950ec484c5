"""The texts by which a server was known: which of them are addresses."""

import pytest

from sticky_core.server.formerly import location_of


@pytest.mark.parametrize(
    "text, host, port, socket, base_path",
    [
        ("10.0.0.1:80", "10.0.0.1", 80, None, ""),
        ("web-1.local:8080", "web-1.local", 8080, None, ""),
        ("web_1:8080", "web_1", 8080, None, ""),
        ("[::1]:80", "::1", 80, None, ""),
        ("10.0.0.1:80/", "10.0.0.1", 80, None, ""),
        ("10.0.0.1:80/shop", "10.0.0.1", 80, None, "/shop"),
        ("http://10.0.0.1", "10.0.0.1", 80, None, ""),
        ("https://10.0.0.1", "10.0.0.1", 443, None, ""),
        ("http://10.0.0.1:80/", "10.0.0.1", 80, None, ""),
        ("unix:/run/a.sock", "localhost", 80, "/run/a.sock", ""),
    ],
)
def test_location_is(text: str, host: str, port: int, socket: str | None, base_path: str):
    found = location_of(text)
    assert found is not None
    assert (found.host, found.port, found.socket, found.base_path) == (host, port, socket, base_path)


@pytest.mark.parametrize("text", ["s1", "10.0.0.1", "web1.local", "s1:", ":80", "10.0.0.1:99999", "::1:80", "/run/a"])
def test_names_and_ids_are_no_addresses(text: str):
    assert location_of(text) is None
