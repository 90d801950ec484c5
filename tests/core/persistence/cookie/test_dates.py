"""Dates in cookies: HAProxy's counts of four seconds in five characters (persistence 1.4)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.persistence.cookie import dates

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
END = 1 << 32  # of what 30 bits of four seconds can say: the year 2106


@pytest.mark.parametrize("unix, text", [(1795279088, "awHI8"), (1700000000, "ZVPxA"), (4, "AAAAB"), (END - 4, "/////")])
def test_haproxy_s_own_dates(unix: int, text: str):
    assert dates.encode(unix) == text
    assert dates.decode(text) == unix


@pytest.mark.parametrize("late", [0, 1, 2, 3])
def test_a_date_is_rounded_up_to_four_seconds(late: int):
    assert dates.decode(dates.encode(1700000000 - late)) == 1700000000
    assert dates.decode(dates.encode(1700000001 + late)) == 1700000004


@given(st.integers(1, END - 4))
def test_a_date_comes_back_rounded_up(unix: int):
    text = dates.encode(unix)
    assert len(text) == 5
    assert set(text) <= set(ALPHABET)
    assert dates.decode(text) == -(-unix // 4) * 4


@given(st.text(ALPHABET, min_size=5, max_size=5).filter(lambda text: text != "AAAAA"))
def test_every_five_characters_but_zero_are_a_date_and_are_written_so(text: str):
    unix = dates.decode(text)
    assert unix is not None
    assert dates.encode(unix) == text


def test_characters_past_the_fifth_are_not_read():
    assert dates.decode("ZVPxA" + "!?|") == 1700000000


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("ZVPx", id="four characters"),
        pytest.param("AAAAA", id="zero"),
        pytest.param("ZVP-A", id="a character of another base64"),
        pytest.param("ZVP A", id="a space"),
        pytest.param("ZVP=A", id="padding"),
        pytest.param("ZVP\xe4A", id="Latin-1"),
        pytest.param("ZV\uff30xA", id="a wide letter"),
        pytest.param("|ZVPx", id="a bar"),
    ],
)
def test_garbage_is_no_date(text: str):
    assert dates.decode(text) is None


@given(st.text(max_size=12))
def test_no_text_is_an_error(text: str):
    unix = dates.decode(text)
    assert unix is None or 0 < unix < END


# -- an id and its dates


@pytest.mark.parametrize(
    "text, parts",
    [
        pytest.param("A", ("A", None, None), id="no dates"),
        pytest.param("A|awHI8", ("A", 1795279088, None), id="last"),
        pytest.param("A|awHI8|ZVPxA", ("A", 1795279088, 1700000000), id="last and first"),
        pytest.param("A|", ("A", None, None), id="a bar and nothing"),
        pytest.param("A|awHI", ("A", None, None), id="a short date"),
        pytest.param("A|awHI|ZVPxA", ("A", None, 1700000000), id="a short last before a first"),
        pytest.param("A||ZVPxA", ("A", None, 1700000000), id="no last before a first"),
        pytest.param("A|awHI8|", ("A", 1795279088, None), id="a second bar and nothing"),
        pytest.param("A|awHI8|ZVP", ("A", 1795279088, None), id="a short first"),
        pytest.param("A|awHI8xyz|ZVPxAxyz", ("A", 1795279088, 1700000000), id="more characters after each"),
        pytest.param("A|awHI8|ZVPxA|more", ("A", 1795279088, 1700000000), id="a third bar"),
        pytest.param("|awHI8", ("", 1795279088, None), id="no id"),
        pytest.param("", ("", None, None), id="nothing"),
    ],
)
def test_an_id_is_what_stands_before_the_first_bar(text: str, parts: tuple[str, int | None, int | None]):
    assert dates.split_dates(text) == parts


@given(
    st.text("abcXYZ019.@:", max_size=10),
    st.none() | st.integers(1, END // 4 - 1).map(lambda units: units * 4),
    st.none() | st.integers(1, END // 4 - 1).map(lambda units: units * 4),
)
def test_an_id_with_dates_comes_apart_again(server_id: str, last: int | None, first: int | None):
    text = dates.add_dates(server_id, last, first)
    assert dates.split_dates(text) == (server_id, last, first if last is not None else None)
    assert len(text) <= len(server_id) + dates.DATES_LENGTH
