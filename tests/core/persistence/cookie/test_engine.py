"""Recognition of clients by their cookie: which cookie counts, what is remembered, and what the server gets."""

import gc
from types import FunctionType, ModuleType

import pytest

from sticky_core.clock import ManualClock
from sticky_core.persistence.claim import Claim, Reason
from sticky_core.persistence.cookie import dates
from sticky_core.persistence.persistence import Persistence
from sticky_core.persistence.signing import Signing
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health
from tests.core.fakes import FakeRequest
from tests.core.persistence.cookie.marks import (
    NAME,
    NEW,
    NOW,
    app,
    build,
    cookie,
    marked_value,
    recognise,
    three_servers,
)


@pytest.mark.parametrize(
    "texts, expected, server",
    [
        pytest.param(["SRV=Z; SRV=B"], Claim.VALID, "s2", id="an unknown one before"),
        pytest.param(["SRV=; SRV=B"], Claim.VALID, "s2", id="an empty one before"),
        pytest.param(["SRV=M; SRV=B"], Claim.VALID, "s2", id="one in maintenance before"),
        pytest.param(["SRV=A; SRV=B"], Claim.VALID, "s1", id="a later one can't override"),
        pytest.param(["SRV=A", "SRV=B"], Claim.VALID, "s1", id="two headers"),
        pytest.param(["x=1", "SRV=B"], Claim.VALID, "s2", id="the second header"),
        pytest.param(["SRV=M; SRV=Z"], Claim.DOWN, "s3", id="down beats a later unknown"),
        pytest.param(["SRV=Z; SRV=M"], Claim.DOWN, "s3", id="down beats an earlier unknown"),
        pytest.param(["SRV=Z; SRV=Y"], Claim.INVALID, None, id="none known"),
        pytest.param(["SRV="], Claim.INVALID, None, id="empty"),
        pytest.param(['SRV="A"'], Claim.INVALID, None, id="quotes are part of the value"),
        pytest.param(["srv=A"], Claim.NONE, None, id="another name"),
        pytest.param(["SRV=a"], Claim.INVALID, None, id="another case"),
        pytest.param([], Claim.NONE, None, id="no header"),
        pytest.param([""], Claim.NONE, None, id="an empty header"),
    ],
)
def test_first_usable_of_several_cookies_counts(texts: list[str], expected: Claim, server: str | None):
    servers = [Server("s1", app, cookie="A"), Server("s2", app, cookie="B"), Server("s3", app, cookie="M")]
    persistence = build(cookie(signed=False), servers)
    servers[2].state = AdminState.MAINT
    result = recognise(persistence, *texts)
    assert result.claim is expected
    assert (result.server.name if result.server else None) == server


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "plain"])
@pytest.mark.parametrize(
    "change, expected, reason",
    [
        pytest.param({}, Claim.VALID, Reason.BOUND, id="ready"),
        pytest.param({"state": AdminState.DRAIN}, Claim.VALID, Reason.BOUND, id="drains"),
        pytest.param({"weight": 0}, Claim.VALID, Reason.BOUND, id="weight 0"),
        pytest.param({"state": AdminState.MAINT}, Claim.DOWN, Reason.MAINT, id="in maintenance"),
        pytest.param({"health": Health.DOWN}, Claim.DOWN, Reason.DOWN, id="down"),
    ],
)
def test_server_keeps_its_clients_unless_it_is_down_or_in_maintenance(
    signed: bool, change: dict[str, object], expected: Claim, reason: Reason
):
    servers = three_servers()
    persistence = build(cookie(secret=NEW) if signed else cookie(signed=False), servers)
    value = marked_value(persistence, servers[0])
    for what, now in change.items():
        setattr(servers[0], what, now)
    result = recognise(persistence, f"{NAME}={value}")
    assert (result.claim, result.reason, result.server) == (expected, reason, servers[0])


