"""hdr: the first value of a header chooses the server."""

import pytest

from sticky_core.balance import Hdr, Uri
from sticky_core.balance.hdr import domain
from sticky_core.errors import ConfigError


@pytest.mark.parametrize(
    "balance, headers, value",
    [
        pytest.param(Hdr("X-User", start=0), ["bob"], "bob", id="alone"),
        pytest.param(Hdr("x-user", start=0), ["bob"], "bob", id="in lower case"),
        pytest.param(Hdr("X-User", start=0), ["bob, alice"], "bob", id="the first of a list"),
        pytest.param(Hdr("X-User", start=0), ["bob", "alice"], "bob", id="the first of two headers"),
        pytest.param(Hdr("X-User", start=0), ['"a,b", c'], '"a,b"', id="quoted, with a comma"),
        pytest.param(Hdr("X-User", start=0), [""], None, id="empty"),
        pytest.param(Hdr("X-User", start=0), ["", "bob"], None, id="empty first"),
        pytest.param(Hdr("X-User", start=0), [",bob"], None, id="an empty first of a list"),
        pytest.param(Hdr("X-User", start=0), [], None, id="absent"),
        pytest.param(Hdr("X-User", True, start=0), ["www.example.com"], "example", id="use_domain_only"),
    ],
)
def test_hdr_hashes_the_first_value_of_the_header(bench, client, balance, headers, value):
    by_header = bench(balance, [1] * 97)
    asking = client(headers=[("x-user", each) for each in headers])
    twice = [by_header.choose((), asking) for _ in range(2)]
    if value is None:
        assert twice == by_header.servers[:2], "requests without one take turns"
    else:
        by_path = bench(Uri(), [1] * 97)
        expected = by_path.number(by_path.choose((), client(path=value)))
        assert [by_header.number(server) for server in twice] == [expected, expected]


@pytest.mark.parametrize(
    "host, label",
    [
        ("www.example.com", "example"),
        ("example.com", "example"),
        ("a.b.example.co.uk", "co"),
        ("localhost", "localhost"),
        (".com", ".com"),
        ("com.", "com"),
        ("a..com", "a."),
        ("", ""),
    ],
)
def test_use_domain_only_hashes_the_label_before_the_top_level_domain(host, label):
    assert domain(host) == label


def test_an_empty_name_of_the_header_is_refused():
    with pytest.raises(ConfigError, match="the name of the header is empty"):
        Hdr("")
