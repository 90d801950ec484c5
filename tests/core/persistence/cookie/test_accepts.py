"""Cookies of earlier configurations that a cookie accepts: they bind a client once more, and are replaced."""

import logging
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.clock import ManualClock
from sticky_core.errors import ConfigError
from sticky_core.http import cookies
from sticky_core.persistence.accepted import AcceptedCount
from sticky_core.persistence.claim import NO_COOKIE, Claim, Mark, Reason
from sticky_core.persistence.cookie.config import Cookie, FallbackCookie
from sticky_core.persistence.cookie.engine import CookieEngine
from sticky_core.persistence.follow import Follow
from sticky_core.persistence.nginx import NginxCookie
from sticky_core.persistence.persistence import Persist
from sticky_core.persistence.route import Route
from sticky_core.persistence.token import Token
from sticky_core.samples.request import cook, path_param
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health
from tests.core.fakes import FakeRequest, RecordedResponse
from tests.core.persistence.cookie.marks import NEW, NOW, OLD, build

APPLICATION = "app~value"  # a value with a ~ of its own


def servers_at_addresses() -> list[Server]:
    return [Server(name, f"http://127.0.0.1:{port}") for name, port in (("r1", 8001), ("r2", 8002), ("r3", 8003))]


class Browser:
    """A client that keeps its cookies, by name, path and domain, and sends all of them."""

    def __init__(self, **jar: str) -> None:
        self._kept = {(name, "/", ""): value for name, value in jar.items()}

    @property
    def jar(self) -> dict[str, str]:
        assert len({name for name, _, _ in self._kept}) == len(self._kept), "two cookies of one name"
        return {name: value for (name, _, _), value in self._kept.items()}

    @property
    def texts(self) -> Sequence[str]:
        return ["; ".join(f"{name}={value}" for (name, _, _), value in self._kept.items())] if self._kept else []

    def take(self, response: RecordedResponse) -> None:
        for text in response.set_cookies:
            (name, value), *attributes = (part.strip().partition("=")[::2] for part in text.split(";"))
            scope = {key.lower(): attribute for key, attribute in attributes}
            identity = name, scope.get("path", ""), scope.get("domain", "")
            if cookies.deletes(text, NOW):
                self._kept.pop(identity, None)
            else:
                self._kept[identity] = value

    def visit(self, engine: CookieEngine, server: Server | None = None, *, sets: str = "") -> "Visit":
        """Send a request, and take the response of the server that the client is bound to, else of `server`. `sets`:
        the name of a cookie that the application sets.
        """
        request = FakeRequest(self.texts)
        result = engine.recognise(request)
        response = RecordedResponse()
        if sets:
            response.add("set-cookie", f"{sets}={APPLICATION}; path=/")
        responding = result.server if result.is_bound else server
        assert responding is not None
        mark = engine.stamp_response(result, responding, result.is_bound, request, response)
        self.take(response)
        return Visit(result.claim, result.reason, responding.name, mark, request.cookies, response)


class Visit:
    def __init__(
        self,
        claim: Claim,
        reason: Reason,
        server: str,
        mark: Mark,
        forwarded: Sequence[str],
        response: RecordedResponse,
    ) -> None:
        self.claim, self.reason, self.server, self.mark = claim, reason, server, mark
        self.forwarded = list(forwarded)
        self.response = response


def engine_of(cookie: Persist, servers: Sequence[Server], clock: ManualClock | None = None) -> CookieEngine:
    assert isinstance(cookie, (Cookie, Follow))
    engine = build(cookie, servers, clock)  # type: ignore[arg-type]
    assert isinstance(engine, CookieEngine)
    return engine


