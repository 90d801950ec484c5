"""XXH64, against HAProxy's recorded dynamic cookies (persistence 1.9) and against the compiled original."""

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.persistence.xxh64 import dynamic_id, xxh64


@pytest.mark.parametrize(
    "host, port, cookie",
    [
        ("127.0.0.1", 8080, "1f203ad55f83ddc6"),
        ("127.0.0.2", 8080, "071c44d0a513ca53"),
        ("::1", 8080, "2d028ff8f1d2852e"),
        ("10.0.0.1", 80, "3865d495adfe7206"),
    ],
)
def test_haproxy_s_own_dynamic_cookies(host: str, port: int, cookie: str):
    assert dynamic_id("s3cret", host, port) == cookie


def test_a_dynamic_id_depends_on_the_key_the_address_and_the_port():
    several = {
        dynamic_id(*what)
        for what in (("k", "10.0.0.1", 80), ("l", "10.0.0.1", 80), ("k", "10.0.0.2", 80), ("k", "10.0.0.1", 81))
    }
    assert len(several) == 4
    assert all(len(each) == 16 for each in several)


def test_one_address_has_one_id_however_it_is_spelled():
    assert dynamic_id("k", "0:0:0:0:0:0:0:1", 80) == dynamic_id("k", "::1", 80)


@pytest.mark.parametrize("host", ["localhost", "example.org", "10.0.0", "", "10.0.0.1/8"])
def test_a_name_is_no_address(host: str):
    with pytest.raises(ValueError):
        dynamic_id("k", host, 80)


@pytest.mark.parametrize("size", [*range(70), 255, 256, 257, 4096])
def test_every_length_takes_the_original_s_way(size: int):
    data = bytes(n * 37 % 251 for n in range(size))
    assert xxh64(data) == xxhash.xxh64_intdigest(data)


@given(st.binary(max_size=300))
def test_any_bytes_have_the_original_s_hash(data: bytes):
    assert xxh64(data) == xxhash.xxh64_intdigest(data)


@given(st.text(max_size=40), st.ip_addresses(), st.integers(0, 65535))
def test_a_dynamic_id_is_the_hash_of_key_address_and_port(key: str, host: object, port: int):
    packed = getattr(host, "packed", b"")
    assert dynamic_id(key, str(host), port) == xxhash.xxh64_hexdigest(key.encode() + packed + port.to_bytes(4, "big"))
