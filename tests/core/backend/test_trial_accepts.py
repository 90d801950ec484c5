"""What a plan says about cookies: which clients a change would lose, and which `accepts` would keep them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from sticky_core.backend import trial_accepts
from sticky_core.backend.backend import Backend
from sticky_core.backend.plan import Plan
from sticky_core.backend.trial_accepts import SuggestedAccepts
from sticky_core.clock import Clock, ManualClock
from sticky_core.http.messages import Request, ResponseHead
from sticky_core.persistence.claim import NO_COOKIE, Claim, Mark, PersistenceResult, Reason
from sticky_core.persistence.cookie.config import Cookie, FallbackCookie
from sticky_core.persistence.cookie_scope import CookieScope
from sticky_core.persistence.follow import Follow
from sticky_core.persistence.nginx import NginxCookie
from sticky_core.persistence.persistence import Persist, UsedTable, no_fast_path
from sticky_core.persistence.route import Route
from sticky_core.persistence.stick.config import Stick
from sticky_core.persistence.token import Token
from sticky_core.samples.request import cook, path_param
from sticky_core.server.server import Server
from sticky_core.stick_table.table import StickTable
from tests.core.backend.backends import build_backend, serve, urls, with_changed_server
from tests.core.fakes import ScriptedTransaction
from tests.core.persistence.cookie.test_accepts import KINDS

SECRET, OTHER = "a secret of these tests", "another secret of these tests"
PLAIN = "Cookie('OLD', signed=False)"
LINE = "cookie NEW: accepts=[Cookie('OLD', signed=False)] would keep the clients of s1, s2 and s3"
S123 = ("s1", "s2", "s3")
ALL = dict.fromkeys(S123)


def plain(name: str = "OLD", **options: Any) -> Cookie:
    return Cookie(name, signed=False, **options)


def new_cookie(**options: Any) -> Cookie:
    return Cookie("NEW", **{"secret": SECRET} | options)


def plan(before: Sequence[Persist], after: Sequence[Persist]) -> Plan:
    web = build_backend(urls(1, 2, 3), persist=before)
    return web.plan(replace(web.config, persist=tuple(after)))


def kinds() -> list[Any]:
    passive = KINDS | {"passive": {"mode": "passive"}}
    return [
        pytest.param(old, new, name, id=f"{old_kind} to {new_kind}, {name}")
        for old_kind, old in passive.items()
        for new_kind, new in passive.items()
        for name in ("SID", "NEW")
        if old_kind != new_kind or name == "NEW"
    ]


@pytest.mark.parametrize("old_options, new_options, name", kinds())
def test_plan_knows_what_accepts_keeps_and_suggests_it_where_it_is_needed(
    old_options: dict[str, Any], new_options: dict[str, Any], name: str
):
    old, new = Cookie("SID", **old_options), Cookie(name, **new_options)
    accepting = replace(new, accepts=[old])
    assert plan([old], [accepting]).marks == {} and plan([old], [accepting]).accepts == ()
    without = plan([old], [new])
    assert set(without.marks) in (set(), set(S123))
    assert len(without.accepts) == bool(without.marks)
    for suggested in without.accepts:
        assert (suggested.cookie, suggested.servers, suggested.extends) == (name, S123, False)
        (text,) = suggested.accepts
        assert text.startswith("Cookie('SID'") and "older secret" not in text and "newer secret" not in text
        assert "MYKEY" not in text


FOLLOWING = Follow("SID", new_cookie(), attributes="own")
ELSEWHERE = Route(path_param("sid"))
APPLICATION = Route(cook("JSESSIONID"))

SUGGESTED: list[Any] = [
    # what persists before and after, and what is to be accepted by which cookie
    pytest.param([plain(path="/shop")], [new_cookie()], "NEW", "Cookie('OLD', signed=False, path='/shop')", id="plain"),
    pytest.param(
        [Cookie("SRV", secret=SECRET)], [Cookie("SRV", secret=OTHER)], "SRV", "Cookie('SRV', secret=...)", id="secret"
    ),
    pytest.param(
        [Cookie("OLD", secret=[OTHER, SECRET], max_age="8h", domain=["a.example"], dynamic="MYKEY", samesite=None)],
        [new_cookie()],
        "NEW",
        "Cookie('OLD', secret=..., samesite=None, domain=['a.example'], max_age='8h', dynamic=...)",
        id="options as they were given, and no secrets",
    ),
    pytest.param(
        [plain(fallback=FallbackCookie("OLDER", secure=True))],
        [new_cookie()],
        "NEW",
        "Cookie('OLD', signed=False, fallback=FallbackCookie('OLDER', secure=True))",
        id="a fallback",
    ),
    pytest.param(
        [plain(accepts=[plain("OLDER")], accepts_until="2037-01-01")],
        [new_cookie()],
        "NEW",
        "Cookie('OLD', signed=False)",
        id="what accepts others",
    ),
    pytest.param(
        [Cookie("SID", mode="prefix", signed=False)],
        [new_cookie()],
        "NEW",
        "Cookie('SID', mode='prefix', signed=False)",
        id="prefix",
    ),
    pytest.param(
        [Cookie("SID", mode="passive")],
        [Cookie("SID", mode="rewrite", secret=SECRET)],
        "SID",
        "Cookie('SID', mode='passive')",
        id="passive to rewrite",
    ),
    pytest.param(
        [Follow("SID", plain(accepts=[plain("OLDER")]))],
        [new_cookie()],
        "NEW",
        "Follow('SID', Cookie('OLD', signed=False))",
        id="a cookie that followed the application's",
    ),
    pytest.param(
        [NginxCookie("route", path="/", expires="1h")],
        [new_cookie()],
        "NEW",
        "NginxCookie('route', expires='1h', path='/')",
        id="nginx",
    ),
    pytest.param([APPLICATION], [new_cookie()], "NEW", "Route(cook('JSESSIONID'))", id="a route in a cookie"),
    pytest.param(
        [Route(path_param("jsessionid"), path_param("sid"), separator="!")],
        [new_cookie()],
        "NEW",
        "Route(path_param('jsessionid'), path_param('sid'), separator='!')",
        id="a route elsewhere",
    ),
    pytest.param([plain()], [NginxCookie("N"), new_cookie()], "NEW", PLAIN, id="the second"),
    pytest.param([plain()], [new_cookie(), plain("B")], "NEW", PLAIN, id="the first of two"),
    pytest.param([APPLICATION, plain()], [new_cookie()], "NEW", PLAIN, id="what all clients have"),
    pytest.param([plain("A"), plain("B")], [new_cookie()], "NEW", "Cookie('A', signed=False)", id="one of two"),
    pytest.param(
        [plain("A"), plain("B")],
        [new_cookie(), plain("A", path="/a", opaque=True, secret=SECRET)],
        "A",
        "Cookie('A', signed=False)",
        id="by the one that overwrites it",
    ),
    pytest.param(
        [Stick.on("src", StickTable("string", size="1k")), plain()],
        [new_cookie()],
        "NEW",
        PLAIN,
        id="beside a table",
    ),
]


@pytest.mark.parametrize("before, after, cookie, accepted", SUGGESTED)
def test_plan_suggests_what_to_accept(before: Sequence[Persist], after: Sequence[Persist], cookie: str, accepted: str):
    found = plan(before, after)
    assert found.marks == ALL and found.accepts == (SuggestedAccepts(cookie, (accepted,), S123),)
    line = f"cookie {cookie}: accepts=[{accepted}] would keep the clients of s1, s2 and s3"
    assert line in str(found).splitlines()


def test_what_is_accepted_already_is_kept_in_the_suggestion():
    found = plan([plain()], [new_cookie(accepts=[plain("OTHER")])])
    assert str(found.accepts[0]).startswith("cookie NEW: accepts=[..., Cookie('OLD', signed=False)] would keep")


def test_cookie_that_follows_the_applications_keeps_the_clients_that_have_both():
    found = plan([plain()], [FOLLOWING])
    assert str(found.accepts[0]) == (f"{LINE} that send the cookie SID")
    keeping = Follow("SID", new_cookie(accepts=[Follow("SID", plain())]), attributes="own")
    assert plan([Follow("SID", plain())], [keeping]).marks == {}


@pytest.mark.parametrize(
    "after",
    [
        pytest.param([], id="no persistence"),
        pytest.param([NginxCookie("N")], id="another kind of cookie"),
        pytest.param([APPLICATION], id="a route"),
        pytest.param([Token(cookie="STICKY0")], id="a table"),
    ],
)
def test_plan_suggests_a_cookie_where_there_is_none(after: Sequence[Persist]):
    found = plan([plain()], after)
    assert found.marks == ALL and [str(each) for each in found.accepts] == [
        "a Cookie in persist with accepts=[Cookie('OLD', signed=False)] would keep the clients of s1, s2 and s3"
    ]


KEPT: list[Any] = [
    pytest.param([NginxCookie("N")], [new_cookie(accepts=[NginxCookie("N")])], id="nginx"),
    pytest.param([APPLICATION], [new_cookie(accepts=[APPLICATION])], id="a route in a cookie"),
    pytest.param([Route(path_param("sid"))], [new_cookie(accepts=[Route(path_param("sid"))])], id="a route elsewhere"),
    pytest.param([plain("A"), plain("B")], [new_cookie(accepts=[plain("B")])], id="one of two"),
    pytest.param([plain()], [NginxCookie("N"), new_cookie(accepts=[plain()])], id="by the second"),
    pytest.param([Follow("SID", plain())], [new_cookie(accepts=[plain()])], id="what followed, by itself"),
    pytest.param([new_cookie(accepts=[plain()])], [new_cookie(accepts=[plain()], path="/a")], id="other options"),
]


@pytest.mark.parametrize("before, after", KEPT)
def test_clients_with_accepted_marks_do_not_move(before: Sequence[Persist], after: Sequence[Persist]):
    assert plan(before, after).marks == {}


LOST: list[Any] = [
    pytest.param([APPLICATION], [Route(cook("SESSION"))], ALL, True, id="a route in another cookie"),
    pytest.param([APPLICATION], [new_cookie(accepts=[Route(cook("SESSION"))])], ALL, True, id="another route accepted"),
    pytest.param([plain()], [new_cookie(accepts=[plain()], accepts_until="2020-01-01")], ALL, False, id="ended"),
    pytest.param(
        [ELSEWHERE], [new_cookie(accepts=[ELSEWHERE], accepts_until="2020-01-01")], ALL, False, id="ended, a route"
    ),
    pytest.param([plain(), NginxCookie("N")], [plain(), NginxCookie("M")], {}, False, id="another one still counts"),
]


@pytest.mark.parametrize("before, after, moved, is_curable", LOST)
def test_clients_with_other_marks_move(
    before: Sequence[Persist], after: Sequence[Persist], moved: dict[str, None], is_curable: bool
):
    web = build_backend(urls(1, 2, 3), persist=before, clock=ManualClock(1_800_000_000))
    found = web.plan(replace(web.config, persist=tuple(after)))
    assert found.marks == moved and bool(found.accepts) is is_curable


@pytest.mark.parametrize(
    "changes",
    [{"cookie": "one"}, {"cookie": ""}],
    ids=["another id", "no id"],
)
def test_nothing_is_suggested_where_it_is_the_server_that_changes(changes: dict[str, Any]):
    web = build_backend(urls(1, 2, 3), persist=plain())
    found = web.plan(with_changed_server(web.config, "s1", **changes))
    assert set(found.marks) == {"s1"} and found.accepts == ()


def test_clients_of_a_server_that_is_removed_are_not_kept_by_any_cookie():
    web = build_backend(urls(1, 2, 3), persist=plain())
    found = web.plan(replace(web.config, servers=web.config.servers[1:], persist=(new_cookie(),)))
    assert set(found.marks) == set(S123) and found.accepts[0].servers == ("s2", "s3")
    changed = with_changed_server(replace(web.config, persist=(new_cookie(),)), "s1", cookie="one")
    assert web.plan(changed).accepts[0].servers == ("s2", "s3"), "nor of one with another id"


def test_clients_of_a_server_with_another_name_are_kept_as_well():
    web = build_backend(urls(1, 2, 3), persist=plain())
    renamed = replace(web.config.servers[0], name="large", formerly=("s1",))
    config = replace(web.config, servers=(renamed, *web.config.servers[1:]))
    assert web.plan(config).marks == {}
    found = web.plan(replace(config, persist=(new_cookie(),)))
    assert found.marks == ALL and [each.servers for each in found.accepts] == [S123]
    kept = web.plan(replace(config, persist=(new_cookie(accepts=[plain()]),)))
    assert (kept.marks, kept.accepts) == ({}, ())


def test_of_many_servers_the_first_are_listed():
    web = build_backend(urls(*range(1, 15)), persist=plain())
    found = web.plan(replace(web.config, persist=(new_cookie(),)))
    assert str(found.accepts[0]).endswith("of s1, s2, s3, s4, s5, s6, s7, s8, s9, s10 and 4 more servers")
    assert len(found.accepts[0].servers) == 14


def test_plan_says_how_many_requests_the_servers_of_lost_clients_have_served():
    web = build_backend(urls(1, 2, 3), persist=plain())
    assert [serve(web) for _ in range(5)] == ["s1", "s2", "s3", "s1", "s2"]
    found = web.plan(replace(web.config, persist=(new_cookie(),)))
    assert found.requests == {"s1": 2, "s2": 2, "s3": 1} and found.accepts[0].requests == 5
    assert str(found).splitlines()[1:] == [
        "cookies s1 -> by balance (requests served: 2)",
        "cookies s2 -> by balance (requests served: 2)",
        "cookies s3 -> by balance (requests served: 1)",
        f"{LINE} (requests served: 5)",
    ]
    assert web.plan(web.config).requests == {}


def test_plan_notes_what_is_accepted_no_more_and_how_many_requests_came_with_it():
    web = build_backend(
        urls(1, 2, 3), persist=new_cookie(accepts=[plain(), NginxCookie("N")]), clock=ManualClock(1_800_000_000)
    )
    for cookie in ("OLD=s1", "OLD=s2", "OLD=s9"):
        ScriptedTransaction(web, cookie=cookie).run()
    none = "cookie NEW would accept NginxCookie('N') no more (requests with it in this process: 0)"
    some = (
        "cookie NEW would accept Cookie('OLD') no more (requests with it in this process: 3, "
        "the last on Fri, 15 Jan 2027 08:00:00 GMT)"
    )
    rows: list[tuple[list[Persist], tuple[str, ...]]] = [
        ([new_cookie()], (some, none)),
        ([new_cookie(accepts=[plain()])], (none,)),
        ([Cookie("NEWER", secret=SECRET, accepts=[new_cookie(), plain(), NginxCookie("N")])], ()),
        ([Follow("SID", new_cookie(accepts=[plain(), NginxCookie("N")]), attributes="own")], ()),
        ([new_cookie(accepts=[plain()]), NginxCookie("N")], ()),
    ]
    for after, notes in rows:
        found = web.plan(replace(web.config, persist=tuple(after)))
        assert found.notes == notes and set(notes) <= set(str(found).splitlines())


def test_nothing_is_tried_unless_clients_move(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trial_accepts, "suggested_accepts", None)
    assert plan([plain()], [plain(path="/a")]).marks == {}
    web = build_backend(urls(1, 2, 3), persist=plain())
    assert set(web.plan(replace(web.config, servers=web.config.servers[1:])).marks) == {"s1"}
    with pytest.raises(TypeError):
        plan([plain()], [new_cookie()])


class Badge:
    """A persistence of a user's, by a cookie with the server's name."""

    name = "badge"

    def cookie_scopes(self) -> tuple[CookieScope, ...]:
        return ()

    def build(self, backend: str, servers: Sequence[Server], clock: Clock) -> "BadgeEngine":
        return BadgeEngine(servers)


@dataclass(frozen=True)
class LargeBadge(Badge):
    colour: str = "red"


class BadgeEngine:
    max_idle = 0.0
    tables: Sequence[UsedTable] = ()

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = {server.name: server for server in servers}
        self.fast_path = no_fast_path()

    def recognise(self, request: Request, *, accept_down: bool = False) -> PersistenceResult:
        for text in request.cookies:
            name, _, value = text.partition("=")
            if name == "badge" and value in self._servers:
                return PersistenceResult(Claim.VALID, Reason.BOUND, self._servers[value])
        return NO_COOKIE

    def stamp_response(
        self, result: PersistenceResult, server: Server, is_bound: bool, request: Request, response: ResponseHead
    ) -> Mark:
        response.add("set-cookie", f"badge={server.name}")
        return Mark.INSERTED

    def state_changed(self, server: Server) -> None: ...


@pytest.mark.parametrize("badge, text", [(Badge(), "Badge('badge')"), (LargeBadge("blue"), "LargeBadge('blue')")])
def test_persistence_of_a_user_is_suggested_too(badge: Badge, text: str):
    assert plan([badge], [new_cookie()]).accepts == (SuggestedAccepts("NEW", (text,), S123),)


def test_suggestion_applied_loses_no_client_and_then_there_is_nothing_to_suggest():
    web = build_backend(urls(1, 2, 3), persist=[APPLICATION, plain(path="/shop")])
    new = replace(web.config, persist=(new_cookie(),))
    (suggested,) = web.plan(new).accepts
    accepted = [eval(text, {"Cookie": Cookie}) for text in suggested.accepts]
    kept = replace(new, persist=(new_cookie(accepts=accepted),))
    assert web.plan(kept).marks == {} and web.plan(kept).accepts == ()
    assert isinstance(web, Backend)
