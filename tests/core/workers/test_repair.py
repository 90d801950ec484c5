"""The repair: what other programs remove of a running worker is made again, and said once."""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from sticky_core.clock import ManualClock
from sticky_core.workers.generated_secret import read_secret, shared_secret
from sticky_core.workers.record import WorkerRecord, read_record
from sticky_core.workers.repair import TOUCH_INTERVAL, FileRepair, RepairResult
from sticky_core.workers.slots import WorkerSlots

OLDER, OWN, YOUNGER = "018c1a2b3c400000", "018c1a2b3c500000", "018c1a2b3c600000"
NOTHING = RepairResult()


class Worker:
    """A worker; its socket is a file."""

    def __init__(self, path: Path, instance: str = OWN, listens=lambda path: False) -> None:
        path.mkdir(mode=0o700, exist_ok=True)
        self.clock = ManualClock()
        self.slots = WorkerSlots(path, self.clock)
        record = WorkerRecord(os.getpid(), instance, 0.5, "main:app", "", "asgi")
        self.slot = self.slots.acquire(record, listens)
        self.secret = shared_secret(path, instance)
        self.publish()
        self.repair = FileRepair(self.slots, self.slot, self.secret, os.path.exists, self.clock)

    def publish(self) -> None:
        Path(self.slot.draft_path).touch()
        self.slot.publish()

    def look(self) -> RepairResult:
        result = self.repair.run()
        if result.needs_socket:
            self.publish()
        return result


@pytest.fixture
def path():
    with tempfile.TemporaryDirectory(prefix="sticky-") as folder:
        yield Path(folder) / "group"


@pytest.fixture
def worker(path):
    return Worker(path)


def test_nothing_is_done_while_nothing_is_missing(worker, caplog):
    before = os.stat(worker.slots.path).st_mtime_ns
    assert worker.look() == NOTHING
    assert os.stat(worker.slots.path).st_mtime_ns == before
    assert caplog.text == ""


REMOVED = {
    "the directory and the lock file and the secret and the socket": lambda path: shutil.rmtree(path),
    "the lock file": lambda path: (path / "1.lock").unlink(),
    "the secret": lambda path: (path / "secret").unlink(),
    "the socket": lambda path: next(path.glob("*.sock")).unlink(),
    "the lock file and the secret": lambda path: [(path / each).unlink() for each in ("1.lock", "secret")],
}


@pytest.mark.parametrize("what, remove", REMOVED.items(), ids=REMOVED)
def test_what_is_missing_is_made_again_and_logged(worker, caplog, what, remove):
    remove(worker.slots.path)
    result = worker.look()
    assert result == RepairResult(needs_socket="socket" in what)
    assert sorted(os.listdir(worker.slots.path)) == [f"1.{OWN}.sock", "1.lock", "secret"]
    assert read_secret(worker.slots.path) == worker.secret
    record = read_record(worker.slots.path / "1.lock")
    assert record is not None and record.instance == OWN
    assert worker.slots.has_ended(1, OWN) is False
    assert Worker(worker.slots.path, YOUNGER).slot.number == 2
    (message,) = [each.getMessage() for each in caplog.records]
    assert f"has removed {what} of worker w1 in {worker.slots.path}" in message
    assert "pass directory=" in message
    assert worker.look() == NOTHING


