"""One field of a JSON document, read from its beginning and no further."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.samples.json_reader import read_field
from tests.counting import count_calls


@pytest.mark.parametrize(
    "document, value",
    [
        ('{"a": "x"}', "x"),
        (' { "a" : "x" , "b": 1}', "x"),
        ('{"a": "x", this is never read', "x"),
        ('{"b": {"a": 1}, "c": ["a", 2], "d": "a", "a": 7}', 7),
        ('{"\\u0061": -1.5e3}', -1500.0),
        ('{"a": "\\u00e9\\n"}', "\xe9\n"),
        ('\ufeff{"a": 1}', 1),
        ('{"a": 1, "a": 2}', 1),
        ('{"b": 1}', None),
        ("{}", None),
        ('{"a": true}', None),
        ('{"a": null}', None),
        ('{"a": [1]}', None),
        ('{"a": {"a": 1}}', None),
        ("[]", None),
        ("7", None),
    ],
)
def test_field_is_a_text_or_number_of_the_outermost_object(document: str, value: object):
    assert read_field(document.encode(), ["a"]) == value


def test_names_lead_to_a_field_of_an_inner_object():
    document = b'{"a": {"x": {"c": 1}, "b": {"c": 2}}, "b": {"c": 3}}'
    assert read_field(document, ["a", "b", "c"]) == 2
    assert read_field(document, ["b", "c"]) == 3
    assert read_field(document, ["b", "c", "d"]) is None


@pytest.mark.parametrize(
    "document",
    [
        *(
            "",
            " ",
            "{",
            '{"',
            '{"a',
            '{"a"',
            '{"a":',
            '{"a": "x',
            '{"a": "x"',
            '{"a": 1',
            '{"a": 1.',
            '{"a": 1e',
            '{"a": 1 ',
        ),
        *("{a: 1}", '{"a" 1}', '{"a": x}', '{"a": 1 "b": 2}', '{"b": 1 "a": 2}', "{1: 2}", '{"b": [, "a": 1}'),
    ],
)
def test_document_that_ends_before_the_field_or_is_no_json_is_an_error(document: str):
    with pytest.raises(ValueError):
        read_field(document.encode(), ["a"])


@pytest.mark.parametrize("cut", [b"\xff", b"\xc3", b"\xf0\x9f\x98"], ids=repr)
def test_bytes_that_are_no_text_end_the_document(cut: bytes):
    assert read_field(b'{"a": "x", "b": "' + cut + b'", ', ["a"]) == "x"
    with pytest.raises(ValueError):
        read_field(b'{"b": "' + cut + b'", "a": "x"}', ["a"])


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=4),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
            max_leaves=6,
        ),
    ),
    st.integers(0, 200),
)
def test_what_is_read_of_the_beginning_of_a_document_is_what_is_in_all_of_it(document: dict[str, Any], length: int):
    whole = json.dumps(document).encode()
    for names in (["a"], ["a", "b"]):
        expected: Any = document
        for name in names:
            expected = expected.get(name) if isinstance(expected, dict) else None
        if not isinstance(expected, str | int | float) or isinstance(expected, bool):
            expected = None
        assert read_field(whole, names) == expected
        try:
            assert read_field(whole[:length], names) == expected
        except ValueError:
            assert length < len(whole)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda size: b"{" + b'"b": 1, ' * size + b'"a": 1}', id="many fields"),
        pytest.param(lambda size: b"{" + b'"b":[{}], ' * size + b'"a": 1', id="many fields, and cut off"),
        pytest.param(
            lambda size: b'{"b": ' + b'{"a": ' * (size // 50) + b"1" + b"}" * (size // 50), id="objects in objects"
        ),
        pytest.param(lambda size: b'{"b": "' + b"x" * size + b'", "a": 1}', id="a long text"),
        pytest.param(lambda size: b"{" + b" " * size + b'"a": 1}', id="white space"),
    ],
)
def test_calls_grow_no_faster_than_the_document(make: Callable[[int], bytes]):
    def calls(size: int) -> int:
        def read() -> None:
            try:
                read_field(make(size), ["a"])
            except ValueError:
                pass

        return count_calls(read)

    once, twice = calls(5_000), calls(10_000)
    assert twice <= 2 * once + 20
