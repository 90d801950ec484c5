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
from sticky_core.workers.generated_secret import shared_secret
from sticky_core.workers.record import WorkerRecord, read_record
from sticky_core.workers.slots import WorkerSlots


@pytest.fixture(name="tmp_path")
def _tmp_path():
    """A directory with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="sticky-") as path:
        yield Path(path)


@pytest.fixture
def slots(tmp_path):
    return WorkerSlots.of_group("group", "main:app", "asgi", SystemClock(), tmp_path / "run")


INSTANCES = ("018c1a2b3c400000", "018c1a2b3c500000", "018c1a2b3c300000")


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
    generated = {shared_secret(as_another_process(slots).path, instance) for instance in INSTANCES}
    assert len(generated) == 1
    assert len(*generated) >= 32
    assert os.stat(slots.path / "secret").st_mode & 0o777 == 0o600
    assert os.stat(slots.path).st_mode & 0o777 == 0o700
    assert os.listdir(slots.path) == ["secret"]


def test_path_that_is_too_long_for_a_socket_is_refused_at_startup(tmp_path):
    path = tmp_path / ("x" * 100)
    with pytest.raises(ConfigError, match="too long a path"):
        WorkerSlots.of_group("group", "main:app", "asgi", SystemClock(), path)


def test_worker_starts_although_the_directory_of_its_group_was_just_removed(tmp_path, monkeypatch):
    slots = WorkerSlots.of_group(None, "main:app", "asgi", SystemClock(), tmp_path / "run")
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


def test_process_that_reads_a_record_takes_no_worker_slot_from_one_that_starts(slots, monkeypatch):
    """It has a shared lock for a moment."""
    slots.acquire(record("a")).release()
    reader = os.open(slots.path / "1.lock", os.O_RDONLY)
    flock = fcntl.flock
    flock(reader, fcntl.LOCK_SH)
    tries: list[int] = []

    def end_reading(descriptor, operation):
        if operation & fcntl.LOCK_EX:
            tries.append(descriptor)
            if len(tries) == 3:
                os.close(reader)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", end_reading)
    assert slots.acquire(record("b")).number == 1


def test_records_of_running_workers_are_listed_and_those_of_killed_ones_are_not(slots):
    killed, running = slots.acquire(record("a")), slots.acquire(record("b"))
    (slots.path / "7.lock").touch()
    killed.after_fork()
    assert list(as_another_process(slots).running()) == [record("b")]
    assert running.number == 2


def test_another_app_with_the_name_of_a_group_is_refused_while_a_worker_of_it_runs(slots):
    worker = slots.acquire(record("a"))
    slots.require_same_app(record("b"))
    other = replace(record("b"), app="admin:Flask", pid=1)
    with pytest.raises(ConfigError) as caught:
        slots.require_same_app(other)
    assert f"name='group' is that of workers that serve main:app (process {os.getpid()})" in str(caught.value)
    assert "this process serves admin:Flask" in str(caught.value) and "give each app a name" in str(caught.value)
    worker.after_fork()  # killed
    slots.require_same_app(other)
