"""Worker records: what is written is read, and nothing that a lock file can hold raises."""

import os
from dataclasses import replace

import pytest

from sticky_core.workers.record import WorkerRecord, read_record, write_record

RECORD = WorkerRecord(4711, "018c1a2b3c4d5e6f", 1_700_000_000.5, "main:FastAPI", "shop", "asgi")


@pytest.fixture
def lock(tmp_path):
    path = tmp_path / "1.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    yield path, descriptor
    os.close(descriptor)


def test_record_is_read_by_path_and_by_descriptor(lock):
    path, descriptor = lock
    for record in (replace(RECORD, is_draining=True), RECORD):  # the second is one byte longer, and replaces the first
        write_record(descriptor, record)
        assert read_record(path) == read_record(descriptor) == record


def test_what_is_left_of_a_longer_record_is_ignored(lock, monkeypatch):
    path, descriptor = lock
    write_record(descriptor, replace(RECORD, app="main:" + "a" * 100))
    monkeypatch.setattr(os, "ftruncate", lambda *arguments: None)  # the file is read before that
    write_record(descriptor, RECORD)
    assert read_record(path) == RECORD


VALID = b'"pid": 1, "instance": "a", "started": 1.5, "app": "main:app", "group": "", "is_draining": false'
GARBAGE = {
    "empty": b"",
    "no JSON": b"\xff\x00",
    "no object": b"[1, 2]",
    "cut short": b'{"pid": 1, "inst',
    "a member is missing": b"{" + VALID + b"}",
    "a face that is not known": b"{" + VALID + b', "face": "rsgi"}',
    "a number as text": b"{" + VALID.replace(b"1,", b'"1",') + b', "face": "asgi"}',
    "nested deeply": b"[" * 4096,
    "longer than a record can be": b"{" + VALID + b', "face": "asgi", "more": "' + b"a" * 4096 + b'"}',
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_no_record(lock, data):
    path, _ = lock
    path.write_bytes(data)
    assert read_record(path) is None


def test_later_members_are_ignored(lock):
    path, _ = lock
    path.write_bytes(b"{" + VALID + b', "face": "asgi", "more": 1}\n')
    assert read_record(path) == WorkerRecord(1, "a", 1.5, "main:app", "", "asgi")


def test_missing_file_is_no_record_and_a_file_that_can_not_be_written_is_no_error(lock, tmp_path):
    path, _ = lock
    assert read_record(tmp_path / "2.lock") is None
    assert read_record(tmp_path) is None
    closed = os.open(path, os.O_RDONLY)
    write_record(closed, RECORD)
    os.close(closed)
    write_record(closed, RECORD)
    assert read_record(closed) is None
