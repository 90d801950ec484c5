"""The ranges of numbers that nginx's hashes look servers up in."""

import pytest

from sticky_core.balance.nginx.weight_ranges import WeightRanges
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState


def app(environ, start_response):
    return []


def weight_ranges(*weights):
    """Return servers s1, s2, … of these weights, and their ranges."""
    servers = [Server(f"s{number}", app, weight=weight) for number, weight in enumerate(weights, 1)]
    return servers, WeightRanges(servers)


@pytest.mark.parametrize(
    "weights, found",
    [
        ((1, 1, 1), "123123"),
        ((2, 1, 3), "112333"),
        ((0, 2, 1), "223223"),
        ((2, 0, 1), "113113"),
    ],
    ids=str,
)
def test_each_server_has_as_many_numbers_as_its_weight(weights, found):
    servers, ranges = weight_ranges(*weights)
    chosen = [ranges.first_usable([number], ()) for number in range(6)]
    assert "".join(str(servers.index(server) + 1) for server in chosen if server is not None) == found


@pytest.mark.parametrize("weights", [(), (0,), (0, 0)], ids=str)
def test_no_server_is_found_if_all_weights_are_0(weights):
    _, ranges = weight_ranges(*weights)
    assert ranges.first_usable([0, 1, 2], ()) is None


def test_next_number_is_taken_if_the_server_is_down_or_to_be_avoided_and_ranges_do_not_move():
    servers, ranges = weight_ranges(1, 1, 1)
    servers[0].state = AdminState.MAINT
    servers[0].refresh_state()
    ranges.state_changed(servers[0])
    assert ranges.first_usable([0, 1, 2], ()) is servers[1]
    assert ranges.first_usable([0, 1, 2], servers[1:2]) is servers[2]
    assert ranges.first_usable([0, 3, 1], servers[1:2]) is None
    assert [ranges.first_usable([number], ()) for number in range(3)] == [None, *servers[1:]]


def test_ranges_follow_a_changed_weight():
    servers, ranges = weight_ranges(1, 1)
    servers[0].weight = 3
    servers[0].refresh_state()
    ranges.state_changed(servers[0])
    assert [ranges.first_usable([number], ()) for number in range(4)] == [servers[0]] * 3 + [servers[1]]
