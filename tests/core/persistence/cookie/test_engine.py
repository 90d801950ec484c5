"""Cookies at work over servers: only a value that we issued is honoured, to the letter and while it lasts;
what is remembered is bounded; when a mark is due it is written, and not before."""

import gc
import logging
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import product
from types import FunctionType, ModuleType
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sticky_core.clock import ManualClock
from sticky_core.http import cookies
from sticky_core.http.messages import Request
from sticky_core.persistence.claim import NO_COOKIE, Claim, Mark, PersistenceResult, Reason
from sticky_core.persistence.cookie import dates
from sticky_core.persistence.cookie import values as module
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.persistence import Persistence
from sticky_core.persistence.signing import Signing
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health
from tests.core.fakes import FakeRequest, RecordedResponse

NAME = "SRV"
OLD, NEW = b"the older secret", b"the newer secret"
NOW = 1_700_000_000
DAY = 86_400


def app(environ: object, start_response: object) -> list[bytes]:
    return []


def at_work(asked: Cookie, servers: Sequence[Server], clock: ManualClock | None = None) -> Persistence:
    """The persistence over `servers`, told of their changes as a backend would tell it."""
    persistence = asked.build("web", servers, clock if clock is not None else ManualClock(NOW))

    def changed(server: Server) -> None:
        server.refresh_state()
        persistence.state_changed(server)

    for server in servers:
        server.attach(changed)
    return persistence


def cookie(**options: object) -> Cookie:
    """A cookie with options out of a row, which holds values of every type."""
    return Cookie(**{"name": NAME} | options)  # type: ignore[arg-type]


def three() -> list[Server]:
    return [Server(name, app) for name in ("r1", "r2", "r3")]


def claim(persistence: Persistence, *texts: str) -> PersistenceResult:
    return persistence.recognise(FakeRequest(tuple(texts)))


def told(
    persistence: Persistence,
    server: Server,
    presented: PersistenceResult = NO_COOKIE,
    name: str = NAME,
) -> str:
    """The value with which an answer of `server` marks a client that balance sent there."""
    reply = RecordedResponse()
    reply.add("set-cookie", f"{name}=app; Path=/")  # what rewrite and prefix need; insert takes it away
    persistence.stamp_response(presented, server, False, FakeRequest(method="POST"), reply)
    (line,) = reply.values("set-cookie")
    return line.partition("=")[2].partition(";")[0]


# -- forgery: a value is honoured only if it is, to the letter, one that we have issued

KINDS: dict[str, dict[str, object]] = {
    "insert": {},
    "insert, maxidle": {"maxidle": "30m"},
    "insert, maxlife": {"maxlife": "8h"},
    "insert, maxidle and maxlife": {"maxidle": "30m", "maxlife": "8h"},
    "insert, max_age": {"max_age": "1d"},
    "insert, opaque": {"opaque": True},
    "insert, opaque with dates": {"opaque": True, "maxidle": "30m", "maxlife": "8h"},
    "rewrite": {"mode": "rewrite"},
    "rewrite, maxidle and maxlife": {"mode": "rewrite", "maxidle": "30m", "maxlife": "8h"},
    "prefix": {"mode": "prefix"},
    "prefix, opaque": {"mode": "prefix", "opaque": True},
}


class Issued:
    """A persistence, and every value that it and its predecessor (with the old key) have issued so far."""

    def __init__(self, options: Mapping[str, object], lives: bool) -> None:
        clock = ManualClock(NOW - 600)
        servers = three()
        predecessors = three()
        before = at_work(cookie(secret=OLD, **options), predecessors, clock)
        self.now = at_work(cookie(secret=[OLD, NEW], **options), servers, clock)
        if lives:
            for number, server in enumerate(servers):
                server.instance = f"018bcfe568{number}abcde"
        self.servers: dict[str, Server] = {}
        for _ in range(3):
            for server in servers:
                self.servers[told(self.now, server).partition("~")[0]] = server
            clock.advance(100)
        if not lives:
            for old, server in zip(predecessors, servers, strict=True):
                self.servers[told(before, old).partition("~")[0]] = server
        clock.advance(100)
        self.values = sorted(self.servers)
        self.prefixes = options.get("mode") == "prefix"

    def meant_by(self, text: str) -> Server | None:
        """The server of the first issued value in a Cookie text; None if there is none."""
        for value in cookies.take(text, NAME)[0]:
            value = cookies.unquote(value)  # as Python's own clients write what has an @ in it
            if self.prefixes:
                value = value.partition("~")[0]
            if value in self.servers:
                return self.servers[value]
        return None


every_kind = pytest.mark.parametrize(
    "issued",
    [
        pytest.param((kind, lives), id=f"{kind}{', with lives' if lives else ''}")
        for kind, lives in product(KINDS, (False, True))
    ],
    indirect=True,
)


@pytest.fixture(scope="module")
def issued(request: pytest.FixtureRequest) -> Issued:
    kind, lives = request.param
    return Issued(KINDS[kind], lives)


@every_kind
def test_every_issued_value_is_honoured_and_names_its_server(issued: Issued):
    assert len(issued.values) >= 3
    for value in issued.values:
        for _ in range(2):  # verified, then remembered
            presented = claim(issued.now, f"{NAME}={value}")
            assert (presented.claim, presented.server) == (Claim.VALID, issued.servers[value])


characters = st.sampled_from('rR12.|~@=-_ABab0+/"\\;, \t\x00\xff') | st.characters(max_codepoint=255)
places = st.integers(0, 400)
mutations = st.one_of(
    st.tuples(st.just("flip"), places, st.integers(1, 255)),
    st.tuples(st.just("insert"), places, characters),
    st.tuples(st.just("delete"), places, st.integers(1, 5)),
    st.tuples(st.just("truncate"), places, st.none()),
    st.tuples(st.just("duplicate"), places, st.integers(1, 60)),
    st.tuples(st.just("re-case"), places, st.integers(1, 60)),
    st.tuples(st.just("pad"), st.integers(1, 3), st.sampled_from(["=", "!", "A", " ", '"', "."])),
    st.tuples(
        st.just("swap"), st.integers(0, 100), st.tuples(st.integers(0, 6), st.sampled_from([".", "|", "@", "~"]))
    ),
)


