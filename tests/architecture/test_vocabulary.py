"""docs/vocabulary.md and the table of docs/architecture.md name classes that are in the files that they name."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: The last two columns of a row: a class and its file.
ROW = re.compile(r"^\| ([^|`]+) \|.*\| `(\w+)` \| `(sticky_\w+/[\w/]+\.py)` \|$", re.MULTILINE)


def rows(page: str) -> list[tuple[str, str, str]]:
    return ROW.findall((ROOT / "docs" / page).read_text(encoding="utf-8"))


@cache
def classes_in(file: str) -> set[str]:
    return {node.name for node in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(node, ast.ClassDef)}


@pytest.mark.parametrize(
    "page, word, name, file",
    [
        pytest.param(page, word, name, file, id=f"{page}: {word}")
        for page in ("vocabulary.md", "architecture.md")
        for word, name, file in rows(page)
    ],
)
def test_class_of_a_word_is_in_its_file(page: str, word: str, name: str, file: str) -> None:
    assert (ROOT / file).is_file(), f"{page}, {word}: there is no {file}"
    assert name in classes_in(file), f"{page}, {word}: there is no class {name} in {file}"


def test_every_row_is_read() -> None:
    text = (ROOT / "docs" / "vocabulary.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| word |")]
    assert len(rows("vocabulary.md")) == len(lines)


def test_no_word_has_two_meanings() -> None:
    words = [word for word, _, _ in rows("vocabulary.md")]
    assert sorted(set(words)) == sorted(words)
