"""uri: the path of the request chooses the server."""

import pytest

from sticky_core.balance import Uri
from sticky_core.errors import ConfigError


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


def test_a_key_that_is_too_long_for_the_cache_is_hashed(bench, client):
    on = bench(Uri(), [1] * 97)
    long = client(path="/" + "x" * 5000)
    assert on.choose((), long) is on.choose((), long)