KINDS: dict[str, dict[str, object]] = {
    "plain": {"signed": False},
    "signed": {"secret": NEW},
    "signed by another secret": {"secret": OLD},
    "opaque": {"secret": NEW, "opaque": True},
    "dynamic": {"signed": False, "dynamic": "MYKEY"},
    "dynamic and signed": {"secret": NEW, "dynamic": "MYKEY"},
    "dated": {"secret": NEW, "maxidle": 1000, "maxlife": 5000},
    "plain dates": {"signed": False, "maxidle": 1000},
    "other attributes": {"secret": NEW, "path": "/shop", "domain": "shop.example"},
    "plain prefix": {"mode": "prefix", "signed": False},
    "signed prefix": {"mode": "prefix", "secret": NEW},
    "plain rewrite": {"mode": "rewrite", "signed": False},
    "signed rewrite": {"mode": "rewrite", "secret": NEW},
}


def pairs() -> Iterator[object]:
    for old, old_options in KINDS.items():
        for new, new_options in KINDS.items():
            for names in ("renamed", "same name"):
                if old != new or names == "renamed":
                    yield pytest.param(old_options, new_options, names == "renamed", id=f"{old} to {new}, {names}")


@pytest.mark.parametrize("old_options, new_options, is_renamed", [*pairs()])
def test_client_keeps_its_server_and_has_our_cookie_afterwards(
    old_options: dict[str, object], new_options: dict[str, object], is_renamed: bool
):
    old = Cookie("SID", **old_options)  # type: ignore[arg-type]
    new = Cookie("NEW" if is_renamed else "SID", **new_options, accepts=[old])  # type: ignore[arg-type]
    servers = servers_at_addresses()
    browser = Browser()
    before = engine_of(old, servers)
    browser.visit(before, servers[1], sets="SID" if old.mode != "insert" else "")
    assert "SID" in browser.jar

    after = engine_of(new, servers)
    sets = new.name if new.mode != "insert" else ""
    first = browser.visit(after, servers[0], sets=sets)
    assert (first.claim, first.server) == (Claim.VALID, "r2")
    second = browser.visit(after, servers[0])
    assert (second.claim, second.reason, second.server, second.mark) == (Claim.VALID, Reason.BOUND, "r2", Mark.NONE)
    # the old cookie is gone, unless it is the application's, which gets its own value back
    if old.mode == "insert" or not (is_renamed or new_options is KINDS["other attributes"]):
        assert set(browser.jar) == {new.name}
    if old.mode == "prefix" and is_renamed:
        assert all(f"SID={APPLICATION}" in visit.forwarded[0] for visit in (first, second))
    elif old.mode == "insert" and new.mode == "insert":
        assert first.forwarded == second.forwarded == [""]


@pytest.mark.parametrize("kind", ["plain", "opaque", "plain prefix", "plain rewrite"])
def test_without_accepts_the_client_is_lost(kind: str):
    old, new = Cookie("SID", **KINDS[kind]), Cookie("SID", secret=OLD)  # type: ignore[arg-type]
    servers = servers_at_addresses()
    browser = Browser()
    browser.visit(engine_of(old, servers), servers[1], sets="SID" if old.mode != "insert" else "")
    assert browser.visit(engine_of(new, servers), servers[0]).server == "r1"


def test_first_date_of_the_old_cookie_is_kept():
    old = Cookie("OLD", secret=NEW, maxlife=5000)
    new = Cookie("NEW", secret=NEW, maxlife=5000, accepts=[old])
    servers, browser, clock = servers_at_addresses(), Browser(), ManualClock(NOW)
    browser.visit(engine_of(old, servers, clock), servers[1])
    clock.advance(4000)
    engine = engine_of(new, servers, clock)
    assert browser.visit(engine).server == "r2"
    clock.advance(1001)
    assert browser.visit(engine, servers[0]).claim is Claim.OLD


def test_idle_time_of_the_old_cookie_counts():
    old = Cookie("OLD", secret=NEW, maxidle=100)
    new = Cookie("NEW", secret=NEW, accepts=[old])
    servers, browser, clock = servers_at_addresses(), Browser(), ManualClock(NOW)
    browser.visit(engine_of(old, servers, clock), servers[1])
    clock.advance(101)
    visit = browser.visit(engine_of(new, servers, clock), servers[0])
    assert (visit.claim, visit.server) == (Claim.EXPIRED, "r1")
    assert set(browser.jar) == {"NEW"}


