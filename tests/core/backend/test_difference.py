"""ServerDifference: what is added, removed and changed, found without looking at the servers that stay alike."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from sticky_core.backend.difference import ServerDifference, differing_part
from sticky_core.server.config import ServerConfig
from sticky_core.server.server import Server
from tests.core.backend.backends import app, url


@pytest.mark.parametrize(
    "before, after, expected",
    [
        ("", "", (0, 0, 0)),
        ("abc", "abc", (3, 3, 3)),
        ("abc", "abcd", (3, 3, 4)),
        ("abc", "xabc", (0, 0, 1)),
        ("abc", "bc", (0, 1, 0)),
        ("abc", "ac", (1, 2, 1)),
        ("abc", "", (0, 3, 0)),
        ("aba", "aa", (1, 2, 1)),
        ("aa", "aba", (1, 1, 2)),
        ("abcd", "axyd", (1, 3, 3)),
        ("abcd", "bacd", (0, 2, 2)),
        ("ab", "cd", (0, 2, 2)),
    ],
)
def test_sequences_differ_from_the_first_to_the_last_item_that_differs(
    before: str, after: str, expected: tuple[int, int, int]
):
    assert differing_part([*before], [*after]) == expected


def find(servers: Sequence[Server], after: Sequence[ServerConfig]) -> ServerDifference:
    return ServerDifference.find(tuple(servers), tuple(server.requested for server in servers), tuple(after), {})


def names(servers: object) -> list[str]:
    assert isinstance(servers, Sequence | dict)
    return [server.name for server in servers]


@pytest.fixture
def servers() -> list[Server]:
    return [Server(f"s{number}", url(number), cookie=f"c{number}") for number in range(1, 5)]


def test_servers_that_are_added_removed_and_changed(servers: list[Server]):
    one, _, three, four = (server.requested for server in servers)
    found = find(servers, [one, replace(three, weight=7), four, ServerConfig(name="s5", target=url(5))])
    assert (names(found.servers), names(found.added), names(found.removed)) == (
        ["s1", "s3", "s4", "s5"],
        ["s5"],
        ["s2"],
    )
    assert {server.name: config.weight for server, config in found.changed.items()} == {"s3": 7}
    assert ([each.name for each in found.before], [each.name for each in found.after]) == (["s2", "s3"], ["s5", "s3"])
    assert (found.keeps_order, found.is_last, found.changes_ids, found.changes_backups) == (True, True, (), False)


def test_server_with_another_app_is_replaced(servers: list[Server]):
    found = find(servers, [ServerConfig(name="s1", target=app), *(server.requested for server in servers[1:])])
    assert found.removed == {servers[0]: found.added[0]}
    assert names(found.added) == ["s1"] and not found.is_last


def test_equal_configurations_are_no_change(servers: list[Server]):
    found = find(servers, [replace(server.requested) for server in servers])
    assert (found.added, found.removed, found.changed, found.servers) == ((), {}, {}, tuple(servers))
    assert found.keeps_order and found.is_last


@pytest.mark.parametrize(
    "order, new, keeps_order, is_last",
    [
        ([0, 1, 2, 3], None, True, True),
        ([0, 1, 2, 3], 4, True, True),
        ([0, 1, 2, 3], 3, True, False),
        ([0, 1, 2, 3], 0, True, False),
        ([1, 2], 2, True, True),
        ([0, 2, 1, 3], None, False, True),
        ([3, 0], None, False, True),
        ([1, 0, 2, 3], 4, False, True),
    ],
)
def test_order_of_servers_is_compared(
    servers: list[Server], order: list[int], new: int | None, keeps_order: bool, is_last: bool
):
    after = [servers[number].requested for number in order]
    if new is not None:
        after.insert(new, ServerConfig(name="new", target=url(9)))
    found = find(servers, after)
    assert (found.keeps_order, found.is_last) == (keeps_order, is_last)
    assert names(found.servers) == [config.name for config in after]


@pytest.mark.parametrize(
    "options, ids, backups",
    [({"cookie": "other"}, ["s2"], False), ({"backup": True}, [], True), ({"weight": 3}, [], False)],
    ids=["another id", "a backup now", "another weight"],
)
def test_changes_that_cookies_and_balance_depend_on_are_found(
    servers: list[Server], options: dict[str, object], ids: list[str], backups: bool
):
    configs = [server.requested for server in servers]
    configs[1] = replace(configs[1], **options)  # type: ignore[arg-type]
    found = find(servers, configs)
    assert (names(found.changes_ids), found.changes_backups) == (ids, backups)