def mutated(value: str, how: str, where: int, what: object, issued: Issued) -> str:
    at = where % (len(value) + 1)
    match how, what:
        case "flip", int(bits):
            return value[:at] + "".join(chr(ord(each) ^ bits) for each in value[at : at + 1]) + value[at + 1 :]
        case "insert", str(character):
            return value[:at] + character + value[at:]
        case "delete", int(length):
            return value[:at] + value[at + length :]
        case "truncate", _:
            return value[:at]
        case "duplicate", int(length):
            return value[: at + length] + value[at:]
        case "re-case", int(length):
            return value[:at] + value[at : at + length].swapcase() + value[at + length :]
        case "pad", str(character):
            return value + character * where
        case "swap", (int(part), str(delimiter)):
            parts = value.split(delimiter)
            others = issued.values[where % len(issued.values)].split(delimiter)
            parts[part % len(parts)] = others[part % len(others)]
            return delimiter.join(parts)
    raise AssertionError(how)


@every_kind
@settings(max_examples=60)
@given(which=places, changes=st.lists(mutations, min_size=1, max_size=3), quoted=st.booleans())
def test_a_mutated_value_is_honoured_only_if_it_is_one_that_was_issued(
    issued: Issued, which: int, changes: list[tuple[str, int, object]], quoted: bool
):
    value = issued.values[which % len(issued.values)]
    for how, where, what in changes:
        value = mutated(value, how, where, what, issued)
    text = f'{NAME}="{value}"' if quoted else f"{NAME}={value}"
    presented = claim(issued.now, text)
    meant = issued.meant_by(text)
    assert presented.server is meant
    assert (presented.claim is Claim.VALID) is (meant is not None)


@every_kind
def test_parts_of_two_values_make_no_third(issued: Issued):
    made = set()
    for one, other in product(issued.values, repeat=2):
        for delimiter in ".|@":
            for cut in range(1, 4):
                made.add(delimiter.join(one.split(delimiter)[:cut] + other.split(delimiter)[cut:]))
    made -= set(issued.values)
    assert made
    assert {claim(issued.now, f"{NAME}={value}").claim for value in made} == {Claim.INVALID}


@every_kind
@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda options: ("api", cookie(secret=[OLD, NEW], **options)), id="another backend's"),
        pytest.param(
            lambda options: ("web", cookie(name="OTHER", secret=[OLD, NEW], **options)), id="another cookie's"
        ),
        pytest.param(
            lambda options: ("web", cookie(secret=b"a secret of somebody else", **options)), id="another secret's"
        ),
    ],
)
def test_what_is_valid_elsewhere_is_forged_here(
    request: pytest.FixtureRequest,
    issued: Issued,
    other: Callable[[Mapping[str, object]], tuple[str, Cookie]],
):
    kind = request.node.callspec.params["issued"][0]
    backend, asked = other(KINDS[kind])
    servers = three()
    elsewhere = asked.build(backend, servers, ManualClock(NOW))
    for server in servers:
        value = told(elsewhere, server, name=asked.name)
        assert claim(elsewhere, f"{asked.name}={value}").claim is Claim.VALID
        presented = claim(issued.now, f"{NAME}={value}")
        assert (presented.claim, presented.reason) == (Claim.INVALID, Reason.FORGED)


HUGE = [
    pytest.param("x" * 65_536, id="64 KB"),
    pytest.param("r1." + "A" * 1_000_000, id="a megabyte of signature"),
    pytest.param("r1|" * 100_000, id="a hundred thousand bars"),
    pytest.param("r1@" * 100_000, id="a hundred thousand lives"),
    pytest.param("r1~" * 100_000, id="a hundred thousand prefixes"),
    pytest.param("." * 65_536, id="64 KB of dots"),
    pytest.param("\xff" * 65_536, id="64 KB of Latin-1"),
    pytest.param("r1.\xe4\xf6\xfc", id="Latin-1"),
    pytest.param("\x00", id="a zero"),
    pytest.param("r\u0131.\u20ac\U0001f36a", id="beyond Latin-1"),
    pytest.param("\ud800.r1", id="half a character"),
    pytest.param('"' + "\\" * 65_536, id="64 KB of backslashes in quotes"),
]


@every_kind
@pytest.mark.parametrize("value", HUGE)
def test_huge_and_strange_values_are_not_ours_and_no_error(issued: Issued, value: str):
    presented = claim(issued.now, f"{NAME}={value}")
    assert (presented.claim, presented.server) == (Claim.INVALID, None)


@pytest.mark.parametrize(
    "options", [{"maxidle": 60}, {}, {"mode": "prefix"}, {"mode": "rewrite"}, {"mode": "passive"}], ids=str
)
@pytest.mark.parametrize("value", HUGE)
def test_huge_and_strange_plain_values_are_no_error(options: dict[str, object], value: str):
    signing: dict[str, object] = {} if "mode" in options and options["mode"] == "passive" else {"signed": False}
    servers = three()
    presented = claim(at_work(cookie(**signing, **options), servers), f"{NAME}={value}")
    assert presented.server in (None, servers[0])


# -- what is remembered


@pytest.mark.parametrize(
    "options",
    [{"secret": NEW}, {"signed": False}, {"secret": NEW, "mode": "prefix"}, {"secret": NEW, "maxidle": 600}],
    ids=["signed", "plain", "prefix", "dated"],
)
def test_what_is_remembered_of_a_client_follows_its_server(options: dict[str, object]):
    servers = three()
    persistence = at_work(cookie(**options), servers)
    text = f"a=1; {NAME}={told(persistence, servers[0])}"
    for state, expected in [
        (AdminState.READY, Claim.VALID),
        (AdminState.MAINT, Claim.DOWN),
        (AdminState.DRAIN, Claim.VALID),
        (AdminState.MAINT, Claim.DOWN),
        (AdminState.READY, Claim.VALID),
    ]:
        servers[0].state = state
        for _ in range(2):
            assert claim(persistence, text).claim is expected


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "plain"])
@pytest.mark.parametrize("option, expected", [("maxidle", Claim.EXPIRED), ("maxlife", Claim.OLD)])
def test_what_is_remembered_of_a_client_ends_when_its_time_is_over(signed: bool, option: str, expected: Claim):
    servers, clock = three(), ManualClock(NOW)
    dated: dict[str, object] = {option: 1000}
    persistence = at_work(cookie(**({"secret": NEW} if signed else {"signed": False}), **dated), servers, clock)
    text = f"{NAME}={told(persistence, servers[0])}"
    for _ in range(3):
        assert claim(persistence, text).claim is Claim.VALID
        clock.advance(333)
    clock.advance(10)
    assert claim(persistence, text).claim is expected


