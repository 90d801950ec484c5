"""The options for a client with a server that can't serve it, in combination, on both faces.

Servers: s1 is the client's own, s2 another, and in some rows `bk` is a backup. A row has the states of the servers, the
options that are set, and the outcome: the servers tried, the response to the client, and HAProxy's two letters.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import KW_ONLY, dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest

from sticky_core.balance import RoundRobin
from sticky_core.errors import Failure, ServerFailure
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health

if TYPE_CHECKING:
    from tests.faces.conftest import Face

PLAIN = Cookie("SERVERID", signed=False, indirect=False, nocache=False)

#: what a server does with requests, or why it gets none
STATES = ("up", "drain", "maint", "down", "refuses", "closes", "responds 503")


@dataclass(frozen=True)
class Row:
    states: tuple[str, ...]  # of s1, s2, and of the backup if there is one
    knobs: dict[str, Any]
    _: KW_ONLY
    tried: str
    status: int = 200
    letters: str

    @property
    def id(self) -> str:
        knobs = ", ".join(f"{name}={value}" for name, value in self.knobs.items())
        return f"{'/'.join(self.states)} {knobs or 'as usual'}"


def put(face: Face, server: Server, state: str) -> None:
    app = face.apps[server.name]
    match state:
        case "up":
            pass
        case "down":
            server.health = Health.DOWN
        case "refuses":
            app.raises = ServerFailure(Failure.REFUSED)
        case "closes":
            app.raises = ServerFailure(Failure.CLOSED)
        case "responds 503":
            app.status = 503
        case "drained":
            server.drain(deadline=0)
        case _:
            server.state = AdminState(state)


def backend(face: Face, states: tuple[str, ...], knobs: dict[str, Any]):
    names = ("s1", "s2", "bk")[: len(states)]
    servers = [face.server(name, backup=name == "bk") for name in names]
    made = face.backend(*servers, persist=PLAIN, balance=RoundRobin(start=0), **knobs)
    for name, state in zip(names, states, strict=True):
        put(face, made[name], state)
    return made


FAIL = {"unavailable": "fail"}
PANIC = {"on_empty": "panic"}
PERSIST = {"persist_on_down": True}
STAY = {"redispatch": False}
EMPTY = {"retry_on": "empty-response"}

ROWS = [
    # the server that a client belongs to, as usual
    Row(("up", "up"), {}, tried="s1", letters="VN"),
    Row(("drain", "up"), {}, tried="s1", letters="VN"),
    Row(("drained", "up"), {}, tried="s2", letters="DI"),
    Row(("maint", "up"), {}, tried="s2", letters="DI"),
    Row(("down", "up"), {}, tried="s2", letters="DI"),
    Row(("refuses", "up"), {}, tried="s1 s2", letters="DI"),
    Row(("closes", "up"), {}, tried="s1", status=502, letters="VN"),
    Row(("responds 503", "up"), {}, tried="s1", status=503, letters="VN"),
    # unavailable="fail": rather no server than another; a drain that is over is no failure
    Row(("drain", "up"), FAIL, tried="s1", letters="VN"),
    Row(("drained", "up"), FAIL, tried="s2", letters="DI"),
    Row(("maint", "up"), FAIL, tried="", status=503, letters="DN"),
    Row(("down", "up"), FAIL, tried="", status=503, letters="DN"),
    Row(("refuses", "up"), FAIL, tried="s1", status=503, letters="DN"),
    Row(("responds 503", "up"), {**FAIL, "retry_on": "503"}, tried="s1", status=503, letters="VN"),
    # persist_on_down: the own server is tried, down or not
    Row(("down", "up"), PERSIST, tried="s1", letters="DN"),
    Row(("maint", "up"), PERSIST, tried="s1", letters="DN"),
    Row(("down", "up"), {**PERSIST, **FAIL}, tried="s1", letters="DN"),
    Row(("drained", "up"), PERSIST, tried="s1", letters="DN"),
    # redispatch: which servers get the further attempts
    Row(("refuses", "up"), STAY, tried="s1 s1 s1 s1", status=503, letters="VN"),
    Row(("refuses", "up"), {**STAY, "retries": 1}, tried="s1 s1", status=503, letters="VN"),
    Row(("refuses", "up"), {"redispatch": -1}, tried="s1 s1 s1 s2", letters="DI"),
    Row(("refuses", "up"), {"redispatch": 2}, tried="s1 s1 s2", letters="DI"),
    Row(("refuses", "up"), {"redispatch": -1, "retries": 1}, tried="s1 s2", letters="DI"),
    Row(("refuses", "up"), {"retries": 0}, tried="s1", status=503, letters="VN"),
    Row(("maint", "up"), STAY, tried="s2", letters="DI"),
    Row(("refuses", "refuses"), {}, tried="s1 s2", status=503, letters="DN"),
    # retry_on: after which failures
    Row(("closes", "up"), EMPTY, tried="s1 s2", letters="DI"),
    Row(
        ("closes", "up"), {"retry_on": "empty-response", **STAY, "retries": 1}, tried="s1 s1", status=502, letters="VN"
    ),
    Row(("closes", "up"), {**EMPTY, **FAIL}, tried="s1", status=502, letters="DN"),
    Row(("responds 503", "up"), {"retry_on": "503"}, tried="s1 s2", letters="DI"),
    Row(("responds 503", "responds 503"), {"retry_on": "503"}, tried="s1 s2", status=503, letters="DI"),
    Row(("responds 503", "maint"), {"retry_on": "503"}, tried="s1", status=503, letters="VN"),
    Row(("refuses", "up"), {"retry_on": "none"}, tried="s1", status=503, letters="VN"),
    # backups
    Row(("down", "up", "up"), {}, tried="s2", letters="DI"),
    Row(("down", "down", "up"), {}, tried="bk", letters="DD"),
    Row(("refuses", "down", "up"), {}, tried="s1 bk", letters="DD"),
    Row(("down", "down", "up"), FAIL, tried="", status=503, letters="DN"),
    Row(("down", "down", "up"), PANIC, tried="bk", letters="DD"),
    Row(("down", "drain", "up"), {}, tried="bk", letters="DD"),
    # no server left: only those that drain, or none at all, or panic
    Row(("maint", "drain"), {}, tried="s2", letters="DI"),
    Row(("maint", "drained"), {}, tried="s2", letters="DI"),
    Row(("down", "down"), {}, tried="", status=503, letters="DN"),
    Row(("down", "down"), PANIC, tried="s1", letters="VN"),
    Row(("down", "down"), {**PANIC, **FAIL}, tried="s1", letters="VN"),
    Row(("maint", "down"), PANIC, tried="s2", letters="DI"),
    Row(("maint", "maint"), PANIC, tried="", status=503, letters="DN"),
    Row(("down", "up"), {**PANIC, "panic_threshold": 0.6}, tried="s1", letters="VN"),
    Row(("down", "up"), {**PANIC, "panic_threshold": 0.5}, tried="s2", letters="DI"),
    Row(("down", "down", "down"), PANIC, tried="s1", letters="VN"),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_what_becomes_of_the_client_of_s1(face: Face, row: Row) -> None:
    made = backend(face, row.states, row.knobs)
    response = face.client(made)(cookie="SERVERID=s1")
    assert " ".join(response.decision.attempts) == row.tried
    assert (response.status, response.letters) == (row.status, row.letters)
    assert all(not server.in_flight for server in made.servers)


@pytest.mark.parametrize("how", ["weight 0", "drain"])
def test_new_clients_are_spread_evenly_where_every_server_only_keeps_its_clients(face: Face, how: str) -> None:
    made = face.backend(*(face.server(f"s{number}") for number in (1, 2, 3)), persist=PLAIN)
    for server in made.servers:
        if how == "weight 0":
            server.weight = 0
        else:
            server.state = AdminState.DRAIN
    get = face.client(made)
    responses = [get() for _ in range(30)]
    assert Counter(response.server for response in responses) == {"s1": 10, "s2": 10, "s3": 10}
    assert {len(response.all("set-cookie")) for response in responses} == {1}, "and each is bound to its server"


COMBINED: dict[str, tuple[Any, ...]] = {
    "redispatch": (True, False, -1),
    "unavailable": ("redispatch", "fail"),
    "retries": (0, 2),
    "retry_on": ("conn-failure", "conn-failure empty-response 503"),
    "on_empty": ("fail", "panic"),
    "persist_on_down": (False, True),
}


@pytest.mark.parametrize("states", list(product(STATES, STATES)), ids="/".join)
def test_every_combination_ends_with_a_response_after_no_more_attempts_than_allowed(
    face: Face, states: tuple[str, str]
) -> None:
    """What holds for all combinations of the knobs, with and without a backup. Every pair of states has an eleventh of
    them, another than the pair before it.
    """
    first = 7 * STATES.index(states[0]) + STATES.index(states[1])
    combinations = list(product(product(*COMBINED.values()), (False, True)))
    for values, with_backup in combinations[first % 11 :: 11]:
        knobs = dict(zip(COMBINED, values, strict=True))
        made = backend(face, (*states, "up") if with_backup else states, knobs)
        response = face.client(made)(cookie="SERVERID=s1")
        tried = response.decision.attempts
        context = f"{knobs} with_backup={with_backup}: tried {tried}, {response.status} {response.letters}"
        assert len(tried) <= 1 + knobs["retries"], context
        assert all(not server.in_flight for server in made.servers), context
        usable = {server.name for server in made.servers if server.usable}
        allowed = usable | ({"s1"} if knobs["persist_on_down"] else set())
        assert {*tried} <= allowed, context
        if knobs["unavailable"] == "fail":
            assert {*tried} <= {"s1"}, context
        if knobs["redispatch"] is False and "s1" in tried and states[0] != "drained":
            assert {*tried} == {"s1"} or states[0] in ("down", "maint"), context
        if knobs["redispatch"] is True:
            assert max(Counter(tried).values(), default=0) <= 1, context
        if response.server is None:
            assert response.all("set-cookie") == [], context
        elif response.server != "s1":
            assert len(response.all("set-cookie")) == 1, context
        if states[0] == "up":
            assert (tried, response.status, response.letters) == (("s1",), 200, "VN"), context
