"""What samples return and share: keys, lists, addresses."""

from ipaddress import ip_address

import pytest

from sticky_core.samples.values import key_bytes, split_list


@pytest.mark.parametrize(
    "values, parts",
    [
        ([], []),
        ([""], [""]),
        (["a,,b"], ["a", "", "b"]),
        ([" a\t, b "], ["a", "b"]),
        (['"a,b",c'], ['"a,b"', "c"]),
        ([r'"a\",b",c'], [r'"a\",b"', "c"]),
        (['"a,b'], ['"a,b']),
        (["a", "b"], ["a", "b"]),
    ],
    ids=repr,
)
def test_a_list_is_divided_by_commas_outside_of_quotes(values, parts):
    assert split_list(values) == parts


@pytest.mark.parametrize(
    "key, data",
    [
        ("a\xe9", b"a\xe9"),
        ("名", "名".encode()),
        (b"\0", b"\0"),
        (7, b"\0\0\0\0\0\0\0\7"),
        (-1, b"\xff" * 8),
        (ip_address("10.0.0.1"), b"\x0a\0\0\1"),
        (ip_address("::1"), b"\0" * 15 + b"\1"),
    ],
    ids=repr,
)
def test_a_key_is_hashed_as_haproxy_has_it_in_bytes(key, data):
    assert key_bytes(key) == data
