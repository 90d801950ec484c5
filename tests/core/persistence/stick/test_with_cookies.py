"""Stick rules in one backend with a cookie."""

from __future__ import annotations

import pytest

from sticky_core.persistence.stick.config import Learn, Stick
from sticky_core.samples import response as res
from sticky_core.samples.request import cook
from sticky_core.server.state import AdminState
from sticky_core.stick_table.table import StickTable
from sticky_core.stores.redis import Redis
from sticky_core.transaction.store_writes import pending_writes
from tests.core.fakes import ScriptedTransaction
from tests.core.persistence.stick.backends import (
    BOTH,
    ONE,
    SRV,
    A,
    B,
    entries_by_clock,
    make_backend,
    make_table,
)


@pytest.mark.parametrize("persists", ["cookie first", "table first"])
def test_client_that_a_table_knows_gets_no_cookie(persists: str):
    rule = Stick.on(A, make_table(x="s2"))
    backend = make_backend(*((SRV, rule) if persists == "cookie first" else (rule, SRV)))
    transaction = ScriptedTransaction(backend, headers=ONE)
    assert transaction.start() is backend["s2"]
    assert transaction.respond().set_cookies == []


def test_new_client_gets_a_cookie_and_an_entry():
    keys = make_table()
    backend = make_backend(SRV, Stick.on(A, keys))
    transaction = ScriptedTransaction(backend, headers=ONE)
    transaction.start()
    assert transaction.respond().set_cookies == ["SRV=s1; path=/"]
    assert entries_by_clock(backend, keys) == {"x": "s1"}


@pytest.mark.parametrize(
    "entry", ["s3", "s2", None], ids=["of another server", "of the same server", "that does not exist"]
)
def test_valid_cookie_overwrites_the_entry(entry: str | None):
    keys = make_table(x=entry) if entry else make_table()
    backend = make_backend(SRV, Stick.on(A, keys))
    transaction = ScriptedTransaction(backend, headers=ONE, cookie="SRV=s2")
    assert transaction.run() == "s2"
    assert entries_by_clock(backend, keys) == {"x": "s2"}


def test_store_is_not_queried_for_a_client_with_a_valid_cookie_but_written_to():
    keys = StickTable("string", expire=60, store=Redis("redis://localhost"))
    backend = make_backend(SRV, Stick.on(A, keys))
    transaction = ScriptedTransaction(backend, headers=ONE, cookie="SRV=s2")
    assert transaction.start() is backend["s2"]
    transaction.respond()
    (write,) = pending_writes(transaction)
    assert "s2" in write.words


def test_store_is_not_written_to_for_an_id_that_was_not_learned():
    keys = StickTable("string", expire=60, store=Redis("redis://localhost"))
    backend = make_backend(SRV, Learn(res.cook("sid"), cook("sid"), table=keys))
    transaction = ScriptedTransaction(backend, cookie="SRV=s2; sid=invented")
    assert transaction.start() is backend["s2"]
    transaction.respond()
    assert list(pending_writes(transaction)) == []


def test_table_before_the_cookie_overrules_it():
    backend = make_backend(Stick.on(A, make_table(x="s3")), SRV)
    assert ScriptedTransaction(backend, headers=ONE, cookie="SRV=s2").run() == "s3"


def test_table_counts_if_the_server_of_the_cookie_is_down():
    backend = make_backend(SRV, Stick.on(A, make_table(x="s3")))
    backend["s2"].state = AdminState.MAINT
    assert ScriptedTransaction(backend, headers=ONE, cookie="SRV=s2").run() == "s3"


def test_rules_divided_by_a_cookie_are_applied_apart():
    backend = make_backend(Stick.match(A, make_table(x="s4")), SRV, Stick.match(B, make_table(y="s3")), count=4)
    backend["s4"].state = AdminState.MAINT
    assert ScriptedTransaction(backend, headers=BOTH, cookie="SRV=s2").run() == "s2"
    assert ScriptedTransaction(backend, headers=BOTH).run() == "s3"