def kept(persistence: Persistence) -> tuple[int, int]:
    """How many texts the persistence holds on to, wherever, and how many characters these have."""
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


def test_dated_values_are_remembered_in_two_bounded_generations():
    signing = Signing([NEW], "web", NAME)
    persistence = at_work(cookie(secret=NEW, maxidle="1d"), three())
    last = 0
    for number in range(20_000):
        value = signing.sign(dates.add_dates("r1", NOW - 4 * number, None))
        assert claim(persistence, f"{NAME}={value}").claim is Claim.VALID
        if number % 5_000 == 4_999:
            last, _ = kept(persistence)
            assert last < 20_000
    assert last > 4_000, "so this test sees what is remembered"
    assert claim(persistence, f"{NAME}={signing.sign(dates.add_dates('r1', NOW, None))}").claim is Claim.VALID, (
        "long forgotten, still valid"
    )


def test_forged_values_are_not_remembered_at_all():
    persistence = at_work(cookie(secret=NEW, maxidle="1d"), three())
    before = kept(persistence)
    for number in range(2_000):
        claim(persistence, f"{NAME}=r1|{dates.encode(NOW + number)}.{'A' * 43}")
    assert kept(persistence) == before


@pytest.mark.parametrize(
    "options",
    [{"signed": False}, {"signed": False, "maxidle": 60}, {"mode": "passive"}, {"mode": "rewrite", "signed": False}],
    ids=str,
)
def test_what_a_client_makes_up_behind_a_plain_id_does_not_fill_the_memory(options: dict[str, object]):
    persistence = at_work(cookie(**options), three())
    for number in range(300):
        claim(persistence, f"{NAME}=r1|{number:>065536}")
    _, characters_kept = kept(persistence)
    assert characters_kept < 2_000_000, "300 cookies of 64 KB must not stay, let alone 16000 of them"


# -- several occurrences (persistence 1.1): all are examined in order


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
def test_of_several_cookies_the_first_usable_one_counts(texts: list[str], expected: Claim, server: str | None):
    servers = [Server("s1", app, cookie="A"), Server("s2", app, cookie="B"), Server("s3", app, cookie="M")]
    persistence = at_work(cookie(signed=False), servers)
    servers[2].state = AdminState.MAINT
    presented = claim(persistence, *texts)
    assert presented.claim is expected
    assert (presented.server.name if presented.server else None) == server


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
def test_a_server_keeps_its_clients_unless_it_is_down_or_in_maintenance(
    signed: bool, change: dict[str, object], expected: Claim, reason: Reason
):
    servers = three()
    persistence = at_work(cookie(secret=NEW) if signed else cookie(signed=False), servers)
    value = told(persistence, servers[0])
    for what, now in change.items():
        setattr(servers[0], what, now)
    presented = claim(persistence, f"{NAME}={value}")
    assert (presented.claim, presented.reason, presented.server) == (expected, reason, servers[0])


@pytest.mark.parametrize(
    "options",
    [{"signed": False}, {"secret": NEW}, {"secret": NEW, "maxidle": 600}, {"secret": NEW, "opaque": True}],
    ids=["plain", "signed", "dated", "opaque"],
)
def test_servers_that_share_an_id_stand_in_for_each_other_in_order(options: dict[str, object]):
    servers = [Server("s1", app, cookie="A"), Server("bk", app, cookie="A", backup=True), Server("s2", app)]
    persistence = at_work(cookie(**options), servers)
    text = f"{NAME}={told(persistence, servers[0])}"
    assert claim(persistence, text).server is servers[0]
    servers[0].health = Health.DOWN
    presented = claim(persistence, text)
    assert (presented.claim, presented.server) == (Claim.VALID, servers[1])
    servers[1].state = AdminState.MAINT
    presented = claim(persistence, text)
    assert (presented.claim, presented.server) == (Claim.DOWN, servers[0])
    servers[0].health = Health.UP
    assert claim(persistence, text).server is servers[0]


# -- dates (persistence 1.4)

IDLE, LIFE = 1000, 5000


