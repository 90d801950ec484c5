"""Marks that name no server, or are not signed by us: counted for each request, and logged once for each name."""

from __future__ import annotations

import logging
import threading
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.backend.invalid_marks import MAX_LENGTH, MAX_NAMES, InvalidMarks
from sticky_core.clock import ManualClock
from sticky_core.persistence.claim import Claim, InvalidMark, PersistenceResult, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.nginx import NginxCookie
from sticky_core.persistence.persistence import Persist
from sticky_core.persistence.route import Route
from sticky_core.persistence.stick.config import Stick
from sticky_core.samples.request import cook, hdr
from sticky_core.server.server import Server
from sticky_core.stick_table.table import StickTable
from tests.core.fakes import ScriptedTransaction

SECRET, OTHER = "a secret of some length", "another secret of some length"
PLAIN = Cookie("SRV", signed=False)


def app(environ: object, start_response: object) -> list[bytes]:
    return []


def backend(persist: Persist | Sequence[Persist], names: Sequence[str] = ("s1", "s2"), **options: Any) -> Backend:
    return Backend("web", [Server(name, app) for name in names], persist=persist, clock=ManualClock(), **options)


def send(web: Backend, *cookies: str) -> None:
    for cookie in cookies:
        ScriptedTransaction(web, cookie=cookie, headers=[("x", "key")]).run()


def mark_of(persist: Cookie, server: str) -> str:
    """Return the cookie that a client has from an earlier start, when there was this server."""
    response = ScriptedTransaction(backend(persist, [server]))
    response.start()
    (mark,) = response.respond().values("set-cookie")
    return mark.partition(";")[0]


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    return [record.getMessage() for record in caplog.records]


UNKNOWN = "This is logged once for each name; `Backend.unknown_marks` counts all."
COOKIE = "If it was renamed or replaced, give the server in its place formerly= with this name."


def test_mark_of_an_unknown_server_is_counted_each_time_and_logged_once(caplog: pytest.LogCaptureFixture):
    web = backend(PLAIN)
    send(web, "SRV=s9", "SRV=s9", "SRV=s1", "SRV=s8", "a=b", "SRV=s9")
    assert (web.unknown_marks, web.forged_marks) == (4, 0)
    assert lines(caplog) == [
        f"backend web: cookie SRV of a client names server 's9', which there is not. {COOKIE} {UNKNOWN}",
        f"backend web: cookie SRV of a client names server 's8', which there is not. {COOKIE} {UNKNOWN}",
    ]


def test_remedy_of_the_log_keeps_the_client_at_its_server():
    web = Backend("web", [Server("s1", app), Server("new", app, cookie="s9")], persist=PLAIN, clock=ManualClock())
    request = ScriptedTransaction(web, cookie="SRV=s9")
    assert request.run() == "new"
    assert (request.decision.claim, web.unknown_marks) == (Claim.VALID, 0)


SIGNED = Cookie("SRV", secret=SECRET)
OPAQUE = Cookie("SRV", secret=SECRET, opaque=True)


@pytest.mark.parametrize(
    "persist, cookie, name",
    [
        pytest.param(SIGNED, mark_of(SIGNED, "s9"), "cookie SRV of a client names server 's9'", id="signed"),
        pytest.param(
            Cookie("SRV", mode="passive", signed=False),
            "SRV=s9",
            "cookie SRV of a client names server 's9'",
            id="passive",
        ),
        pytest.param(
            Cookie("SRV", signed=False, maxidle=60),
            "SRV=s9|YQAAA",
            "cookie SRV of a client names server 's9'",
            id="dated",
        ),
        pytest.param(
            NginxCookie("route"), "route=0123abcd", "cookie route of a client names server '0123abcd'", id="nginx"
        ),
        pytest.param(
            Route(cook("JSESSIONID")),
            "JSESSIONID=secret.s9",
            "the route of a client names server 's9'",
            id="the route without the session id",
        ),
        pytest.param(
            [Cookie("NEW", signed=False), PLAIN],
            "NEW=s9; SRV=s8",
            "cookie NEW of a client names server 's9'",
            id="the first of a chain",
        ),
        pytest.param(
            [Stick.on(hdr("y"), StickTable("string")), PLAIN],
            "SRV=s9",
            "cookie SRV of a client names server 's9'",
            id="a table without a key before",
        ),
    ],
)
def test_log_says_where_the_mark_is_and_what_it_names(
    persist: Persist, cookie: str, name: str, caplog: pytest.LogCaptureFixture
):
    web = backend(persist)
    send(web, cookie)
    assert lines(caplog) == [f"backend web: {name}, which there is not. {COOKIE} {UNKNOWN}"]
    assert web.unknown_marks == 1


