"""The workers as one of them sees them: which run, which have ended, and what a client's cookie is."""

import os

import pytest

from sticky_core.backend.events import StateChange
from sticky_core.errors import ConfigError
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.workers.slots import MAX_WORKERS, WorkerSlots
from tests.core.workers.conftest import publish

SECRET = "a-secret-of-sixteen-bytes-at-least"


def up(workers):
    return [server.name for server in workers.servers if server.usable]


def test_servers_are_numbered_like_worker_slots_and_up_if_their_worker_runs(join):
    first, second = join(), join()
    assert (first.own_server.name, second.own_server.name) == ("w1", "w2")
    assert len(first.servers) == MAX_WORKERS
    assert up(second) == ["w1", "w2"]
    assert up(first) == ["w1"]
    first.refresh_peers()
    assert up(first) == ["w1", "w2"]
    assert [server.name for server in first.live_peers()] == ["w2"]
    assert [server.name for server in second.live_peers()] == ["w1"]


def test_worker_that_stops_is_down_for_its_peers_after_a_refresh(join):
    first, second = join(), join()
    second.slot.drain()
    assert first.live_peers() == []
    assert first["w2"].status == "DOWN"


@pytest.mark.parametrize(
    "end, level, reason",
    [
        pytest.param("drain", "INFO", "its worker ends", id="it has announced its end"),
        pytest.param("drain and release", "INFO", "its worker ends", id="it has announced its end and ended"),
        pytest.param("kill and clean", "WARNING", "its worker has ended without notice", id="killed and cleaned"),
        pytest.param("kill", "WARNING", "its worker has ended without notice", id="killed"),
        pytest.param("kill after a drain", "INFO", "its worker ends", id="killed while it drained"),
        pytest.param("lose the lock file", "WARNING", "its worker has ended without notice", id="without a record"),
    ],
)
def test_end_of_a_worker_is_a_warning_unless_it_has_announced_it(join, kill, caplog, end, level, reason):
    first, second = join(), join()
    first.refresh_peers()
    caplog.set_level("INFO", "sticky_sessions")
    if "drain" in end:
        second.slot.drain()
    if end == "drain and release":
        second.slot.release()
    elif end.startswith("kill"):
        if end == "kill":
            kill(second)
            first.forget_peer(first["w2"], second.slot.instance)
        elif end == "kill and clean":
            kill(second)
            second.slot.unpublish()
        else:
            second.slot.after_fork()
    elif end == "lose the lock file":
        (first.slots.path / "2.lock").unlink()
        kill(second)
        first.forget_peer(first["w2"], second.slot.instance)
    first.refresh_peers()
    assert [(record.levelname, record.getMessage().partition(". ")[0]) for record in caplog.records] == [
        (level, f"Server group/w2 is DOWN, reason: {reason}")
    ]


def test_announced_end_of_a_worker_says_nothing_about_the_next_one(join, kill, caplog):
    first, second = join(), join()
    first.refresh_peers()
    second.slot.drain()
    second.slot.release()
    third = join()
    first.refresh_peers()
    kill(third)
    caplog.clear()
    first.forget_peer(first["w2"], third.slot.instance)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_next_worker_in_a_worker_slot_is_another_instance(join, kill):
    first, second = join(), join()
    first.refresh_peers()
    before = first["w2"].instance
    assert before == second.slot.instance
    kill(second)
    third = join()
    first.refresh_peers()
    assert third.own_server.name == "w2"
    assert first["w2"].instance == third.slot.instance != before
    assert first["w2"].usable


def test_forgotten_peer_is_down_and_its_sessions_are_lost(join, kill):
    first, second = join(), join()
    first.refresh_peers()
    kill(second)
    server = first["w2"]
    assert server.usable  # a killed worker leaves its socket
    assert first.forget_peer(server, second.slot.instance)
    assert not server.usable
    assert first.live_peers() == []


@pytest.mark.parametrize("removed", [["2.*"], ["*.sock"], ["*"]], ids=["its files", "all sockets", "all files"])
def test_peer_is_up_while_nothing_shows_that_it_has_ended(join, removed):
    first, second = join(), join()
    first.refresh_peers()
    for pattern in removed:
        for path in list(first.slots.path.glob(pattern)):
            path.unlink()
    assert not first.has_ended(first["w2"], second.slot.instance)
    assert first["w2"].usable
    second.repair_files()
    publish(second)
    assert not first.has_ended(first["w2"], second.slot.instance)
    second.slot.drain()
    assert first.has_ended(first["w2"], second.slot.instance)