PLAIN = Cookie("OLD", signed=False)


def accepting(*accepts: Persist, **options: object) -> Cookie:
    return Cookie("NEW", **{"secret": NEW} | options, accepts=accepts or [PLAIN])  # type: ignore[arg-type]


def marked(engine: CookieEngine, server: Server) -> str:
    """Return our cookie as a client of `server` has it."""
    browser = Browser()
    response = RecordedResponse()
    engine.stamp_response(NO_COOKIE, server, False, FakeRequest(), response)
    browser.take(response)
    return f"NEW={browser.jar['NEW']}"


@pytest.mark.parametrize(
    "texts, claim, reason, server",
    [
        pytest.param(["OLD=r2"], Claim.VALID, Reason.ACCEPTED, "r2", id="known"),
        pytest.param(["OLD=r9; OLD=r2"], Claim.VALID, Reason.ACCEPTED, "r2", id="the second of two"),
        pytest.param(["OLD=r9"], Claim.INVALID, Reason.UNKNOWN, None, id="unknown"),
        pytest.param(["OLD="], Claim.INVALID, Reason.EMPTY, None, id="empty"),
        pytest.param(["OLD=r3"], Claim.DOWN, Reason.DOWN, "r3", id="down"),
        pytest.param(["NEW=junk; OLD=r2"], Claim.VALID, Reason.ACCEPTED, "r2", id="beside an invalid one of ours"),
        pytest.param(["NEW=junk; OLD=r9"], Claim.INVALID, Reason.FORGED, None, id="both unknown"),
        pytest.param(["OTHER=r2"], Claim.NONE, Reason.NO_COOKIE, None, id="another cookie"),
        pytest.param([], Claim.NONE, Reason.NO_COOKIE, None, id="none"),
        pytest.param(["OLD=" + "x" * 65536], Claim.INVALID, Reason.UNKNOWN, None, id="64 KB"),
        pytest.param(["OLD=\x00\xff\r\n"], Claim.INVALID, Reason.UNKNOWN, None, id="junk"),
        pytest.param(["OLD=10.0.0.1:80"], Claim.INVALID, Reason.UNKNOWN, None, id="a foreign address"),
    ],
)
def test_claim_of_an_accepted_cookie(texts: list[str], claim: Claim, reason: Reason, server: str | None):
    servers = servers_at_addresses()
    engine = engine_of(accepting(), servers)
    servers[2].health = Health.DOWN
    result = engine.recognise(FakeRequest(texts))
    assert (result.claim, result.reason, result.server.name if result.server else None) == (claim, reason, server)


def test_our_cookie_counts_before_what_is_accepted():
    servers = servers_at_addresses()
    engine = engine_of(accepting(), servers)
    request = FakeRequest([f"OLD=r2; {marked(engine, servers[0])}; a=1"])
    for _ in range(2):  # the second time from the cache
        request.forwarded_cookies = None
        result = engine.recognise(request)
        assert (result.reason, result.server, request.cookies) == (Reason.BOUND, servers[0], ("a=1",))
    servers[0].health = Health.DOWN
    request.forwarded_cookies = None
    assert engine.recognise(request).claim is Claim.DOWN  # its session is there, not where the old cookie leads


def test_first_accepted_mark_with_a_usable_server_counts():
    servers = servers_at_addresses()
    engine = engine_of(accepting(Cookie("A", signed=False), Cookie("B", signed=False)), servers)
    servers[0].state = AdminState.MAINT
    assert engine.recognise(FakeRequest(["B=r3; A=r2"])).server is servers[1]
    assert engine.recognise(FakeRequest(["A=r1; B=r3"])).server is servers[2]
    assert engine.recognise(FakeRequest(["A=r9; B=r3"])).server is servers[2]
    result = engine.recognise(FakeRequest(["A=r1; B=r9"]))
    assert (result.claim, result.server) == (Claim.DOWN, servers[0])