@pytest.mark.parametrize("signed", [False, True], ids=["plain", "signed"])
@pytest.mark.parametrize(
    "last, first, maxidle, maxlife, expected",
    [
        pytest.param(None, None, IDLE, LIFE, Claim.VALID, id="no dates are always accepted"),
        pytest.param(NOW, NOW, IDLE, LIFE, Claim.VALID, id="just now"),
        pytest.param(NOW - 1000, NOW - 1000, IDLE, LIFE, Claim.VALID, id="idle just long enough"),
        pytest.param(NOW - 1004, NOW - 1004, IDLE, LIFE, Claim.EXPIRED, id="idle for too long"),
        pytest.param(NOW, NOW - 5000, IDLE, LIFE, Claim.VALID, id="just old enough"),
        pytest.param(NOW, NOW - 5004, IDLE, LIFE, Claim.OLD, id="too old"),
        pytest.param(NOW - 6000, NOW - 6000, IDLE, LIFE, Claim.OLD, id="too old comes before idle"),
        pytest.param(NOW - 6000, NOW - 6000, IDLE, None, Claim.EXPIRED, id="without maxlife nobody reads the first"),
        pytest.param(NOW - 2000, NOW - 2000, None, LIFE, Claim.VALID, id="without maxidle nobody reads the last"),
        pytest.param(NOW - 9000, NOW - 9000, None, None, Claim.VALID, id="without either nobody reads any"),
        pytest.param(NOW + 300, None, IDLE, None, Claim.VALID, id="last, five minutes ahead"),
        pytest.param(NOW + 2 * DAY, None, IDLE, None, Claim.EXPIRED, id="last, two days ahead"),
        pytest.param(NOW, NOW + 300, None, LIFE, Claim.VALID, id="first, five minutes ahead"),
        pytest.param(NOW, NOW + 2 * DAY, None, LIFE, Claim.OLD, id="first, two days ahead"),
        pytest.param(NOW - 5004, None, None, LIFE, Claim.VALID, id="no first date"),
    ],
)
def test_a_date_ends_a_claim(
    signed: bool,
    last: int | None,
    first: int | None,
    maxidle: int | None,
    maxlife: int | None,
    expected: Claim,
):
    options = {option: value for option, value in (("maxidle", maxidle), ("maxlife", maxlife)) if value}
    asked = cookie(secret=NEW, **options) if signed else cookie(signed=False, **options)
    text = dates.add_dates("r1", last, first)
    value = Signing([NEW], "web", NAME).sign(text) if signed else text
    persistence = at_work(asked, three())
    for _ in range(2):
        presented = claim(persistence, f"{NAME}={value}")
        assert presented.claim is expected
        if expected is not Claim.VALID:
            assert (presented.last_seen, presented.first_seen) == (None, None), "its dates are forgotten"


@pytest.mark.parametrize(
    "ahead, signed, expected",
    [(304, True, Claim.EXPIRED), (304, False, Claim.VALID), (DAY, False, Claim.VALID), (DAY + 4, False, Claim.EXPIRED)],
)
def test_signed_dates_may_be_minutes_ahead_and_plain_ones_a_day(ahead: int, signed: bool, expected: Claim):
    asked = cookie(secret=NEW, maxidle=IDLE) if signed else cookie(signed=False, maxidle=IDLE)
    text = dates.add_dates("r1", NOW + ahead, None)
    value = Signing([NEW], "web", NAME).sign(text) if signed else text
    assert claim(at_work(asked, three()), f"{NAME}={value}").claim is expected


@pytest.mark.parametrize(
    "value, expected",
    [
        pytest.param("r1|", Claim.VALID, id="a bar and nothing"),
        pytest.param("r1|????|????", Claim.VALID, id="no dates that can be read"),
        pytest.param(f"r1|{dates.encode(NOW - 6000)}", Claim.EXPIRED, id="last"),
        pytest.param(f"r1|????|{dates.encode(NOW - 6000)}", Claim.OLD, id="an unreadable last and a first"),
        pytest.param(f"r1||{dates.encode(NOW - 6000)}", Claim.OLD, id="no last and a first"),
        pytest.param(f"r1|{dates.encode(NOW)}trailing", Claim.VALID, id="more behind a date"),
        pytest.param(f"r9|{dates.encode(NOW)}", Claim.INVALID, id="an unknown server"),
        pytest.param(f"|{dates.encode(NOW)}", Claim.INVALID, id="no server"),
    ],
)
def test_plain_dates_are_read_as_haproxy_reads_them(value: str, expected: Claim):
    persistence = at_work(cookie(signed=False, maxidle=IDLE, maxlife=LIFE), three())
    assert claim(persistence, f"{NAME}={value}").claim is expected


# -- when a client that is where it belongs is written to anew


def renewed(asked: Cookie, text: str, now: int = NOW) -> tuple[Mark, str]:
    """What a bound client is told, and the value."""
    persistence = at_work(asked, servers := three(), ManualClock(now))
    presented = claim(persistence, f"{NAME}={text}")
    assert presented.claim is Claim.VALID
    reply = RecordedResponse()
    mark = persistence.stamp_response(presented, servers[0], True, FakeRequest(), reply)
    lines = reply.values("set-cookie")
    assert (mark is Mark.UPDATED) is bool(lines)
    return mark, lines[0].partition("=")[2].partition(";")[0] if lines else ""


@pytest.mark.parametrize(
    "options, last, first, value",
    [
        pytest.param({}, None, None, "", id="no dates anywhere"),
        pytest.param({}, NOW - 4, None, "r1", id="a date that nobody asked for is taken out"),
        pytest.param({}, NOW, None, "", id="but not in the same four seconds"),
        pytest.param({}, NOW, NOW - 400, "r1", id="a first date that nobody asked for is taken out at once"),
        pytest.param({"maxidle": IDLE}, None, None, "r1|L", id="a last date is missing"),
        pytest.param({"maxidle": IDLE}, NOW, None, "", id="a last date of now"),
        pytest.param({"maxidle": IDLE}, NOW + 100, None, "", id="a last date of the future"),
        pytest.param({"maxidle": IDLE}, NOW - 4, None, "r1|L", id="a last date of four seconds ago"),
        pytest.param({"maxidle": IDLE}, NOW, NOW - 400, "r1|L", id="maxidle, and a first date that nobody asked for"),
        pytest.param({"maxlife": LIFE}, None, None, "r1|L|L", id="both dates are missing"),
        pytest.param({"maxlife": LIFE}, NOW - 400, None, "r1|L|L", id="a first date is missing"),
        pytest.param(
            {"maxlife": LIFE}, NOW + 100, None, "r1|L|L", id="a first date is missing, the last is of the future"
        ),
        pytest.param({"maxlife": LIFE}, NOW, NOW - 400, "", id="both dates, the last of now"),
        pytest.param({"maxlife": LIFE}, NOW - 4, NOW - 400, "r1|L|F", id="the first date is kept"),
        pytest.param({"maxidle": IDLE, "maxlife": LIFE}, NOW - 4, NOW - 400, "r1|L|F", id="both, the first is kept"),
        pytest.param({"maxlife": LIFE, "refresh": "never"}, NOW - 400, NOW - 400, "", id="never"),
        pytest.param({"refresh": "never"}, NOW - 400, None, "", id="never, and a date that nobody asked for"),
        pytest.param({"refresh": "always"}, None, None, "r1", id="always"),
        pytest.param({"refresh": "always", "maxlife": LIFE}, NOW, NOW - 400, "r1|L|F", id="always, the first is kept"),
        pytest.param({"max_age": 100}, None, None, "", id="plain max_age alone is never renewed"),
    ],
)
def test_plain_dates_are_renewed_as_haproxy_does(
    options: dict[str, object], last: int | None, first: int | None, value: str
):
    asked = cookie(signed=False, **options)
    _, written = renewed(asked, dates.add_dates("r1", last, first))
    assert written == value.replace("L", dates.encode(NOW)).replace("F", dates.encode(first or NOW))


