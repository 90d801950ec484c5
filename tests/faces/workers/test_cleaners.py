"""Programs that clean temporary directories remove files of running workers: the workers make them again, and no
client is sent to another worker meanwhile.
"""

import os
import shutil
import socket

import pytest

from sticky_core.workers.repair import FileRepair, RepairResult
from tests.conformance.servers import until


def remove_files(*patterns):
    def remove(path):
        for pattern in patterns:
            for each in list(path.glob(pattern)):
                each.unlink()

    return remove


REMOVED = {
    "locks": remove_files("*.lock"),
    "the secret": remove_files("secret"),
    "locks and the secret": remove_files("*.lock", "secret"),
    "sockets": remove_files("*.sock"),
    "all files": remove_files("*"),
    "the directory": shutil.rmtree,
    "the directory of all groups": lambda path: shutil.rmtree(path.parent),
}


@pytest.fixture
def no_secret(monkeypatch):
    """Workers generate their secret."""
    monkeypatch.delenv("STICKY_SECRET", raising=False)
    return {"secret": None}


@pytest.mark.parametrize("remove", REMOVED.values(), ids=REMOVED)
def test_clients_keep_their_workers_while_files_are_removed_and_a_worker_is_replaced(start, no_secret, remove):
    one, other, third = (start(**no_secret) for _ in range(3))
    marks = [each.request().mark for each in (one, other, third)]
    for each in (one, other, third):
        each.backend.refresh_peers()  # as each does twice a second
    third.kill()
    remove(one.backend.slots.path)
    # at once: the client's worker makes its socket again within half a second, and the request waits for it
    assert other.request(cookie=marks[0]).body == b"2"
    assert one.request(cookie=marks[1]).body == b"2"
    replacement = start(**no_secret)
    assert replacement.backend.own_server.name == "w3"
    for each in (one, other, replacement):
        for _ in range(2):
            each.request(cookie=marks[0])
            each.request(cookie=marks[1])
    assert (len(one.seen), len(other.seen)) == (8, 8)
    assert all(
        response.cookies == [] for response in (one.request(cookie=marks[1]), replacement.request(cookie=marks[0]))
    )
    # a client of the replacement is one for all
    mark = replacement.request().mark
    served = len(replacement.seen)
    assert one.request(cookie=mark).cookies == []
    assert len(replacement.seen) == served + 1


@pytest.mark.parametrize("remove", REMOVED.values(), ids=REMOVED)
def test_replacement_that_starts_before_the_next_repair_takes_nothing_from_others(start, no_secret, remove):
    one, other = (start(**no_secret) for _ in range(2))
    marks = [each.request().mark for each in (one, other)]
    remove(one.backend.slots.path)
    replacement = start(**no_secret)
    assert replacement.backend.own_server.name == "w3"
    assert [replacement.request(cookie=mark).body for mark in marks] == [b"2", b"2"]
    assert [len(one.seen), len(other.seen)] == [2, 2]


def test_removed_socket_is_made_again_and_logged_once(start, caplog):
    worker = start()
    path = worker.backend.slot.path
    for _ in range(2):
        os.unlink(path)
        until(lambda: os.path.exists(path), "the socket is made again")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            assert connection.recv(100)
    (message,) = [each.getMessage() for each in caplog.records if "has removed" in each.getMessage()]
    assert "has removed the socket of worker w1" in message and "pass directory=" in message


def test_peers_that_had_connected_to_a_removed_socket_are_served(start):
    one, other = start(), start()
    mark = one.request().mark
    assert other.request(cookie=mark).body == b"2"
    for number in range(3, 6):
        until(lambda: os.path.exists(one.backend.slot.path), "the socket is made again")
        os.unlink(one.backend.slot.path)
        assert other.request(cookie=mark).body == b"%d" % number


def test_worker_that_ends_while_its_files_are_missing_is_lost_and_its_clients_are_bound_anew(start):
    one, other = start(), start()
    mark = one.request().mark
    path = one.backend.slots.path
    one.kill()
    for name in ("1.lock", os.path.basename(next(path.glob("1.*.sock")))):
        (path / name).unlink()
    lost = other.request(cookie=mark)
    assert (lost.status, lost.body) == (200, b"1")
    assert other.seen[-1].decision.reason.value == "other instance"
    assert other.request(cookie=lost.mark).body == b"2"


def test_worker_that_took_the_slot_of_another_gives_way(start, no_secret, monkeypatch, caplog):
    """Without abstract sockets, a process that starts in an empty directory does not know of the others."""
    for face in ("asgi", "wsgi"):
        monkeypatch.setattr(
            f"sticky_{face}.workers.worker.open_abstract",
            lambda address: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
        )
    older = start(**no_secret)
    mark = older.request().mark
    with monkeypatch.context() as context:
        context.setattr(FileRepair, "run", lambda self: RepairResult())  # it is late
        shutil.rmtree(older.backend.slots.path)
        younger = start(**no_secret)
        assert younger.backend.own_server.name == "w1"
        assert younger.request().mark != mark
    until(lambda: "its clients are bound anew" in caplog.text, "the younger worker gives way")
    until(lambda: younger.is_running and younger.backend.own_server.name == "w2", "it starts as another worker")
    assert [each.request(cookie=mark).body for each in (older, younger, older)] == [b"2", b"3", b"4"]
    assert older.request(cookie=younger.request().mark).cookies == []
    assert len(older.seen) == 4
