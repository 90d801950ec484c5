"""Slots are held by locks that end with whoever holds them, and the names of sockets say who is where."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sticky_core.clock import ManualClock, SystemClock
from sticky_core.errors import ConfigError
from sticky_core.workers import slots as room
from sticky_core.workers.slots import Slots


@pytest.fixture(name="tmp_path")
def _tmp_path():
    """One that is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="sticky-") as path:
        yield Path(path)


@pytest.fixture
def slots(tmp_path):
    return Slots.of("family", 1, SystemClock(), tmp_path / "run")


def again(slots):
    """The same as another process would have it."""
    return Slots(slots.path, SystemClock())


def opened(slots, life):
    slot = slots.take(life)
    Path(slot.draft).touch()
    slot.open()
    return slot


def test_the_lowest_that_is_free_is_taken(slots):
    first, second, third = (slots.take(life) for life in "abc")
    assert [first.number, second.number, third.number] == [1, 2, 3]
    second.release()
    assert again(slots).take("d").number == 2


def test_what_the_last_in_a_slot_has_left_is_removed(slots):
    dead = opened(slots, "a")
    dead.after_fork()  # its lock is gone, as with a process that was killed
    assert os.path.exists(dead.path)
    life = opened(slots, "b")
    assert (life.number, os.path.exists(dead.path)) == (1, False)
    assert again(slots).news() == {1: "b"}


def test_who_listens_is_seen_and_nobody_is_seen_twice(slots):
    assert slots.news() is None
    one, other = opened(slots, "a"), slots.take("b")
    looking = again(slots)
    assert looking.news() == {1: "a"}
    assert looking.news() is None
    Path(other.draft).touch()
    assert looking.news() is None
    other.open()
    assert looking.news() == {1: "a", 2: "b"}
    one.leave()
    assert looking.news() == {2: "b"}
    looking.bury(2, "b")
    assert looking.news() == {}


def test_a_change_within_the_grain_of_dates_is_not_overlooked(tmp_path):
    clock = ManualClock(wall=os.stat(tmp_path).st_mtime)
    slots = Slots(tmp_path, clock)
    before = os.stat(tmp_path)
    assert slots.news() is None
    (tmp_path / "1.a.sock").touch()
    os.utime(tmp_path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as if it were the same moment
    assert slots.news() == {1: "a"}


def test_a_lock_ends_with_its_process_however_that_ends(slots):
    program = f"""
from pathlib import Path
from sticky_core.clock import SystemClock
from sticky_core.workers.slots import Slots
slot = Slots(Path({str(slots.path)!r}), SystemClock()).take("a")
print(slot.number, flush=True)
input()
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(room.__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        assert slots.take("b").number == 2
        process.kill()
    assert slots.take("c").number == 1


def test_all_agree_on_one_secret_and_nobody_else_can_read_it(slots):
    made = {again(slots).secret() for _ in range(3)}
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
        Slots.of("family", 1, SystemClock(), path)


def test_a_link_is_no_directory(tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="only this user can enter"):
        Slots.of("family", 1, SystemClock(), tmp_path / "run")


def test_a_directory_that_is_somebody_elses_is_refused(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(ConfigError, match="only this user can enter"):
        Slots.of("family", 1, SystemClock(), tmp_path / "run")


def test_a_path_that_is_too_long_for_a_socket_is_refused_in_time(tmp_path):
    path = tmp_path / ("x" * 100)
    with pytest.raises(ConfigError, match="too long a path"):
        Slots.of("family", 1, SystemClock(), path)


def test_those_of_one_parent_are_a_family_and_each_app_has_its_own(tmp_path):
    one = Slots.of(None, 1, SystemClock(), tmp_path / "run")
    other = Slots.of(None, 2, SystemClock(), tmp_path / "run")
    assert one.path.name == f"{os.getppid()}-1"
    assert other.path != one.path


def test_what_families_have_left_whose_parent_is_gone_is_swept_after_a_while(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    run = tmp_path / "run"
    gone = Slots(run / f"{process.pid}-1", SystemClock())
    living = Slots(run / f"{os.getpid()}-1", SystemClock())
    named = Slots(run / "named", SystemClock())
    for slots in (gone, living, named):
        slots.path.mkdir(parents=True, mode=0o700)
        opened(slots, "a").after_fork()
    run.chmod(0o700)
    born = os.stat(gone.path).st_mtime
    Slots.of(None, 1, ManualClock(wall=born + room.STALE - 1), run)
    assert gone.path.exists()
    Slots.of(None, 1, ManualClock(wall=born + room.STALE + 1), run)
    assert [slots.path.exists() for slots in (gone, living, named)] == [False, True, True]


def test_there_are_so_many_and_no_more(slots, monkeypatch):
    monkeypatch.setattr(room, "MOST", 2)
    held = [slots.take("a"), slots.take("b")]
    with pytest.raises(ConfigError, match="all 2 slots"):
        slots.take("c")
    assert len(held) == 2