@pytest.mark.parametrize(
    "options, after",
    [
        pytest.param({"maxidle": "8h"}, 3600, id="an eighth"),
        pytest.param({"maxidle": 400}, 60, id="a minute at least"),
        pytest.param({"maxidle": 100}, 50, id="half of it at most"),
        pytest.param({"max_age": "8h"}, 3600, id="of max_age as well"),
        pytest.param({"max_age": "8h", "maxidle": "1d"}, 3600, id="of the shorter"),
        pytest.param({"maxidle": "8h", "maxlife": "7d"}, 3600, id="whatever maxlife"),
        pytest.param({"maxidle": "8h", "refresh": "due"}, 3600, id="said aloud"),
        pytest.param({"maxlife": "8h"}, None, id="maxlife alone: never"),
        pytest.param({"max_age": "8h", "refresh": "never"}, None, id="never"),
        pytest.param({}, None, id="nothing that ends: never"),
        pytest.param({"maxlife": "8h", "refresh": "always"}, 0, id="always"),
        pytest.param({"refresh": "always"}, 0, id="always, without dates"),
    ],
)
def test_signed_dates_are_renewed_when_an_eighth_has_passed(options: dict[str, object], after: int | None):
    servers, clock = three(), ManualClock(NOW)
    persistence = at_work(cookie(secret=NEW, **options), servers, clock)
    first_value = value = told(persistence, servers[0])

    def ScriptedTransaction() -> bool:
        nonlocal value
        presented = claim(persistence, f"{NAME}={value}")
        assert presented.claim is Claim.VALID
        reply = RecordedResponse()
        written = persistence.stamp_response(presented, servers[0], True, FakeRequest(), reply) is Mark.UPDATED
        if written:
            value = reply.values("set-cookie")[0].partition("=")[2].partition(";")[0]
        return written

    if after == 0:
        assert ScriptedTransaction() and ScriptedTransaction()
        return
    if after is None:
        for _ in range(7):
            clock.advance(3600)
            assert not ScriptedTransaction()
        return
    for _ in range(3):
        clock.advance(after - 4)
        assert not ScriptedTransaction()
        clock.advance(8)
        assert ScriptedTransaction()
        assert not ScriptedTransaction()
    if "maxlife" in options:
        assert value.rpartition(".")[0].split("|")[2] == first_value.rpartition(".")[0].split("|")[2], (
            "the first date stays"
        )


@pytest.mark.parametrize(
    "options",
    [{}, {"maxidle": "8h"}, {"maxlife": "8h"}, {"max_age": "8h"}],
    ids=["no dates", "maxidle", "maxlife", "max_age"],
)
def test_a_value_of_an_old_key_is_honoured_and_issued_anew(options: dict[str, object]):
    before = at_work(cookie(secret=OLD, **options), servers := three())
    old = told(before, servers[0])
    mark, new = renewed(cookie(secret=[OLD, NEW], **options), old)
    assert mark is Mark.UPDATED
    assert new.rpartition(".")[0] == old.rpartition(".")[0]
    assert renewed(cookie(secret=[OLD, NEW], **options), new)[0] is Mark.NONE
    retired = claim(at_work(cookie(secret=NEW, **options), three()), f"{NAME}={old}")
    assert (retired.claim, retired.reason) == (Claim.INVALID, Reason.FORGED)


# -- lives

LIFE_1, LIFE_2 = "018bcfe568000000a", "018bcfe568100000a"


@pytest.mark.parametrize(
    "options", [{}, {"maxidle": "8h"}, {"opaque": True}, {"mode": "prefix"}, {"mode": "rewrite"}], ids=str
)
def test_a_mark_is_good_for_the_life_that_it_was_made_for(options: dict[str, object]):
    servers = three()
    persistence = at_work(cookie(secret=NEW, **options), servers)
    for server in servers:
        server.instance = LIFE_1
    values = [told(persistence, server) for server in servers]
    assert claim(persistence, f"{NAME}={values[0]}").claim is Claim.VALID
    servers[0].instance = LIFE_2
    presented = claim(persistence, f"{NAME}={values[0]}")
    assert (presented.claim, presented.reason) == (Claim.INVALID, Reason.OTHER_INSTANCE)
    assert [claim(persistence, f"{NAME}={value}").server for value in values[1:]] == servers[1:]
    assert claim(persistence, f"{NAME}={told(persistence, servers[0])}").server is servers[0]


def test_plain_marks_carry_no_life():
    servers = three()
    persistence = at_work(cookie(signed=False), servers)
    servers[0].instance = LIFE_1
    assert told(persistence, servers[0]) == "r1"
    servers[0].instance = LIFE_2
    assert claim(persistence, f"{NAME}=r1").claim is Claim.VALID


@pytest.mark.parametrize(
    "theirs, ours, warnings",
    [
        pytest.param(LIFE_2, LIFE_1, 1, id="a younger life is a sibling's"),
        pytest.param(LIFE_1, LIFE_2, 0, id="an older one may be one that we succeeded"),
        pytest.param(LIFE_2, "", 0, id="before we live nobody is younger"),
    ],
)
def test_only_a_younger_life_proves_a_sibling_and_is_told_once(
    caplog: pytest.LogCaptureFixture, theirs: str, ours: str, warnings: int
):
    servers = three()
    persistence = at_work(cookie(secret=NEW), servers)
    for server in servers:
        server.instance = ours
    signing = Signing([NEW], "web", NAME)
    with caplog.at_level(logging.WARNING, logger="sticky_sessions"):
        for server_id in ("r1", "r2", "r1"):
            assert claim(persistence, f"{NAME}={signing.sign(f'{server_id}@{theirs}')}").reason is Reason.OTHER_INSTANCE
    assert len(caplog.records) == warnings
    assert all("StickyWorkers" in record.getMessage() for record in caplog.records)


