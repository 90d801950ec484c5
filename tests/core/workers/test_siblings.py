"""Processes that serve the same app without being known as workers: an inherited socket shows them, or they warn."""

import os
import subprocess
import sys

import pytest

from sticky_core.clock import SystemClock
from sticky_core.workers import siblings
from sticky_core.workers.record import WorkerRecord
from sticky_core.workers.siblings import inherited_socket, report_presence
from sticky_core.workers.survey import read_groups

RECORD = WorkerRecord(4711, "", 0.5, "main:app", "", "asgi")


@pytest.fixture(autouse=True)
def held(monkeypatch):
    """The presence of processes: each report in this process stands for one of its own."""
    held: list[int] = []
    monkeypatch.setattr(siblings, "_held", held)
    yield held
    for each in held:
        os.close(each)


def report(directory, caplog, record=RECORD):
    """Return what a process logs that registers its presence."""
    caplog.clear()
    report_presence(record, directory / "run")
    return [each.getMessage() for each in caplog.records]


def test_second_process_of_an_app_names_the_first_and_the_way_out(tmp_path, caplog):
    assert report(tmp_path, caplog) == []
    (message,) = report(tmp_path, caplog, WorkerRecord(4712, "", 0.5, "main:app", "", "asgi"))
    assert "process 4711 serves main:app as well as this process (4712)" in message
    assert "pass name='...'" in message and "different names" in message


def test_processes_of_other_apps_interfaces_and_checkouts_are_not_named(tmp_path, caplog, monkeypatch):
    report(tmp_path, caplog)
    assert report(tmp_path, caplog, WorkerRecord(4712, "", 0.5, "admin:app", "", "asgi")) == []
    assert report(tmp_path, caplog, WorkerRecord(4713, "", 0.5, "main:app", "", "wsgi")) == []
    monkeypatch.chdir(tmp_path)
    assert report(tmp_path, caplog) == []


def test_process_that_has_ended_is_not_named_and_its_file_is_removed(tmp_path, caplog, held):
    report(tmp_path, caplog)
    os.close(held.pop())
    assert report(tmp_path, caplog) == []
    assert len(list((tmp_path / "run").rglob("*-*"))) == 1


@pytest.mark.parametrize("obstacle", ["a file", "another user's", "no locks"])
def test_file_system_that_fails_is_no_error(tmp_path, caplog, monkeypatch, obstacle):
    if obstacle == "a file":
        (tmp_path / "run").touch()
    elif obstacle == "another user's":
        monkeypatch.setattr(os, "geteuid", lambda: 4711)
    else:
        monkeypatch.setitem(sys.modules, "fcntl", None)
    assert report(tmp_path, caplog) == []


def test_socket_is_inherited_if_the_parent_has_it_open_too():
    program = """
import os, socket, subprocess, sys
with socket.create_server(("127.0.0.1", 0)) as shared:
    code = (
        "import sys; from sticky_core.workers.siblings import inherited_socket; "
        "print(inherited_socket({int(sys.argv[1])}))"
    )
    inode = str(os.fstat(shared.fileno()).st_ino)
    for each in (inode, "1"):
        subprocess.run([sys.executable, "-c", code, each], pass_fds=[shared.fileno()], check=True)
    print(inode)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    inherited, other, inode = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment
    ).stdout.split()
    assert (inherited, other) == (inode, "None")


def test_socket_that_systemd_passes_is_inherited_although_its_parent_can_not_be_seen(monkeypatch, tmp_path):
    with open(tmp_path / "socket", "wb") as opened:
        monkeypatch.setattr(siblings, "_FIRST_DESCRIPTOR", opened.fileno())
        inode = os.fstat(opened.fileno()).st_ino
        assert inherited_socket({inode}) is None
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        assert inherited_socket({inode}) == inode
        assert inherited_socket({inode + 1}) is None
        monkeypatch.setenv("LISTEN_PID", "1")  # of another process, from which the environment comes
        assert inherited_socket({inode}) is None


def test_directories_of_presences_are_no_groups(tmp_path, caplog):
    report(tmp_path, caplog)
    assert read_groups(tmp_path / "run", SystemClock(), lambda path: False) == []
