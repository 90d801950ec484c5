"""The test suites of the frameworks: their sources, their environments, and how they are run."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from tests.environments import DEADLINE, OURS, environment, link_packages, locked, pinned, pip
from tests.peers import wrapped_apps

#: seconds for one test, for hangs only
TEST_DEADLINE = 600

#: what all suites need
COMMON = ("pytest-timeout",)


@dataclass(frozen=True, eq=False)
class Suite:
    """A framework's test suite.

    - `name`: the framework, as a distribution. The suite of the version that is installed here is run.
    - `at_least`: how many of its tests pass without a wrapping, at least.
    - `extras`: the extras that its tests need.
    - `requirements`: the distributions that its tests need; those that only check types or packages are left out.
    - `deselected`: tests that are not run, and why.
    - `wrappings`: what its apps are wrapped in, a run for each.
    """

    name: str
    at_least: int
    extras: str = ""
    requirements: tuple[str, ...] = ()
    deselected: Mapping[str, str] | None = None
    wrappings: tuple[str, ...] = ("Dispatcher", "StickyMiddleware", "StickyWorkers")

    @property
    def all_requirements(self) -> list[str]:
        """Everything that the environment has, in the versions that are installed here."""
        framework = f"{self.name}{self.extras}=={version(self.name)}"
        return [framework, *pinned(*(name for name in OURS if name != self.name)), *COMMON, *self.requirements]


#: With a name, `StickyWorkers` has peers. On ASGI it needs the event loop of a server; test clients have one a request.
WSGI_WRAPPINGS = (*Suite.wrappings, "StickyWorkers with a name")

SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            "starlette",
            at_least=1300,
            extras="[full]",
            requirements=(
                "blockbuster>=1.5",
                "httpx2[zstd]>=2",
                "opentelemetry-sdk>=1.44",
                "pytest-codspeed>=4.1",
                "pytest>=9",
                "trio>=0.34",
            ),
        ),
        Suite(
            "fastapi",
            at_least=4500,
            extras="[all]",
            requirements=(
                "a2wsgi>=1.9,<=2",
                "anyio[trio]>=4.1",
                "coverage>=7.13",
                "dirty-equals>=0.9",
                "flask>=3",
                "httpx2>=2",
                "httpx<1",
                "inline-snapshot>=0.21",
                "logfire>=5.1",
                "mypy>=1.14",
                "opentelemetry-exporter-otlp-proto-http>=1.44",
                "opentelemetry-instrumentation-fastapi>=0.65b0",
                "opentelemetry-sdk>=1.44",
                "orjson",
                "pwdlib[argon2]>=0.2",
                "pyjwt>=2.9",
                "pytest-codspeed>=4.3",
                "pytest-xdist>=3",
                "pytest>=9,<9.2",
                "python-slugify>=8",
                "pyyaml>=5.3",
                "sentry-sdk>=2.70",
                "sqlmodel>=0.0.31",
                "strawberry-graphql>=0.200",
                "typer>=0.26",
                "ujson",
            ),
        ),
        Suite(
            "werkzeug",
            at_least=900,
            requirements=("cffi", "cryptography", "ephemeral-port-reserve", "pytest", "watchdog"),
            deselected={
                "tests/test_serving.py::test_reloader_sys_path": "the reloader; hangs unwrapped with watchdog 7",
            },
            wrappings=WSGI_WRAPPINGS,
        ),
        Suite(
            "flask",
            at_least=480,
            # `notset`, which the suite's conftest imports, has left pytest 9.1
            requirements=("asgiref", "greenlet", "pytest<9.1", "python-dotenv"),
            wrappings=WSGI_WRAPPINGS,
        ),
    )
}


@dataclass(frozen=True)
class Run:
    """One run of a suite: the outcomes by test, how many apps were wrapped, and what pytest printed."""

    outcomes: Mapping[str, str]
    wrapped: int
    output: str


@cache
def source(suite: Suite) -> Path:
    """Return the source distribution of the suite's framework, in the version that is installed here."""
    with locked("peers") as folder:
        found = folder / f"{suite.name}-{version(suite.name)}.tar.gz"
        if not found.exists():
            requirement = f"{suite.name}=={version(suite.name)}"
            pip("download", "--no-deps", "--no-binary", suite.name, "--dest", str(folder), requirement)
        return found


@cache
def interpreter(suite: Suite) -> Path:
    """Return the Python of the suite's environment."""
    python = environment(f"{suite.name}-{version(suite.name)}", suite.all_requirements)
    (site_packages,) = python.parents[1].glob("lib/python*/site-packages")
    (site_packages / "wrapped_apps.pth").write_text(f"{wrapped_apps.AT_START}\n")
    return python


def unpacked(suite: Suite, folder: Path) -> Path:
    """Unpack the suite's source distribution below `folder`, and return the folder that it has made."""
    with tarfile.open(source(suite)) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.glob(f"{suite.name}-*")
    return unpacked


def packages(folder: Path) -> Path:
    """Return a folder with the packages under test and the plugin: the suites have a package `tests` of their own."""
    link_packages(folder)
    (folder / "wrapped_apps.py").write_bytes(Path(wrapped_apps.__file__).read_bytes())
    return folder


def run(suite: Suite, folder: Path, wrapping: str | None, *, cookie: bool = True, only: Collection[str] = ()) -> Run:
    """Run the suite, or `only` some of its tests, in a copy of its source below `folder`."""
    folder.mkdir()
    there = unpacked(suite, folder)
    outcomes = folder / "outcomes.json"
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PYTHON"))}
    variables["PYTHONPATH"] = str(packages(folder / "packages"))
    variables[wrapped_apps.SUITE] = suite.name
    variables[wrapped_apps.OUTCOMES] = str(outcomes)
    if wrapping is not None:
        variables[wrapped_apps.WRAPPING] = wrapping
    if cookie:
        variables[wrapped_apps.COOKIE] = "yes"
    command = [
        *(str(interpreter(suite)), "-m", "pytest", "--quiet", "--tb=short", "-p", "no:cacheprovider"),
        *("-p", "wrapped_apps", f"--timeout={TEST_DEADLINE}", f"--basetemp={folder / 'temporary'}"),
        *(f"--deselect={test}" for test in suite.deselected or ()),
        *(only or ("tests",)),
    ]
    with tempfile.TemporaryDirectory(prefix="sticky-") as sockets:  # a short path, as sockets need
        variables[wrapped_apps.DIRECTORY] = sockets
        done = subprocess.run(
            command,
            cwd=there,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=DEADLINE,
            check=False,
        )
    assert outcomes.exists(), done.stdout
    found = json.loads(outcomes.read_text())
    return Run(found["outcomes"], found["wrapped"], done.stdout)
