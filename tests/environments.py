"""Python environments beside the one that runs the tests. They are made once and kept between runs."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: seconds, for hangs only
DEADLINE = 7200

#: what the packages under test import
OURS = ("anyio", "itsdangerous", "msgpack", "starlette", "werkzeug")


def cache_folder() -> Path:
    """Return where environments and downloads are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sticky-sessions"


@contextmanager
def locked(name: str) -> Iterator[Path]:
    """Return a folder of the cache, which one process at a time changes."""
    folder = cache_folder() / name
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def pip(*arguments: str) -> None:
    """Run pip. Where it can't reach an index the test is skipped and says so; under CI it fails."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    if done.returncode:
        problem = f"pip {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}"
        if os.environ.get("CI"):
            pytest.fail(problem)
        pytest.skip(problem)


def pinned(*names: str) -> list[str]:
    """Return the requirements for these distributions in the versions that are installed here."""
    return [f"{name}=={version(name)}" for name in names]


def group(name: str) -> list[str]:
    """Return the requirements of a dependency group of pyproject.toml."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    return list(groups[name])


def environment(name: str, requirements: Sequence[str]) -> Path:
    """Return the Python of the environment `name`, which is made once for each list of requirements."""
    digest = hashlib.sha256("\n".join((sys.version, *requirements)).encode()).hexdigest()[:12]
    with locked("environments") as folder:
        made = folder / f"{name}-{digest}"
        python = made / "bin" / "python"
        complete = made / "complete"
        if not complete.exists():
            subprocess.run(
                [sys.executable, "-m", "venv", "--clear", "--without-pip", made], check=True, timeout=DEADLINE
            )
            pip("--python", str(python), "install", *requirements)
            complete.touch()
        return python


def link_packages(folder: Path) -> Path:
    """Make a folder with the packages under test and nothing else of this checkout, for PYTHONPATH."""
    folder.mkdir()
    for name in ("sticky_core", "sticky_asgi", "sticky_wsgi"):
        (folder / name).symlink_to(ROOT / name)
    return folder