def test_socket_of_a_worker_that_listens_is_never_removed(join):
    first, second = join(), join()
    first.refresh_peers()
    first._listens = lambda address: address == second.slot.path
    assert not first.forget_peer(first["w2"], second.slot.instance)
    assert os.path.exists(second.slot.path)
    assert first["w2"].usable


def test_peer_of_which_nothing_is_left_is_down_once_it_is_known_to_be_silent(join):
    first, second = join(), join()
    first.refresh_peers()
    for path in list(first.slots.path.glob("2.*")):
        path.unlink()
    assert first.forget_peer(first["w2"], second.slot.instance)
    assert not first["w2"].usable
    second.repair_files()  # it was stopped for a while
    publish(second)
    first.refresh_peers()
    assert first["w2"].usable


def test_refresh_of_an_unchanged_group_changes_nothing(join):
    first, second = join(), join()
    first.refresh_peers()
    changes: list[StateChange] = []
    with first.events(changes.append):
        first.refresh_peers()
        assert changes == []
        second.slot.drain()
        first.refresh_peers()
    assert [(change.server, change.after) for change in changes] == [("w2", "DOWN")]


@pytest.mark.parametrize(
    "cookie, secure, expected",
    [
        pytest.param("W", False, "path=/", id="over HTTP"),
        pytest.param("W", True, "path=/; Secure", id="over TLS"),
        pytest.param(Cookie("W", secret=SECRET, path="/app"), False, "path=/app", id="with a path"),
        pytest.param(
            Cookie("W", secret=SECRET, domain="example.org"), False, "path=/; domain=example.org", id="with a domain"
        ),
        pytest.param(Cookie("W", secret=SECRET, secure=True), False, "path=/; Secure", id="always secure"),
        pytest.param(Cookie("W", secret=SECRET, secure=False), True, "path=/", id="never secure"),
    ],
)
def test_expired_cookie_has_the_attributes_by_which_a_browser_finds_the_mark(join, cookie, secure, expected):
    options = {"secret": None} if isinstance(cookie, Cookie) else {}
    workers = join(cookie=cookie, **options)
    assert workers.expired_cookie(secure) == f"W=; Expires=Thu, 01-Jan-1970 00:00:01 GMT; {expected}"


@pytest.mark.parametrize(
    "options, hashes, learns",
    [
        pytest.param({}, False, False, id="cookie only"),
        pytest.param({"key": "src"}, False, True, id="keys are learned"),
        pytest.param({"key": "src", "slots": 3}, True, False, id="keys are hashed"),
    ],
)
def test_keys_are_learned_or_hashed(join, options, hashes, learns):
    workers = join(**options)
    assert (workers.hashes_keys, workers.keys is not None) == (hashes, learns)


def test_workers_without_a_secret_share_a_generated_one(join, monkeypatch):
    monkeypatch.delenv("STICKY_SECRET", raising=False)
    first, second = join(secret=None), join(secret=None)
    assert first.cookie is not None and second.cookie is not None
    assert first.cookie.settings().keys == second.cookie.settings().keys
    assert first.cookie.settings().keys[0] == (first.slots.path / "secret").read_bytes()


def test_worker_slot_is_released_if_the_workers_can_not_be_made(join, monkeypatch):
    first = join()
    monkeypatch.setattr(WorkerSlots, "changed_instances", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        join()
    monkeypatch.undo()
    assert join().own_server.name == "w2"
    assert first.own_server.name == "w1"


def test_config_error_if_no_worker_slot_is_free(join, monkeypatch):
    monkeypatch.setattr("sticky_core.workers.slots.MAX_WORKERS", 1)
    join()
    with pytest.raises(ConfigError, match="run fewer workers"):
        join()


def test_forked_child_gives_up_the_worker_slot_and_leaves_it_to_the_parent(join):
    first = join()
    first.after_fork()
    assert not first.slot.is_held


def test_repair_learns_of_peers_before_their_sockets_are_missing(join):
    first, second = join(), join()
    assert not first["w2"].usable
    first.repair_files()
    os.unlink(second.slot.path)
    first.refresh_peers()
    assert first["w2"].usable and first["w2"].instance == second.slot.instance
