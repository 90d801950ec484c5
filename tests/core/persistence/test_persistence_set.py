"""The persistences of a backend as one: grouping, rules, and what the backend needs to know of their tables."""

from dataclasses import dataclass, field
from math import inf

import pytest

from sticky_core.clock import ManualClock
from sticky_core.errors import ConfigError
from sticky_core.persistence.chain import PersistenceChain
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.cookie.engine import CookieEngine
from sticky_core.persistence.persistence import Persist
from sticky_core.persistence.persistence_set import PersistenceSet
from sticky_core.persistence.rules import Condition, IgnorablePersistence, RuledPersistence
from sticky_core.persistence.stick.config import Learn, Stick
from sticky_core.persistence.stick.engine import StickEngine
from sticky_core.persistence.token import Token
from sticky_core.samples.request import hdr
from sticky_core.server.server import Server
from sticky_core.stick_table.table import StickTable
from sticky_core.stores.redis import Redis
from tests.core.fakes import FakeRequest

COOKIE = Cookie("SRV", signed=False)


@dataclass
class Options:
    """The options of a backend that are about persistence."""

    persist: tuple[Persist, ...] = ()
    name: str = "web"
    persist_on_down: bool = False
    force_persist: Condition | None = None
    ignore_persist: Condition | None = None
    use_server: tuple[tuple[str, Condition], ...] = ()
    servers: list[Server] = field(
        default_factory=lambda: [Server("s1", "http://10.0.0.1"), Server("s2", "http://10.0.0.2")]
    )

    def build(self) -> PersistenceSet:
        return PersistenceSet(self, self.servers, ManualClock())


def test_backend_without_persistences_has_none():
    built = Options().build()
    assert (built.persistence, list(built.members), built.max_idle) == (None, [], 0.0)


def test_one_persistence_is_used_as_it_is():
    built = Options((COOKIE,)).build()
    assert isinstance(built.persistence, CookieEngine)
    assert (list(built.members), built.max_idle) == ([built.persistence], inf)


def test_several_persistences_are_a_chain():
    built = Options((COOKIE, Stick.on("src"))).build()
    assert isinstance(built.persistence, PersistenceChain)
    assert [type(each) for each in built.members] == [CookieEngine, StickEngine]


def test_consecutive_stick_rules_have_one_engine():
    built = Options((Stick.on("src"), Learn.cookie("SID"), COOKIE, Stick.on("src"))).build()
    assert [type(each) for each in built.members] == [StickEngine, CookieEngine, StickEngine]
    assert len(built.tables) == 3


def test_rules_without_a_persistence_are_one():
    built = Options(use_server=(("s1", lambda request: True),)).build()
    assert isinstance(built.persistence, RuledPersistence)
    assert (list(built.members), built.max_idle) == ([], 0.0)


def test_ignore_persist_is_for_cookies_and_not_for_tables():
    built = Options((COOKIE, Stick.on("src"), Token(header="t")), ignore_persist=lambda request: True).build()
    kinds = [isinstance(each, IgnorablePersistence) for each in built.members]
    assert kinds == [True, False, False]


def test_table_of_several_persistences_is_listed_once():
    table = StickTable("string", expire=80)
    built = Options((Stick.on(hdr("a"), table), COOKIE, Stick.on(hdr("b"), table))).build()
    assert built.tables == (table,)
    assert built.stores == ()


def test_sessions_are_counted_by_server_and_each_table_once():
    table = StickTable("string", expire=80)
    options = Options((Stick.on(hdr("a"), table), COOKIE, Stick.on(hdr("b"), table)))
    built = options.build()
    table["x"], table["y"], table["z"], table["unknown"] = "s1", "s1", "s2", "s9"
    assert built.sessions() == {options.servers[0]: 2, options.servers[1]: 1}


def test_table_in_memory_has_no_clients_elsewhere():
    options = Options((Stick.on("src"),))
    built = options.build()
    assert not built.has_clients_elsewhere(options.servers[0])


def test_problems_of_all_persistences_are_reported_at_once():
    options = Options(
        (Cookie("A", signed=False), Cookie("B", signed=False)), servers=[Server("s1", "http://10.0.0.1", cookie="a|b")]
    )
    with pytest.raises(ConfigError) as refused:
        options.build()
    assert [problem[:8] for problem in refused.value.problems] == ["cookie A", "cookie B"]


def test_shared_tables_have_names_of_their_own():
    store = Redis("redis://127.0.0.1")
    tables = [StickTable("string", expire=80, store=store, name="sessions") for _ in range(2)]
    with pytest.raises(ConfigError, match="2 shared tables are called sessions: give each a name= of its own"):
        Options(tuple(Stick.on(hdr(name), table) for name, table in zip("ab", tables, strict=True))).build()


def test_persistence_of_the_set_recognises_requests():
    built = Options((COOKIE,)).build()
    assert built.persistence is not None
    assert built.persistence.recognise(FakeRequest(("SRV=s2",))).is_bound