def test_a_forged_life_proves_nothing(caplog: pytest.LogCaptureFixture):
    servers = three()
    persistence = at_work(cookie(secret=NEW), servers)
    servers[0].instance = LIFE_1
    assert claim(persistence, f"{NAME}=r1@{LIFE_2}.{'A' * 43}").reason is Reason.FORGED
    assert caplog.records == []


class Interrupted:
    """A request at whose nth touch something happens, as if another thread had had its turn there."""

    method = "GET"
    secure = False

    def __init__(self, text: str, touches: int, happens: Callable[[], None]) -> None:
        self._text = text
        self._touches = touches
        self._happens = happens
        self._kept: Sequence[object] | None = None

    def _touched(self) -> None:
        self._touches -= 1
        if self._touches == 0:
            self._happens()

    @property
    def cookie_key(self) -> Hashable:
        self._touched()
        return (self._text,)

    @property
    def forwarded_cookies(self) -> Sequence[object] | None:
        self._touched()
        return self._kept

    @forwarded_cookies.setter
    def forwarded_cookies(self, kept: Sequence[object] | None) -> None:
        self._touched()
        self._kept = kept

    @property
    def cookies(self) -> tuple[str, ...]:
        self._touched()
        return (self._text,)

    def set_forwarded_cookies(self, texts: Sequence[str]) -> None:
        self._touched()


@pytest.mark.parametrize("touch", range(1, 8))
@pytest.mark.parametrize("options", [{}, {"maxidle": "8h"}, {"mode": "prefix"}], ids=["undated", "dated", "prefix"])
def test_a_mark_that_is_read_while_its_server_begins_anew_is_not_honoured_afterwards(
    options: dict[str, object], touch: int
):
    """Requests take no lock, so the next life may begin in the middle of a look at a mark of the last one."""
    servers = three()
    persistence = at_work(cookie(secret=NEW, **options), servers)
    servers[0].instance = LIFE_1
    text = f"{NAME}={told(persistence, servers[0])}"

    def restart() -> None:
        servers[0].instance = LIFE_2

    persistence.recognise(cast(Request, Interrupted(text, touch, restart)))  # in time or too late: either will do
    restart()
    for _ in range(2):
        assert claim(persistence, text).reason is Reason.OTHER_INSTANCE


def test_a_mark_that_is_verified_while_its_server_begins_anew_is_not_honoured_afterwards(
    monkeypatch: pytest.MonkeyPatch,
):
    """The same, between the check of the life and the moment when the value is remembered."""
    servers = three()
    persistence = at_work(cookie(secret=NEW, maxidle="8h"), servers)
    servers[0].instance = LIFE_1
    text = f"{NAME}={told(persistence, servers[0])}"

    def restarting(*args: object) -> PersistenceResult:
        monkeypatch.setattr(module, "PersistenceResult", PersistenceResult)
        servers[0].instance = LIFE_2
        return PersistenceResult(*args)  # type: ignore[arg-type] # as they came

    monkeypatch.setattr(module, "PersistenceResult", restarting)
    claim(persistence, text)
    assert servers[0].instance == LIFE_2
    assert claim(persistence, text).reason is Reason.OTHER_INSTANCE


# -- opaque and dynamic ids


@pytest.mark.parametrize(
    "options",
    [
        {"secret": NEW},
        {"secret": NEW, "signed": False},
        {"secret": NEW, "maxidle": 600},
        {"secret": NEW, "mode": "prefix"},
    ],
    ids=["signed", "plain", "dated", "prefix"],
)
def test_an_opaque_mark_does_not_tell_the_server_s_name(options: dict[str, object]):
    servers = [Server(name, app) for name in ("amsterdam", "berlin")]
    persistence = at_work(cookie(opaque=True, **options), servers)
    values = [told(persistence, server) for server in servers]
    for value, server in zip(values, servers, strict=True):
        assert re.match(r"[0-9a-f]{32}(?![0-9a-f])", value)
        assert server.name not in value
        assert claim(persistence, f"{NAME}={value}").server is server
    assert claim(persistence, f"{NAME}=amsterdam").claim is Claim.INVALID


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "plain"])
def test_an_opaque_id_of_an_old_key_is_honoured_and_issued_anew(signed: bool):
    before = at_work(cookie(secret=OLD, opaque=True, signed=signed), servers := three())
    old = told(before, servers[0])
    mark, new = renewed(cookie(secret=[OLD, NEW], opaque=True, signed=signed), old)
    assert mark is Mark.UPDATED
    assert new[:32] != old[:32]


def test_dynamic_ids_are_haproxy_s():
    servers = [
        Server("s1", "http://127.0.0.1:8080"),
        Server("s2", "http://[::1]:8080"),
        Server("s3", "http://10.0.0.1"),
        Server("s4", "http://10.0.0.1:81", cookie="D"),
    ]
    persistence = at_work(cookie(signed=False, dynamic="s3cret"), servers)
    values = [told(persistence, server) for server in servers]
    assert values == ["1f203ad55f83ddc6", "2d028ff8f1d2852e", "3865d495adfe7206", "D"]
    assert [claim(persistence, f"{NAME}={value}").server for value in values] == servers


# -- what the server sees, and the bytes that the client sees


