"""What the directories of groups show: which workers run, which drain, what is broken, and what was left behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from sticky_core.clock import SystemClock
from sticky_core.errors import ConfigError
from sticky_core.workers.directory import pid_namespace, process_exists
from sticky_core.workers.survey import GroupStatus, age, read_group, read_groups


def listening(*paths: str):
    """Return a `listens` for these paths."""
    return lambda path: path in paths


class LaterClock(SystemClock):
    """The system's clock, so many seconds from now."""

    def __init__(self, later: float) -> None:
        self._later = later

    def wall(self) -> float:
        return super().wall() + self._later


@pytest.fixture
def read(folder):
    """Returns the only group, with workers that listen at these sockets, so many seconds from now."""

    def read(*paths: str, later: float = 0.0) -> GroupStatus:
        (group,) = read_groups(folder / "run", LaterClock(later), listening(*paths))
        return group

    return read


def test_running_workers_are_shown_with_what_they_are(join, read):
    first, second = join(app="main:app"), join(app="main:app")
    group = read(first.slot.path, second.slot.path)
    assert (group.name, group.parent, group.app, group.face) == ("group", 0, "main:app", "asgi")
    assert [(each.slot, each.pid, each.instance, each.socket, each.state, each.problem) for each in group.workers] == [
        (f"w{number}", os.getpid(), workers.slot.instance, workers.slot.path, "serves", "")
        for number, workers in enumerate((first, second), 1)
    ]
    assert group.leftovers == ()
    assert not group.is_broken
    # "3s" on a slow machine
    lines = [re.sub(r" \d+s ", " 0s ", line).split() for line in str(group).splitlines()]
    assert lines == [
        ["group", "group", "(main:app,", "ASGI)"],
        ["worker", "process", "instance", "age", "state"],
        ["w1", f"{os.getpid()}", first.slot.instance, "0s", "serves"],
        ["w2", f"{os.getpid()}", second.slot.instance, "0s", "serves"],
    ]


def drain(workers, kill):
    workers.slot.drain()


def unpublish(workers, kill):
    workers.slot.unpublish()


def remove_lock(workers, kill):
    (workers.slots.path / "1.lock").unlink()


@pytest.mark.parametrize(
    "change, listens, later, state, problem",
    [
        pytest.param(drain, False, 0, "drains", "", id="it has announced its end"),
        pytest.param(unpublish, False, 5, "starts", "", id="it has just taken its worker slot"),
        pytest.param(unpublish, False, 60, "unreachable", "its socket is missing", id="without a socket"),
        pytest.param(None, False, 60, "unreachable", "no process listens at its socket", id="it does not listen"),
        pytest.param(remove_lock, True, 60, "serves", "its lock file is missing", id="without a lock file"),
    ],
)
def test_worker_that_runs_has_a_state_and_perhaps_a_problem(join, kill, read, change, listens, later, state, problem):
    workers = join()
    if change is not None:
        change(workers, kill)
    group = read(*([workers.slot.path] if listens else []), later=later)
    (found,) = group.workers
    assert (found.slot, found.state) == ("w1", state)
    assert problem in found.problem
    assert bool(found.problem) == bool(problem) == group.is_broken
    assert group.leftovers == ()
    assert ("PROBLEM: w1: " in str(group)) == bool(problem)


def test_socket_of_a_killed_worker_is_left_behind_until_another_removes_it(join, kill, read):
    first, second = join(), join()
    kill(second)
    group = read(first.slot.path)
    assert [each.slot for each in group.workers] == ["w1"]
    assert [each.path for each in group.leftovers] == [second.slot.path]
    assert not group.is_broken
    assert f"left behind: {second.slot.path}: the next worker in that worker slot removes it" in str(group)
    third = join()
    assert read(first.slot.path, third.slot.path).leftovers == ()


def test_group_with_a_name_stays_for_its_next_workers(join, read):
    workers = join()
    workers.slot.release()
    group = read(later=3600)
    assert (group.workers, group.leftovers, group.name) == ((), (), "group")
    assert str(group).splitlines() == ["group group (ASGI)", "  no workers run"]


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert not process_exists(process.pid)
    return process.pid


@pytest.mark.parametrize(
    "namespace, parent, is_left",
    [
        pytest.param("here", "running", False, id="its parent runs"),
        pytest.param("here", "ended", True, id="its parent has ended"),
        pytest.param("00000000", "running", True, id="of another container, in which no worker runs"),
    ],
)
def test_group_without_workers_is_left_behind_once_its_parent_has_ended(folder, namespace, parent, is_left):
    pid = os.getpid() if parent == "running" else ended_process()
    path = folder / f"@{pid_namespace() if namespace == 'here' else namespace}-{pid}-abcdef"
    path.mkdir()
    group = read_group(path, SystemClock(), listening())
    assert (group.parent, group.name) == (pid, "")
    assert [each.path for each in group.leftovers] == ([str(path)] if is_left else [])
    assert group.title == f"workers of process {pid}"


def test_nothing_is_changed_and_no_lock_is_kept(join, read, folder):
    workers = join()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    read(workers.slot.path)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert join().own_server.name == "w2"


@pytest.mark.parametrize("record", [b"", b"{", b'{"pid": 1}'], ids=["empty", "cut", "of another version"])
def test_worker_with_an_unreadable_record_is_shown_without_it(join, read, record):
    workers = join()
    (workers.slots.path / "1.lock").write_bytes(record)
    (found,) = read(workers.slot.path).workers
    assert (found.slot, found.pid, found.instance, found.state) == ("w1", 0, workers.slot.instance, "serves")


def test_other_files_and_directories_are_no_groups_with_workers(folder):
    (folder / "run").mkdir()
    (folder / "run" / "a file").touch()
    other = folder / "run" / "other"
    other.mkdir()
    for name in ("secret", "x.sock", "1.txt", "1.lock.txt"):
        (other / name).touch()
    (group,) = read_groups(folder / "run", SystemClock(), lambda path: True)
    assert (group.name, group.workers, group.leftovers) == ("other", (), ())


def test_missing_directory_has_no_groups_and_one_that_is_no_directory_is_an_error(folder):
    assert read_groups(folder / "missing", SystemClock(), listening()) == []
    (folder / "file").touch()
    with pytest.raises(ConfigError, match="file can't be read: Not a directory"):
        read_groups(folder / "file", SystemClock(), listening())


@pytest.mark.parametrize(
    "seconds, expected",
    [(0, "0s"), (59.9, "59s"), (60, "1m"), (3599, "59m"), (3600, "1h"), (86399, "23h"), (86400, "1d"), (1e6, "11d")],
)
def test_age_is_shortened(seconds: float, expected: str):
    assert age(seconds) == expected
