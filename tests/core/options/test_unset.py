"""An option that was not given."""

from sticky_core.options.unset import UNSET, value_or


def test_an_option_that_was_not_given_has_its_default():
    assert value_or(UNSET, "default") == "default"


def test_an_option_that_was_given_has_its_value_even_if_that_is_false():
    assert value_or(None, "default") is None
    assert value_or(False, True) is False


def test_it_is_shown_as_what_it_is():
    assert repr(UNSET) == "not given"
