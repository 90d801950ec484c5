"""The ids of servers: opaque and dynamic ones."""

import re

import pytest

from sticky_core.persistence.claim import Claim, Mark
from sticky_core.server.server import Server
from tests.core.persistence.cookie.marks import (
    NAME,
    NEW,
    OLD,
    app,
    build,
    cookie,
    marked_value,
    recognise,
    renew,
    three_servers,
)


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
def test_opaque_mark_does_not_contain_the_name_of_the_server(options: dict[str, object]):
    servers = [Server(name, app) for name in ("amsterdam", "berlin")]
    persistence = build(cookie(opaque=True, **options), servers)
    values = [marked_value(persistence, server) for server in servers]
    for value, server in zip(values, servers, strict=True):
        assert re.match(r"[0-9a-f]{32}(?![0-9a-f])", value)
        assert server.name not in value
        assert recognise(persistence, f"{NAME}={value}").server is server
    assert recognise(persistence, f"{NAME}=amsterdam").claim is Claim.INVALID


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "plain"])
def test_opaque_id_of_an_old_key_is_valid_and_replaced(signed: bool):
    before = build(cookie(secret=OLD, opaque=True, signed=signed), servers := three_servers())
    old = marked_value(before, servers[0])
    mark, new = renew(cookie(secret=[OLD, NEW], opaque=True, signed=signed), old)
    assert mark is Mark.UPDATED
    assert new[:32] != old[:32]


def test_dynamic_ids_are_those_of_haproxy():
    servers = [
        Server("s1", "http://127.0.0.1:8080"),
        Server("s2", "http://[::1]:8080"),
        Server("s3", "http://10.0.0.1"),
        Server("s4", "http://10.0.0.1:81", cookie="D"),
    ]
    persistence = build(cookie(signed=False, dynamic="s3cret"), servers)
    values = [marked_value(persistence, server) for server in servers]
    assert values == ["1f203ad55f83ddc6", "2d028ff8f1d2852e", "3865d495adfe7206", "D"]
    assert [recognise(persistence, f"{NAME}={value}").server for value in values] == servers
