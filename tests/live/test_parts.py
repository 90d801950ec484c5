"""How a program is found: in its wheel, else on the system. Without it a test is skipped, and under CI it fails."""

import importlib.util
import shutil
import subprocess

import pytest

pytestmark = pytest.mark.live


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    return monkeypatch


def test_test_without_its_program_is_skipped_with_its_name(part, nothing_installed):
    nothing_installed.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="haproxy is not installed"):
        part("haproxy")


def test_test_without_its_program_fails_under_ci(part, nothing_installed):
    nothing_installed.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="haproxy is not installed"):
        part("haproxy")


@pytest.mark.parametrize("name, argument", [("haproxy", "-v"), ("nginx", "-v")])
def test_program_in_a_wheel_is_found_before_one_of_the_system(part, monkeypatch, name, argument):
    installed = part(name)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: f"/nowhere/{name}")
    if (found := part(name)) == f"/nowhere/{name}":
        pytest.skip(f"the wheel of {name} is not installed")
    assert found == installed
    printed = subprocess.run([found, argument], capture_output=True, text=True)
    assert name in (printed.stdout + printed.stderr).lower()
