"""The ring of consistent hashing against a plain model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.balance.avalanche import avalanche
from sticky_core.balance.ring import Ring
from sticky_core.errors import ConfigError
from sticky_core.server.server import Server

MAP, RING = "map-based sdbm avalanche", "consistent"


def nearest(points: dict[int, str], digest: int) -> str:
    """As HAProxy has it, looking at all points."""
    behind = min(points, key=lambda where: (where - digest) % 2**32)
    before = min(points, key=lambda where: (digest - where) % 2**32)
    return points[before if (digest - before) % 2**32 <= (behind - digest) % 2**32 else behind]


places = st.integers(0, 2**32 - 1)


@given(
    points=st.lists(st.lists(places, min_size=1, max_size=5, unique=True), min_size=1, max_size=4),
    steps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.lists(places, max_size=6)), max_size=12),
)
def test_a_ring_finds_the_nearest_point_whatever_has_changed(points, steps):
    flat = [where for each in points for where in each]
    if len(set(flat)) < len(flat):
        return  # which server gets a point that two have is undefined
    servers = [Server(f"s{number}", "http://localhost") for number in range(len(points))]
    ring = Ring(servers, lambda number, count: points[number][:count])
    counts = [0] * len(points)
    for which, count, digests in steps:
        which %= len(points)
        counts[which] = min(count, len(points[which]))
        ring.resize(which, counts[which])
        now = {
            where: server.name
            for server, each, counting in zip(servers, points, counts, strict=True)
            for where in each[:counting]
        }
        assert ring.active_count == len(now)
        if not now:
            continue
        for digest in (*digests, *now):
            assert ring.server_of(ring.nearest(digest)).name == nearest(now, digest)
            at = ring.at_or_after(digest)
            behind = min(now, key=lambda where: (where - digest) % 2**32)
            assert ring.server_of(at).name == ring.server_at_or_after(digest).name == now[behind]
            around = sorted(now, key=lambda where: (where - behind - 1) % 2**32)
            assert [owner.name for owner in ring.servers_after(at)] == [now[where] for where in around]


@pytest.mark.parametrize(
    "digest, owner",
    [
        pytest.param(10, "s0", id="on a point"),
        pytest.param(14, "s0", id="nearer to the one before"),
        pytest.param(15, "s0", id="equally near to both: the one before"),
        pytest.param(16, "s1", id="nearer to the one after"),
        pytest.param(2**31, "s1", id="beyond the last"),
        pytest.param(2**32 - 1, "s0", id="nearer around the end"),
        pytest.param(0, "s0", id="before the first"),
    ],
)
def test_the_nearest_point_gets_a_hash(digest, owner):
    servers = [Server("s0", "http://localhost"), Server("s1", "http://localhost")]
    ring = Ring(servers, lambda number, count: [[10], [20]][number])
    ring.resize(0, 1)
    ring.resize(1, 1)
    assert ring.server_of(ring.nearest(digest)).name == owner


def test_a_ring_with_mostly_inactive_points_is_rebuilt():
    servers = [Server(f"s{number}", "http://localhost") for number in range(10)]
    ring = Ring(servers, lambda number, count: [avalanche(number * 4096 + nth) for nth in range(count)])
    for number in range(10):
        ring.resize(number, 100)
    ring.rebuild()
    for number in range(9):
        ring.resize(number, 0)
        assert ring.server_of(ring.nearest(0)) in servers[number + 1 :]
        assert len(ring) <= 2 * ring.active_count
    for number in range(9):
        ring.resize(number, 100)
    assert ring.server_of(ring.nearest(avalanche(5 * 4096))) is servers[5]
    assert len(ring) == ring.active_count == 1000


def test_a_ring_with_too_many_servers_is_refused():
    with pytest.raises(ConfigError, match="takes at most 65536 servers, and these are 65537"):
        Ring([Server("s", "http://localhost")] * 65537, lambda number, count: [0] * count)
