"""The language of docstrings, comments and names: `language` lists the words that are not used, and what is instead."""

import re

import pytest

from tests.architecture.language import ALLOWED, ROOT, WORDS, check, check_page, files, names_of, prose_of

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


@pytest.mark.parametrize("file", [pytest.param(file, id=file.relative_to(ROOT).as_posix()) for file in files()])
def test_file_uses_the_words_of_the_field(file):
    findings = check(file.read_text(encoding="utf-8"), file.relative_to(ROOT).as_posix())
    assert not findings, "\n" + "\n".join(map(str, findings))


@pytest.mark.parametrize("page", [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in PAGES])
def test_page_uses_the_words_of_the_field(page):
    findings = check_page(page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix())
    assert not findings, "\n" + "\n".join(map(str, findings))


def test_words_are_found_in_docstrings_comments_and_names():
    source = '''
"""Whose it is."""
x = "nobody"  # nobody knows


class LoudBell:
    """A callback.

    Rings the bell.
    """

    def ring(self, heir: int) -> None: ...
'''
    assert [(each.line, each.found) for each in check(source, "sticky_core/example.py")] == [
        (2, "Whose"),
        (3, "nobody"),
        (9, "bell"),
        (6, "bell"),
        (12, "heir"),
    ]


def test_what_is_allowed_is_not_found():
    source = '"""Keys such as `/rooms/{id}`; nginx\'s twin is `worker_shutdown_timeout`."""\n'
    assert check(source, "sticky_core/example.py") == []


def test_ids_of_test_rows_are_read():
    assert [each.found for each in check('pytest.param(1, id="nobody is there")\n', "tests/example.py")] == ["nobody"]


def test_in_a_page_a_person_may_be_a_who_and_a_server_may_not():
    assert check_page("A user who runs several workers.", "docs/example.md") == []
    assert [each.found for each in check_page("The server whose turn it is.", "docs/example.md")] == ["server whose"]


def test_strings_are_not_read():
    assert list(prose_of("x = 'who'\n")) == []
    assert list(names_of("x = 'who'\n")) == [(1, "x")]


def test_a_finding_names_the_place_and_the_word_to_use():
    (finding,) = check("# the heir\n", "sticky_core/example.py")
    assert str(finding) == "sticky_core/example.py:1: 'heir': use replacement"


def test_every_exception_gives_its_reason_and_every_pattern_compiles():
    assert all(each.reason for each in ALLOWED)
    assert all(word.instead and re.compile(word.pattern) for word in WORDS)
