"""The table of modes: one row for each, which says what the mode does."""

from dataclasses import fields
from typing import get_args

import pytest

from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.cookie.modes import MODES, Mode, modes_with

OPTIONS = {each.name for each in fields(Cookie)} - {"name", "mode"}


def test_every_mode_has_a_row():
    assert set(MODES) == set(get_args(Mode))


@pytest.mark.parametrize("mode", get_args(Mode))
def test_options_of_a_mode_are_options_of_a_cookie(mode: Mode):
    assert MODES[mode].options <= OPTIONS


def test_every_option_has_an_effect_in_some_mode():
    assert {option for option in OPTIONS if modes_with(option)} == OPTIONS


@pytest.mark.parametrize(
    "option, modes",
    [
        ("signed", ["insert", "rewrite", "prefix", "passive"]),
        ("secret", ["insert", "rewrite", "prefix"]),
        ("maxidle", ["insert", "rewrite"]),
        ("indirect", ["insert", "prefix", "passive"]),
        ("samesite", ["insert"]),
    ],
)
def test_modes_in_which_an_option_has_an_effect(option: str, modes: list[str]):
    assert modes_with(option) == modes


@pytest.mark.parametrize(
    "mode, value", [("insert", None), ("rewrite", "r1"), ("prefix", "r1~application"), ("passive", None)]
)
def test_value_of_a_cookie_that_the_application_sets(mode: Mode, value: str | None):
    edit = MODES[mode].edit_value
    assert (edit("r1", "application") if edit is not None else None) == value
