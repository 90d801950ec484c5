"""Reading takes time in proportion to what is read: no client can make a request cost the square of its size."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from sticky_core import balance, exports, samples
from sticky_core.samples import response as res
from tests.linear.count import SIZES
from tests.linear.readers import BODY_SAMPLES, OPTIONS, READERS, RESPONSE_SAMPLES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """The operations of each reader, for each size, counted in a process that has imported nothing before: once for all
    processes of a run.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    path = folder / "operations.json"
    with (folder / "operations.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            path.write_bytes(_count_operations())
    result: dict[str, list[int]] = json.loads(path.read_bytes())
    return result


def _count_operations() -> bytes:
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.linear.count"]
    return subprocess.run(command, cwd=ROOT, env=variables, check=True, stdout=subprocess.PIPE).stdout


@pytest.mark.parametrize("name", READERS)
def test_twice_the_input_takes_at_most_twice_the_operations(name: str, counts: dict[str, list[int]]) -> None:
    counted = dict(zip(SIZES, counts[name], strict=True))
    for smaller, larger in zip(SIZES[::2], SIZES[1::2], strict=True):
        assert counted[larger] <= 2.2 * counted[smaller] + 50, f"operations by size: {counted}"


def reached(value: object) -> Iterator[str]:
    """Yield the names of the classes and functions that the options of a backend consist of."""
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from reached(each)
    elif callable(value) or is_dataclass(value):
        yield getattr(value, "__name__", type(value).__name__)
        if is_dataclass(value):
            for each in fields(value):
                yield from reached(getattr(value, each.name))


def test_every_sample_persistence_and_algorithm_has_a_row() -> None:
    names = {name for options, _ in OPTIONS.values() for value in options().values() for name in reached(value)}
    not_samples = {"Address", "Key", "Sample", "parse_sample"}
    persistences = {each for each in exports.__all__ if hasattr(getattr(exports, each), "cookie_scopes")} - {
        "BackendConfig"
    }
    assert persistences >= {"Cookie", "Follow", "NginxCookie", "Route", "Stick", "Learn", "Token"}
    expected = ({*samples.__all__} - not_samples) | persistences | {*balance.__all__}
    assert expected - names == set()
    assert {f"res.{name}" for name in res.__all__} - {"res.Sample", "res.BodySample"} == {
        *RESPONSE_SAMPLES,
        *BODY_SAMPLES,
    }