@pytest.mark.parametrize(
    "options",
    [{"signed": False}, {"secret": NEW}, {"secret": NEW, "maxidle": 600}, {"secret": NEW, "opaque": True}],
    ids=["plain", "signed", "dated", "opaque"],
)
def test_first_usable_of_servers_that_share_an_id_gets_the_client(options: dict[str, object]):
    servers = [Server("s1", app, cookie="A"), Server("bk", app, cookie="A", backup=True), Server("s2", app)]
    persistence = build(cookie(**options), servers)
    text = f"{NAME}={marked_value(persistence, servers[0])}"
    assert recognise(persistence, text).server is servers[0]
    servers[0].health = Health.DOWN
    result = recognise(persistence, text)
    assert (result.claim, result.server) == (Claim.VALID, servers[1])
    servers[1].state = AdminState.MAINT
    result = recognise(persistence, text)
    assert (result.claim, result.server) == (Claim.DOWN, servers[0])
    servers[0].health = Health.UP
    assert recognise(persistence, text).server is servers[0]


@pytest.mark.parametrize(
    "options",
    [{"secret": NEW}, {"signed": False}, {"secret": NEW, "mode": "prefix"}, {"secret": NEW, "maxidle": 600}],
    ids=["signed", "plain", "prefix", "dated"],
)
def test_remembered_result_follows_the_state_of_the_server(options: dict[str, object]):
    servers = three_servers()
    persistence = build(cookie(**options), servers)
    text = f"a=1; {NAME}={marked_value(persistence, servers[0])}"
    for state, expected in [
        (AdminState.READY, Claim.VALID),
        (AdminState.MAINT, Claim.DOWN),
        (AdminState.DRAIN, Claim.VALID),
        (AdminState.MAINT, Claim.DOWN),
        (AdminState.READY, Claim.VALID),
    ]:
        servers[0].state = state
        for _ in range(2):
            assert recognise(persistence, text).claim is expected


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "plain"])
@pytest.mark.parametrize("option, expected", [("maxidle", Claim.EXPIRED), ("maxlife", Claim.OLD)])
def test_remembered_result_ends_with_maxidle_and_maxlife(signed: bool, option: str, expected: Claim):
    servers, clock = three_servers(), ManualClock(NOW)
    dated: dict[str, object] = {option: 1000}
    persistence = build(cookie(**({"secret": NEW} if signed else {"signed": False}), **dated), servers, clock)
    text = f"{NAME}={marked_value(persistence, servers[0])}"
    for _ in range(3):
        assert recognise(persistence, text).claim is Claim.VALID
        clock.advance(333)
    clock.advance(10)
    assert recognise(persistence, text).claim is expected


def held_texts(persistence: Persistence) -> tuple[int, int]:
    """Return how many texts the persistence refers to, directly or not, and how many characters these have."""
    found: dict[int, str] = {}
    seen: set[int] = set()
    ahead: list[object] = [vars(persistence)]
    while ahead:
        thing = ahead.pop()
        if isinstance(thing, str):
            found[id(thing)] = thing
        elif id(thing) not in seen and not isinstance(thing, (type, ModuleType, FunctionType)):
            seen.add(id(thing))
            ahead += gc.get_referents(thing)
            if isinstance(thing, dict):
                ahead += thing  # the collector does not look at keys that are texts
    return len(found), sum(map(len, found.values()))


def test_memory_for_dated_values_is_bounded():
    signing = Signing([NEW], "web", NAME)
    persistence = build(cookie(secret=NEW, maxidle="1d"), three_servers())
    last = 0
    for number in range(20_000):
        value = signing.sign(dates.add_dates("r1", NOW - 4 * number, None))
        assert recognise(persistence, f"{NAME}={value}").claim is Claim.VALID
        if number % 5_000 == 4_999:
            last, _ = held_texts(persistence)
            assert last < 20_000
    assert last > 4_000, "so this test counts what is remembered"
    assert recognise(persistence, f"{NAME}={signing.sign(dates.add_dates('r1', NOW, None))}").claim is Claim.VALID, (
        "long forgotten, still valid"
    )


