"""A worker slot is held by a lock that ends with its process, and the names of sockets show which workers run."""

import fcntl
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from sticky_core.clock import ManualClock, SystemClock
from sticky_core.errors import ConfigError
from sticky_core.workers import slots as slots_module
from sticky_core.workers.record import WorkerRecord, read_record
from sticky_core.workers.slots import WorkerSlots


@pytest.fixture(name="tmp_path")
def _tmp_path():
    """A directory with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="sticky-") as path:
        yield Path(path)


@pytest.fixture
def slots(tmp_path):
    return WorkerSlots.of_group("group", 1, SystemClock(), tmp_path / "run")


def as_another_process(slots):
    """The same worker slots, as another process has them."""
    return WorkerSlots(slots.path, SystemClock())


def record(instance):
    return WorkerRecord(os.getpid(), instance, 1_700_000_000.5, "main:app", "group", "asgi")


def published(slots, instance):
    slot = slots.acquire(record(instance))
    Path(slot.draft_path).touch()
    slot.publish()
    return slot


def test_lowest_free_worker_slot_is_taken(slots):
    first, second, third = (slots.acquire(record(instance)) for instance in "abc")
    assert [first.number, second.number, third.number] == [1, 2, 3]
    second.release()
    assert as_another_process(slots).acquire(record("d")).number == 2


def test_socket_that_the_last_worker_has_left_in_a_worker_slot_is_removed(slots):
    dead = published(slots, "a")
    dead.after_fork()  # its lock is released, as by a killed process
    assert os.path.exists(dead.path)
    live = published(slots, "b")
    assert (live.number, os.path.exists(dead.path)) == (1, False)
    assert as_another_process(slots).changed_instances() == {1: "b"}


def test_worker_slot_in_which_a_worker_listens_is_taken_although_its_lock_file_was_removed(slots):
    live = published(slots, "a")
    (slots.path / "1.lock").unlink()  # as programs do that clean temporary directories
    assert as_another_process(slots).acquire(record("b"), lambda path: path == live.path).number == 2
    assert os.path.exists(live.path)
    assert as_another_process(slots).acquire(record("c"), lambda path: False).number == 1
    assert not os.path.exists(live.path)


def test_published_workers_are_listed_when_something_has_changed(slots):
    assert slots.changed_instances() is None
    one, other = published(slots, "a"), slots.acquire(record("b"))
    seen_by_peer = as_another_process(slots)
    assert seen_by_peer.changed_instances() == {1: "a"}
    assert seen_by_peer.changed_instances() is None
    Path(other.draft_path).touch()
    assert seen_by_peer.changed_instances() is None
    other.publish()
    assert seen_by_peer.changed_instances() == {1: "a", 2: "b"}
    one.unpublish()
    assert seen_by_peer.changed_instances() == {2: "b"}
    seen_by_peer.remove_socket(2, "b")
    assert seen_by_peer.changed_instances() == {}


def test_change_within_the_resolution_of_the_mtime_is_not_missed(tmp_path):
    clock = ManualClock(wall=os.stat(tmp_path).st_mtime)
    slots = WorkerSlots(tmp_path, clock)
    before = os.stat(tmp_path)
    assert slots.changed_instances() is None
    (tmp_path / "1.a.sock").touch()
    os.utime(tmp_path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as within one tick
    assert slots.changed_instances() == {1: "a"}


def test_lock_ends_with_its_process_however_that_ends(slots):
    program = f"""
from pathlib import Path
from sticky_core.clock import SystemClock
from sticky_core.workers.record import WorkerRecord
from sticky_core.workers.slots import WorkerSlots
slot = WorkerSlots(Path({str(slots.path)!r}), SystemClock()).acquire(WorkerRecord(1, "a", 0.0, "main:app", "", "asgi"))
print(slot.number, flush=True)
input()
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(slots_module.__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        assert slots.acquire(record("b")).number == 2
        process.kill()
    assert slots.acquire(record("c")).number == 1


def test_all_workers_share_one_secret_that_other_users_can_not_read(slots):
    generated = {as_another_process(slots).shared_secret() for _ in range(3)}
    assert len(generated) == 1
    assert len(*generated) >= 32
    assert os.stat(slots.path / "secret").st_mode & 0o777 == 0o600
    assert os.stat(slots.path).st_mode & 0o777 == 0o700
    assert os.listdir(slots.path) == ["secret"]


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_directory_that_other_users_can_enter_is_refused(tmp_path, mode):
    path = tmp_path / "run"
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(ConfigError, match="only this user can enter"):
        WorkerSlots.of_group("group", 1, SystemClock(), path)


def test_symbolic_link_to_a_directory_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="only this user can enter"):
        WorkerSlots.of_group("group", 1, SystemClock(), tmp_path / "run")


