"""A server gets another name while both faces serve: its clients stay, and get a mark of the new one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from sticky_core.persistence.claim import Claim, Mark, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.nginx import NginxCookie
from sticky_core.persistence.persistence import Persist
from sticky_core.persistence.stick.config import Stick
from sticky_core.samples.request import cook, hdr
from sticky_core.stick_table.table import StickTable
from tests.faces.dictionary_store import DictionaryServer, DictionaryStore
from tests.faces.running import running

if TYPE_CHECKING:
    from sticky_core.backend.backend import BackendConfig
    from tests.faces.conftest import Client, Face

SECRET = "a secret of these tests"


def rename(config: BackendConfig, old: str, new: str, **changes: Any) -> BackendConfig:
    changes = {"formerly": (old,), **changes}
    servers = [replace(each, name=new, **changes) if each.name == old else each for each in config.servers]
    return replace(config, servers=tuple(servers))


@pytest.mark.parametrize(
    "persist",
    [
        pytest.param(Cookie("SRV", signed=False), id="plain"),
        pytest.param(Cookie("SRV", secret=SECRET), id="signed"),
        pytest.param(Cookie("SRV", secret=SECRET, opaque=True), id="opaque"),
        pytest.param(Cookie("SRV", secret=SECRET, maxidle="1h"), id="dated"),
        pytest.param(NginxCookie("SRV", path="/"), id="nginx"),
    ],
)
def test_client_of_a_server_that_gets_another_name_stays_and_has_a_mark_of_it(face: Face, persist: Persist) -> None:
    backend = face.backend(face.server("s1", stateless=True), face.server("s2", stateless=True), persist=persist)
    with running(face, backend) as run:
        old = next(response.mark for response in (run.get(), run.get()) if response.server == "s2")
        assert run.get(cookie=old).decision.server == "s2"
        config = rename(backend.config, "s2", "web2")
        assert (backend.plan(config).marks, backend.plan(config).renamed) == ({}, {"s2": "web2"})
        run.apply(lambda: backend.apply(config))
        marks: set[str] = set()
        for _ in range(2):  # a second client, or the same one again
            response = run.get(cookie=old)
            assert (response.decision.server, response.decision.claim) == ("web2", Claim.VALID)
            assert (response.server, response.decision.mark) == ("s2", Mark.UPDATED), "the same app"
            marks.add(response.mark)
        (new,) = marks
        assert new != old
        response = run.get(cookie=new)
        assert (response.decision.server, response.decision.reason) == ("web2", Reason.BOUND)
        assert isinstance(persist, NginxCookie) or not response.all("set-cookie")
        assert backend.unknown_marks == 0
        run.apply(lambda: backend.apply(replace(rename(backend.config, "web2", "web2", formerly=()))))
        assert run.get(cookie=old).decision.claim is Claim.INVALID, "it is not called so any more"


def test_entry_of_a_table_stays_with_a_server_that_gets_another_name(face: Face) -> None:
    table = StickTable("string")
    stick = Stick.on(cook("user"), table)
    backend = face.backend(face.server("s1", stateless=True), face.server("s2", stateless=True), persist=stick)
    with running(face, backend) as run:
        user_of = {run.get(cookie=f"user={user}").decision.server: user for user in ("ann", "bob")}
        user, other = user_of["s2"], user_of["s1"]
        config = rename(backend.config, "s2", "web2")
        assert backend.plan(config).sessions == {}
        run.apply(lambda: backend.apply(config))
        assert table[user] == "s2"
        assert [run.get(cookie=f"user={user}").decision.server for _ in range(2)] == ["web2", "web2"]
        assert (table[user], table[other]) == ("web2", "s1")


def test_processes_with_the_old_and_the_new_name_share_a_table(face: Face) -> None:
    """The way to give a server another name while processes are restarted one by one."""
    store = DictionaryServer()

    def process(name: str, formerly: str) -> Client:
        table = StickTable("string", expire="10m", name="users", store=DictionaryStore(store))
        servers = [face.server(name, stateless=True, formerly=[formerly]), face.server("s1", stateless=True)]
        return face.client(face.backend(*servers, persist=Stick.on(hdr("x-user"), table)))

    before, after = process("s2", "web2"), process("web2", "s2")
    for number in range(6):
        headers = [("x-user", f"user{number}")]
        first, second = (before, after) if number % 2 else (after, before)
        was = first(headers=headers).decision.server
        for _ in range(2):
            other = second(headers=headers).decision
            expected = {"s1": "s1", "s2": "web2", "web2": "s2"}[str(was)]
            assert (other.claim, other.server) == (Claim.VALID, expected)
            assert first(headers=headers).decision.server == was


def test_client_of_an_app_with_memory_is_bound_anew(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), persist=Cookie("SRV", secret=SECRET))
    with running(face, backend) as run:
        old = next(response.mark for response in (run.get(), run.get()) if response.server == "s2")
        config = rename(backend.config, "s2", "web2")
        assert backend.plan(config).marks == {"s2": None}
        run.apply(lambda: backend.apply(config))
        response = run.get(cookie=old)
        assert (response.decision.claim, response.decision.reason) == (Claim.INVALID, Reason.OTHER_INSTANCE)
        assert response.decision.mark is Mark.INSERTED
