"""An app of the table, served by several workers, and clients that exchange messages with it: each in processes of
their own, in the environment of the app.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from tests.apps import recipes
from tests.apps.table import App
from tests.conformance.servers import KINDS, ServerProcess, free_port, start, until
from tests.environments import DEADLINE, OURS, environment, group, link_packages, pinned

HERE = Path(__file__).parent

#: The servers, in the versions that are installed here.
SERVERS = ("granian", "gunicorn", "hypercorn", "uvicorn", "uvicorn-worker")

#: What a worker prints once the app is loaded, by the first words of the command line that match.
READY = {
    "uvicorn": "Application startup complete",
    "gunicorn -k uvicorn_worker": "Application startup complete",
    "gunicorn -k asgi": "ASGI server listening",
    "gunicorn": "Booting worker with pid",
    "hypercorn": "Running on",
    "granian": "Started worker",
}

#: How many workers the default run has: some of these apps take seconds of each worker's processor time to import.
DAILY_WORKERS = 2

#: No framework may report anything, look for updates or load models.
OFFLINE = {
    "ANONYMIZED_TELEMETRY": "False",
    "DO_NOT_TRACK": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "OTEL_SDK_DISABLED": "true",
    "TRACELOOP_TELEMETRY": "false",
}


@cache
def interpreter(group_name: str) -> Path:
    """Return the Python that has what the dependency group lists."""
    if group_name == "dev":
        return Path(sys.executable)
    return environment(group_name, [*group(group_name), *pinned(*OURS, *SERVERS)])


@dataclass(frozen=True)
class Tally:
    """What the clients have counted. `problems`: the first few, as text."""

    attempts: int
    errors: int
    problems: list[str]


@dataclass(frozen=True)
class Served:
    """An app that is being served."""

    app: App
    process: ServerProcess
    variables: Mapping[str, str]
    folder: Path

    def exchange(self, attempts: int, *, until_error: bool = False) -> Tally:
        """Run clients until they have made so many attempts, or until there is an error."""
        tests = linked_clients(self.folder / "clients")
        command = [
            *(str(interpreter(self.app.group)), "-m", f"tests.apps.clients.{self.app.client or self.app.name}"),
            *(f"http://localhost:{self.process.port}", f"--attempts={attempts}", f"--at-once={self.app.at_once}"),
            *(["--until-error"] if until_error else []),
        ]
        done = subprocess.run(
            command,
            env={**os.environ, **self.variables, "PYTHONPATH": os.pathsep.join((str(HERE / "offline"), str(tests)))},
            cwd=tests,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{self.process.output}"
        return Tally(**json.loads(done.stdout.splitlines()[-1]))


def linked_clients(folder: Path) -> Path:
    """Return a folder with the package `tests` of the clients, as a regular package: some distribution installs a
    package `tests`, which would come before one without `__init__.py`.
    """
    if not folder.exists():
        (folder / "tests").mkdir(parents=True)
        (folder / "tests" / "__init__.py").touch()
        (folder / "tests" / "apps").symlink_to(HERE)
    return folder


@contextmanager
def serving(app: App, command: str, folder: Path, *, plain: bool) -> Iterator[Served]:
    """Serve the app, with StickyWorkers or `plain`, until all workers run. `folder`: an empty one."""
    project = folder / "project"
    more = HERE / "files" / app.name
    if more.exists():
        shutil.copytree(more, project)
    for path, text in recipes.files()[app.name].items():
        file = project / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    folders = [HERE / "offline", HERE / "plain" if plain else link_packages(folder / "packages"), project]
    variables = {
        **OFFLINE,
        "HOME": str(folder),
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "PYTHONWARNINGS": "default",
    }
    python = interpreter(app.group)
    words = shlex.split(command)
    kind = KINDS["granian-wsgi" if words[:1] == ["granian"] and "wsgi" in words else words[0]]

    def launch() -> ServerProcess:
        port = free_port()
        line = [str(python), "-m", kind.module, *kind.bind(port), *words[1:]]
        return ServerProcess(kind, line, port, project, folder / "output", variables)

    process = start(launch)
    try:
        ready = next(line for begin, line in READY.items() if command.startswith(begin))
        until(lambda: process.output.count(ready) >= workers(words), f"{command}: all workers\n{process.output}")
        yield Served(app, process, variables, folder)
    finally:
        process.kill()


def with_fewer_workers(command: str) -> str:
    """Return the command line with DAILY_WORKERS in the place of its number of workers."""
    return re.sub(r"( -w | --workers )\d+", rf"\g<1>{DAILY_WORKERS}", command)


def workers(words: list[str]) -> int:
    """Return how many workers a command line starts."""
    numbers = [value for option, value in pairwise(words) if option in ("-w", "--workers")]
    return int(numbers[0]) if numbers else 1