def test_opaque_id_is_logged_as_it_is_with_what_can_be_said(caplog: pytest.LogCaptureFixture):
    mark = mark_of(OPAQUE, "s9")
    send(backend(OPAQUE), mark)
    digest = mark.removeprefix("SRV=").partition(".")[0].partition("@")[0].partition("|")[0]
    (line,) = lines(caplog)
    assert line.startswith(f"backend web: cookie SRV of a client names server '{digest}', which there is not. ")
    assert "If it was renamed, give it formerly= with its old name. This" in line


@pytest.mark.parametrize(
    "persist, cookie",
    [
        pytest.param(Cookie("SID", mode="prefix", signed=False), "SID=session-of-a-user", id="prefix"),
        pytest.param(Cookie("SID", mode="rewrite", signed=False), "SID=session-of-a-user", id="rewrite"),
        pytest.param(Route(cook("SID")), "SID=session-of-a-user", id="route"),
    ],
)
def test_session_id_of_the_application_is_never_logged(persist: Persist, cookie: str, caplog: pytest.LogCaptureFixture):
    web = backend(persist)
    send(web, cookie, cookie)
    (line,) = lines(caplog)
    assert "names no server of this backend." in line
    assert "session-of-a-user" not in line
    assert web.unknown_marks == 2


@pytest.mark.parametrize("name, shown", [("", "a stick table"), ("carts", "stick table carts")], ids=["", "named"])
def test_entry_of_a_stick_table_that_names_no_server_is_logged(name: str, shown: str, caplog: pytest.LogCaptureFixture):
    table = StickTable("string", expire="10m", name=name)
    send(backend(Stick.on(hdr("x"), table), ["s9"]), "a=b")
    web = backend(Stick.on(hdr("x"), table))
    send(web, "a=b", "a=b")  # the first request replaces the entry
    (line,) = lines(caplog)
    assert line.startswith(f"backend web: the entry of a client in {shown} names server 's9', which there is not.")
    assert web.unknown_marks == 1


def test_server_that_was_removed_is_unknown(caplog: pytest.LogCaptureFixture):
    web = backend(PLAIN)
    web.remove("s2")
    caplog.clear()
    send(web, "SRV=s2")
    assert web.unknown_marks == 1
    assert "names server 's2', which there is not" in lines(caplog)[0]


@pytest.mark.parametrize(
    "persist, cookie, options",
    [
        pytest.param(PLAIN, "a=b", {}, id="no mark"),
        pytest.param(PLAIN, "SRV=", {}, id="an empty one"),
        pytest.param(PLAIN, "SRV=s9; SRV=s1", {}, id="another value is valid"),
        pytest.param([PLAIN, Cookie("OLD", signed=False)], "SRV=s1; OLD=s9", {}, id="superseded"),
        pytest.param([PLAIN, Cookie("OLD", signed=False)], "SRV=s9; OLD=s1", {}, id="a later member recognises it"),
        pytest.param(PLAIN, "SRV=s9", {"ignore_persist": lambda request: True}, id="ignored"),
        pytest.param(PLAIN, "SRV=s9", {"use_server": {"s1": lambda request: True}}, id="a rule"),
    ],
)
def test_mark_that_moves_no_client_is_not_counted(
    persist: Persist, cookie: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture
):
    web = backend(persist, **options)
    send(web, cookie)
    assert (web.unknown_marks, web.forged_marks, lines(caplog)) == (0, 0, [])


def test_backup_that_is_not_in_use_is_no_unknown_server():
    servers = [Server("s1", app, cookie="a"), Server("s2", app, backup=True, cookie="b")]
    web = Backend("web", servers, persist=NginxCookie("route"), clock=ManualClock())
    request = ScriptedTransaction(web, cookie="route=b")
    assert request.run() == "s1"
    decision = request.decision
    assert (decision.claim, decision.reason, decision.claimed) == (Claim.INVALID, Reason.BACKUP, "s2")
    assert decision.why == "s2: server is a backup; balance chose s1"
    assert web.unknown_marks == 0


@pytest.mark.parametrize(
    "cookie", [mark_of(Cookie("SRV", secret=OTHER), "s1"), "SRV=s1"], ids=["another secret", "not signed"]
)
def test_mark_that_we_have_not_signed_is_logged_once_and_never_by_name(cookie: str, caplog: pytest.LogCaptureFixture):
    web = backend(Cookie("SRV", secret=SECRET))
    send(web, cookie, cookie, "SRV=whatever")
    assert (web.unknown_marks, web.forged_marks) == (0, 3)
    (line,) = lines(caplog)
    assert line == (
        "backend web: cookie SRV of a client is not signed with the secret of this backend. If the secret was changed, "
        "pass the one from before as well: secret=[old, new]. If it was plain before, or is HAProxy's, write "
        "accepts=[Cookie('SRV', signed=False)]. This is logged once; `Backend.forged_marks` counts all."
    )


