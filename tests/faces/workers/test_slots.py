"""The worker slots of running workers, whatever other programs do to the files of a group."""

import os
import socket
from contextlib import ExitStack

import pytest

from sticky_asgi.workers import link as asgi_link
from sticky_wsgi.workers import link as wsgi_link


def test_running_worker_keeps_its_slot_and_its_clients_although_its_lock_file_was_removed(start):
    one = start()
    mark = one.request().mark
    os.unlink(one.backend.slots.path / "1.lock")
    other = start()
    assert other.backend.own_server.name == "w2"
    assert other.request(cookie=mark).body == b"2"
    assert len(one.seen) == 2


@pytest.mark.parametrize("link", [asgi_link, wsgi_link], ids=["asgi", "wsgi"])
@pytest.mark.parametrize("waiting", [0, 3], ids=["it accepts", "it has not accepted the connections before"])
def test_socket_at_which_a_process_listens_is_told_from_one_that_was_left(folder, link, waiting):
    path = str(folder / "socket")
    assert not link.listens(path)
    with ExitStack() as opened:
        listener = opened.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        assert not link.listens(path)
        listener.listen(0)
        for _ in range(waiting):
            connection = opened.enter_context(socket.socket(socket.AF_UNIX))
            connection.setblocking(False)
            connection.connect_ex(path)
        assert link.listens(path)
    assert not link.listens(path)
