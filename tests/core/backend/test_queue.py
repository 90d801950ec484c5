"""Queues: who waits for whom, who is next, and who is told that there is nothing to wait for."""

from collections.abc import Container, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.backend.queue import Queue, Ticket
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health


def app(environ: object, start_response: object) -> list[bytes]:
    return []


def server(name: str) -> Server:
    return Server(name, app, maxconn=1)


def joined(queue: Queue, bound: Server | None = None, tried: Container[Server] = ()) -> Ticket:
    ticket = Ticket(bound, tried)
    queue.join(ticket)
    return ticket


def all_next(queue: Queue, at: Server) -> list[Ticket]:
    """Who would get one place after the other."""
    tickets: list[Ticket] = []
    while (ticket := queue.pop(at)) is not None:
        tickets.append(ticket)
    return tickets


def test_nobody_is_next_where_nobody_waits():
    assert Queue().pop(server("s1")) is None


def test_those_of_one_server_are_next_in_the_order_in_which_they_came():
    queue, s1, s2 = Queue(), server("s1"), server("s2")
    first, second, third = (joined(queue, s1) for _ in range(3))
    assert all_next(queue, s2) == []
    assert all_next(queue, s1) == [first, second, third]


def test_who_waits_for_anyone_goes_to_whoever_asks_first():
    queue, s1, s2 = Queue(), server("s1"), server("s2")
    first, second = joined(queue), joined(queue)
    assert queue.pop(s2) is first
    assert queue.pop(s1) is second


def test_the_longest_wait_wins_whether_it_is_for_one_server_or_for_anyone():
    queue, s1 = Queue(), server("s1")
    expected = [joined(queue, bound) for bound in (s1, None, None, s1, None, s1)]
    assert all_next(queue, s1) == expected


def test_who_has_tried_a_server_does_not_wait_for_it():
    queue, s1, s2 = Queue(), server("s1"), server("s2")
    burnt, other = joined(queue, tried=(s1,)), joined(queue)
    assert all_next(queue, s1) == [other]
    assert all_next(queue, s2) == [burnt]


@pytest.mark.parametrize("out", ["drain", "maint", "down", "weight 0"])
def test_a_server_that_takes_no_new_clients_calls_its_own_and_nobody_else(out: str):
    queue, s1 = Queue(), server("s1")
    joined(queue)
    own = joined(queue, s1)
    if out == "down":
        s1.health = Health.DOWN
    elif out == "weight 0":
        s1.weight = 0
    else:
        s1.state = AdminState(out)
    assert all_next(queue, s1) == [own], "whether it may be used at all is asked by whoever asks for the next"


def test_who_is_called_waits_no_longer():
    queue, s1 = Queue(), server("s1")
    own, anyone = joined(queue, s1), joined(queue)
    assert (queue.waiting_for(s1), queue.waiting, own.has_left) == (1, 1, False)
    queue.pop(s1)
    assert (queue.waiting_for(s1), queue.waiting, own.has_left) == (0, 1, True)
    queue.pop(s1)
    assert (queue.waiting_for(s1), queue.waiting, anyone.has_left) == (0, 0, True)


def test_who_leaves_is_passed_over_and_may_say_so_twice():
    queue, s1 = Queue(), server("s1")
    leaving, staying, anyone = joined(queue, s1), joined(queue, s1), joined(queue)
    for ticket in (leaving, leaving, anyone):
        queue.leave(ticket)
        assert ticket.has_left
    assert (queue.waiting_for(s1), queue.waiting) == (1, 0)
    assert all_next(queue, s1) == [staying]
    queue.leave(staying)  # was called in the meantime
    assert queue.waiting_for(s1) == 0


def test_those_of_a_server_are_dismissed_and_the_others_stay():
    queue, s1, s2 = Queue(), server("s1"), server("s2")
    own = [joined(queue, s1), joined(queue, s1)]
    joined(queue, s2), joined(queue)
    assert queue.dismiss(s1) == own
    assert all(ticket.has_left and ticket.granted is None for ticket in own)
    assert (queue.waiting_for(s1), queue.waiting_for(s2), queue.waiting) == (0, 1, 1)
    assert queue.dismiss(s1) == []


def test_those_who_wait_for_anyone_are_dismissed_and_the_others_stay():
    queue, s1 = Queue(), server("s1")
    joined(queue, s1)
    anyone = [joined(queue), joined(queue)]
    assert queue.dismiss_hopeless(()) == anyone
    assert all(ticket.has_left for ticket in anyone)
    assert (queue.waiting_for(s1), queue.waiting) == (1, 0)


def test_those_who_have_tried_all_who_could_come_are_dismissed_and_the_others_stay():
    queue, s1, s2 = Queue(), server("s1"), server("s2")
    tired, hopeful = joined(queue, tried=(s1, s2)), joined(queue, tried=(s1,))
    joined(queue, s1, (s1, s2))
    assert queue.dismiss_hopeless([s1, s2]) == [tired]
    assert (tired.has_left, hopeful.has_left) == (True, False)
    assert (queue.waiting_for(s1), queue.waiting) == (1, 1)
    assert queue.dismiss_hopeless([s1]) == [hopeful]


def test_who_waits_for_anyone_does_not_wait_for_a_backup():
    queue, sorry = Queue(), Server("sorry", app, backup=True, maxconn=1)
    joined(queue)
    own = joined(queue, sorry)
    assert all_next(queue, sorry) == [own]


SERVERS = [server("s1"), server("s2"), server("s3")]
BOUND = st.sampled_from([None, *SERVERS])
TRIED = st.lists(st.sampled_from(SERVERS), max_size=2).map(tuple)
STEPS = st.one_of(
    st.tuples(st.just("join"), BOUND, TRIED),
    st.tuples(st.just("leave"), st.integers(0, 30)),
    st.tuples(st.just("next"), st.sampled_from(SERVERS)),
    st.tuples(st.just("dismiss"), st.sampled_from(SERVERS)),
    st.tuples(st.just("dismiss_hopeless"), st.lists(st.sampled_from(SERVERS), unique=True)),
)


@given(st.lists(STEPS, max_size=60))
def test_it_behaves_as_one_line_from_which_each_server_calls_the_first_that_would_come(steps: Sequence[tuple]):  # type: ignore[type-arg]
    queue = Queue()
    line: list[Ticket] = []  # all who wait, in the order in which they came
    ever: list[Ticket] = []
    for step in steps:
        match step:
            case "join", bound, tried:
                ticket = joined(queue, bound, tried)
                line.append(ticket)
                ever.append(ticket)
            case "leave", number:
                if ever:
                    leaving = ever[number % len(ever)]
                    queue.leave(leaving)
                    line = [each for each in line if each is not leaving]
            case "next", at:
                would = [t for t in line if t.server is at or (t.server is None and at not in t.tried)]
                expected = would[0] if would else None
                assert queue.pop(at) is expected
                line = [each for each in line if each is not expected]
            case "dismiss", at:
                assert queue.dismiss(at) == [t for t in line if t.server is at]
                line = [t for t in line if t.server is not at]
            case _, could:
                hopeless = [t for t in line if t.server is None and all(each in t.tried for each in could)]
                assert queue.dismiss_hopeless(could) == hopeless
                line = [t for t in line if all(t is not each for each in hopeless)]
        assert queue.waiting == sum(t.server is None for t in line)
        assert [queue.waiting_for(s) for s in SERVERS] == [sum(t.server is s for t in line) for s in SERVERS]
        assert [t.has_left for t in ever] == [all(t is not each for each in line) for t in ever]