def test_forged_values_are_not_remembered():
    persistence = build(cookie(secret=NEW, maxidle="1d"), three_servers())
    before = held_texts(persistence)
    for number in range(2_000):
        recognise(persistence, f"{NAME}=r1|{dates.encode(NOW + number)}.{'A' * 43}")
    assert held_texts(persistence) == before


@pytest.mark.parametrize(
    "options",
    [{"signed": False}, {"signed": False, "maxidle": 60}, {"mode": "passive"}, {"mode": "rewrite", "signed": False}],
    ids=str,
)
def test_long_plain_values_do_not_fill_the_memory(options: dict[str, object]):
    persistence = build(cookie(**options), three_servers())
    for number in range(300):
        recognise(persistence, f"{NAME}=r1|{number:>065536}")
    _, characters_held = held_texts(persistence)
    assert characters_held < 2_000_000, "300 cookies of 64 KB must not stay, let alone 16000 of them"


@pytest.mark.parametrize(
    "options, texts, forwarded",
    [
        pytest.param({}, ["a=1; SRV=r1; b=2"], ["a=1; b=2"], id="insert: removed"),
        pytest.param({}, ["SRV=Z; a=1; SRV=r1"], ["a=1"], id="insert: every occurrence, valid or not"),
        pytest.param({}, ["a=1", "SRV=r1", "b=2"], ["a=1", "", "b=2"], id="insert: a header of ours alone is emptied"),
        pytest.param({"indirect": False}, ["a=1; SRV=r1"], ["a=1; SRV=r1"], id="insert, not indirect: untouched"),
        pytest.param({"mode": "rewrite"}, ["a=1; SRV=r1"], ["a=1; SRV=r1"], id="rewrite: untouched"),
        pytest.param({"mode": "passive"}, ["a=1; SRV=r1"], ["a=1; SRV=r1"], id="passive: untouched"),
        pytest.param({"mode": "passive", "indirect": True}, ["SRV=r1"], ["SRV=r1"], id="passive indirect: untouched"),
        pytest.param({"mode": "prefix"}, ["a=1; SRV=r1~x; b=2"], ["a=1; SRV=x; b=2"], id="prefix: removed"),
        pytest.param({"mode": "prefix"}, ["SRV=r1~x~y"], ["SRV=x~y"], id="prefix: at the first tilde"),
        pytest.param({"mode": "prefix"}, ["SRV=Z~abc"], ["SRV=abc"], id="prefix: an unknown one too"),
        pytest.param({"mode": "prefix"}, ["SRV=~abc"], ["SRV=abc"], id="prefix: an empty one too"),
        pytest.param({"mode": "prefix"}, ["SRV=r1~"], ["SRV="], id="prefix: of an empty value"),
        pytest.param({"mode": "prefix"}, ["SRV=r1"], ["SRV=r1"], id="prefix: a value without one is untouched"),
        pytest.param({"mode": "prefix"}, ['SRV="r1~abc"'], ["SRV=abc"], id="prefix: unquoted first"),
        pytest.param({"mode": "prefix"}, ['SRV="abc"'], ['SRV="abc"'], id="prefix: quotes of a value without one stay"),
        pytest.param({"mode": "prefix"}, ["SRV=r1~x; SRV=r2~y"], ["SRV=x; SRV=y"], id="prefix: every occurrence"),
    ],
)
def test_request_as_the_server_gets_it(options: dict[str, object], texts: list[str], forwarded: list[str]):
    signing: dict[str, object] = {} if options.get("mode") == "passive" else {"signed": False}
    persistence = build(cookie(**signing, **options), three_servers())
    for _ in range(2):  # read, then remembered
        request = FakeRequest(tuple(texts))
        persistence.recognise(request)
        assert list(request.cookies) == forwarded