def test_other_persistence_that_is_applied_logs_anew(caplog: pytest.LogCaptureFixture):
    web = backend(Cookie("SRV", secret=OTHER))
    send(web, "SRV=forged")
    web.apply(replace(web.config, persist=(Cookie("SRV", secret=SECRET),)))
    send(web, "SRV=forged", "SRV=forged")
    web.apply(replace(web.config, retries=1))
    send(web, "SRV=forged")
    assert web.forged_marks == 4
    assert len([line for line in lines(caplog) if "is not signed" in line]) == 2


class UsersPersist:
    """A persistence of the user's, which says no more than the reason."""

    def __init__(self, reason: Reason) -> None:
        self._result = PersistenceResult(Claim.INVALID, reason)

    def cookie_scopes(self) -> tuple[()]:
        return ()

    def build(self, *arguments: object) -> Any:
        engine: Any = Route(cook("none")).build("web", [], ManualClock())
        engine.recognise = lambda request, accept_down=False: self._result
        return engine


def test_persistence_of_the_users_is_counted_and_logged_too(caplog: pytest.LogCaptureFixture):
    unknown, forged = backend(UsersPersist(Reason.UNKNOWN)), backend(UsersPersist(Reason.FORGED))
    send(unknown, "a=b", "a=b")
    send(forged, "a=b")
    assert (unknown.unknown_marks, forged.forged_marks) == (2, 1)
    first, second = lines(caplog)
    assert first == f"backend web: the mark of a client names no server of this backend. {UNKNOWN}"
    assert second == (
        "backend web: the mark of a client is not signed with the secret of this backend. "
        "This is logged once; `Backend.forged_marks` counts all."
    )


def unknown(name: str) -> InvalidMark:
    return InvalidMark(Claim.INVALID, Reason.UNKNOWN, place="cookie SRV of a client", name=name, remedy="Do it.")


@pytest.mark.parametrize(
    "name, shown",
    [
        pytest.param("s9\r\nERROR: forged", r"'s9\r\nERROR: forged'", id="line ends"),
        pytest.param("\x1b[31m\x85\xe9\u2028", r"'\x1b[31m\x85\xe9\u2028'", id="control characters"),
        pytest.param("x" * MAX_LENGTH, f"'{'x' * MAX_LENGTH}'", id="as long as it may be"),
        pytest.param("x" * 65536, f"'{'x' * (MAX_LENGTH - 1)}...", id="64 KB"),
        pytest.param("\xe9" * 64, rf"'{chr(92)}xe9" + r"\xe9" * 14 + r"\xe...", id="escaped to more"),
    ],
)
def test_name_is_escaped_and_cut_off(name: str, shown: str, caplog: pytest.LogCaptureFixture):
    InvalidMarks("web").count(unknown(name), ())
    (line,) = lines(caplog)
    assert line.startswith("backend web: cookie SRV of a client names server '")
    assert line.partition("names server ")[2].partition(", which there is not")[0] == shown
    assert line.isascii() and line.isprintable()


def test_so_many_names_are_logged_and_no_more(caplog: pytest.LogCaptureFixture):
    marks = InvalidMarks("web")
    for number in range(MAX_NAMES + 10):
        marks.count(unknown(f"s{number}"), ())
        marks.count(unknown("s0"), ())
    assert marks.unknown == 2 * (MAX_NAMES + 10)
    found = lines(caplog)
    assert len(found) == MAX_NAMES + 1
    assert f"names server 's{MAX_NAMES - 1}', which" in found[-2]
    assert found[-1] == (
        f"backend web: clients have named {MAX_NAMES} servers that it does not have: no more of these names are "
        "logged. `Backend.unknown_marks` goes on counting."
    )


def test_a_million_names_take_no_more_memory_than_a_hundred(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.ERROR)  # else the test keeps the lines
    marks = InvalidMarks("web")
    tracemalloc.start()
    try:
        for number in range(2 * MAX_NAMES):
            marks.count(unknown(f"{number:<1000}"), ())
        before, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert before < MAX_NAMES * 1000
    known = len(marks._logged)
    mark = unknown("")
    for number in range(1_000_000):
        object.__setattr__(mark, "name", str(number))
        marks.count(mark, ())
    assert (marks.unknown, len(marks._logged)) == (1_000_000 + 2 * MAX_NAMES, known)


def test_threads_lose_no_count_and_log_a_name_once(caplog: pytest.LogCaptureFixture):
    marks = InvalidMarks("web")
    begin = threading.Barrier(8)

    def count() -> None:
        begin.wait()
        for number in range(500):
            marks.count(unknown(f"s{number % 50}"), ())

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert marks.unknown == 4000
    assert len(lines(caplog)) == 50


def test_forked_child_counts_on_although_the_lock_was_held():
    marks = InvalidMarks("web")
    marks._lock.acquire()
    marks.after_fork()
    marks.count(unknown("s9"), ())
    assert marks.unknown == 1
