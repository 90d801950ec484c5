"""`sticky workers` beside real workers: it shows those that run, what is left of one that was killed, and nothing that
it does disturbs them.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conformance.servers import environment

COMMANDS = {
    "asgi": "uvicorn --workers 3 --no-access-log workers_asgi:app",
    "wsgi": "gunicorn -w 3 workers_wsgi:app",
}


@pytest.fixture
def directory():
    """Where workers find each other: the paths of pytest are too long for sockets."""
    with tempfile.TemporaryDirectory(prefix="w") as path:
        yield Path(path)


@pytest.fixture(params=COMMANDS)
def face(request):
    return request.param


@pytest.fixture
def served(serve, directory, face):
    command = COMMANDS[face]
    served = serve(*command.split(), variables={"STICKY": json.dumps({"directory": str(directory)})})
    # the parent process of uvicorn exits with 0, and neither closes the socket that it listens at
    served.kind = replace(served.kind, exit_code=0, always_prints=("ResourceWarning",))
    return served


def sticky_workers(directory, *options):
    """Run the command, and return its exit code and what it prints."""
    command = [sys.executable, "-m", "sticky_asgi.cli", "workers", "--directory", str(directory), *options]
    run = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert run.stderr == ""
    return run.returncode, run.stdout


def groups(directory):
    code, printed = sticky_workers(directory, "--json")
    found = json.loads(printed)
    assert found["directory"] == str(directory)
    assert code == any(group["is_broken"] for group in found["groups"])
    return found["groups"]


def wait_for_workers(served, directory, until, pids=3):
    """Wait until so many workers run; a worker on WSGI starts with its first request."""

    def all_run():
        for _ in range(8):
            try:
                served.client().request("/echo")
            except OSError:
                pass  # a worker that was killed had accepted the connection
        return [[worker["state"] for worker in group["workers"]] for group in groups(directory)] == [["serves"] * pids]

    until(all_run, "workers that run")


def test_workers_that_run_are_shown_and_the_group_is_left_behind_when_all_are_killed(served, directory, face, until):
    assert groups(directory) == [] or face == "asgi"
    wait_for_workers(served, directory, until)
    (group,) = groups(directory)
    assert (group["name"], group["parent"], group["face"]) == ("", served.process.pid, face)
    assert group["app"].startswith(f"workers_{face}:")
    pids = {worker["pid"] for worker in group["workers"]}
    assert {int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in pids} == {
        served.process.pid
    }
    assert all(Path(worker["socket"]).exists() and worker["age"] < 3600 for worker in group["workers"])
    assert group["leftovers"] == []
    code, text = sticky_workers(directory)
    assert code == 0
    assert Counter(line.split()[-1] for line in text.splitlines()[2:]) == Counter({"serves": 3})

    os.kill(group["workers"][0]["pid"], signal.SIGSTOP)
    try:  # the kernel accepts connections for a process that is stopped
        assert [worker["state"] for worker in groups(directory)[0]["workers"]] == ["serves"] * 3
    finally:
        os.kill(group["workers"][0]["pid"], signal.SIGCONT)

    served.kill()
    served.kind = replace(served.kind, exit_code=-signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the end of the workers")
    (group,) = groups(directory)
    assert group["workers"] == []
    assert [each["path"] for each in group["leftovers"]] == [group["path"]]
    code, text = sticky_workers(directory)
    assert (code, "no workers run" in text, "left behind" in text) == (0, True, True)


def test_command_in_a_loop_disturbs_no_worker_that_starts(served, directory, until):
    wait_for_workers(served, directory, until)
    (group,) = groups(directory)
    before = {worker["pid"]: worker["slot"] for worker in group["workers"]}
    victim = min(before, key=lambda pid: before[pid])
    os.kill(victim, signal.SIGKILL)
    seen: set[int] = set()

    def is_replaced():
        try:
            served.client().request("/echo")
        except OSError:
            pass
        for worker in groups(directory)[0]["workers"]:
            seen.add(worker["pid"])
        return len(seen - before.keys()) == 1

    until(is_replaced, "another worker in the place of the one that was killed")
    wait_for_workers(served, directory, until)
    after = {worker["pid"]: worker["slot"] for worker in groups(directory)[0]["workers"]}
    assert sorted(after.values()) == ["w1", "w2", "w3"]
    assert {pid: slot for pid, slot in after.items() if pid in before} == {
        pid: slot for pid, slot in before.items() if pid != victim
    }


def test_directory_without_workers_is_said_to_have_none_and_one_that_is_missing_is_an_error(directory):
    assert sticky_workers(directory) == (0, f"No workers have run in {directory}.\n")
    command = [sys.executable, "-m", "sticky_asgi.cli", "workers", "--directory", str(directory / "missing")]
    run = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert (run.returncode, "does not exist" in run.stderr) == (2, True)
