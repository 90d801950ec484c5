"""Misspelt options and words are answered with the nearest one that exists."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

from sticky_core.errors import ConfigError
from sticky_core.options.spelling import UnknownOption, name_unknown_options, named_options, nearest, problem_of_word


@pytest.mark.parametrize(
    "given, expected",
    [
        pytest.param("leastcon", "leastconn", id="a letter too few"),
        pytest.param("LeastConn", "leastconn", id="capitals"),
        pytest.param("least-conn", "leastconn", id="a hyphen"),
        pytest.param("static_rr", "static-rr", id="an underscore in the place of a hyphen"),
        pytest.param("sticky", None, id="nothing alike"),
        pytest.param("", None, id="nothing"),
        pytest.param(7, None, id="a number"),
        pytest.param(None, None, id="None"),
    ],
)
def test_nearest_word_is_found_whatever_case_and_hyphens(given: object, expected: str | None):
    assert nearest(given, ["leastconn", "static-rr", "random"]) == expected


def test_problem_of_a_word_names_all_words_and_the_nearest():
    assert problem_of_word("samesite", "lax", ["Lax", "Strict"]) == "samesite 'lax' is none of Lax, Strict: write 'Lax'"
    assert problem_of_word("samesite", 7, ["Lax"], ", or None") == "samesite 7 is none of Lax, or None"


@name_unknown_options
@dataclass(frozen=True, slots=True)
class Options:
    weight: int = 1
    backup: bool = False

    @classmethod
    def named(cls, *, name: str) -> Options:
        return cls(len(name))

    @classmethod
    def open(cls, **options: Any) -> Options:
        return cls(**options)


@name_unknown_options
class NoOptions:
    def __init__(self) -> None: ...


class Inheriting(Options):
    """A class with the constructor of another."""


@named_options
def preset(*, duration: int = 0) -> int:
    return duration


#: for calls with the mistakes that type checkers find
untyped: Any = SimpleNamespace(
    Options=Options, NoOptions=NoOptions, Inheriting=Inheriting, preset=preset, replace=replace
)


@pytest.mark.parametrize(
    "call, message",
    [
        pytest.param(lambda: untyped.Options(wieght=2), "Options has no option wieght: write weight", id="misspelt"),
        pytest.param(
            lambda: untyped.Options(1, colour=2),
            "Options has no option colour: its options are backup, weight",
            id="unknown",
        ),
        pytest.param(
            lambda: untyped.Options.named(nam="a"), "Options.named has no option nam: write name", id="class method"
        ),
        pytest.param(
            lambda: untyped.Options.open(wieght=2), "Options has no option wieght: write weight", id="passed on"
        ),
        pytest.param(
            lambda: untyped.replace(Options(), wieght=2), "Options has no option wieght: write weight", id="replace"
        ),
        pytest.param(lambda: untyped.NoOptions(a=1), "NoOptions has no option a: it has none", id="no options"),
        pytest.param(
            lambda: untyped.Inheriting(wieght=2), "Options has no option wieght: write weight", id="inherited"
        ),
        pytest.param(lambda: untyped.preset(duraton=2), "preset has no option duraton: write duration", id="function"),
    ],
)
def test_unknown_option_is_an_error_with_the_nearest_one(call: Any, message: str):
    with pytest.raises(UnknownOption) as raised:
        call()
    assert str(raised.value) == message
    assert isinstance(raised.value, ConfigError) and isinstance(raised.value, TypeError)


def test_all_unknown_options_are_reported_at_once():
    with pytest.raises(UnknownOption) as raised:
        Options(wieght=2, bakup=True)  # type: ignore[call-arg]  # the mistakes
    assert raised.value.problems == (
        "Options has no option wieght: write weight",
        "Options has no option bakup: write backup",
    )


def test_options_that_exist_and_the_signature_are_as_before():
    assert Options(2, backup=True) == Options(weight=2, backup=True) == replace(Options(2), backup=True)
    assert (Options.named(name="abc").weight, preset(duration=3)) == (3, 3)
    assert list(inspect.signature(Options).parameters) == ["weight", "backup"]
    assert list(inspect.signature(Options, follow_wrapped=False).parameters) == ["weight", "backup"]
