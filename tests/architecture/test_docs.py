"""The README, and the pages that name modules and files: what they name is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("sticky_core", "sticky_asgi", "sticky_wsgi")

MODULES = sorted(
    path.relative_to(ROOT)
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if path.name not in ("__init__.py", "__main__.py")
)


@pytest.fixture(scope="module")
def names_in_the_architecture():
    """The words in fences and in `code`: prose uses `first` and `log` without meaning our modules."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    fence = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    code = [*fence.findall(text), *re.findall(r"`[^`\n]+`", fence.sub("", text))]
    return set(re.findall(r"\w+", " ".join(code)))


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_architecture_names_every_module(module, names_in_the_architecture):
    unnamed = [name for name in module.with_suffix("").parts if name not in names_in_the_architecture]
    assert not unnamed, f"docs/architecture.md does not name {module}"


@pytest.mark.parametrize("heading", ["Run it", "Test it"])
def test_readme_has_one_command_under(heading):
    """CI reads the README with this script, so what passes here is what runs there."""
    command = [sys.executable, ROOT / ".ci" / "readme.py", heading]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("python3 -m venv .venv && ")


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_links_lead_somewhere(page):
    """`mkdocs build --strict` checks those of docs/."""
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_files_that_a_page_names_exist(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:sticky_\w+|tests|benchmarks|examples|docs)/[\w/.]+)`", text)
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if not re.search(rf"(^|\s){re.escape(page)}$", navigation, re.MULTILINE)] == []
