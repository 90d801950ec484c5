"""The cache of two generations: bounded, and what is used stays."""

from sticky_core.cache import TwoGenerationCache


def test_it_never_holds_more_than_twice_its_size():
    cache: TwoGenerationCache[int, int] = TwoGenerationCache(4)
    for number in range(100):
        cache.put(number, number)
        assert len(cache) <= 8


def test_it_holds_at_least_the_latest_items_up_to_its_size():
    cache: TwoGenerationCache[int, int] = TwoGenerationCache(4)
    for number in range(100):
        cache.put(number, -number)
    assert [cache.get(number) for number in range(96, 100)] == [-96, -97, -98, -99]


def test_an_item_that_is_used_stays():
    cache: TwoGenerationCache[int, str] = TwoGenerationCache(4)
    cache.put(-1, "used")
    for number in range(100):
        cache.put(number, "not used again")
        assert cache.get(-1) == "used"
    assert cache.get(0) is None


def test_an_unknown_key_has_no_value():
    cache: TwoGenerationCache[int, str] = TwoGenerationCache(4)
    assert cache.get(1) is None
    assert len(cache) == 0


def test_an_item_is_found_in_the_younger_generation_without_a_call():
    cache: TwoGenerationCache[int, str] = TwoGenerationCache(2)
    cache.put(1, "one")
    assert cache.young == {1: "one"}
