"""Programs that clean temporary directories, real ones too, while workers of real servers serve clients and one of them
is killed and replaced: all others keep their clients.
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

WORKERS = 3
SERVERS = {
    "uvicorn": "uvicorn --workers 3 --no-access-log workers_asgi:app",
    "gunicorn asgi": "gunicorn -k asgi -w 3 workers_asgi:app",
    "sync, preloaded": "gunicorn -w 3 --preload workers_wsgi:app",
}


def remove_files(*patterns):
    def remove(directory: Path) -> None:
        for pattern in patterns:
            for each in list(directory.glob(f"run/*/{pattern}")):
                each.unlink(missing_ok=True)

    return remove


def run_tmpfiles(directory: Path) -> None:
    """Run systemd-tmpfiles with the shortest age. It spares what is locked, or looks used."""
    program = shutil.which("systemd-tmpfiles")
    if program is None:
        pytest.skip("systemd-tmpfiles is not installed")
    rules = directory / "tmpfiles.conf"
    rules.write_text(f"e {directory}/run - - - 1us\n")
    subprocess.run([program, "--clean", str(rules)], check=True, env={**os.environ, "SYSTEMD_LOG_LEVEL": "debug"})


CLEANERS = {
    "locks and the secret": remove_files("*.lock", "secret"),
    "the secret": remove_files("secret"),
    "sockets": remove_files("*.sock"),
    "the whole directory": lambda directory: shutil.rmtree(directory / "run"),
    "systemd-tmpfiles": run_tmpfiles,
}


class RepeatingClient(threading.Thread):
    """A client that sends requests, each over a new connection, until `over` is set."""

    def __init__(self, client, name: str, over: threading.Event) -> None:
        super().__init__()
        self._client = client
        self._name = name
        self._over = over
        self.results: list[Any] = []  #: the JSON of each response, or its status; None: the connection was reset

    def run(self) -> None:
        while not self._over.is_set():
            try:
                response = self._client.request(f"/count?client={self._name}")
                self.results.append(json.loads(response.body) if response.status == 200 else response.status)
            except OSError:  # a killed worker had accepted the connection
                self.results.append(None)

    def wrong(self) -> list[Any]:
        """The results that are not the next number of one worker."""
        expected, found = 0, []
        for each in self.results:
            if each is None:  # it may have been counted
                continue
            if not isinstance(each, dict) or each["n"] <= expected:
                found.append(each)
            else:
                expected = each["n"]
        return found


@pytest.fixture
def directory():
    """Where workers find each other: the paths of pytest are too long for sockets."""
    with tempfile.TemporaryDirectory(prefix="w") as path:
        yield Path(path)


@pytest.mark.parametrize("clean", CLEANERS.values(), ids=CLEANERS)
@pytest.mark.parametrize("name", SERVERS)
def test_no_client_loses_its_worker_to_a_cleaned_directory(serve, until, directory, name, clean):
    options = {"directory": str(directory / "run")}
    served = serve(*SERVERS[name].split(), variables={"STICKY": json.dumps(options), "STICKY_SECRET": ""})
    # the parent process of each server exits with 0; uvicorn's, and sync workers, never close the socket they listen at
    served.kind = replace(served.kind, exit_code=0, always_prints=("ResourceWarning",))
    clients: dict[int, Any] = {}

    def all_workers():
        client = served.client()
        clients.setdefault(json.loads(client.request("/count?client=x").body)["pid"], client)
        return len(clients) >= WORKERS

    until(all_workers, "a client of each worker")
    over = threading.Event()
    repeating = {pid: RepeatingClient(client, f"c{pid}", over) for pid, client in clients.items()}
    for each in repeating.values():
        each.start()

    def more(count):
        enough = {pid: len(each.results) + count for pid, each in repeating.items()}
        until(lambda: all(len(each.results) >= enough[pid] for pid, each in repeating.items()), "more responses")

    try:
        more(10)
        clean(directory)
        victim = next(iter(clients))
        os.kill(victim, signal.SIGKILL)
        more(10)
        replacement: set[int] = set()

        def replaced():
            response = served.client().request("/count?client=y")
            if response.status == 200:
                replacement.update({json.loads(response.body)["pid"]} - clients.keys())
            return replacement

        until(lambda: ignore_resets(replaced), "the replacement")
        more(20)
        clean(directory)
        more(20)
    finally:
        over.set()
        for each in repeating.values():
            each.join()
    for pid, each in repeating.items():
        if pid != victim:
            assert each.wrong() == []
            assert {content["pid"] for content in each.results if content is not None} == {pid}
    if clean is not run_tmpfiles:
        assert "another program has removed" in served.output


def ignore_resets(call):
    try:
        return call()
    except OSError:  # the connection was in the backlog of the killed worker
        return None
