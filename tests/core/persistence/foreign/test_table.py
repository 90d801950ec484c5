"""Values that are listed, each with its server."""

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.errors import ConfigError
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.foreign import table
from tests.core.persistence.foreign.clients import SECRET, at, found

SERVERS = ("http://10.0.0.1", "http://10.0.0.2")


def test_value_names_its_server():
    cookie = table("ARRAffinity", {"4a5b": "s1", "6C7d": "s2", "other": "s2"})
    assert [found(cookie, at(*SERVERS), value) for value in ("4a5b", "6C7d", "other", "6c7d", '"4a5b"', "s1")] == [
        "s1",
        "s2",
        "s2",
        None,
        None,
        None,
    ]


def test_case_can_be_ignored():
    cookie = table("ARRAffinity", {"4a5b": "s1", "6C7d": "s2"}, ignore_case=True)
    assert [found(cookie, at(*SERVERS), value) for value in ("4A5B", "6c7D", "x")] == ["s1", "s2", None]


@pytest.mark.parametrize(
    "servers, problem",
    [
        ({"a": "s3", "b": "elsewhere"}, "backend web: accepts.table ARR: there is no server 'elsewhere', but s1, s2"),
        ({"a": "S1"}, "backend web: accepts.table ARR: there is no server 'S1': write 's1'"),
    ],
)
def test_unknown_server_is_reported_with_those_that_there_are(servers: dict[str, str], problem: str):
    cookie = Cookie("NEW", secret=SECRET, accepts=[table("ARR", servers)])
    with pytest.raises(ConfigError) as caught:
        Backend("web", at(*SERVERS), persist=cookie)
    assert problem in caught.value.problems
    assert len(caught.value.problems) == len(servers)


@pytest.mark.parametrize(
    "servers, problem",
    [
        ([], "accepts.table ARR: [] is no mapping: write {'value': 'name of the server'}"),
        ({}, "accepts.table ARR: the mapping is empty: write"),
        ({"a": 1}, "accepts.table ARR: {'a': 1} does not name a server by a text: write"),
        ({1: "a"}, "accepts.table ARR: {1: 'a'} does not name a server by a text: write"),
        ({"": "a"}, "accepts.table ARR: {'': 'a'} does not name a server by a text: write"),
        ({"a": "s1", "A": "s2"}, "accepts.table ARR: with ignore_case some of the values are the same"),
    ],
)
def test_wrong_mapping_is_named(servers: dict[str, str], problem: str):
    with pytest.raises(ConfigError) as caught:
        table("ARR", servers, ignore_case=True)
    (told,) = caught.value.problems
    assert told.startswith(problem)
