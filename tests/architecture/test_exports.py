"""The names that both faces export are imported at their first use, and type checkers and readers see the same ones."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

import sticky_asgi
import sticky_wsgi
from sticky_core import balance, exports
from tests.architecture.imports import FACES, OURS

DEFERRED = [exports, balance, sticky_asgi, sticky_wsgi]


def typed_names(module: ModuleType) -> Iterator[tuple[str, object]]:
    """The names that the module imports for type checkers, with what they stand for."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "not TYPE_CHECKING":
            for each in node.orelse:
                assert isinstance(each, ast.ImportFrom)
                assert each.module is not None
                for name in each.names:
                    if f"{each.module}.{name.name}" in OURS:
                        yield name.asname or name.name, importlib.import_module(f"{each.module}.{name.name}")
                    elif name.name != "*":
                        yield name.asname or name.name, getattr(importlib.import_module(each.module), name.name)


@pytest.mark.parametrize("module", DEFERRED, ids=lambda module: module.__name__)
def test_names_are_those_that_type_checkers_see(module):
    typed = dict(typed_names(module))
    own = set(module.__all__) - (
        set(exports.__all__) | set(balance.__all__) if module not in (exports, balance) else set()
    )
    assert set(typed) - {"Balance"} == own  # Balance: only for the annotations of its package
    for name in own:
        assert getattr(module, name) is typed[name]


@pytest.mark.parametrize("face", FACES)
def test_star_import_and_dir_have_every_name(face):
    module = importlib.import_module(face)
    namespace: dict[str, object] = {}
    exec(f"from {face} import *", namespace)
    assert set(module.__all__) <= set(namespace)
    assert set(module.__all__) <= set(dir(module))
    assert len(set(module.__all__)) == len(module.__all__)


@pytest.mark.parametrize("face", FACES)
def test_unknown_name_is_an_attribute_error(face):
    with pytest.raises(AttributeError, match=f"module '{face}' has no attribute 'StickyWorker'"):
        getattr(importlib.import_module(face), "StickyWorker")  # noqa: B009
    code = f"from {face} import StickyWorker"
    run = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert "ImportError: cannot import name 'StickyWorker'" in run.stderr
