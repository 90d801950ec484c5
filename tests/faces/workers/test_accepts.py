"""Workers with a renamed cookie accept the former one: a client keeps its worker, or loses it as with the cookie."""

import pytest

from sticky_core.persistence.accepted import AcceptedCount
from sticky_core.persistence.claim import Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.route import Route
from sticky_core.samples.request import path_param

SECRET = "a secret of these tests"
FORMER = Cookie("FORMER", secret=SECRET)
RENAMED = Cookie("RENAMED", secret=SECRET, accepts=[FORMER, Route(path_param("worker"))])
DELETED = "FORMER=; Expires=Thu, 01-Jan-1970 00:00:01 GMT; path=/; HttpOnly; SameSite=Lax"


def test_client_with_the_former_cookie_keeps_its_worker(start):
    one = start(cookie=FORMER, secret=None)
    mark = one.request().mark
    assert mark.startswith("FORMER=w1")
    other = start(cookie=RENAMED, secret=None)
    response = other.request(cookie=mark)
    assert (response.body, one.seen[-1].decision.reason) == (b"2", Reason.ACCEPTED)
    deletion, ours = response.cookies
    assert ours.startswith("RENAMED=w1") and deletion == DELETED
    assert other.request(cookie=ours.partition(";")[0]).body == b"3"
    report = other.backend.report()
    former, route = report.accepted_marks
    assert "\n".join(map(str, report.accepted_marks)) in str(report)
    assert (former.cookie, former.accepted, former.honoured, former.unknown) == ("RENAMED", "Cookie('FORMER')", 1, 0)
    assert route == AcceptedCount("RENAMED", "Route")


def test_route_without_any_cookie_finds_a_worker_that_has_just_started(start):
    one = start(cookie=RENAMED, secret=None)
    start(cookie=RENAMED, secret=None)
    assert one.request("/a;worker=w2").mark.startswith("RENAMED=w2")
    assert one.seen == []


@pytest.mark.parametrize("on_lost", ["rebind", "gone"])
def test_client_with_the_former_cookie_loses_a_worker_that_has_ended_once(start, on_lost):
    former = start(cookie=FORMER, secret=None)
    mark = former.request().mark
    one, other = (start(cookie=RENAMED, secret=None, on_lost=on_lost) for _ in range(2))
    former.kill()
    for _ in range(2):  # first by a failed attempt, then by the cookie alone
        response = other.request(cookie=mark)
        cookies = response.cookies
        if on_lost == "gone":
            assert response.status == 410 and cookies[0].startswith("RENAMED=; Expires") and cookies[1:] == [DELETED]
        else:
            assert response.status == 200 and cookies[1].startswith("RENAMED=w3") and cookies[:1] == [DELETED]
    assert one.seen == []
