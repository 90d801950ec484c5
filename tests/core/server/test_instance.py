"""Lives: which memory a mark was made for, and whether one memory began after another."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.clock import ManualClock
from sticky_core.http import cookies
from sticky_core.server import instance as life


def begun(wall: float, seed: int = 1) -> str:
    return life.new_instance(ManualClock(wall), random.Random(seed))


def test_instance_is_eleven_digits_of_milliseconds_and_five_random_ones():
    instance = begun(1_700_000_000.123)
    assert int(instance[:11], 16) == 1_700_000_000_123
    assert len(instance) == 16
    assert int(instance[11:], 16) == random.Random(1).getrandbits(20)


def test_two_instances_of_one_millisecond_differ():
    assert begun(5.0, seed=1) != begun(5.0, seed=2)


def test_same_clock_and_rng_make_the_same_instance():
    assert begun(5.0) == begun(5.0)


@pytest.mark.parametrize(
    "one, other, is_younger",
    [
        pytest.param(begun(6.0), begun(5.0), True, id="later"),
        pytest.param(begun(5.001), begun(5.0), True, id="a millisecond later"),
        pytest.param(begun(5.0), begun(6.0), False, id="earlier"),
        pytest.param(begun(5.0, 2), begun(5.0, 1), False, id="in the same millisecond the order is unknown"),
        pytest.param(begun(5.0, 1), begun(5.0, 2), False, id="whichever chance has the higher number"),
        pytest.param(begun(5.0), begun(5.0), False, id="the same"),
        pytest.param("", begun(5.0), False, id="none"),
    ],
)
def test_began_after_compares_times(one: str, other: str, is_younger: bool):
    assert life.began_after(one, other) is is_younger


@given(st.floats(0, 1e10), st.floats(0, 1e10))
def test_instances_are_ordered_by_time(one: float, other: float):
    assert life.began_after(begun(one), begun(other)) is (int(one * 1000) > int(other * 1000))


@pytest.mark.parametrize(
    "server_id, instance, text",
    [
        pytest.param("r1", "abc", "r1@abc", id="an id and an instance"),
        pytest.param("r1", "", "r1", id="an id without an instance"),
    ],
)
def test_mark_carries_the_instance_after_an_at_sign(server_id: str, instance: str, text: str):
    assert life.id_with_instance(server_id, instance) == text
    assert life.split_instance(text) == (server_id, instance)


@given(st.text("abc019.:-_", max_size=12), st.floats(0, 1e10))
def test_id_and_instance_are_split_again(server_id: str, wall: float):
    text = life.id_with_instance(server_id, begun(wall))
    assert life.split_instance(text) == (server_id, begun(wall))
    assert len(text) == len(server_id) + life.SUFFIX_LENGTH
    assert cookies.is_value(text)


@pytest.mark.parametrize("text, parts", [("", ("", "")), ("@", ("", "")), ("a@b@c", ("a@b", "c"))])
def test_last_at_sign_counts(text: str, parts: tuple[str, str]):
    assert life.split_instance(text) == parts
