"""The cookie is changed while clients come: with `accepts` each keeps its server, and counts say with what it came."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from sticky_core.backend.backend import BackendConfig
from sticky_core.clock import ManualClock
from sticky_core.persistence.accepted import AcceptedCount
from sticky_core.persistence.claim import Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.follow import Follow
from sticky_core.persistence.nginx import NginxCookie
from sticky_core.persistence.persistence import Persist
from sticky_core.persistence.route import Route
from sticky_core.samples.request import cook
from tests.faces.running import running

if TYPE_CHECKING:
    from tests.faces.conftest import Face

NOW, NOW_AS_TEXT = 1_800_000_000, "2027-01-15T08:00:00"
OLD = Cookie("OLD", signed=False)
LABEL = "Cookie('OLD')"
SECRET = "a secret of these tests"


def accepting(*accepts: Persist, **options: object) -> Cookie:
    return Cookie("NEW", **{"secret": SECRET} | options, accepts=accepts or [OLD])  # type: ignore[arg-type]


def with_persist(config: BackendConfig, *persist: Persist, **changes: object) -> BackendConfig:
    return replace(config, persist=persist, **changes)  # type: ignore[arg-type]


def test_cookie_is_renamed_and_signed_while_clients_come_and_each_stays(face: Face) -> None:
    clock = ManualClock(NOW)
    backend = face.backend(face.server("s1"), face.server("s2"), face.server("s3"), persist=OLD, clock=clock)
    with running(face, backend) as run:
        marks = {response.server: response.mark for response in (run.get() for _ in range(3))}
        assert set(marks.values()) == {"OLD=s1", "OLD=s2", "OLD=s3"} and backend.accepted_marks == []
        lossy = backend.plan(with_persist(backend.config, Cookie("NEW", secret=SECRET)))
        assert lossy.marks == {"s1": None, "s2": None, "s3": None}
        assert str(lossy.accepts[0]) == (
            "cookie NEW: accepts=[Cookie('OLD', signed=False)] would keep the clients of s1, s2 and s3 "
            f"(requests served: {sum(lossy.requests.values())})"
        )
        assert lossy.accepts[0].requests >= 3
        new = with_persist(backend.config, accepting())
        assert (backend.plan(new).marks, backend.plan(new).accepts) == ({}, ())
        run.apply(lambda: backend.apply(new))
        assert backend.accepted_marks == [AcceptedCount("NEW", LABEL)]
        clock.advance(5)
        for server, old in marks.items():
            response = run.get(cookie=old)
            assert (response.server, response.decision.reason) == (server, Reason.ACCEPTED)
            deletion, ours = response.all("set-cookie")
            assert ours.startswith(f"NEW={server}") and deletion.startswith("OLD=; Expires=Thu, 01-Jan-1970")
            again = run.get(cookie=ours.partition(";")[0])
            assert (again.server, again.all("set-cookie")) == (server, [])
        assert run.get(cookie="OLD=s9").decision.reason is Reason.UNKNOWN
        assert backend.accepted_marks == [AcceptedCount("NEW", LABEL, honoured=3, unknown=1, last=clock.wall())]
        (note,) = backend.plan(with_persist(backend.config, Cookie("NEW", secret=SECRET))).notes
        assert "would accept Cookie('OLD') no more (requests with it in this process: 4, the last on " in note


def test_counts_go_on_under_other_configurations_as_long_as_the_same_is_accepted(face: Face) -> None:
    clock = ManualClock(NOW)
    servers = face.server("s1"), face.server("s2")
    backend = face.backend(*servers, persist=accepting(OLD, NginxCookie("N")), clock=clock)
    nginx = AcceptedCount("NEW", "NginxCookie('N')")
    with running(face, backend) as run:
        run.get(cookie="OLD=s2")
        config = backend.config
        expected = AcceptedCount("NEW", LABEL, honoured=1, last=clock.wall())
        for changed in (
            replace(config, retries=1),  # another option
            replace(config, servers=(config.servers[0], replace(config.servers[1], weight=7))),  # other servers
            replace(config, servers=config.servers[:1]),
            replace(config, servers=(replace(config.servers[0], cookie="x"), config.servers[1])),
            # other options of the cookie, and other things that it accepts
            with_persist(config, accepting(OLD, NginxCookie("N"), path="/", secret=[SECRET, "another secret, newer"])),
            with_persist(config, accepting(NginxCookie("N"), Cookie("OTHER", signed=False), OLD)),
            with_persist(config, accepting(OLD, NginxCookie("N")), ignore_persist=lambda request: False),
            with_persist(config, Route(cook("ROUTE")), accepting(OLD, NginxCookie("N")), persist_on_down=True),
            with_persist(config, Follow("SID", accepting(OLD, NginxCookie("N")), attributes="own")),
        ):
            run.apply(lambda changed=changed: backend.apply(changed))  # type: ignore[misc]
            counts = {each.accepted: each for each in backend.accepted_marks}
            assert counts.pop(LABEL) == expected and counts.pop("NginxCookie('N')") == nginx
            assert set(counts) <= {"Cookie('OTHER')"}
            clock.advance(1)
            run.get(cookie="OLD=s1; SID=1")
            if changed.servers[0].cookie is None:
                expected = replace(expected, honoured=expected.honoured + 1, last=clock.wall())
            else:
                expected = replace(expected, unknown=expected.unknown + 1, last=clock.wall())
        run.apply(lambda: backend.apply(with_persist(config, accepting(Cookie("OLD", signed=False, path="/a")))))
        assert backend.accepted_marks == [AcceptedCount("NEW", LABEL)], "something else is accepted"
        run.apply(lambda: backend.apply(with_persist(config, Cookie("NEWER", secret=SECRET, accepts=[OLD]))))
        assert backend.accepted_marks == [AcceptedCount("NEWER", LABEL)], "by another cookie"


def test_end_of_accepting_is_logged_once_whatever_is_changed_or_planned(
    face: Face, caplog: pytest.LogCaptureFixture
) -> None:
    cookie = accepting(accepts_until=NOW_AS_TEXT)
    clock = ManualClock(NOW + 1)
    backend = face.backend(face.server("s1"), face.server("s2"), persist=cookie, clock=clock)
    config = backend.config

    def lines() -> list[str]:
        return [each.getMessage() for each in caplog.records if "accepts_until has passed" in each.getMessage()]

    backend.plan(with_persist(config, cookie, Route(cook("SID"))))
    assert lines() == [], "a plan has no clients"
    with running(face, backend) as run:
        for changed in (
            config,
            replace(config, retries=1),
            replace(config, servers=config.servers[:1]),
            with_persist(config, cookie, Route(cook("SID"))),
        ):
            backend.plan(changed)
            run.apply(lambda changed=changed: backend.apply(changed))  # type: ignore[misc]
            assert run.get(cookie="OLD=s1").decision.reason is Reason.NO_COOKIE
        assert len(lines()) == 1
        later = accepting(accepts_until="2027-01-15T08:00:01")
        run.apply(lambda: backend.apply(with_persist(config, later)))
        run.get(cookie="OLD=s1")
        assert len(lines()) == 2, "it is another end"