def test_directory_that_was_made_again_is_locked_again(worker):
    shutil.rmtree(worker.slots.path)
    worker.look()
    directory = os.open(worker.slots.path, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(directory)


def test_program_that_cleans_again_and_again_is_logged_once_an_hour(worker, caplog):
    for seconds in (0.5, 0.5, TOUCH_INTERVAL, 0.5):
        worker.clock.advance(seconds)
        (worker.slots.path / "secret").unlink()
        worker.look()
    assert len(caplog.records) == 2


def test_files_are_touched_before_they_look_unused(worker):
    files = [worker.slots.path / name for name in os.listdir(worker.slots.path)]
    for each in (*files, worker.slots.path):
        os.utime(each, (1000, 1000))
    worker.clock.advance(TOUCH_INTERVAL - 1)
    assert worker.look() == NOTHING
    assert {os.stat(each).st_mtime for each in files} == {1000}
    worker.clock.advance(1)
    assert worker.look() == NOTHING
    assert all(os.stat(each).st_mtime > 1000 for each in (*files, worker.slots.path))


def test_worker_that_has_released_its_slot_repairs_nothing(worker):
    worker.slot.release()
    shutil.rmtree(worker.slots.path)
    assert worker.look() == NOTHING
    assert not worker.slots.path.exists()


def test_what_can_not_be_made_again_is_logged_once_and_tried_again(worker, monkeypatch, caplog):
    (worker.slots.path / "secret").unlink()
    real = os.open
    monkeypatch.setattr(os, "open", _refuse)
    assert [worker.look() for _ in range(3)] == [NOTHING] * 3
    assert len(caplog.records) == 1 and "can't be made again: [Errno 28]" in caplog.text
    monkeypatch.setattr(os, "open", real)
    worker.look()
    assert read_secret(worker.slots.path) == worker.secret


def _refuse(*arguments):
    raise OSError(28, "No space left on device")


# A worker that has started in a directory that was just cleaned, where nothing showed that others run


@pytest.mark.parametrize("which", ["the number and the secret", "the secret"])
def test_younger_worker_gives_way_and_the_older_one_keeps_what_its_clients_know(path, caplog, which):
    older = Worker(path, OLDER)
    shutil.rmtree(path)
    younger = Worker(path, YOUNGER)
    assert younger.slot.number == older.slot.number
    assert younger.secret != older.secret
    if which == "the secret":
        younger.slot.release()
        path.joinpath("1.lock").touch()
        older.slot.restore_directory()
        older.slot.restore_lock()
        younger = Worker(path, YOUNGER, os.path.exists)
        assert younger.slot.number == 2
    assert older.look() == RepairResult(needs_socket=True)
    assert (older.slots.changed_instances() or {})[1] == OLDER
    assert read_secret(path) == older.secret
    assert younger.repair.run() == RepairResult(must_restart=True)
    assert "its clients are bound anew" in caplog.text
    younger.slot.release()
    assert older.look() == NOTHING
    assert older.slots.has_ended(1, OLDER) is False
    again = Worker(path, YOUNGER, os.path.exists)
    assert (again.slot.number, again.secret) == (2, older.secret)
    assert again.look() == older.look() == NOTHING


def test_socket_of_an_older_worker_that_has_ended_is_removed(worker, monkeypatch):
    left = Path(worker.slots.socket_path(1, OLDER))
    left.touch()
    worker.repair._listens = lambda path: False
    assert worker.look() == NOTHING
    assert not left.exists()
    assert worker.slots.changed_instances() == {1: OWN}


# What a process learns that starts, or finds a socket missing


def replace_worker(worker):
    worker.slot.release()
    worker.replacement = Worker(worker.slots.path, YOUNGER)


HAS_ENDED = {
    "it runs": (lambda worker: None, False),
    "its socket is missing": (lambda worker: os.unlink(worker.slot.path), False),
    "its lock file is missing": (lambda worker: (worker.slots.path / "1.lock").unlink(), None),
    "its directory is missing": (lambda worker: shutil.rmtree(worker.slots.path), None),
    "it was killed": (lambda worker: worker.slot.after_fork(), True),
    "it is about to end": (lambda worker: worker.slot.drain(), True),
    "it has ended": (lambda worker: worker.slot.release(), True),
    "another worker has its slot": (replace_worker, True),
}


@pytest.mark.parametrize("happen, expected", HAS_ENDED.values(), ids=HAS_ENDED)
def test_only_a_lock_file_that_is_there_shows_that_a_worker_has_ended(worker, happen, expected):
    happen(worker)
    assert worker.slots.has_ended(1, OWN) is expected


NEEDS_REPAIR = {
    "nothing is missing": ([], True, False),
    "the socket is missing": (["*.sock"], True, True),
    "the secret is missing": (["secret"], True, True),
    "the secret is missing, and another is configured": (["secret"], False, False),
    "all is missing": (["*"], False, True),
}


@pytest.mark.parametrize("removed, needs_secret, expected", NEEDS_REPAIR.values(), ids=NEEDS_REPAIR)
def test_process_that_starts_finds_what_running_workers_will_make_again(worker, removed, needs_secret, expected):
    for pattern in removed:
        for path in list(worker.slots.path.glob(pattern)):
            path.unlink()
    running = {worker.slot.abstract_address, worker.slot.path}
    listens = lambda address: address in running and (address[:1] == "\0" or os.path.exists(address))  # noqa: E731
    assert worker.slots.needs_repair(listens, needs_secret) is expected
    if expected:
        worker.look()
        assert not worker.slots.needs_repair(listens, needs_secret)


def test_process_that_starts_without_abstract_sockets_knows_running_workers_by_their_sockets(worker):
    (worker.slots.path / "secret").unlink()
    assert worker.slots.needs_repair(lambda address: address == worker.slot.path, True)
    assert not worker.slots.needs_repair(lambda address: False, True)  # it was killed


def test_abstract_socket_keeps_the_slot_of_a_worker_in_a_cleaned_directory(worker):
    shutil.rmtree(worker.slots.path)
    assert Worker(worker.slots.path, YOUNGER, lambda address: address == worker.slot.abstract_address).slot.number == 2
    assert worker.look().needs_socket
    assert worker.slots.changed_instances() == {1: OWN, 2: YOUNGER}


def test_abstract_sockets_of_other_users_keep_no_worker_from_starting(path):
    assert Worker(path, OWN, lambda address: address[:1] == "\0").slot.number == 1


def test_abstract_address_is_that_of_one_directory(path, tmp_path):
    one, same = Worker(path), WorkerSlots(path, ManualClock())
    assert one.slots.abstract_address(1) == same.abstract_address(1)
    assert len({one.slots.abstract_address(1), same.abstract_address(2), Worker(tmp_path).slot.abstract_address}) == 3
    assert len(one.slot.abstract_address) < 100