@pytest.mark.parametrize(
    "options, texts, seen",
    [
        pytest.param({}, ["a=1; SRV=r1; b=2"], ["a=1; b=2"], id="insert: taken out"),
        pytest.param({}, ["SRV=Z; a=1; SRV=r1"], ["a=1"], id="insert: every occurrence, whatever its worth"),
        pytest.param({}, ["a=1", "SRV=r1", "b=2"], ["a=1", "", "b=2"], id="insert: a header of ours alone is emptied"),
        pytest.param({"indirect": False}, ["a=1; SRV=r1"], ["a=1; SRV=r1"], id="insert, not indirect: untouched"),
        pytest.param({"mode": "rewrite"}, ["a=1; SRV=r1"], ["a=1; SRV=r1"], id="rewrite: untouched"),
        pytest.param({"mode": "passive"}, ["a=1; SRV=r1"], ["a=1; SRV=r1"], id="passive: untouched"),
        pytest.param({"mode": "passive", "indirect": True}, ["SRV=r1"], ["SRV=r1"], id="passive indirect: untouched"),
        pytest.param({"mode": "prefix"}, ["a=1; SRV=r1~x; b=2"], ["a=1; SRV=x; b=2"], id="prefix: taken off"),
        pytest.param({"mode": "prefix"}, ["SRV=r1~x~y"], ["SRV=x~y"], id="prefix: at the first tilde"),
        pytest.param({"mode": "prefix"}, ["SRV=Z~abc"], ["SRV=abc"], id="prefix: an unknown one too"),
        pytest.param({"mode": "prefix"}, ["SRV=~abc"], ["SRV=abc"], id="prefix: an empty one too"),
        pytest.param({"mode": "prefix"}, ["SRV=r1~"], ["SRV="], id="prefix: of nothing"),
        pytest.param({"mode": "prefix"}, ["SRV=r1"], ["SRV=r1"], id="prefix: a value without one is untouched"),
        pytest.param({"mode": "prefix"}, ['SRV="r1~abc"'], ["SRV=abc"], id="prefix: unquoted first"),
        pytest.param({"mode": "prefix"}, ['SRV="abc"'], ['SRV="abc"'], id="prefix: quotes of a value without one stay"),
        pytest.param({"mode": "prefix"}, ["SRV=r1~x; SRV=r2~y"], ["SRV=x; SRV=y"], id="prefix: every occurrence"),
    ],
)
def test_the_server_sees(options: dict[str, object], texts: list[str], seen: list[str]):
    signing: dict[str, object] = {} if options.get("mode") == "passive" else {"signed": False}
    persistence = at_work(cookie(**signing, **options), three())
    for _ in range(2):  # read, then remembered
        request = FakeRequest(tuple(texts))
        persistence.recognise(request)
        assert list(request.cookies) == seen


@pytest.mark.parametrize(
    "options, secure, line",
    [
        pytest.param({"signed": False}, True, "SRV=r1; path=/", id="plain"),
        pytest.param(
            {
                "signed": False,
                "domain": [".a.example", ".b.example"],
                "httponly": True,
                "secure": True,
                "attr": ["SameSite=None", "Priority=High"],
            },
            False,
            "SRV=r1; path=/; domain=.a.example; domain=.b.example; HttpOnly; Secure; SameSite=None; Priority=High",
            id="HAProxy's order",
        ),
        pytest.param({"signed": False, "maxlife": 60}, False, "SRV=r1|ZVPxA|ZVPxA; path=/", id="plain dates"),
        pytest.param({"secret": NEW}, False, "SRV=r1.SIG; path=/; HttpOnly; SameSite=Lax", id="signed"),
        pytest.param(
            {"secret": NEW}, True, "SRV=r1.SIG; path=/; HttpOnly; Secure; SameSite=Lax", id="signed, over TLS"
        ),
        pytest.param(
            {"secret": NEW, "secure": True},
            False,
            "SRV=r1.SIG; path=/; HttpOnly; Secure; SameSite=Lax",
            id="secure anyway",
        ),
        pytest.param(
            {"secret": NEW, "secure": False}, True, "SRV=r1.SIG; path=/; HttpOnly; SameSite=Lax", id="never secure"
        ),
        pytest.param(
            {"secret": NEW, "httponly": False, "samesite": None, "path": "/shop"},
            False,
            "SRV=r1.SIG; path=/shop",
            id="less",
        ),
        pytest.param(
            {"secret": NEW, "max_age": "1d"},
            False,
            "SRV=r1|ZVPxA.SIG; path=/; Max-Age=86400; HttpOnly; SameSite=Lax",
            id="max_age",
        ),
        pytest.param(
            {"secret": NEW, "partitioned": True, "samesite": "None"},
            False,
            "SRV=r1.SIG; path=/; HttpOnly; Secure; SameSite=None; Partitioned",
            id="partitioned",
        ),
    ],
)
def test_the_client_sees(options: dict[str, object], secure: bool, line: str):
    servers = three()
    reply = RecordedResponse()
    persistence = at_work(cookie(**options), servers)
    assert persistence.stamp_response(NO_COOKIE, servers[0], False, FakeRequest(secure=secure), reply) is Mark.INSERTED
    (written,) = reply.values("set-cookie")
    assert re.sub(r"\.[\w-]{43};", ".SIG;", written) == line
    assert reply.values("cache-control") == ["private"]