def test_server_that_is_down_is_kept_where_that_is_accepted():
    servers = servers_at_addresses()
    engine = engine_of(accepting(), servers)
    servers[1].health = Health.DOWN
    result = engine.recognise(FakeRequest(["OLD=r2"]), accept_down=True)
    assert result.is_bound and result.server is servers[1]


# -- what is deleted

DELETED = "Expires=Thu, 01-Jan-1970 00:00:01 GMT"


@pytest.mark.parametrize(
    "accepted, sent, deletions",
    [
        pytest.param(PLAIN, "OLD=r2", [f"OLD=; {DELETED}; path=/"], id="with the default path"),
        pytest.param(
            Cookie("OLD", signed=False, path="/a", domain=["a.example"], secure=True),
            "OLD=r2",
            [f"OLD=; {DELETED}; path=/a; domain=a.example; Secure"],
            id="with its attributes",
        ),
        pytest.param(
            Cookie("OLD", signed=False, fallback=FallbackCookie("OLDER")),
            "OLDER=r2",
            [f"OLDER=; {DELETED}; path=/"],
            id="a fallback, and only what was sent",
        ),
        pytest.param(NginxCookie("OLD", path="/a"), "OLD=r2", [f"OLD=; {DELETED}; path=/a"], id="nginx, with a path"),
        pytest.param(NginxCookie("OLD"), "OLD=r2", [], id="nginx, without a path"),
        pytest.param(Route(cook("OLD")), "OLD=abc.r2", [], id="the application's, with a route"),
        pytest.param(Cookie("OLD", mode="passive"), "OLD=r2", [], id="the application's"),
        pytest.param(Cookie("NEW", signed=False), "NEW=r2", [], id="overwritten by ours"),
        pytest.param(
            Cookie("NEW", signed=False, path="/a"),
            "NEW=r2",
            [f"NEW=; {DELETED}; path=/a"],
            id="our name under another path",
        ),
        pytest.param(
            Follow("SID", Cookie("OLD", signed=False)), "SID=1; OLD=r2", [], id="a cookie that followed another"
        ),
    ],
)
def test_accepted_cookie_is_deleted_if_its_path_is_known(accepted: Persist, sent: str, deletions: list[str]):
    servers = [Server(name, f"http://127.0.0.1:{port}", cookie=name) for name, port in (("r1", 8001), ("r2", 8002))]
    engine = engine_of(accepting(accepted), servers)
    request, response = FakeRequest([sent]), RecordedResponse()
    result = engine.recognise(request)
    assert (result.claim, result.reason, result.server) == (Claim.VALID, Reason.ACCEPTED, servers[1])
    assert engine.stamp_response(result, servers[1], True, request, response) is Mark.UPDATED
    *others, last = response.set_cookies
    assert last.startswith("NEW=r2.") and others == deletions


def test_accepted_cookie_stays_until_ours_can_be_written():
    servers = servers_at_addresses()
    engine = engine_of(accepting(postonly=True), servers)
    browser = Browser(OLD="r2")
    visit = browser.visit(engine, servers[0])  # a GET
    assert (visit.server, visit.mark, browser.jar) == ("r2", Mark.NONE, {"OLD": "r2"})
    backup = [Server("r1", "http://127.0.0.1:8001"), Server("r2", "http://127.0.0.1:8002", backup=True)]
    engine = engine_of(accepting(), backup)
    browser = Browser(OLD="r1")
    backup[0].health = Health.DOWN
    visit = browser.visit(engine, backup[1])
    assert (visit.server, browser.jar) == ("r2", {"OLD": "r1"})


def test_client_of_a_server_that_is_gone_gets_our_cookie_too():
    servers, browser = servers_at_addresses(), Browser(OLD="r9")
    visit = browser.visit(engine_of(accepting(), servers), servers[0])
    assert visit.mark is Mark.INSERTED and set(browser.jar) == {"NEW"}


