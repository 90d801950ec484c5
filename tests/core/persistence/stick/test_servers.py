"""Tables that several backends share, and the texts by which they name servers."""

from __future__ import annotations

from sticky_core.persistence.stick.config import Stick
from sticky_core.server.server import Server
from sticky_core.stick_table.table import StickTable
from tests.core.fakes import ScriptedTransaction
from tests.core.persistence.stick.backends import (
    ONE,
    A,
    entries_of,
    make_backend,
    make_table,
)


def test_backends_that_share_a_table_agree_by_the_names_of_servers():
    keys = make_table()
    http, websockets = make_backend(Stick.on(A, keys)), make_backend(Stick.on(A, keys), start=2)
    assert ScriptedTransaction(http, headers=ONE).run() == "s1"
    assert ScriptedTransaction(websockets, headers=ONE).run() == "s1"
    assert ScriptedTransaction(websockets, headers=[("a", "new")]).run() == "s3"
    assert ScriptedTransaction(http, headers=[("a", "new")]).run() == "s3"


def test_backends_that_share_a_table_agree_by_the_addresses_of_servers():
    keys = StickTable("string", srvkey="addr")
    one = make_backend(Stick.on(A, keys))
    other = make_backend(
        Stick.on(A, keys), servers=[Server(name, f"http://10.0.0.{n}") for n, name in enumerate("abc", 1)]
    )
    ScriptedTransaction(one).run()
    assert ScriptedTransaction(one, headers=ONE).run() == "s2"
    assert entries_of(keys) == {"x": "10.0.0.2:80"}
    assert ScriptedTransaction(other, headers=ONE).run() == "b"


def test_rules_of_two_backends_have_tables_of_their_own():
    one, other = make_backend(Stick.on(A)), make_backend(Stick.on(A), start=2)
    assert ScriptedTransaction(one, headers=ONE).run() == "s1"
    assert ScriptedTransaction(other, headers=ONE).run() == "s3"
