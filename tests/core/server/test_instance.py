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


def test_a_life_is_eleven_digits_of_milliseconds_and_five_of_chance():
    life_text = begun(1_700_000_000.123)
    assert int(life_text[:11], 16) == 1_700_000_000_123
    assert len(life_text) == 16
    assert int(life_text[11:], 16) == random.Random(1).getrandbits(20)


def test_two_lives_of_one_millisecond_are_told_apart():
    assert begun(5.0, seed=1) != begun(5.0, seed=2)


def test_the_same_clock_and_chance_begin_the_same_life():
    assert begun(5.0) == begun(5.0)


@pytest.mark.parametrize(
    "one, other, is_younger",
    [
        pytest.param(begun(6.0), begun(5.0), True, id="later"),
        pytest.param(begun(5.001), begun(5.0), True, id="a millisecond later"),
        pytest.param(begun(5.0), begun(6.0), False, id="earlier"),
        pytest.param(begun(5.0, 2), begun(5.0, 1), False, id="in the same millisecond nobody can tell"),
        pytest.param(begun(5.0, 1), begun(5.0, 2), False, id="whichever chance has the higher number"),
        pytest.param(begun(5.0), begun(5.0), False, id="the same"),
        pytest.param("", begun(5.0), False, id="none"),
    ],
)
def test_a_life_is_younger_if_it_began_after_the_other(one: str, other: str, is_younger: bool):
    assert life.began_after(one, other) is is_younger


@given(st.floats(0, 1e10), st.floats(0, 1e10))
def test_lives_are_ordered_as_their_beginnings_are(one: float, other: float):
    assert life.began_after(begun(one), begun(other)) is (int(one * 1000) > int(other * 1000))


@pytest.mark.parametrize(
    "server_id, life_text, text",
    [
        pytest.param("r1", "abc", "r1@abc", id="an id and a life"),
        pytest.param("r1", "", "r1", id="an id without a life"),
    ],
)
def test_a_mark_carries_the_life_after_an_at_sign(server_id: str, life_text: str, text: str):
    assert life.id_with_instance(server_id, life_text) == text
    assert life.split_instance(text) == (server_id, life_text)


@given(st.text("abc019.:-_", max_size=12), st.floats(0, 1e10))
def test_what_was_marked_comes_apart_again(server_id: str, wall: float):
    text = life.id_with_instance(server_id, begun(wall))
    assert life.split_instance(text) == (server_id, begun(wall))
    assert len(text) == len(server_id) + life.SUFFIX_LENGTH
    assert cookies.is_value(text)


@pytest.mark.parametrize("text, parts", [("", ("", "")), ("@", ("", "")), ("a@b@c", ("a@b", "c"))])
def test_the_last_at_sign_counts(text: str, parts: tuple[str, str]):
    assert life.split_instance(text) == parts
