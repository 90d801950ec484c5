"""Which hashes move between two rings, against a look-up of every hash."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest

from sticky_core.balance.moved_hashes import HASHES, MovedHashes, count_moved_hashes
from sticky_core.balance.ring import Ring
from sticky_core.server.server import Server

# All points are at multiples of this, so all borders between two servers are at multiples of half of it: two steps
# differ only where both are cut, and every hash of a half has the same server.
STEP = HASHES // 32
HALF = STEP // 2


def build_ring(positions: Mapping[str, Sequence[int]], servers: Sequence[Server]) -> Ring:
    ring = Ring(servers, lambda number, count: positions[servers[number].name][:count])
    for number, server in enumerate(servers):
        ring.resize(number, len(positions[server.name]))
    ring.rebuild()
    return ring


def look_up_every_hash(before: Ring, after: Ring) -> MovedHashes:
    moved: MovedHashes = Counter()
    for border in range(0, HASHES, HALF):
        was, now = (ring.server_of(ring.nearest(border + 1)) for ring in (before, after))
        if was is not now:
            moved[was, now] += HALF
    return moved


def draw_positions(rng: random.Random) -> list[int]:
    return [rng.randrange(32) * STEP for _ in range(rng.randint(0, 4))]


@pytest.mark.parametrize("seed", range(60))
def test_the_hashes_that_move_are_those_with_another_server(seed: int):
    rng = random.Random(seed)
    servers = [Server(f"s{number}", "http://localhost") for number in range(rng.randint(3, 6))]
    removed, reweighted, added, *_ = servers
    positions = {server.name: draw_positions(rng) for server in servers}
    positions_after = {**positions, reweighted.name: draw_positions(rng)}
    before = build_ring(positions, [server for server in servers if server is not added])
    after = build_ring(positions_after, [server for server in servers if server is not removed])
    moved = count_moved_hashes(before, after, {removed, reweighted, added})
    kept = {position for server in servers[3:] for position in positions[server.name]}
    if not kept:
        assert moved is None
    elif len(kept) > 1:
        assert moved == look_up_every_hash(before, after)


def test_nothing_moves_where_nothing_differs():
    servers = [Server(f"s{number}", "http://localhost") for number in range(3)]
    ring = build_ring({"s0": [STEP], "s1": [2 * STEP, 9 * STEP], "s2": [5 * STEP]}, servers)
    assert count_moved_hashes(ring, ring, ()) == count_moved_hashes(ring, ring, {servers[1]}) == {}


def test_a_server_that_is_removed_leaves_its_hashes_to_those_next_to_each_point():
    one, two, gone = servers = [Server(name, "http://localhost") for name in ("one", "two", "gone")]
    positions = {"one": [0], "two": [16 * STEP], "gone": [8 * STEP]}
    before, after = build_ring(positions, servers), build_ring(positions, [one, two])
    assert count_moved_hashes(before, after, {gone}) == {(gone, one): 4 * STEP, (gone, two): 4 * STEP}
