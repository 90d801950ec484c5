"""Queue: which requests wait for which server, which one is next, and which ones are to choose anew."""

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


def join(queue: Queue, bound: Server | None = None, tried: Container[Server] = ()) -> Ticket:
    ticket = Ticket(bound, tried)
    queue.join(ticket)
    return ticket


def pop_all(queue: Queue, at: Server) -> list[Ticket]:
    """Pop every ticket that accepts a slot at a server, in order."""
    tickets: list[Ticket] = []
    while (ticket := queue.pop(at)) is not None:
        tickets.append(ticket)
    return tickets


def test_nothing_is_popped_from_an_empty_queue():
    assert Queue().pop(server("s1")) is None


def test_tickets_of_one_server_are_popped_in_order():
    queue, s1, s2 = Queue(), server("s1"), server("s2")
    first, second, third = (join(queue, s1) for _ in range(3))
    assert pop_all(queue, s2) == []
    assert pop_all(queue, s1) == [first, second, third]


def test_unbound_ticket_is_popped_for_any_server():
    queue, s1, s2 = Queue(), server("s1"), server("s2")
    first, second = join(queue), join(queue)
    assert queue.pop(s2) is first
    assert queue.pop(s1) is second


def test_ticket_that_has_waited_longest_is_popped_first_bound_or_not():
    queue, s1 = Queue(), server("s1")
    expected = [join(queue, bound) for bound in (s1, None, None, s1, None, s1)]
    assert pop_all(queue, s1) == expected


def test_ticket_does_not_wait_for_a_server_that_was_tried():
    queue, s1, s2 = Queue(), server("s1"), server("s2")
    tried, other = join(queue, tried=(s1,)), join(queue)
    assert pop_all(queue, s1) == [other]
    assert pop_all(queue, s2) == [tried]


@pytest.mark.parametrize("out", ["drain", "maint", "down", "weight 0"])
def test_server_without_new_clients_gets_only_tickets_bound_to_it(out: str):
    queue, s1 = Queue(), server("s1")
    join(queue)
    own = join(queue, s1)
    if out == "down":
        s1.health = Health.DOWN
    elif out == "weight 0":
        s1.weight = 0
    else:
        s1.state = AdminState(out)
    assert pop_all(queue, s1) == [own], "whether it is usable is checked by the caller"


def test_popped_ticket_has_left_the_queue():
    queue, s1 = Queue(), server("s1")
    own, unbound = join(queue, s1), join(queue)
    assert (queue.waiting_for(s1), queue.waiting, own.has_left) == (1, 1, False)
    queue.pop(s1)
    assert (queue.waiting_for(s1), queue.waiting, own.has_left) == (0, 1, True)
    queue.pop(s1)
    assert (queue.waiting_for(s1), queue.waiting, unbound.has_left) == (0, 0, True)


def test_ticket_that_has_left_is_skipped_and_may_leave_twice():
    queue, s1 = Queue(), server("s1")
    leaving, staying, unbound = join(queue, s1), join(queue, s1), join(queue)
    for ticket in (leaving, leaving, unbound):
        queue.leave(ticket)
        assert ticket.has_left
    assert (queue.waiting_for(s1), queue.waiting) == (1, 0)
    assert pop_all(queue, s1) == [staying]
    queue.leave(staying)  # it was popped meanwhile
    assert queue.waiting_for(s1) == 0


def test_tickets_of_a_server_are_dismissed_and_others_stay():
    queue, s1, s2 = Queue(), server("s1"), server("s2")
    own = [join(queue, s1), join(queue, s1)]
    join(queue, s2), join(queue)
    assert queue.dismiss(s1) == own
    assert all(ticket.has_left and ticket.granted is None for ticket in own)
    assert (queue.waiting_for(s1), queue.waiting_for(s2), queue.waiting) == (0, 1, 1)
    assert queue.dismiss(s1) == []


def test_unbound_tickets_are_dismissed_and_others_stay():
    queue, s1 = Queue(), server("s1")
    join(queue, s1)
    unbound = [join(queue), join(queue)]
    assert queue.dismiss_unservable(()) == unbound
    assert all(ticket.has_left for ticket in unbound)
    assert (queue.waiting_for(s1), queue.waiting) == (1, 0)


def test_unbound_tickets_that_accept_no_server_are_dismissed_and_others_stay():
    queue, s1, s2 = Queue(), server("s1"), server("s2")
    unservable_ticket, servable_ticket = join(queue, tried=(s1, s2)), join(queue, tried=(s1,))
    join(queue, s1, (s1, s2))
    assert queue.dismiss_unservable([s1, s2]) == [unservable_ticket]
    assert (unservable_ticket.has_left, servable_ticket.has_left) == (True, False)
    assert (queue.waiting_for(s1), queue.waiting) == (1, 1)
    assert queue.dismiss_unservable([s1]) == [servable_ticket]


def test_unbound_ticket_does_not_wait_for_a_backup():
    queue, backup = Queue(), Server("backup", app, backup=True, maxconn=1)
    join(queue)
    own = join(queue, backup)
    assert pop_all(queue, backup) == [own]


SERVERS = [server("s1"), server("s2"), server("s3")]
BOUND = st.sampled_from([None, *SERVERS])
TRIED = st.lists(st.sampled_from(SERVERS), max_size=2).map(tuple)
STEPS = st.one_of(
    st.tuples(st.just("join"), BOUND, TRIED),
    st.tuples(st.just("leave"), st.integers(0, 30)),
    st.tuples(st.just("next"), st.sampled_from(SERVERS)),
    st.tuples(st.just("dismiss"), st.sampled_from(SERVERS)),
    st.tuples(st.just("dismiss_unservable"), st.lists(st.sampled_from(SERVERS), unique=True)),
)


@given(st.lists(STEPS, max_size=60))
def test_queue_behaves_as_one_list_from_which_each_server_takes_the_first_that_accepts_it(steps: Sequence[tuple]):  # type: ignore[type-arg]
    queue = Queue()
    waiting: list[Ticket] = []  # all tickets that wait, in order
    ever: list[Ticket] = []
    for step in steps:
        match step:
            case "join", bound, tried:
                ticket = join(queue, bound, tried)
                waiting.append(ticket)
                ever.append(ticket)
            case "leave", number:
                if ever:
                    leaving = ever[number % len(ever)]
                    queue.leave(leaving)
                    waiting = [each for each in waiting if each is not leaving]
            case "next", at:
                accepting = [t for t in waiting if t.server is at or (t.server is None and at not in t.tried)]
                expected = accepting[0] if accepting else None
                assert queue.pop(at) is expected
                waiting = [each for each in waiting if each is not expected]
            case "dismiss", at:
                assert queue.dismiss(at) == [t for t in waiting if t.server is at]
                waiting = [t for t in waiting if t.server is not at]
            case _, electable:
                unservable = [t for t in waiting if t.server is None and all(each in t.tried for each in electable)]
                assert queue.dismiss_unservable(electable) == unservable
                waiting = [t for t in waiting if all(t is not each for each in unservable)]
        assert queue.waiting == sum(t.server is None for t in waiting)
        assert [queue.waiting_for(s) for s in SERVERS] == [sum(t.server is s for t in waiting) for s in SERVERS]
        assert [t.has_left for t in ever] == [all(t is not each for each in waiting) for t in ever]
