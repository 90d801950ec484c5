"""XXH32 against the common package."""

import xxhash
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.balance.xxh32 import xxh32


@given(st.binary(max_size=100), st.integers(0, 2**32 - 1))
def test_hashes_are_those_of_the_specification(data, seed):
    assert xxh32(data, seed) == xxhash.xxh32_intdigest(data, seed)
