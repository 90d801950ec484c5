"""What of a request names the server: source, uri, url_param, hdr, hash."""

from typing import Any, cast

import pytest

from sticky_core.balance import Hash, Hdr, Source, Uri, UrlParam
from sticky_core.balance.hdr import domain
from sticky_core.errors import ConfigError
from sticky_core.samples.request import hdr

# What HAProxy 2.6 answered over four servers of weights 1 2 3 4.
ADDRESSES = [f"10.{n * 37 % 256}.{n * 91 % 256}.{n * 13 % 256}" for n in range(20)]
ADDRESSES += [f"2001:db8:{n * 4711 % 65536:x}::{n * 31:x}" for n in range(20)]
HAPROXY = {
    "map-based": "1244344412344333441214343413333232343214",
    "map-based sdbm avalanche": "3334244444414433342231443342244421314423",
    "consistent": "3444424213443443444442442431431111432324",
    "consistent sdbm": "3333333333333333333312343333234444334232",
}


@pytest.mark.parametrize("hash_type, chosen", HAPROXY.items())
def test_source_chooses_as_haproxy_does(bench, client, hash_type, chosen):
    on = bench(Source(hash_type=hash_type), (1, 2, 3, 4))
    assert on.chosen(*(client(src=address) for address in ADDRESSES)) == chosen


def test_source_does_not_use_the_hash_function(bench, client):
    clients = [client(src=address) for address in ADDRESSES]
    assert bench(Source(hash_type="map-based djb2"), (1, 2, 3, 4)).chosen(*clients) == HAPROXY["map-based"]


@pytest.mark.parametrize("src", ["", "unix:", "not an address"])
def test_source_takes_turns_for_requests_without_an_address(bench, client, src):
    assert bench(Source(start=0), (1, 1, 1)).chosen(*[client(src=src)] * 6) == "123123"


def test_source_takes_the_address_from_another_sample(bench, client):
    on = bench(Source(hdr("x-real-ip")), (1, 2, 3, 4))
    clients = [client(headers=[("x-real-ip", address)]) for address in ADDRESSES]
    assert on.chosen(*clients) == HAPROXY["map-based"]


@pytest.mark.parametrize(
    "balance, path, query, key",
    [
        pytest.param(Uri(), "/a/b", "x=1", "/a/b", id="up to the query"),
        pytest.param(Uri(path_only=True), "/a/b", "x=1", "/a/b", id="path-only"),
        pytest.param(Uri(whole=True), "/a/b", "x=1", "/a/b?x=1", id="whole"),
        pytest.param(Uri(whole=True), "/a/b", "", "/a/b", id="whole, without a query"),
        pytest.param(Uri(len=4), "/a/bcd", "", "/a/b", id="len"),
        pytest.param(Uri(len=40), "/a/bcd", "", "/a/bcd", id="len beyond the end"),
        pytest.param(Uri(len=6, whole=True), "/a/b", "x=1", "/a/b?x", id="len of the whole"),
        pytest.param(Uri(depth=1), "/a/b/c", "", "/a", id="depth 1"),
        pytest.param(Uri(depth=2), "/a/b/c", "", "/a/b", id="depth 2"),
        pytest.param(Uri(depth=2), "/a/b/", "", "/a/b", id="depth, and a slash at the end"),
        pytest.param(Uri(depth=2), "/a", "", "/a", id="depth beyond the end"),
        pytest.param(Uri(depth=1), "//a/b", "", "/", id="depth counts empty directories"),
        pytest.param(Uri(depth=2, whole=True), "/a", "b=/c/d", "/a?b=/c", id="depth counts slashes of the query"),
        pytest.param(Uri(depth=2, len=3), "/a/b/c", "", "/a/", id="len before depth"),
        pytest.param(Uri(), "/%2F%C3%A9", "", "/%2F%C3%A9", id="as it was sent"),
    ],
)
def test_uri_hashes_the_configured_part_of_the_uri(client, balance, path, query, key):
    assert balance.key(client(path=path, query=query)) == key


@pytest.mark.parametrize("wrong", [{"len": -1}, {"depth": -1}])
def test_a_length_or_depth_below_0_is_refused(wrong):
    with pytest.raises(ConfigError, match="must not be below 0"):
        Uri(**wrong)


@pytest.mark.parametrize(
    "query, value",
    [
        pytest.param("user=bob", "bob", id="alone"),
        pytest.param("a=1&user=bob&b=2", "bob", id="among others"),
        pytest.param("user=bob&user=alice", "bob", id="the first of two"),
        pytest.param("superuser=alice&user=bob", "bob", id="not the end of another name"),
        pytest.param("user=bob;x=1", "bob;x=1", id="a semicolon is no separator"),
        pytest.param("user=b%6Fb", "b%6Fb", id="as it was sent"),
        pytest.param("user=a=b", "a=b", id="with an equals sign"),
        pytest.param("user=", "", id="empty"),
        pytest.param("User=bob", None, id="another case"),
        pytest.param("user", None, id="without its equals sign"),
        pytest.param("superuser=alice", None, id="absent"),
        pytest.param("", None, id="no query"),
    ],
)
def test_url_param_hashes_the_value_of_the_parameter(bench, client, query, value):
    by_param = bench(UrlParam("user", start=0), [1] * 97)
    twice = [by_param.choose((), client(query=query)) for _ in range(2)]
    if value is None:
        assert twice == by_param.servers[:2], "requests without one take turns"
    else:
        by_path = bench(Uri(), [1] * 97)
        expected = by_path.number(by_path.choose((), client(path=value)))
        assert [by_param.number(server) for server in twice] == [expected, expected]


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
        pytest.param(Hash(hdr("X-User"), start=0), ["bob, alice"], "alice", id="hash uses the sample: the last"),
        pytest.param(Hash(hdr("X-User"), start=0), [""], "", id="hash uses an empty one"),
        pytest.param(Hash(hdr("X-User"), start=0), [], None, id="hash without the sample"),
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


@pytest.mark.parametrize("key", ["bob", b"bob", 7, "naïve", "名前"], ids=str)
def test_hash_accepts_every_type_of_key(bench, client, key):
    on = bench(Hash(lambda request: key), [1] * 97)
    assert on.choose((), client(1)) is on.choose((), client(2))


def test_hash_treats_text_and_bytes_alike(bench, client):
    one, other = bench(Hash(lambda request: "\xe9"), [1] * 97), bench(Hash(lambda request: b"\xe9"), [1] * 97)
    assert one.number(one.choose((), client())) == other.number(other.choose((), client()))


def test_a_key_that_is_too_long_for_the_cache_is_hashed(bench, client):
    on = bench(Uri(), [1] * 97)
    long = client(path="/" + "x" * 5000)
    assert on.choose((), long) is on.choose((), long)


@pytest.mark.parametrize(
    "wrong, problem",
    [
        (lambda: Hash(cast(Any, "src")), "hash: 'src' is not a sample"),
        (lambda: Hdr(""), "the name of the header is empty"),
        (lambda: UrlParam(""), "the name of the parameter is empty"),
    ],
)
def test_an_empty_name_is_refused(wrong, problem):
    with pytest.raises(ConfigError, match=problem):
        wrong()
