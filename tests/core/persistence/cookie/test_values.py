"""A value is valid only if it is exactly one that we have written."""

from collections.abc import Callable, Mapping
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sticky_core.clock import ManualClock
from sticky_core.http import cookies
from sticky_core.persistence.claim import Claim, Mark, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.server import Server
from tests.core.persistence.cookie.marks import (
    NAME,
    NEW,
    NOW,
    OLD,
    app,
    build,
    cookie,
    marked_value,
    recognise,
    renew,
    three_servers,
)

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
    """A persistence, and every value that it, and one with only the old key, have written."""

    def __init__(self, options: Mapping[str, object], instances: bool) -> None:
        clock = ManualClock(NOW - 600)
        servers = three_servers()
        old_servers = three_servers()
        old_persistence = build(cookie(secret=OLD, **options), old_servers, clock)
        self.current = build(cookie(secret=[OLD, NEW], **options), servers, clock)
        if instances:
            for number, server in enumerate(servers):
                server.instance = f"018bcfe568{number}abcde"
        self.servers: dict[str, Server] = {}
        for _ in range(3):
            for server in servers:
                self.servers[marked_value(self.current, server).partition("~")[0]] = server
            clock.advance(100)
        if not instances:
            for old, server in zip(old_servers, servers, strict=True):
                self.servers[marked_value(old_persistence, old).partition("~")[0]] = server
        clock.advance(100)
        self.values = sorted(self.servers)
        self.has_prefix = options.get("mode") == "prefix"

    def server_named_by(self, text: str) -> Server | None:
        """Return the server of the first issued value in a Cookie text; None if there is none."""
        for value in cookies.take(text, NAME)[0]:
            value = cookies.unquote(value)  # Python's own clients quote a value that has an @
            if self.has_prefix:
                value = value.partition("~")[0]
            if value in self.servers:
                return self.servers[value]
        return None


every_kind = pytest.mark.parametrize(
    "issued",
    [
        pytest.param((kind, instances), id=f"{kind}{', with instances' if instances else ''}")
        for kind, instances in product(KINDS, (False, True))
    ],
    indirect=True,
)


@pytest.fixture(scope="module")
def issued(request: pytest.FixtureRequest) -> Issued:
    kind, instances = request.param
    return Issued(KINDS[kind], instances)


@every_kind
def test_every_issued_value_is_valid_and_names_its_server(issued: Issued):
    assert len(issued.values) >= 3
    for value in issued.values:
        for _ in range(2):  # verified, then remembered
            result = recognise(issued.current, f"{NAME}={value}")
            assert (result.claim, result.server) == (Claim.VALID, issued.servers[value])


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


def mutate(value: str, how: str, where: int, what: object, issued: Issued) -> str:
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
def test_mutated_value_is_valid_only_if_it_is_one_that_was_issued(
    issued: Issued, which: int, changes: list[tuple[str, int, object]], quoted: bool
):
    value = issued.values[which % len(issued.values)]
    for how, where, what in changes:
        value = mutate(value, how, where, what, issued)
    text = f'{NAME}="{value}"' if quoted else f"{NAME}={value}"
    result = recognise(issued.current, text)
    meant = issued.server_named_by(text)
    assert result.server is meant
    assert (result.claim is Claim.VALID) is (meant is not None)


@every_kind
def test_parts_of_two_values_do_not_make_a_third(issued: Issued):
    made = set()
    for one, other in product(issued.values, repeat=2):
        for delimiter in ".|@":
            for cut in range(1, 4):
                made.add(delimiter.join(one.split(delimiter)[:cut] + other.split(delimiter)[cut:]))
    made -= set(issued.values)
    assert made
    assert {recognise(issued.current, f"{NAME}={value}").claim for value in made} == {Claim.INVALID}


@every_kind
@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda options: ("api", cookie(secret=[OLD, NEW], **options)), id="another backend's"),
        pytest.param(
            lambda options: ("web", cookie(name="OTHER", secret=[OLD, NEW], **options)), id="another cookie's"
        ),
        pytest.param(
            lambda options: ("web", cookie(secret=b"a secret of another site!", **options)), id="another secret's"
        ),
    ],
)
def test_value_of_another_backend_cookie_or_secret_is_forged(
    request: pytest.FixtureRequest,
    issued: Issued,
    other: Callable[[Mapping[str, object]], tuple[str, Cookie]],
):
    kind = request.node.callspec.params["issued"][0]
    backend, configured = other(KINDS[kind])
    servers = three_servers()
    elsewhere = configured.build(backend, servers, ManualClock(NOW))
    for server in servers:
        value = marked_value(elsewhere, server, name=configured.name)
        assert recognise(elsewhere, f"{configured.name}={value}").claim is Claim.VALID
        result = recognise(issued.current, f"{NAME}={value}")
        assert (result.claim, result.reason) == (Claim.INVALID, Reason.FORGED)


HUGE = [
    pytest.param("x" * 65_536, id="64 KB"),
    pytest.param("r1." + "A" * 1_000_000, id="a megabyte of signature"),
    pytest.param("r1|" * 100_000, id="a hundred thousand bars"),
    pytest.param("r1@" * 100_000, id="a hundred thousand instances"),
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
def test_huge_and_strange_signed_values_are_invalid(issued: Issued, value: str):
    result = recognise(issued.current, f"{NAME}={value}")
    assert (result.claim, result.server) == (Claim.INVALID, None)


@pytest.mark.parametrize(
    "options", [{"maxidle": 60}, {}, {"mode": "prefix"}, {"mode": "rewrite"}, {"mode": "passive"}], ids=str
)
@pytest.mark.parametrize("value", HUGE)
def test_huge_and_strange_plain_values_raise_nothing(options: dict[str, object], value: str):
    signing: dict[str, object] = {} if "mode" in options and options["mode"] == "passive" else {"signed": False}
    servers = three_servers()
    result = recognise(build(cookie(**signing, **options), servers), f"{NAME}={value}")
    assert result.server in (None, servers[0])


def test_each_of_many_servers_has_a_value_of_its_own():
    servers = [Server(f"s{number}", app) for number in range(300)]
    persistence = build(cookie(secret=[OLD, NEW], opaque=True), servers)
    values = {marked_value(persistence, server): server for server in servers}
    assert len(values) == 300
    for value, server in values.items():
        assert recognise(persistence, f"{NAME}={value}").server is server


@pytest.mark.parametrize(
    "options",
    [{}, {"maxidle": "8h"}, {"maxlife": "8h"}, {"max_age": "8h"}],
    ids=["no dates", "maxidle", "maxlife", "max_age"],
)
def test_value_of_an_old_key_is_valid_and_replaced(options: dict[str, object]):
    before = build(cookie(secret=OLD, **options), servers := three_servers())
    old = marked_value(before, servers[0])
    mark, new = renew(cookie(secret=[OLD, NEW], **options), old)
    assert mark is Mark.UPDATED
    assert new.rpartition(".")[0] == old.rpartition(".")[0]
    assert renew(cookie(secret=[OLD, NEW], **options), new)[0] is Mark.NONE
    retired = recognise(build(cookie(secret=NEW, **options), three_servers()), f"{NAME}={old}")
    assert (retired.claim, retired.reason) == (Claim.INVALID, Reason.FORGED)