@pytest.mark.parametrize(
    "options, is_removed",
    [
        pytest.param({"signed": False}, False, id="plain: the application's"),
        pytest.param({"secret": NEW}, True, id="signed: ours"),
        pytest.param({"secret": OLD}, False, id="signed by another secret: the application's"),
    ],
)
def test_prefix_that_names_no_server(options: dict[str, object], is_removed: bool):
    prefixed = Cookie("SID", mode="prefix", **options)  # type: ignore[arg-type]
    writing = prefixed if options == {"signed": False} else Cookie("SID", mode="prefix", secret=NEW)
    browser, servers = Browser(), servers_at_addresses()
    browser.visit(engine_of(writing, servers), servers[2], sets="SID")
    request = FakeRequest(browser.texts)
    engine_of(accepting(prefixed), servers[:2]).recognise(request)
    assert request.cookies == ((f"SID={APPLICATION}",) if is_removed else tuple(browser.texts))


# -- until when


@pytest.mark.parametrize(
    "until, moment",
    [
        ("2027-03-01", datetime(2027, 3, 1, tzinfo=UTC)),
        ("2027-03-01T12:00", datetime(2027, 3, 1, 12, tzinfo=UTC)),
        ("2027-03-01T12:00+02:00", datetime(2027, 3, 1, 10, tzinfo=UTC)),
        (date(2027, 3, 1), datetime(2027, 3, 1, tzinfo=UTC)),
        (datetime(2027, 3, 1), datetime(2027, 3, 1, tzinfo=UTC)),  # noqa: DTZ001
    ],
)
def test_accepting_ends(until: object, moment: datetime, caplog: pytest.LogCaptureFixture):
    servers, clock = servers_at_addresses(), ManualClock(moment.timestamp() - 1)
    engine = engine_of(accepting(accepts_until=until), servers, clock)
    assert engine.recognise(FakeRequest(["OLD=r2"])).is_bound
    clock.advance(1)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            request = FakeRequest(["OLD=r2; a=1"])
            result = engine.recognise(request)
            assert (result.claim, request.cookies) == (Claim.NONE, ("a=1",))
    (record,) = caplog.records
    assert "cookie NEW: accepts_until has passed" in record.getMessage()


# -- counts


def test_requests_are_counted_by_what_they_came_with():
    servers, clock = servers_at_addresses(), ManualClock(NOW)
    engine = engine_of(accepting(Cookie("A", signed=False), NginxCookie("B")), servers, clock)
    assert engine.accepted is not None
    for text in ("A=r1", "A=r2", "A=r9", "B=junk", "C=r1"):
        name, _, value = text.partition("=")
        browser = Browser(**{name: value})
        browser.visit(engine, servers[0])
        clock.advance(1)
        browser.visit(engine, servers[0])  # by our own cookie
    assert engine.accepted.counts() == [
        AcceptedCount("NEW", "Cookie('A')", honoured=2, unknown=1, last=NOW + 2),
        AcceptedCount("NEW", "NginxCookie('B')", unknown=1, last=NOW + 3),
    ]
    first, second = map(str, engine.accepted.counts())
    assert first == (
        "cookie NEW accepts Cookie('A'): 2 requests named a server, 1 named none, "
        "the last on Tue, 14 Nov 2023 22:13:22 GMT"
    )
    assert second.startswith("cookie NEW accepts NginxCookie('B'): 0 requests named a server, 1 named none, the last")
    assert str(AcceptedCount("NEW", "Route")) == "cookie NEW accepts Route: 0 requests named a server, 0 named none"
    copied = engine.with_servers(servers[1:], [], servers[:1])
    assert copied.accepted is not None and copied.accepted.counts() == engine.accepted.counts()


# -- change of servers


