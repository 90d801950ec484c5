"""What is written about the house, held against it: a newcomer reads the README, then the architecture."""

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
    """Words in fences and `code` only: prose says `first` and `log` without a thought of our rooms."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    fence = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    code = [*fence.findall(text), *re.findall(r"`[^`\n]+`", fence.sub("", text))]
    return set(re.findall(r"\w+", " ".join(code)))


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_architecture_names_every_module(module, names_in_the_architecture):
    unnamed = [name for name in module.with_suffix("").parts if name not in names_in_the_architecture]
    assert not unnamed, f"docs/architecture.md says nothing of {module}"


@pytest.mark.parametrize("heading", ["Run it", "Test it"])
def test_readme_has_one_command_under(heading):
    """Read by the script with which CI reads it, so that what passes here is what runs there."""
    asked = [sys.executable, ROOT / ".ci" / "readme.py", heading]
    answer = subprocess.run(asked, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("python3 -m venv .venv && ")
