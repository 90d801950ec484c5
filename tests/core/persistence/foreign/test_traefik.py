"""Traefik's cookie, with values that Traefik 3.0.4, 3.3.3, 3.3.4 and 3.7.15 have written or read."""

import pytest

from sticky_core.errors import ConfigError
from sticky_core.persistence.foreign import traefik
from sticky_core.persistence.foreign.traefik import cookie_name, default_name, fnv1, fnv1a, traefik_values
from sticky_core.server.server import Server
from tests.core.persistence.foreign.clients import app, at, found


@pytest.mark.parametrize(
    "port, values",
    [
        (18081, ["46a5f1cd898996a6", "3578910ce10c0f4b", "b528746506c397e7"]),
        (18082, ["46a5f0cd898994f3", "c3be65bbac7aa670", "238e99ca93e11d58"]),
    ],
)
def test_values_are_those_of_traefik(port: int, values: list[str]):
    servers = at("http://127.0.0.1:18081", "http://127.0.0.1:18082")
    for value in (*values, f"http://127.0.0.1:{port}"):
        assert value in list(traefik_values(f"http://127.0.0.1:{port}"))
        assert found(traefik("_abc12"), servers, value) == f"s{port - 18080}"
        assert found(traefik("_abc12"), servers, f'"{value}"') == f"s{port - 18080}"


@pytest.mark.parametrize("value", ["plain1", "d9dda49337529198", "42ef22f3a614ee7e"])
def test_child_of_a_weighted_service_is_a_name(value: str):
    cookie = traefik("w")
    assert found(cookie, [Server("plain1", app), Server("plain2", app)], value) == "plain1"
    assert found(cookie, [Server("a", app), Server("b", app, cookie="plain1")], value) == "b"
    assert found(cookie, [Server("a", app), Server("b", app, formerly=["plain1"])], value) == "b"


@pytest.mark.parametrize(
    "url, configured",
    [
        ("http://a:80", "http://a:80/"),
        ("http://a:80", "http://a"),
        ("http://a/", "http://a:80"),
        ("https://a", "https://a:443/"),
        ("https://a:443/b/", "https://a/b"),
        ("http://[::1]", "http://[::1]:80"),
        ("http://[::1]:80", "http://[::1]"),
        ("http://[::1]:8080/b", "http://[::1]:8080/b/"),
        ("http://A.example", "http://A.example/"),
    ],
)
def test_url_is_found_however_it_was_written(url: str, configured: str):
    for value in traefik_values(configured):
        assert found(traefik("c"), at(url, "http://10.9.9.9"), value) == "s1"
        assert found(traefik("c"), at("http://10.8.8.8", "http://10.9.9.9", formerly=[url]), value) == "s1"


@pytest.mark.parametrize("url", ["http://10.0.0.1:80", "https://10.0.0.1:80/", "http://10.0.0.1"])
def test_former_address_stands_for_its_urls(url: str):
    servers = at("http://10.8.8.8", "http://10.9.9.9", formerly=["10.0.0.1:80"])
    assert found(traefik("c"), servers, *traefik_values(url)) == "s1"


def test_hashes_are_those_of_the_reference():
    # Fowler, Noll and Vo: test vectors of 64 bits
    assert (fnv1(""), fnv1a("")) == (0xCBF29CE484222325, 0xCBF29CE484222325)
    assert (fnv1("a"), fnv1a("a")) == (0xAF63BD4C8601B7BE, 0xAF63DC4C8601EC8C)
    assert (fnv1("foobar"), fnv1a("foobar")) == (0x340D8765A4DDA9C2, 0x85944171F73967E8)


@pytest.mark.parametrize("service, name", [("backend", "_76eb3"), ("plain@file", "_196da")])
def test_default_name_of_a_cookie(service: str, name: str):
    assert default_name(service) == name
    assert traefik(service=service).name == name


def test_name_is_written_as_traefik_writes_it():
    assert cookie_name("my cookie/ü~") == traefik("my cookie/ü~").name == "my_cookie__~"


@pytest.mark.parametrize(
    "options, problem",
    [
        ({}, "accepts.traefik: give the name of the cookie, or service="),
        ({"name": "a", "service": "b"}, "accepts.traefik: give the name of the cookie, or service="),
        ({"name": 3}, "accepts.traefik: name=3 is no name: write a text"),
        ({"service": ""}, "accepts.traefik: service='' is no name: write a text"),
        ({"name": "$a"}, "accepts.traefik $a: a cookie's name is made of"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], problem: str):
    with pytest.raises(ConfigError) as caught:
        traefik(**options)  # type: ignore[arg-type]
    (told,) = caught.value.problems
    assert told.startswith(problem)
