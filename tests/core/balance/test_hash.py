"""hash: a sample of the request chooses the server."""

from typing import Any, cast

import pytest

from sticky_core.balance import Hash, Uri
from sticky_core.errors import ConfigError
from sticky_core.samples.request import hdr


@pytest.mark.parametrize(
    "balance, headers, value",
    [
        pytest.param(Hash(hdr("X-User"), start=0), ["bob, alice"], "alice", id="hash uses the sample: the last"),
        pytest.param(Hash(hdr("X-User"), start=0), [""], "", id="hash uses an empty one"),
        pytest.param(Hash(hdr("X-User"), start=0), [], None, id="hash without the sample"),
    ],
)
def test_hash_hashes_the_sample(bench, client, balance, headers, value):
    by_header = bench(balance, [1] * 97)
    asking = client(headers=[("x-user", each) for each in headers])
    twice = [by_header.choose((), asking) for _ in range(2)]
    if value is None:
        assert twice == by_header.servers[:2], "requests without one take turns"
    else:
        by_path = bench(Uri(), [1] * 97)
        expected = by_path.number(by_path.choose((), client(path=value)))
        assert [by_header.number(server) for server in twice] == [expected, expected]


@pytest.mark.parametrize("key", ["bob", b"bob", 7, "naïve", "名前"], ids=str)
def test_hash_accepts_every_type_of_key(bench, client, key):
    on = bench(Hash(lambda request: key), [1] * 97)
    assert on.choose((), client(1)) is on.choose((), client(2))


def test_hash_treats_text_and_bytes_alike(bench, client):
    one, other = bench(Hash(lambda request: "\xe9"), [1] * 97), bench(Hash(lambda request: b"\xe9"), [1] * 97)
    assert one.number(one.choose((), client())) == other.number(other.choose((), client()))


def test_a_key_that_is_no_sample_is_refused():
    with pytest.raises(ConfigError, match="hash: 'src' is not a sample"):
        Hash(cast(Any, "src"))
