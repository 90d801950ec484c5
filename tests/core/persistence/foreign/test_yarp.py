"""The cookies of YARP, with the values of its own tests, and of ARR; and Apache's."""

import pytest

from sticky_core.errors import ConfigError
from sticky_core.persistence.foreign import apache, arr, yarp
from sticky_core.persistence.foreign.yarp import arr_value, hash_cookie_value
from sticky_core.server.server import Server
from tests.core.persistence.foreign.clients import app, at, found

A = "CE3762A8E5BFB452C5071CC80C81E9C89A87369B0E8F7866CB437C1A181A865F"
B = "920A160FA519353932B655488361A944531650016793761EE7224DE632863B13"
DESTINATIONS = [Server("dest-A", app), Server("dest-B", app)]


@pytest.mark.parametrize(
    "destination, hash_value, arr_hash", [("dest-A", "615d6cd1b28160f0", A), ("dest-B", "53c079ed4c377b0d", B)]
)
def test_values_are_those_of_yarp(destination: str, hash_value: str, arr_hash: str):
    assert (hash_cookie_value(destination), arr_value(destination)) == (hash_value, arr_hash)
    for value in (hash_value, arr_hash):
        assert found(yarp("affinity"), DESTINATIONS, value) == destination
        assert found(yarp("affinity"), [Server("s1", app, cookie=destination)], value) == "s1"
        assert found(yarp("affinity"), [Server("s1", app, formerly=[destination.upper()])], value) == "s1"
        assert found(yarp("affinity"), DESTINATIONS, value.swapcase()) is None


def test_case_does_not_count_in_ids_and_letters_stay_single():
    assert hash_cookie_value("DEST-a") == hash_cookie_value("dest-A")
    assert hash_cookie_value("stra\xdfe") != hash_cookie_value("strasse")


@pytest.mark.parametrize("change", [str, str.lower])
def test_arr_names_a_host(change: type[str]):
    servers = at("http://web1.example:8080", "http://10.0.0.2", formerly=["dest-A"])
    assert found(arr(), servers, change(arr_value("WEB1.example"))) == "s1"
    assert found(arr(), servers, change(arr_value("10.0.0.2"))) == "s2"
    assert found(arr(), servers, change(A)) == "s1"
    assert found(arr(), servers, change(B)) is None


@pytest.mark.parametrize(
    "value, server",
    [
        (".node1", "node1"),
        ("abc.node1", "node1"),
        ("a.b.node1", "a"),
        ("node1", None),
        ("node1.", None),
        (".Node1", None),
        ('".node1"', None),
        (".node1,x=y", "node1"),
        (".node1;x=y", "node1"),
    ],
)
def test_route_of_apache_follows_the_first_separator(value: str, server: str | None):
    servers = [Server("node1", app), Server("a", app, cookie="b.node1")]
    assert found(apache(), servers, value) == server


def test_separator_of_apache():
    servers = [Server("a", app), Server("b", app, formerly=["node1"])]
    assert found(apache("ROUTE", separator="!"), servers, "x!node1") == "b"


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"separator": ""}, "accepts.apache ROUTEID: separator='' is no separator: leave it out for a dot"),
        (
            {"name": "JSESSIONID"},
            "accepts.apache JSESSIONID: it is the application's session, which is not deleted: write Route(cook(",
        ),
    ],
)
def test_wrong_options_of_apache_are_named(options: dict[str, str], problem: str):
    with pytest.raises(ConfigError) as caught:
        apache(**options)
    (told,) = caught.value.problems
    assert told.startswith(problem)
