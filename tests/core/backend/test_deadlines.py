"""Deadlines: the next one of each server, as servers change."""

from math import inf

from sticky_core.backend.deadlines import Deadlines
from sticky_core.server.server import Server


class TimedServer(Server):
    """A server with a deadline that the test sets."""

    due: float

    @property
    def next_deadline(self) -> float:
        return self.due


def server(number: int, due: float) -> TimedServer:
    made = TimedServer(f"s{number}", "http://10.0.0.1")
    made.id, made.due = number, due
    return made


def test_without_servers_there_is_no_deadline():
    deadlines = Deadlines()
    deadlines.refresh()
    assert deadlines.next == inf and deadlines.pop_due(1e9) == []


def test_next_is_the_earliest_deadline():
    deadlines = Deadlines()
    for each in (server(1, 30), server(2, 10), server(3, inf), server(4, 20)):
        deadlines.update(each)
    deadlines.refresh()
    assert deadlines.next == 10


def test_servers_are_due_once_in_the_order_of_their_deadlines():
    deadlines = Deadlines()
    servers = [server(1, 30), server(2, 10), server(3, 20)]
    for each in servers:
        deadlines.update(each)
    assert deadlines.pop_due(20) == [servers[1], servers[2]]
    assert deadlines.pop_due(20) == []
    deadlines.refresh()
    assert deadlines.next == 30


def test_deadline_that_was_postponed_is_due_only_then():
    deadlines = Deadlines()
    one = server(1, 10)
    deadlines.update(one)
    one.due = 50
    deadlines.update(one)
    deadlines.refresh()
    assert deadlines.next == 50 and deadlines.pop_due(49) == []
    assert deadlines.pop_due(50) == [one]


def test_server_without_a_deadline_any_more_and_removed_server_are_not_due():
    deadlines = Deadlines()
    one, other = server(1, 10), server(2, 20)
    for each in (one, other):
        deadlines.update(each)
    one.due = inf
    deadlines.update(one)
    deadlines.remove(other)
    deadlines.refresh()
    assert deadlines.next == inf and deadlines.pop_due(100) == []


def test_outdated_entries_are_dropped_before_they_are_many():
    deadlines = Deadlines()
    one = server(1, 0)
    for due in range(1, 1000):
        one.due = due
        deadlines.update(one)
    assert len(deadlines._heap) <= 64
    deadlines.refresh()
    assert deadlines.next == 999