def test_accepted_cookies_follow_a_change_of_servers():
    servers = servers_at_addresses()
    engine = engine_of(accepting(PLAIN, Cookie("DYN", signed=False, dynamic="k"), NginxCookie("N")), servers)
    r4 = Server("r4", "http://127.0.0.1:8004")
    changed = engine.with_servers([*servers[1:], r4], [r4], servers[:1])
    assert changed.recognise(FakeRequest(["OLD=r4"])).server is r4
    assert changed.recognise(FakeRequest(["OLD=r1"])).server is None
    assert engine.recognise(FakeRequest(["OLD=r1"])).server is servers[0]
    assert engine.recognise(FakeRequest(["OLD=r4"])).server is None


# -- wrong


@pytest.mark.parametrize(
    "options, problem",
    [
        pytest.param(
            {"accepts": "OLD"}, "accepts 'OLD' is no list: write accepts=[Cookie('OLD')], or leave it out", id="no list"
        ),
        pytest.param({"accepts": {"OLD": PLAIN}}, "is no list: write accepts=[Cookie('OLD')], or", id="a mapping"),
        pytest.param({"accepts": None}, "is no list: write accepts=[Cookie('OLD')], or leave it out", id="None"),
        pytest.param(
            {"accepts": PLAIN},
            "accepts Cookie('OLD', signed=False) is no list: write accepts=[Cookie('OLD', signed=False)]",
            id="one alone",
        ),
        pytest.param({"accepts": [PLAIN, PLAIN]}, "accepts: Cookie('OLD') is there twice: write it once", id="twice"),
        pytest.param(
            {"accepts": ["OLD"]}, "accepts: 'OLD' is no persistence: write one such as Cookie('OLD')", id="a name"
        ),
        pytest.param({"accepts": [Cookie]}, "is no persistence: write one such as", id="a class"),
        pytest.param(
            {"accepts": [accepting()]}, "accepts: Cookie('NEW') has accepts of its own, which", id="nested accepts"
        ),
        pytest.param({"accepts": [Cookie("NEW", secret=NEW)]}, "accepts: Cookie('NEW') is this cookie", id="itself"),
        pytest.param({"accepts": [PLAIN], "accepts_until": "soon"}, "accepts_until 'soon' is no date", id="no date"),
        pytest.param({"accepts": [PLAIN], "accepts_until": 3}, "accepts_until 3 is no date", id="a number"),
        pytest.param({"accepts_until": "2027-03-01"}, "accepts_until has no effect without accepts", id="without it"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], problem: str):
    with pytest.raises(ConfigError) as caught:
        Cookie("NEW", secret=NEW, **options)  # type: ignore[arg-type]
    (told,) = caught.value.problems
    assert told.startswith("cookie NEW: ") and problem in told


def test_table_can_not_be_accepted():
    with pytest.raises(ConfigError, match=r"cookie NEW: accepts: Token has a table.*write it in persist="):
        Backend("web", [Server("r1", "http://127.0.0.1:1")], persist=[accepting(Token(cookie="TOKEN"))])


@pytest.mark.parametrize("wrap", [lambda cookie: cookie, lambda cookie: Follow("SID", cookie, attributes="own")])
def test_cookie_that_is_accepted_can_not_be_written_as_well(wrap: object):
    with pytest.raises(ConfigError, match="persists by cookie OLD, which another cookie accepts and deletes"):
        Backend("web", [Server("r1", "http://127.0.0.1:1")], persist=[wrap(accepting()), PLAIN])  # type: ignore[operator]


def test_cookie_that_follows_another_accepts_as_well():
    servers = servers_at_addresses()
    engine = engine_of(Follow("SID", accepting(), attributes="own"), servers)
    browser = Browser(SID="1", OLD="r2")
    first = browser.visit(engine, servers[0])
    assert (first.server, first.mark, set(browser.jar)) == ("r2", Mark.UPDATED, {"SID", "NEW"})
    assert browser.visit(engine, servers[0]).reason is Reason.BOUND


def test_route_in_the_path_needs_no_cookie():
    servers = servers_at_addresses()
    engine = engine_of(accepting(Route(path_param("jsessionid"))), servers)
    request = FakeRequest()
    request.path = "/a;jsessionid=abc.r2"
    assert engine.recognise(request).server is servers[1]
