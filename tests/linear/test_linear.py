"""Reading takes time in proportion to what is read: no client can make a request cost the square of its size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.linear.count import SIZES
from tests.linear.readers import READERS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def counts() -> dict[str, list[int]]:
    """The operations of each reader, for each size, counted in a process that has imported nothing before."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    counted = subprocess.run(
        [sys.executable, "-m", "tests.linear.count"], cwd=ROOT, env=variables, check=True, capture_output=True
    )
    result: dict[str, list[int]] = json.loads(counted.stdout)
    return result


@pytest.mark.parametrize("name", READERS)
def test_twice_the_input_takes_at_most_twice_the_operations(name: str, counts: dict[str, list[int]]) -> None:
    counted = dict(zip(SIZES, counts[name], strict=True))
    for smaller, larger in zip(SIZES[::2], SIZES[1::2], strict=True):
        assert counted[larger] <= 2.2 * counted[smaller] + 50, f"operations by size: {counted}"
