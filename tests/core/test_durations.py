"""Durations as people write them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.durations import LONGEST, problems_of_duration, seconds


@pytest.mark.parametrize(
    "duration, expected",
    [
        pytest.param(30, 30, id="a whole number"),
        pytest.param(0.25, 0.25, id="a fraction"),
        pytest.param(0, 0, id="zero"),
        pytest.param("30", 30, id="text without a unit is seconds"),
        pytest.param("0", 0, id="zero as text"),
        pytest.param("1500us", 0.0015, id="microseconds"),
        pytest.param("250ms", 0.25, id="milliseconds"),
        pytest.param("30s", 30, id="seconds"),
        pytest.param("15m", 900, id="minutes"),
        pytest.param("8h", 28_800, id="hours"),
        pytest.param("2d", 172_800, id="days"),
        pytest.param("007s", 7, id="leading zeros"),
        pytest.param("2147483647s", LONGEST, id="the longest"),
    ],
)
def test_numbers_are_seconds_and_text_has_a_unit(duration: float | str, expected: float):
    assert seconds(duration) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "s",
        "30 s",
        " 30s",
        "30s\n",
        "30S",
        "30sec",
        "1.5h",
        "-5",
        "+5",
        "1h30m",
        "1e3",
        "٣s",
        "²",
        "1_000",
        "0x10",
        "inf",
        "nan",
        "30w",
    ],
)
def test_other_text_is_refused_with_how_to_write_it(text: str):
    with pytest.raises(ValueError) as refused:
        seconds(text)
    assert repr(text) in str(refused.value)
    assert "'30s'" in str(refused.value)


@pytest.mark.parametrize("thing", [True, False, None, [], [30], b"30s", {}], ids=repr)
def test_what_is_neither_number_nor_text_is_refused(thing: object):
    with pytest.raises(ValueError):
        seconds(thing)  # type: ignore[arg-type] # what a caller without types may hand over


@given(
    st.integers(0, LONGEST),
    st.sampled_from([("us", 1e-6), ("ms", 1e-3), ("s", 1), ("m", 60), ("h", 3600), ("d", 86400)]),
)
def test_a_unit_multiplies(number: int, unit: tuple[str, float]):
    name, times = unit
    assert seconds(f"{number}{name}") == pytest.approx(number * times)


@pytest.mark.parametrize(
    "duration, bounds, problem",
    [
        pytest.param(None, {"is_optional": True}, None, id="not given"),
        pytest.param(
            None,
            {},
            "wait: None is not a duration: write seconds as a number, or text such as '30s' or '8h'",
            id="not given, where one is needed",
        ),
        pytest.param("1ms", {}, None, id="above 0"),
        pytest.param(0, {}, "wait 0 is not above 0", id="no time"),
        pytest.param(float("nan"), {}, "wait nan is not above 0", id="not a number"),
        pytest.param("0s", {"allows_zero": True}, None, id="no time, where that is allowed"),
        pytest.param(-1, {"allows_zero": True}, "wait -1 is below 0", id="below 0"),
        pytest.param("1m", {"at_most": 60}, None, id="the most"),
        pytest.param("61s", {"at_most": 60}, "wait '61s' is not above 0 and at most 60 s", id="more than the most"),
        pytest.param(0.5, {"at_least": 1, "at_most": 9}, "wait 0.5 is not within 1..9 seconds", id="out of bounds"),
        pytest.param(9, {"at_least": 1, "at_most": 9}, None, id="within bounds"),
        pytest.param(
            float("nan"), {"at_least": 1, "at_most": 9}, "wait nan is not within 1..9 seconds", id="never within bounds"
        ),
        pytest.param(
            "soon",
            {"allows_zero": True},
            "wait: 'soon' is not a duration: write seconds as a number, or text such as '30s' or '8h'",
            id="no duration",
        ),
    ],
)
def test_a_problem_names_the_option(duration: float | str | None, bounds: dict[str, Any], problem: str | None):
    assert list(problems_of_duration("wait", duration, **bounds)) == ([problem] if problem is not None else [])
