"""The rule that holds for every part: without it a test is skipped and says so, and under CI it fails."""

import shutil

import pytest

pytestmark = pytest.mark.live


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    return monkeypatch


def test_without_its_part_a_test_is_skipped_by_name(part, nothing_installed):
    nothing_installed.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="haproxy is not installed"):
        part("haproxy")


def test_under_ci_it_fails_instead(part, nothing_installed):
    nothing_installed.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="haproxy is not installed"):
        part("haproxy")
