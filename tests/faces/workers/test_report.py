"""`workers.report()`: what a worker has done itself, what it has handed over, and what its peers have handed to it."""

import os

from sticky_core.workers.report import WorkersReport
from tests.faces.workers import groups


def counts(worker):
    report = worker.backend.report()
    return (report.served_own, report.served_for_peers, report.handed_over, report.lost_sessions)


def test_requests_are_counted_by_who_has_accepted_and_who_has_served_them(start):
    one, other = start(), start()
    mark = one.request().mark
    assert counts(one) == (1, 0, 0, 0)
    for _ in range(3):
        other.request(cookie=mark)
    other.request()
    assert counts(one) == (1, 3, 0, 0)
    assert counts(other) == (1, 0, 3, 0)
    report = other.backend.report()
    assert report.slot == "w2"
    assert report.known_keys is None
    assert [(peer.slot, peer.status, peer.in_flight, peer.handed_over) for peer in report.peers] == [("w1", "UP", 0, 3)]
    assert [(each.slot, each.pid, each.state) for each in report.group.workers] == [
        ("w1", os.getpid(), "serves"),
        ("w2", os.getpid(), "serves"),
    ]


def test_requests_in_flight_are_shown_at_both_ends(start):
    seen: dict[str, WorkersReport] = {}

    def serve(worker, request):
        if request.path == "/look":
            seen["owner"], seen["front"] = one.backend.report(), other.backend.report()
        return groups.Response(body=b"here")

    one, other = start(serve), start()
    mark = one.request().mark
    other.request("/look", cookie=mark)
    assert seen["owner"].in_flight == 1
    assert [peer.in_flight for peer in seen["front"].peers] == [1]
    assert [peer.handed_over for peer in seen["front"].peers] == [1]
    assert other.backend.report().peers[0].in_flight == one.backend.report().in_flight == 0


def test_clients_of_ended_workers_are_counted_once_each(start):
    one, other = start(), start()
    mark = one.request().mark
    other.request(cookie=mark)
    one.kill()
    again = other.request(cookie=mark)
    other.request(cookie=again.mark)
    assert counts(other) == (2, 0, 1, 1)
    (peer,) = other.backend.report().peers
    assert (peer.slot, peer.status) == ("w1", "DOWN")


def test_requests_that_get_a_410_are_counted_as_of_lost_sessions(start):
    one, other = start(on_lost="gone"), start(on_lost="gone")
    mark = one.request().mark
    one.stop()
    assert other.request(cookie=mark).status == 410
    assert counts(other) == (0, 0, 0, 1)


def test_known_keys_and_lost_owners_of_keys_are_counted(start):
    one, other = (start(key="hdr(x-room)") for _ in range(2))
    one.request(headers=[("x-room", "a")])
    one.request(headers=[("x-room", "b")])
    other.request(headers=[("x-room", "a")])
    assert one.backend.report().known_keys == 2
    one.kill()
    other.request(headers=[("x-room", "a")])
    assert counts(other)[3] == 1
    other.request(headers=[("x-room", "a")])
    assert counts(other)[3] == 1


def test_report_is_readable(start):
    one, other = start(), start()
    mark = one.request().mark
    other.request(cookie=mark)
    text = str(other.backend.report())
    assert text.splitlines()[0].startswith("w2 of group group (main:app, ")
    assert "0 in flight, 0 served here, 0 served for peers, 1 handed over, 0 lost sessions" in text
    rows = [line.split() for line in text.splitlines()[1:]]
    assert [[*row[:2], *row[3:]] for row in rows] == [  # without the age
        ["worker", "process", "state", "in", "flight", "handed", "over"],
        ["w1", f"{os.getpid()}", "serves", "0", "1"],
        ["w2", f"{os.getpid()}", "serves"],
    ]
