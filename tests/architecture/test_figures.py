"""The figures of the architecture stay within their bounds. `python -m tests.architecture.figures` prints them."""

import pytest

from tests.architecture.figures import Figures, figures

LARGEST_CLASS = {"sticky_core": 420, "sticky_asgi": 520, "sticky_wsgi": 520}
MOST_LOOSE_MODULES = 10


@pytest.fixture(scope="module", name="now")
def _now() -> Figures:
    return figures()


def test_no_circle_of_imports(now: Figures) -> None:
    assert now.circles == []


def test_no_part_of_the_core_imports_one_above_it_or_beside_it(now: Figures) -> None:
    assert not now.upward, "\n".join(map(str, now.upward))


def test_few_modules_of_the_core_lie_outside_a_sub_package(now: Figures) -> None:
    assert len(now.loose) <= MOST_LOOSE_MODULES, now.loose


@pytest.mark.parametrize("package", LARGEST_CLASS)
def test_the_largest_class_is_within_its_bound(now: Figures, package: str) -> None:
    assert now.largest_class[package].lines <= LARGEST_CLASS[package], now.largest_class[package]


def test_the_figures_are_printed_a_line_each(now: Figures) -> None:
    assert str(now).startswith(f"import circles: {len(now.circles)}\nupward imports: ")
