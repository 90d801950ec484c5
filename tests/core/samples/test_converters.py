"""Converters make a sample of a sample."""

from hashlib import sha256
from ipaddress import ip_address

import pytest

from sticky_core.samples.converters import digest, field, ipmask, lower, prefix
from sticky_core.samples.request import (
    Sample,
)
from sticky_core.samples.values import Key
from tests.core.samples.requests import make_request


def constant(key: Key | None) -> Sample:
    """Return a sample that always returns `key`."""
    return lambda request: key


@pytest.mark.parametrize(
    "sample, value",
    [
        (lower(constant("\xc9ABC")), "\xc9abc"),
        (lower(constant("ÀB名")), "Àb名"),
        (lower(constant(ip_address("65.66.67.68"))), "65.66.67.68"),
        (lower(constant(7)), "7"),
        (lower(constant(b"AB")), "ab"),
        (prefix(constant("abcdef"), 3), "abc"),
        (prefix(constant("ab"), 3), "ab"),
        (prefix(constant(12345), 3), "123"),
        (digest(constant("abc")), sha256(b"abc").hexdigest()),
        (digest(constant(ip_address("10.0.0.1"))), sha256(b"\x0a\0\0\1").hexdigest()),
        (field(constant("/a/b"), 1, "/"), ""),
        (field(constant("/a/b"), 2, "/"), "a"),
        (field(constant("/a/b"), 3, "/"), "b"),
        (field(constant("/a/b"), 4, "/"), None),
        (field(constant("/a/b"), -1, "/"), "b"),
        (field(constant("/a/b"), -4, "/"), None),
        (field(constant("a-b]c^d"), 3, "]-^"), "c"),
        (ipmask(constant(ip_address("10.1.2.3")), 24), ip_address("10.1.2.0")),
        (ipmask(constant(ip_address("10.1.2.3")), 0), ip_address("0.0.0.0")),
        (ipmask(constant(ip_address("10.1.2.3"))), ip_address("10.1.2.3")),
        (ipmask(constant(ip_address("2001:db8::1:2")), 24, 64), ip_address("2001:db8::")),
        (ipmask(constant(ip_address("2001:db8::1:2")), 24), ip_address("2001:db8::1:2")),
        (ipmask(constant(ip_address("::ffff:10.1.2.3")), 24, 64), ip_address("10.1.2.0")),
        (ipmask(constant("10.1.2.3"), 16), ip_address("10.1.0.0")),
        (ipmask(constant("fe80::1%eth0"), 16, 10), ip_address("fe80::")),
        (ipmask(constant("no address"), 16), None),
        (ipmask(constant(""), 16), None),
        *((converter(constant(None)), None) for converter in (lower, digest, ipmask)),
        (prefix(constant(None), 3), None),
        (field(constant(None), 1, "/"), None),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_converters_make_a_sample_of_a_sample(sample, value):
    assert sample(make_request()) == value
