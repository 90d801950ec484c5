"""WorkerSlots are held by locks that end with whoever holds them, and the names of sockets say who is where."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sticky_core.clock import ManualClock, SystemClock
from sticky_core.errors import ConfigError
from sticky_core.workers import slots as room
from sticky_core.workers.slots import WorkerSlots


@pytest.fixture(name="tmp_path")
def _tmp_path():
    """One that is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="sticky-") as path:
        yield Path(path)


@pytest.fixture
def slots(tmp_path):
    return WorkerSlots.of_group("family", 1, SystemClock(), tmp_path / "run")


def again(slots):
    """The same as another process would have it."""
    return WorkerSlots(slots.path, SystemClock())


def opened(slots, life):
    slot = slots.acquire(life)
    Path(slot.draft_path).touch()
    slot.publish()
    return slot


def test_the_lowest_that_is_free_is_taken(slots):
    first, second, third = (slots.acquire(life) for life in "abc")
    assert [first.number, second.number, third.number] == [1, 2, 3]
    second.release()
    assert again(slots).acquire("d").number == 2


def test_what_the_last_in_a_slot_has_left_is_removed(slots):
    dead = opened(slots, "a")
    dead.after_fork()  # its lock is gone, as with a process that was killed
    assert os.path.exists(dead.path)
    life = opened(slots, "b")
    assert (life.number, os.path.exists(dead.path)) == (1, False)
    assert again(slots).changed_instances() == {1: "b"}


def test_who_listens_is_seen_and_nobody_is_seen_twice(slots):
    assert slots.changed_instances() is None
    one, other = opened(slots, "a"), slots.acquire("b")
    looking = again(slots)
    assert looking.changed_instances() == {1: "a"}
    assert looking.changed_instances() is None
    Path(other.draft_path).touch()
    assert looking.changed_instances() is None
    other.publish()
    assert looking.changed_instances() == {1: "a", 2: "b"}
    one.unpublish()
    assert looking.changed_instances() == {2: "b"}
    looking.remove_socket(2, "b")
    assert looking.changed_instances() == {}


def test_a_change_within_the_grain_of_dates_is_not_overlooked(tmp_path):
    clock = ManualClock(wall=os.stat(tmp_path).st_mtime)
    slots = WorkerSlots(tmp_path, clock)
    before = os.stat(tmp_path)
    assert slots.changed_instances() is None
    (tmp_path / "1.a.sock").touch()
    os.utime(tmp_path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as if it were the same moment
    assert slots.changed_instances() == {1: "a"}


def test_a_lock_ends_with_its_process_however_that_ends(slots):
    program = f"""
from pathlib import Path
from sticky_core.clock import SystemClock
from sticky_core.workers.slots import WorkerSlots
slot = WorkerSlots(Path({str(slots.path)!r}), SystemClock()).acquire("a")
print(slot.number, flush=True)
input()
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(room.__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        assert slots.acquire("b").number == 2
        process.kill()
    assert slots.acquire("c").number == 1


def test_all_agree_on_one_secret_and_nobody_else_can_read_it(slots):
    made = {again(slots).shared_secret() for _ in range(3)}
    assert len(made) == 1
    assert len(*made) >= 32
    assert os.stat(slots.path / "secret").st_mode & 0o777 == 0o600
    assert os.stat(slots.path).st_mode & 0o777 == 0o700
    assert os.listdir(slots.path) == ["secret"]


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_directory_that_others_can_enter_is_refused(tmp_path, mode):
    path = tmp_path / "run"
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(ConfigError, match="only this user can enter"):
        WorkerSlots.of_group("family", 1, SystemClock(), path)


def test_a_link_is_no_directory(tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="only this user can enter"):
        WorkerSlots.of_group("family", 1, SystemClock(), tmp_path / "run")


def test_a_directory_that_is_somebody_elses_is_refused(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(ConfigError, match="only this user can enter"):
        WorkerSlots.of_group("family", 1, SystemClock(), tmp_path / "run")


def test_a_path_that_is_too_long_for_a_socket_is_refused_in_time(tmp_path):
    path = tmp_path / ("x" * 100)
    with pytest.raises(ConfigError, match="too long a path"):
        WorkerSlots.of_group("family", 1, SystemClock(), path)


def test_those_of_one_parent_are_a_family_and_each_app_has_its_own(tmp_path):
    one = WorkerSlots.of_group(None, 1, SystemClock(), tmp_path / "run")
    other = WorkerSlots.of_group(None, 2, SystemClock(), tmp_path / "run")
    assert one.path.name == f"{os.getppid()}-1"
    assert other.path != one.path


def test_what_families_have_left_whose_parent_is_gone_is_swept_after_a_while(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    run = tmp_path / "run"
    gone = WorkerSlots(run / f"{process.pid}-1", SystemClock())
    living = WorkerSlots(run / f"{os.getpid()}-1", SystemClock())
    named = WorkerSlots(run / "named", SystemClock())
    for slots in (gone, living, named):
        slots.path.mkdir(parents=True, mode=0o700)
        opened(slots, "a").after_fork()
    run.chmod(0o700)
    born = os.stat(gone.path).st_mtime
    WorkerSlots.of_group(None, 1, ManualClock(wall=born + room.STALE_AFTER - 1), run)
    assert gone.path.exists()
    WorkerSlots.of_group(None, 1, ManualClock(wall=born + room.STALE_AFTER + 1), run)
    assert [slots.path.exists() for slots in (gone, living, named)] == [False, True, True]


def test_there_are_so_many_and_no_more(slots, monkeypatch):
    monkeypatch.setattr(room, "MAX_WORKERS", 2)
    held = [slots.acquire("a"), slots.acquire("b")]
    with pytest.raises(ConfigError, match="all 2 worker slots"):
        slots.acquire("c")
    assert len(held) == 2
