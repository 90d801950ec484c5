"""The directory of a group of workers: private to its user, and removed when the group has ended."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sticky_core.clock import ManualClock, SystemClock
from sticky_core.errors import ConfigError
from sticky_core.workers import directory
from sticky_core.workers.directory import app_digest, make_group_directory
from sticky_core.workers.record import WorkerRecord
from sticky_core.workers.slots import WorkerSlots


@pytest.fixture(name="tmp_path")
def _tmp_path():
    """A directory with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="sticky-") as path:
        yield Path(path)


def made(path, name=None, app="main:app", face="asgi", clock=None, namespace="a1"):
    """The directory of a group: by default, of the processes of this test's parent."""
    return make_group_directory(name, app, face, clock or SystemClock(), path / "run", namespace=namespace)


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_directory_that_other_users_can_enter_is_refused(tmp_path, mode):
    path = tmp_path / "run"
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(ConfigError, match="only this user can enter"):
        make_group_directory("group", "main:app", "asgi", SystemClock(), path)


def test_read_only_file_system_is_refused_with_what_to_do(monkeypatch):
    def gettempdir():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", gettempdir)
    with pytest.raises(ConfigError, match=r"No usable temporary directory .*, or pass directory=, a directory"):
        make_group_directory("group", "main:app", "asgi", SystemClock())


def test_symbolic_link_to_a_directory_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="only this user can enter"):
        made(tmp_path)


def test_directory_of_another_user_is_refused(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(ConfigError, match="only this user can enter"):
        made(tmp_path)


GROUPS = {
    "one parent": ({}, {}, True),
    "two apps of one parent": ({}, {"app": "admin:app"}, False),
    "two interfaces of one parent": ({}, {"face": "wsgi"}, False),
    "two containers with parents of the same id": ({}, {"namespace": "b2"}, False),
    "one name": ({"name": "shop"}, {"name": "shop"}, True),
    "one name, in two containers": ({"name": "shop"}, {"name": "shop", "namespace": "b2"}, True),
    "one name and two apps, which are refused later": ({"name": "shop"}, {"name": "shop", "app": "x:app"}, True),
    "two names": ({"name": "shop"}, {"name": "cart"}, False),
    "one name and two interfaces": ({"name": "shop"}, {"name": "shop", "face": "wsgi"}, False),
    "a name and none": ({"name": "shop"}, {}, False),
}


@pytest.mark.parametrize("one, other, is_shared", GROUPS.values(), ids=GROUPS)
def test_processes_share_a_directory_if_they_are_a_group(tmp_path, one, other, is_shared):
    assert (made(tmp_path, **one) == made(tmp_path, **other)) is is_shared


def test_directory_is_named_by_what_an_operator_knows(tmp_path):
    assert made(tmp_path, "shop").name == "shop@asgi"
    assert made(tmp_path).name == f"@a1-{os.getppid()}-{app_digest(None, 'main:app', 'asgi')}"


def test_digest_tells_apps_names_and_interfaces_apart():
    digests = [
        app_digest(name, app, face)
        for name in (None, "shop", "cart")
        for app in ("main:app", "admin:app")
        for face in ("asgi", "wsgi")
    ]
    assert len(set(digests)) == 4 + 4  # with a name the app does not count
    assert all(len(digest) == 6 and int(digest, 16) >= 0 for digest in digests)


@pytest.mark.parametrize("missing", ["geteuid", "fcntl"])
def test_system_without_lock_files_is_refused_with_the_way_out(tmp_path, monkeypatch, missing):
    if missing == "geteuid":
        monkeypatch.delattr(os, "geteuid")
    else:
        monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(ConfigError, match="which this system does not have: leave StickyWorkers out here"):
        made(tmp_path)


def test_pid_namespace_is_that_of_this_process_on_this_host(monkeypatch):
    here = directory.pid_namespace()
    assert here == directory.pid_namespace()
    monkeypatch.setattr(os, "stat", lambda path: os.stat_result((0, 4711, *[0] * 8)))
    assert directory.pid_namespace() != here


#: groups without a worker: the name of the directory, and whether another group's start removes it after a while
ENDED_GROUPS = {
    "the parent has ended": ("@a1-{ended}-3f9a2c", True),
    "the parent runs": ("@a1-{running}-3f9a2c", False),
    "the parent is in another namespace, with an id that is unused here": ("@b2-{ended}-3f9a2c", True),
    "the parent is in another namespace, with an id that is used here": ("@b2-{running}-3f9a2c", True),
    "a name": ("shop@asgi", False),
    "a name with digits": ("{ended}-1@asgi", False),
}


@pytest.mark.parametrize("name, is_removed", ENDED_GROUPS.values(), ids=ENDED_GROUPS)
@pytest.mark.parametrize("runs", [False, True], ids=["without a worker", "with a worker"])
def test_directory_of_a_group_is_removed_after_its_workers_and_its_parent_have_ended(tmp_path, name, is_removed, runs):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    path = tmp_path / "run" / name.format(ended=process.pid, running=os.getpid())
    path.mkdir(parents=True, mode=0o700)
    group = WorkerSlots(path, SystemClock())
    group.path.parent.chmod(0o700)
    worker = group.acquire(WorkerRecord(1, "a", 0.0, "main:app", "", "asgi"))
    Path(worker.draft_path).touch()
    worker.publish()
    if not runs:
        worker.after_fork()  # its locks are released, as by a killed process
    changed = os.stat(group.path).st_mtime
    made(tmp_path, clock=ManualClock(wall=changed + directory.STALE_AFTER - 1))
    assert os.path.exists(worker.path)
    made(tmp_path, clock=ManualClock(wall=changed + directory.STALE_AFTER + 1))
    assert os.path.exists(worker.path) == (runs or not is_removed)
    assert group.path.exists() == (runs or not is_removed)