@pytest.mark.parametrize(
    "options, theirs, direct, ours, mark",
    [
        pytest.param(
            {"mode": "rewrite"},
            "SRV=x; Path=/; HttpOnly",
            False,
            "SRV=r1; Path=/; HttpOnly",
            Mark.REWRITTEN,
            id="rewrite",
        ),
        pytest.param(
            {"mode": "rewrite"},
            'SRV = "x;y" ; Path=/',
            True,
            "SRV=r1 ; Path=/",
            Mark.REWRITTEN,
            id="rewrite: quotes and spaces, directly",
        ),
        pytest.param(
            {"mode": "rewrite"},
            "SRV=; expires=1970",
            False,
            "SRV=r1; expires=1970",
            Mark.REWRITTEN,
            id="rewrite: a deletion still deletes",
        ),
        pytest.param({"mode": "rewrite"}, "OTHER=x", False, "OTHER=x", Mark.NONE, id="rewrite: another cookie"),
        pytest.param({"mode": "prefix"}, "SRV=x; Path=/", False, "SRV=r1~x; Path=/", Mark.REWRITTEN, id="prefix"),
        pytest.param(
            {"mode": "prefix"},
            "SRV=; Max-Age=0",
            False,
            "SRV=r1~; Max-Age=0",
            Mark.REWRITTEN,
            id="prefix: a deletion still deletes",
        ),
        pytest.param({"mode": "prefix"}, 'SRV=""', False, 'SRV=r1~""', Mark.REWRITTEN, id="prefix: empty quotes"),
        pytest.param({"mode": "prefix"}, "SRV", False, "SRV", Mark.NONE, id="prefix: no ="),
        pytest.param(
            {"mode": "prefix", "indirect": True}, "SRV=x", True, None, Mark.DELETED, id="prefix indirect, directly"
        ),
        pytest.param({"mode": "passive"}, "SRV=x", True, "SRV=x", Mark.PASSED, id="passive"),
        pytest.param(
            {"mode": "passive", "indirect": True}, "SRV=x", True, None, Mark.DELETED, id="passive indirect, directly"
        ),
        pytest.param(
            {"mode": "passive", "indirect": True},
            "SRV=x",
            False,
            "SRV=x",
            Mark.PASSED,
            id="passive indirect, by balance",
        ),
        pytest.param(
            {"mode": "passive", "indirect": True, "preserve": True},
            "SRV=x",
            True,
            "SRV=x",
            Mark.PASSED,
            id="passive indirect preserve",
        ),
        pytest.param({}, "SRV=x", True, None, Mark.DELETED, id="insert, directly"),
        pytest.param({}, "SRV=x", False, "SRV=r1; path=/", Mark.INSERTED, id="insert, by balance"),
        pytest.param({"preserve": True}, "SRV=x", False, "SRV=x", Mark.PASSED, id="insert preserve"),
    ],
)
def test_the_application_s_own_cookie_becomes(
    options: dict[str, object], theirs: str, direct: bool, ours: str | None, mark: Mark
):
    signing: dict[str, object] = {} if options.get("mode") == "passive" else {"signed": False}
    servers = three()
    persistence = at_work(cookie(**signing, **options), servers)
    presented = claim(persistence, "SRV=r1") if direct else NO_COOKIE
    reply = RecordedResponse()
    reply.add("set-cookie", theirs)
    reply.add("set-cookie", "KEEP=me; Path=/")
    assert persistence.stamp_response(presented, servers[0], direct, FakeRequest(), reply) is mark
    lines = [line for line in reply.values("set-cookie") if line != "KEEP=me; Path=/"]
    assert lines == ([] if ours is None else [ours])
    assert len(reply.values("set-cookie")) == len(lines) + 1


@pytest.mark.parametrize(
    "text, mark, lines",
    [
        pytest.param("", Mark.NONE, [], id="who sent none has none to give back"),
        pytest.param(
            "SRV=Z",
            Mark.DELETED,
            ["SRV=; Expires=Thu, 01-Jan-1970 00:00:01 GMT; path=/"],
            id="who sent one gives it back",
        ),
    ],
)
def test_a_server_without_an_id_takes_the_cookie_back(text: str, mark: Mark, lines: list[str]):
    servers = [Server("s1", app), Server("bk", app, backup=True)]
    persistence = at_work(cookie(signed=False), servers)
    reply = RecordedResponse()
    presented = claim(persistence, text)
    assert persistence.stamp_response(presented, servers[1], False, FakeRequest(), reply) is mark
    assert reply.values("set-cookie") == lines


@pytest.mark.parametrize("method, marked", [("POST", True), ("GET", False), ("PUT", False), ("post", False)])
def test_postonly_inserts_only_into_answers_to_post(method: str, marked: bool):
    servers = three()
    persistence = at_work(cookie(signed=False, postonly=True), servers)
    reply = RecordedResponse()
    assert (
        persistence.stamp_response(NO_COOKIE, servers[0], False, FakeRequest(method=method), reply) is Mark.INSERTED
    ) is marked
    assert bool(reply.values("set-cookie")) is marked


@pytest.mark.parametrize(
    "said, added",
    [
        ([], True),
        (["public, max-age=60"], True),
        (["no-cache"], True),
        (['private="x-user"'], True),
        (["private"], False),
        (["max-age=60, Private"], False),
        (["no-store"], False),
        (["public", "No-Store , max-age=0"], False),
    ],
    ids=str,
)
@pytest.mark.parametrize("nocache", [True, False], ids=["nocache", "cached"])
def test_an_answer_that_carries_a_cookie_is_private_unless_it_says_so(said: list[str], added: bool, nocache: bool):
    servers = three()
    persistence = at_work(cookie(signed=False, nocache=nocache), servers)
    reply = RecordedResponse()
    for text in said:
        reply.add("cache-control", text)
    persistence.stamp_response(NO_COOKIE, servers[0], False, FakeRequest(), reply)
    assert reply.values("cache-control") == ([*said, "private"] if added and nocache else said)


def test_an_answer_that_carries_no_cookie_is_left_as_it_is():
    servers = three()
    persistence = at_work(cookie(secret=NEW), servers)
    presented = claim(persistence, f"{NAME}={told(persistence, servers[0])}")
    reply = RecordedResponse()
    assert persistence.stamp_response(presented, servers[0], True, FakeRequest(), reply) is Mark.NONE
    assert reply == RecordedResponse()


def test_the_first_date_survives_a_move_to_another_server():
    servers, clock = three(), ManualClock(NOW)
    persistence = at_work(cookie(secret=NEW, maxlife="8h"), servers, clock)
    value = told(persistence, servers[0])
    clock.advance(4000)
    servers[0].health = Health.DOWN
    presented = claim(persistence, f"{NAME}={value}")
    moved = told(persistence, servers[1], presented)
    assert dates.split_dates(moved.rpartition(".")[0]) == ("r2", NOW + 4000, NOW)


def test_values_are_distinct_for_every_server_however_many():
    servers = [Server(f"s{number}", app) for number in range(300)]
    persistence = at_work(cookie(secret=[OLD, NEW], opaque=True), servers)
    values = {told(persistence, server): server for server in servers}
    assert len(values) == 300
    for value, server in values.items():
        assert claim(persistence, f"{NAME}={value}").server is server
