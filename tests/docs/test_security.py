"""SECURITY.md names a test for each promise, and those tests exist."""

from __future__ import annotations

import ast
import re

import pytest

from tests.docs.blocks import ROOT

_TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
_PROMISES = re.findall(r"^\| \*\*(.+?)\*\*.*? \| (.+) \|$", _TEXT, re.MULTILINE)
_TESTS = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", _TEXT)


def test_each_promise_names_a_test():
    assert len(_PROMISES) >= 10
    assert [promise for promise, tests in _PROMISES if "::" not in tests] == []


@pytest.mark.parametrize(("path", "name"), _TESTS, ids=[name for _, name in _TESTS])
def test_test_of_a_promise_exists(path, name):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    assert name in {function.name for function in functions}
