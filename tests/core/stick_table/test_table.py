"""Stick tables: their options, and the calls of an operator."""

import pytest

from sticky_core.clock import SystemClock
from sticky_core.errors import ConfigError
from sticky_core.stick_table.keys import KeyType
from sticky_core.stick_table.table import StickTable
from sticky_core.stores.redis import Redis


class Clock(SystemClock):
    def __init__(self):
        self.now = 1000.0

    def wall(self):
        return 1_800_000_000.0 + self.now

    def monotonic(self):
        return self.now


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"type": "text"}, "type 'text' is none of ip, ipv6, integer, string, binary"),
        ({"size": "many"}, "size 'many' is no number of entries: write 100000, or '100k', '1m'"),
        ({"size": 0}, "size 0 is no number"),
        ({"expire": "soon"}, "expire: "),
        ({"expire": 0}, "expire 0 is not above 0"),
        ({"size": 1.5}, "size 1.5 is no number of entries"),
        ({"expire": float("nan")}, "expire nan is not above 0"),
        ({"length": 0}, "length 0 is not within 1..16384"),
        ({"length": "32"}, "length '32' is not within 1..16384"),
        ({"srvkey": "port"}, "srvkey 'port' is none of name, addr"),
    ],
)
def test_invalid_option_is_an_error(options, problem):
    with pytest.raises(ConfigError) as refused:
        StickTable(**options)
    assert problem in str(refused.value)


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as refused:
        StickTable("text", size="many", length=0)  # type: ignore[arg-type]
    assert str(refused.value).count("\n  - ") == 3


@pytest.mark.parametrize("size, entries", [(5, 5), ("5", 5), ("2k", 2048), ("1m", 1 << 20), ("1g", 1 << 30)], ids=str)
def test_sizes_are_written_as_in_haproxy(size, entries):
    assert StickTable(size=size).entries.size == entries


def test_operator_sets_reads_lists_and_clears_entries():
    clock = Clock()
    table = StickTable("ip", expire="1m", clock=clock)
    table["10.0.0.1"] = "web1"
    table["10.0.0.2"] = "web2"
    assert table["10.0.0.1"] == "web1"
    assert [(entry.key, entry.server) for entry in sorted(table)] == [("10.0.0.1", "web1"), ("10.0.0.2", "web2")]
    assert all(entry.expires_in == 60.0 for entry in table)
    assert table.per_server() == {"web1": 1, "web2": 1}
    table.clear("10.0.0.1")
    with pytest.raises(KeyError):
        table["10.0.0.1"]
    assert len(table) == 1
    table.clear()
    assert list(table) == []


def test_sample_that_is_no_key_cannot_be_set():
    with pytest.raises(ConfigError, match="'nobody' is no key of type ip"):
        StickTable("ip")["nobody"] = "web1"


def test_entries_are_restored_unless_they_have_expired_or_belong_to_a_replica():
    clock = Clock()
    table = StickTable("string", expire="1m", clock=clock)
    table["tea"] = "web1"
    table["café\xff"] = "web2"
    table["replica"] = "r1@0123"
    lines = list(table.dump())
    assert len(lines) == 2

    clock.now += 30
    fresh = StickTable("string", expire="1m", clock=clock)
    assert fresh.restore([*lines, "cut off in the mid", "", "1.000 web1 szz", "- web1 s6", "- web1 s"]) == 2
    assert (fresh["tea"], fresh["café\xff"]) == ("web1", "web2")

    clock.now += 31
    assert StickTable("string", expire="1m", clock=clock).restore(lines) == 0


KEYS: list[tuple[KeyType, str]] = [
    ("string", "tea"),
    ("ip", "10.0.0.1"),
    ("ipv6", "2001:db8::1"),
    ("integer", "7"),
    ("binary", "ab"),
]


@pytest.mark.parametrize("kind, key", KEYS)
def test_keys_of_every_type_are_saved(kind: KeyType, key: str):
    table, fresh = StickTable(kind), StickTable(kind)
    table[key] = "web1"
    assert fresh.restore(table.dump()) == 1
    assert fresh[key] == "web1" and [each.key for each in fresh] == [each.key for each in table]


@pytest.mark.parametrize("into", [kind for kind, _ in KEYS])
@pytest.mark.parametrize("kind, key", KEYS)
def test_keys_of_another_type_are_refused_and_the_table_is_unchanged(kind: KeyType, key: str, into: KeyType):
    if kind == into:
        return
    saved, table = StickTable(kind), StickTable(into, name="clients")
    saved[key] = "web1"
    ours = dict(KEYS)[into]
    table[ours] = "web2"
    more = StickTable(into)
    more["1.2.3.4"] = "web3"
    before = list(table)
    with pytest.raises(ConfigError) as refused:
        table.restore([*more.dump(), *saved.dump()])
    [shown] = [each.key for each in saved]
    assert str(refused.value) == (
        f"stick table clients: its keys are of type {into}, and what was saved has keys of type {kind}, such as "
        f"{shown!r} of server web1: restore what this table has dumped, or into a StickTable({kind!r})"
    )
    assert list(table) == before


@pytest.mark.parametrize("line", ["- web1 4100000000", "- web1 i100000000", "- web1 6" + "1" * 33, "- web1 4"])
def test_line_without_a_key_of_its_type_is_skipped(line: str):
    for kind, _ in KEYS:
        assert StickTable(kind).restore([line]) == 0


def test_restoring_into_a_shared_table_is_an_error():
    saved, shared = StickTable("string"), StickTable("string", expire="1m", store=Redis("redis://nowhere"))
    shared.attach("clients")
    assert shared.restore(shared.dump()) == 0
    saved["tea"] = "web1"
    with pytest.raises(ConfigError, match="stick table clients: it is shared, so its entries are the store's to keep"):
        shared.restore(saved.dump())
    assert list(shared) == []


@pytest.mark.parametrize("kind", ["string", "binary"])
def test_longer_keys_of_another_table_are_cut_when_they_are_restored(kind: KeyType):
    saved, table = StickTable(kind, length=12), StickTable(kind, length=8)
    saved["0123456789ab"] = "web1"
    assert table.restore(saved.dump()) == 1
    assert table["0123456789ab"] == table["01234567"] == "web1"


def test_restored_entries_expire_when_they_would_have_and_the_oldest_are_purged():
    clock = Clock()
    saved = StickTable("string", expire=80, clock=clock)
    for key in ("old", "young"):
        saved[key] = "web1"
        clock.now += 40
    lines = sorted(saved.dump(), reverse=True)  # whatever the order
    table = StickTable("string", expire=80, clock=clock)
    assert table.restore(lines) == 1, "the old one has expired"
    clock.now += 39
    assert table["young"] == "web1"
    clock.now += 12  # an eighth of 80, and some
    assert [each.key for each in table] == []

    clock.now -= 81
    small = StickTable("string", size=1, expire=80, clock=clock)
    assert small.restore(lines) == 2
    assert [each.key for each in small] == ["young"]


def test_repr_shows_how_full_it_is():
    table = StickTable("ip", size=10, name="clients")
    table["10.0.0.1"] = "web1"
    assert repr(table) == "<StickTable clients: 1/10>"
