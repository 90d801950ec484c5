"""What names a server as it was called formerly leads to it, and is replaced by what names it now."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from sticky_core.clock import ManualClock
from sticky_core.persistence.claim import NO_COOKIE, Claim, Mark, PersistenceResult, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.follow import Follow
from sticky_core.persistence.nginx import NginxCookie
from sticky_core.persistence.persistence import Persist, Persistence, ReusablePersistence
from sticky_core.persistence.route import Route
from sticky_core.persistence.stick.config import Learn, Stick
from sticky_core.samples.request import cook
from sticky_core.samples.response import cook as set_cook
from sticky_core.server.server import Server
from sticky_core.server.state import Health
from sticky_core.stick_table.table import StickTable
from tests.core.fakes import FakeRequest, RecordedResponse
from tests.core.persistence.cookie.marks import NEW, NOW, OLD, app

SRV = "SRV"
Servers = Callable[[], list[Server]]


def build(persist: Persist, servers: Sequence[Server]) -> Persistence:
    persistence = persist.build("web", servers, ManualClock(NOW))

    def changed(server: Server) -> None:
        server.refresh_state()
        persistence.state_changed(server)

    for server in servers:
        server.attach(changed)
    return persistence


def jar_of(response: RecordedResponse) -> list[str]:
    return [text.partition(";")[0] for text in response.set_cookies]


def mark_of(persist: Persist, servers: Sequence[Server], at: int, sets: Sequence[str] = ()) -> list[str]:
    """Return the cookies of a client that the server at `at` has served; `sets`: those of the application."""
    response = RecordedResponse()
    for text in sets:
        response.add("set-cookie", text)
    request = FakeRequest(method="POST")
    build(persist, servers).stamp_response(NO_COOKIE, servers[at], False, request, response)
    return jar_of(response)


def visit(persistence: Persistence, jar: Sequence[str], sets: Sequence[str] = ()) -> tuple[PersistenceResult, Any]:
    """Send a request with these cookies. Return its result, and the cookies that the response sets."""
    request = FakeRequest(["; ".join(jar)])
    result = persistence.recognise(request)
    response = RecordedResponse()
    for text in sets:
        response.add("set-cookie", text)
    assert result.server is not None
    persistence.stamp_response(result, result.server, True, request, response)
    return result, jar_of(response)


def named(*names: str, **options: Any) -> list[Server]:
    return [Server(name, f"http://10.0.0.{number}:80", **options) for number, name in enumerate(names, 1)]


def renamed() -> list[Server]:
    return [
        Server("web1", "http://10.0.1.1:80", formerly=["s1", "10.0.0.1:80"]),
        Server("web2", "http://10.0.1.2:80", formerly=["s2", "http://10.0.0.2:80/"]),
    ]


KINDS: dict[str, dict[str, Any]] = {
    "plain": {"signed": False},
    "signed": {"secret": NEW},
    "two secrets": {"secret": [OLD, NEW]},
    "opaque": {"secret": NEW, "opaque": True},
    "opaque, two secrets": {"secret": [OLD, NEW], "opaque": True},
    "opaque, plain": {"secret": NEW, "opaque": True, "signed": False},
    "dynamic": {"signed": False, "dynamic": "MYKEY"},
    "dynamic and signed": {"secret": NEW, "dynamic": "MYKEY"},
    "dated": {"secret": NEW, "maxidle": 1000, "maxlife": 5000},
    "plain dates": {"signed": False, "maxidle": 1000},
    "plain prefix": {"mode": "prefix", "signed": False},
    "signed prefix": {"mode": "prefix", "secret": NEW},
    "plain rewrite": {"mode": "rewrite", "signed": False},
    "signed rewrite": {"mode": "rewrite", "secret": NEW},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [0, 1])
def test_cookie_of_a_former_name_or_address_is_renewed_with_the_present_one(kind: str, at: int):
    cookie = Cookie(SRV, **KINDS[kind])
    sets = [f"{SRV}=app; path=/"] if cookie.mode != "insert" else []
    old = mark_of(cookie, named("s1", "s2"), at, sets)
    assert len(old) == 1
    engine = build(cookie, servers := renamed())
    result, jar = visit(engine, old, sets)
    assert (result.claim, result.reason, result.server) == (Claim.VALID, Reason.BOUND, servers[at])
    assert result.is_outdated and not result.needs_no_mark
    new = mark_of(cookie, renamed(), at, sets)
    assert jar == new != old
    result, jar = visit(engine, new)
    assert (result.server, result.is_outdated, jar) == (servers[at], False, [])
    # the same once more, from what is cached
    assert visit(engine, old, sets)[0].server is visit(engine, old, sets)[0].server is servers[at]


@pytest.mark.parametrize("kind", KINDS)
def test_without_formerly_the_client_is_lost(kind: str):
    cookie = Cookie(SRV, **KINDS[kind])
    sets = [f"{SRV}=app; path=/"] if cookie.mode != "insert" else []
    old = mark_of(cookie, named("s1", "s2"), 1, sets)
    servers = [Server("web1", "http://10.0.1.1:80"), Server("web2", "http://10.0.1.2:80")]
    assert build(cookie, servers).recognise(FakeRequest(old)).server is None


@pytest.mark.parametrize("kind", [kind for kind, options in KINDS.items() if "mode" not in options])
@pytest.mark.parametrize("new", ["plain", "signed", "opaque", "dynamic"])
def test_accepted_cookie_of_a_former_name_is_replaced(kind: str, new: str):
    old = mark_of(Cookie("OLD", **KINDS[kind]), named("s1", "s2"), 1)
    cookie = Cookie(SRV, **KINDS[new], accepts=[Cookie("OLD", **KINDS[kind])])
    result, jar = visit(build(cookie, servers := renamed()), old)
    assert (result.reason, result.server) == (Reason.ACCEPTED, servers[1])
    assert jar == ["OLD=", *mark_of(cookie, renamed(), 1)]


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(lambda: named("s1", "s2"), id="address"),
        pytest.param(lambda: [Server("s1", app), Server("s2", app)], id="name of an app"),
        pytest.param(lambda: [Server("a", app, cookie="s1"), Server("b", app, cookie="s2")], id="route"),
    ],
)
def test_nginx_cookie_of_a_former_route_or_address(before: Servers):
    cookie = NginxCookie("srv_id")
    old = mark_of(cookie, before(), 1)
    result, jar = visit(build(cookie, servers := renamed()), old)
    assert result.server is servers[1] and jar == mark_of(cookie, renamed(), 1) != old
    ours = Cookie(SRV, secret=NEW, accepts=[cookie])
    assert visit(build(ours, servers := renamed()), old)[0].server is servers[1]


NGINX, DYNAMIC = NginxCookie(SRV), Cookie(SRV, signed=False, dynamic="MYKEY")


@pytest.mark.parametrize(
    "persist, address, written",
    [
        (NGINX, "unix:/run/a.sock", "unix:/run/a.sock"),
        (NGINX, "http://[::1]:80", "[::1]:80"),
        (NGINX, "http://[0:0::1]:80/", "[::1]:80"),
        (NGINX, "http://10.0.0.9", "http://10.0.0.9:80"),
        (DYNAMIC, "http://[::1]:80", "[::1]:80"),
        (DYNAMIC, "http://[0:0::1]:80/", "[::1]:80"),
        (DYNAMIC, "http://10.0.0.9", "http://10.0.0.9:80"),
    ],
)
def test_address_counts_however_it_is_written(persist: Persist, address: str, written: str):
    old = mark_of(persist, [Server("s1", address), *named("s2")], 0)
    new = [Server("web1", "http://10.0.1.1", formerly=[written]), *named("s2")]
    assert visit(build(persist, new), old)[0].server is new[0]


def test_follow_takes_former_names():
    follow = Follow("SID", Cookie(SRV, secret=NEW))
    old = mark_of(follow, named("s1", "s2"), 1, ["SID=1; path=/"])
    result, jar = visit(build(follow, servers := renamed()), old, ["SID=1; path=/"])
    assert result.server is servers[1] and jar == mark_of(follow, renamed(), 1, ["SID=1; path=/"])


@pytest.mark.parametrize("text", ["s2", "abc.s2", "a.b.s2", "x" * 300 + ".s2"])
def test_route_takes_former_names(text: str):
    servers = renamed()
    assert build(Route(cook("JSESSIONID")), servers).recognise(FakeRequest([f"JSESSIONID={text}"])).server is servers[1]


def test_longest_former_route_is_found_at_the_end_of_a_text():
    servers = [Server("a", app, formerly=["a.very.long.route"]), Server("b", app)]
    engine = build(Route(cook("SID")), servers)
    request = FakeRequest(["SID=x.a.very.long.route"])
    assert engine.recognise(request).server is servers[0]
    assert isinstance(engine, ReusablePersistence)
    new = Server("c", app, formerly=["an.even.very.much.longer.route"])
    changed = engine.with_servers([*servers, new], [new], [])
    assert changed.recognise(FakeRequest(["SID=x.an.even.very.much.longer.route"])).server is new
    assert changed.recognise(request).server is servers[0]


@pytest.mark.parametrize("srvkey", ["name", "addr"])
def test_entry_of_a_former_name_or_address_is_replaced(srvkey: Any):
    table = StickTable("string", srvkey=srvkey)
    stick = Stick.on(cook("user"), table)
    old = build(stick, servers := named("s1", "s2"))
    request = FakeRequest(["user=ann"])
    old.stamp_response(old.recognise(request), servers[1], False, request, RecordedResponse())
    text = table["ann"]
    engine = build(stick, servers := renamed())
    result = engine.recognise(request)
    assert (result.claim, result.server, result.needs_no_mark) == (Claim.VALID, servers[1], False)
    (used,) = engine.tables
    assert used.server_of(text) is servers[1] and text in used.former_texts_of(servers[1])
    engine.stamp_response(result, servers[1], True, request, RecordedResponse())
    assert table["ann"] == used.text_of(servers[1]) != text
    assert engine.recognise(request).needs_no_mark


def test_learned_id_of_a_former_name_is_replaced():
    table = StickTable("string")
    learn = Learn(set_cook("SID"), cook("SID"), table=table)
    table["abc"] = "s2"
    engine = build(learn, servers := renamed())
    assert visit(engine, ["SID=abc"])[0].server is servers[1]
    assert table["abc"] == "web2"


def test_entry_of_a_replica_does_not_outlive_its_instance():
    table = StickTable("string")
    table["ann"], table["bob"] = "s1@abc123", "s1"
    servers = [Server("web1", app, formerly=["s1"]), *named("s2")]
    servers[0].instance = "def456"
    engine = build(Stick.on(cook("user"), table), servers)
    for user in ("ann", "bob"):
        result = engine.recognise(FakeRequest([f"user={user}"]))
        assert (result.claim, result.reason, result.server) == (Claim.INVALID, Reason.OTHER_INSTANCE, servers[0])


@pytest.mark.parametrize("kind", ["signed", "opaque"])
def test_signed_mark_of_a_replica_does_not_outlive_its_instance(kind: str):
    cookie = Cookie(SRV, **KINDS[kind])
    old = [Server("s1", app), Server("s2", app)]
    old[0].instance = "abc123"
    mark = mark_of(cookie, old, 0)
    new = [Server("web1", app, formerly=["s1"]), Server("s2", app)]
    new[0].instance = "def456"
    result = build(cookie, new).recognise(FakeRequest(mark))
    assert (result.claim, result.reason, result.server) == (Claim.INVALID, Reason.OTHER_INSTANCE, new[0])
    # the same start of the app, with another id
    changed = Server("s1", app, cookie="A", formerly=["s1"])
    changed.instance = "abc123"
    result, jar = visit(build(cookie, [changed]), mark)
    assert result.is_bound and result.is_outdated and jar != mark


# What changes at run time


def test_former_id_is_recognised_and_not_written_when_servers_change():
    cookie = Cookie(SRV, secret=NEW, maxidle=1000)
    old = mark_of(cookie, named("s1", "s2"), 1)
    servers = named("web1", "web2")
    engine = build(cookie, servers)
    assert isinstance(engine, ReusablePersistence)
    assert engine.recognise(FakeRequest(old)).server is None
    new = Server("web3", "http://10.0.0.3", formerly=["s2"])
    grown = engine.with_servers([*servers, new], [new], [])
    result, jar = visit(grown, old)
    assert result.server is new and jar == mark_of(cookie, [*named("web1", "web2"), Server("web3", "http://x")], 2)
    assert isinstance(grown, ReusablePersistence)
    taker = Server("s2", "http://10.0.0.4")
    taken = grown.with_servers([*servers, new, taker], [taker], [])
    assert isinstance(taken, ReusablePersistence)
    assert taken.recognise(FakeRequest(old)).server is taker, "it is called so now"
    left = taken.with_servers([*servers, new], [], [taker])
    assert left.recognise(FakeRequest(old)).server is new
    assert isinstance(left, ReusablePersistence)
    assert left.with_servers(servers, [], [new]).recognise(FakeRequest(old)).server is None


@pytest.mark.parametrize("kind", ["dynamic", "dynamic and signed"])
def test_former_address_belongs_to_the_server_that_has_it_now(kind: str):
    cookie = Cookie(SRV, **KINDS[kind])
    old = mark_of(cookie, named("s1", "s2"), 0)
    servers = [
        Server("web1", "http://10.0.1.1:80", formerly=["10.0.0.1:80"]),
        Server("web2", "http://10.0.1.2:80"),
    ]
    engine = build(cookie, servers)
    assert visit(engine, old)[0].server is servers[0]
    servers[1].target = "http://10.0.0.1:80"
    result, jar = visit(engine, old)
    assert (result.server, result.is_outdated, jar) == (servers[1], False, [])
    servers[1].target = "http://10.0.1.3:80"
    result, jar = visit(engine, old)
    assert result.server is servers[0] and result.is_outdated and jar
    servers[0].target = "http://10.0.0.1:80"
    result, jar = visit(engine, old)
    assert (result.server, result.is_outdated, jar) == (servers[0], False, [])


def test_servers_that_share_an_id_now_may_share_a_former_one():
    cookie = Cookie(SRV, signed=False)
    servers = [Server(name, f"http://{name}", cookie="B", formerly=["A"]) for name in ("s1", "s2")]
    engine = build(cookie, servers)
    assert visit(engine, [f"{SRV}=A"])[0].server is servers[0]
    servers[0].health = Health.DOWN
    result, jar = visit(engine, [f"{SRV}=A"])
    assert (result.server, jar) == (servers[1], [f"{SRV}=B"])


@pytest.mark.parametrize("kind", ["plain", "signed", "opaque", "dated", "signed prefix"])
def test_clients_of_a_backup_without_an_id_stay_by_its_former_name(kind: str):
    cookie = Cookie(SRV, **KINDS[kind])
    sets = [f"{SRV}=app; path=/"] if cookie.mode != "insert" else []
    old = mark_of(cookie, named("s1", "s2"), 1, sets)
    servers = [Server("web1", "http://10.0.0.1"), Server("web2", "http://10.0.0.2", backup=True, formerly=["s2"])]
    engine = build(cookie, servers)
    result, _ = visit(engine, old, sets)
    assert result.server is servers[1] and not result.is_outdated
    request, response = FakeRequest(), RecordedResponse()
    assert engine.stamp_response(NO_COOKIE, servers[1], False, request, response) is Mark.NONE
    assert not response.set_cookies


@pytest.mark.parametrize("kind", ["plain", "signed", "plain prefix", "signed prefix"])
def test_text_that_a_cookie_cannot_contain_is_of_other_persistences(kind: str):
    cookie = Cookie(SRV, **KINDS[kind])
    sets = [f"{SRV}=app; path=/"] if cookie.mode != "insert" else []
    old = mark_of(cookie, named("s1", "s2"), 0, sets)
    for is_backup in (False, True):
        formerly = ["a@b", "a|b", "a~b", "s1"]
        servers = [Server("web1", "http://10.0.1.1", backup=is_backup, formerly=formerly), *named("s2")]
        assert visit(build(cookie, servers), old, sets)[0].server is servers[0]


def test_server_without_an_id_has_no_former_one_in_cookies():
    servers = [Server("web1", "http://10.0.0.1", cookie="", formerly=["s1"])]
    assert build(Cookie(SRV, signed=False), servers).recognise(FakeRequest([f"{SRV}=s1"])).server is None
    assert build(NginxCookie(SRV), servers).recognise(FakeRequest([f"{SRV}=s1"])).server is None
