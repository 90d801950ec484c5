"""The benchmark of scale measures and prints every row, in a size that takes a few seconds."""

import logging
from types import ModuleType

import pytest


def printed(scale: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    monkeypatch.setattr("sys.argv", ["scale.py", *words])
    level = logging.getLogger("sticky_sessions").level
    scale.main()
    assert logging.getLogger("sticky_sessions").level == level  # other tests read the log
    return capsys.readouterr().out


def test_changes_and_routes_are_measured(
    scale: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for only in ("changes", "routes"):
        text = printed(scale, monkeypatch, capsys, "--only", only, "--sizes", "5", "9", "--rounds", "2")
        rows = [line for line in text.splitlines() if line.startswith("  ") and line.strip()[0].isalpha()]
        assert len(rows) == (len(scale.BALANCES) * len(scale.STEPS) if only == "changes" else 3)
        assert all(len([word for word in line.split() if "." in word]) >= 2 for line in rows)
        assert "to reach" in text


def test_health_checks_are_measured_on_both_faces(
    scale: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = ("--only", "checks", "--sizes", "3", "--check-rounds", "1", "--seconds", "0.1")
    text = printed(scale, monkeypatch, capsys, *words)
    for name in ("by hand, asyncio", "checks, ASGI on asyncio", "checks, ASGI on trio", "checks, WSGI"):
        assert f"  {name} " in text
    assert "× by hand" in text


@pytest.mark.parametrize(
    "milliseconds, verdict",
    [
        ([0.1, 4.9, 29.0], "reached"),
        ([0.1, 5.5, 29.0], "not reached: 5.5 ms > 5 at 1000"),
        ([0.1, 5.5, 40.0], "not reached: 5.5 ms > 5 at 1000, 40.0 ms > 30 at 10000"),
    ],
    ids=["both", "one", "none"],
)
def test_the_verdict_names_the_sizes_at_which_a_goal_is_missed(
    scale: ModuleType, milliseconds: list[float], verdict: str
):
    assert scale.standing_verdict([10, 1_000, 10_000], milliseconds) == verdict
