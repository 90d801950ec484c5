"""Simultaneous requests of one client reserve its key, so that they go to one server."""

from __future__ import annotations

from sticky_core.persistence.stick.config import Stick
from sticky_core.server.server import Server
from tests.core.fakes import ScriptedTransaction
from tests.core.persistence.stick.backends import (
    ONE,
    A,
    entries_by_clock,
    make_backend,
    make_table,
)


def test_simultaneous_first_requests_go_to_one_server():
    keys = make_table()
    backend = make_backend(Stick.on(A, keys))
    together = [ScriptedTransaction(backend, headers=ONE) for _ in range(4)]
    servers = [each.start() for each in together]
    assert servers == [backend["s1"]] * 4
    assert len(backend["s1"].in_flight) == 4
    assert [len(backend[name].in_flight) for name in ("s2", "s3")] == [0, 0]
    for each in together:
        each.respond()
    assert entries_by_clock(backend, keys) == {"x": "s1"}


def test_failed_request_does_not_forget_the_reservation_of_another():
    keys = make_table()
    backend = make_backend(Stick.on(A, keys), count=1, retries=0)
    quick, slow = ScriptedTransaction(backend, headers=ONE), ScriptedTransaction(backend, headers=ONE)
    quick.start()
    slow.start()
    quick.respond()
    assert slow.fail() is None
    slow.unavailable_response()
    assert entries_by_clock(backend, keys) == {"x": "s1"}


def test_failed_request_that_waited_does_not_forget_the_reservation_of_another():
    keys = make_table()
    backend = make_backend(Stick.on(A, keys), servers=[Server("s1", "http://10.0.0.1", maxconn=1)], retries=0)
    busy, quick, slow = (
        ScriptedTransaction(backend),
        ScriptedTransaction(backend, headers=ONE),
        ScriptedTransaction(backend, headers=ONE),
    )
    assert (busy.start(), quick.start(), slow.start()) == (backend["s1"], None, None)
    busy.respond()
    assert quick.resume_wait(True) is backend["s1"]
    quick.respond()
    assert slow.resume_wait(True) is backend["s1"]
    assert slow.fail() is None
    slow.unavailable_response()
    assert entries_by_clock(backend, keys) == {"x": "s1"}


def test_failed_request_does_not_forget_the_server_that_another_was_moved_to():
    keys = make_table()
    backend = make_backend(Stick.on(A, keys), count=2, retries=1)
    first, second = ScriptedTransaction(backend, headers=ONE), ScriptedTransaction(backend, headers=ONE)
    assert first.start() == second.start() == backend["s1"]
    assert second.fail() == backend["s2"]
    second.respond()
    first.fail()
    first.fail()
    first.unavailable_response()
    assert entries_by_clock(backend, keys) == {"x": "s2"}


def test_reservation_ends_with_its_request_if_no_server_responds():
    keys = make_table()
    backend = make_backend(Stick.on(A, keys), count=1, retries=0)
    transaction = ScriptedTransaction(backend, headers=ONE)
    transaction.start()
    assert entries_by_clock(backend, keys) == {"x": "s1"}
    assert transaction.fail() is None
    transaction.unavailable_response()
    assert entries_by_clock(backend, keys) == {}


def test_reservation_is_given_up_once_when_a_request_ends_without_a_response():
    keys = make_table()
    backend = make_backend(Stick.on(A, keys), count=1)
    first = ScriptedTransaction(backend, headers=ONE)
    first.start()
    first.end_without_response()
    assert entries_by_clock(backend, keys) == {}
    second = ScriptedTransaction(backend, headers=ONE)
    second.start()
    first.end_without_response()
    assert entries_by_clock(backend, keys) == {"x": "s1"}, "which is the second's by now"
    assert first.respond(status=499).headers == []
    assert entries_by_clock(backend, keys) == {"x": "s1"}


def test_client_that_disconnects_after_the_head_keeps_its_entry():
    keys = make_table()
    backend = make_backend(Stick.on(A, keys), count=1)
    transaction = ScriptedTransaction(backend, headers=ONE)
    transaction.start()
    transaction.respond()
    transaction.client_disconnected()
    assert entries_by_clock(backend, keys) == {"x": "s1"}


def test_client_that_leaves_before_a_response_has_reserved_nothing():
    keys = make_table()
    backend = make_backend(Stick.on(A, keys), redispatch=False)
    transaction = ScriptedTransaction(backend, headers=ONE)
    transaction.start()
    assert transaction.fail() is None and transaction.wait is not None  # a pause before the same server again
    transaction.abandon_wait()
    assert entries_by_clock(backend, keys) == {}