def test_directory_of_another_user_is_refused(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(ConfigError, match="only this user can enter"):
        WorkerSlots.of_group("group", 1, SystemClock(), tmp_path / "run")


def test_path_that_is_too_long_for_a_socket_is_refused_at_startup(tmp_path):
    path = tmp_path / ("x" * 100)
    with pytest.raises(ConfigError, match="too long a path"):
        WorkerSlots.of_group("group", 1, SystemClock(), path)


def group_of_parent(path, app=1, namespace="a1", **more):
    """The worker slots of the processes of this test's parent."""
    return WorkerSlots.of_group(None, app, more.get("clock", SystemClock()), path / "run", namespace=namespace)


def test_processes_of_one_parent_are_a_group_and_each_app_has_its_own(tmp_path):
    one, same = (WorkerSlots.of_group(None, 1, SystemClock(), tmp_path / "run") for _ in range(2))
    other = WorkerSlots.of_group(None, 2, SystemClock(), tmp_path / "run")
    assert one.path == same.path
    assert one.path.name.endswith(f"-{os.getppid()}-1")
    assert other.path != one.path


def test_processes_of_two_containers_are_not_a_group_although_their_parents_have_the_same_id(tmp_path):
    one, same, other = (group_of_parent(tmp_path, namespace=namespace) for namespace in ("a1", "a1", "b2"))
    assert (one.path == same.path, one.path == other.path) == (True, False)


def test_pid_namespace_is_that_of_this_process_on_this_host(monkeypatch):
    here = slots_module._pid_namespace()
    assert here == slots_module._pid_namespace()
    monkeypatch.setattr(os, "stat", lambda path: os.stat_result((0, 4711, *[0] * 8)))
    assert slots_module._pid_namespace() != here


#: groups without a worker: the name of the directory, and whether another group's start removes it after a while
ENDED_GROUPS = {
    "the parent has ended": ("@a1-{ended}-1", True),
    "the parent runs": ("@a1-{running}-1", False),
    "the parent is in another namespace, with an id that is unused here": ("@b2-{ended}-1", True),
    "the parent is in another namespace, with an id that is used here": ("@b2-{running}-1", True),
    "a name": ("shop", False),
    "a name with digits": ("{ended}-1", False),
}


@pytest.mark.parametrize("name, is_removed", ENDED_GROUPS.values(), ids=ENDED_GROUPS)
@pytest.mark.parametrize("runs", [False, True], ids=["without a worker", "with a worker"])
def test_directory_of_a_group_is_removed_after_its_workers_and_its_parent_have_ended(tmp_path, name, is_removed, runs):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    group = WorkerSlots(tmp_path / "run" / name.format(ended=process.pid, running=os.getpid()), SystemClock())
    group.path.mkdir(parents=True, mode=0o700)
    group.path.parent.chmod(0o700)
    worker = published(group, "a")
    if not runs:
        worker.after_fork()  # its locks are released, as by a killed process
    changed = os.stat(group.path).st_mtime
    group_of_parent(tmp_path, clock=ManualClock(wall=changed + slots_module.STALE_AFTER - 1))
    assert os.path.exists(worker.path)
    group_of_parent(tmp_path, clock=ManualClock(wall=changed + slots_module.STALE_AFTER + 1))
    assert os.path.exists(worker.path) == (runs or not is_removed)
    assert group.path.exists() == (runs or not is_removed)


def test_worker_starts_although_the_directory_of_its_group_was_just_removed(tmp_path, monkeypatch):
    slots = group_of_parent(tmp_path)
    slots.path.rmdir()
    first = published(slots, "a")
    first.release()
    flock = fcntl.flock
    removed: list[Path] = []

    def remove_before_the_lock(descriptor, operation):
        if operation == fcntl.LOCK_SH and not removed:
            removed.append(slots.path)
            (slots.path / "1.lock").unlink()
            slots.path.rmdir()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_before_the_lock)
    second = published(slots, "b")
    assert removed and os.path.exists(second.path)
    assert as_another_process(slots).acquire(record("c")).number == 2


def test_config_error_if_all_worker_slots_are_taken(slots, monkeypatch):
    monkeypatch.setattr(slots_module, "MAX_WORKERS", 2)
    held = [slots.acquire(record("a")), slots.acquire(record("b"))]
    with pytest.raises(ConfigError, match="all 2 worker slots"):
        slots.acquire(record("c"))
    assert len(held) == 2


def test_lock_file_has_the_record_of_its_worker_which_shows_whether_it_drains(slots):
    slot = published(slots, "a")
    lock = slots.path / f"{slot.number}.lock"
    assert read_record(lock) == record("a")
    slot.drain()
    assert read_record(lock) == replace(record("a"), is_draining=True)
    assert not os.path.exists(slot.path)
    slot.release()
    slots.acquire(record("b"))
    assert read_record(lock) == record("b")
