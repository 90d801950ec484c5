"""The benchmarks as modules."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@contextmanager
def loaded(name: str) -> Iterator[ModuleType]:
    """Load a benchmark as the module `name`; its dataclasses look it up among the others."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[name]


@pytest.fixture(scope="module")
def scale() -> Iterator[ModuleType]:
    with loaded("scale") as module:
        yield module


@pytest.fixture(scope="module")
def simulate() -> Iterator[ModuleType]:
    with loaded("simulate") as module:
        yield module


@pytest.fixture(scope="module")
def soak() -> Iterator[ModuleType]:
    with loaded("soak") as module:
        yield module
