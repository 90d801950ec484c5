"""Which hashes another ring gives to another server, exactly.

A hash belongs to the nearest point. So only points of servers that differ matter, and the hashes between the points of
other servers next to them: a window. Within it, the owners on both rings are compared, piece by piece.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator
from itertools import pairwise
from typing import TypeAlias

from sticky_core.balance.algorithm import NO_SERVER
from sticky_core.balance.ring import Ring
from sticky_core.server.server import Server

#: the number of hashes that a server of one ring loses to a server of the other
MovedHashes: TypeAlias = Counter[tuple[Server, Server]]

#: how many hashes there are
HASHES = 1 << 32


def count_moved_hashes(before: Ring, after: Ring, changed: Container[Server]) -> MovedHashes | None:
    """Return how many of the 2^32 hashes go from one server to another if the ring `after` replaces `before`. None if
    only servers that differ have points. `changed`: the servers of either ring that differ in their points; all others
    have the same active points on both.
    """
    windows: set[tuple[int, int]] = set()
    for ring in (before, after):
        for position in ring.positions_of(changed):
            window = _window(before, position, changed)
            if window is None:
                return None
            windows.add(window)
            if window[1] == position:  # a point at the same position begins the next window
                windows.add(_window(before, (position + 1) % HASHES, changed) or window)
    moved: MovedHashes = Counter()
    for begin, end in windows:
        _compare(_pieces(before, begin, end), _pieces(after, begin, end), moved)
    return moved


def _window(ring: Ring, position: int, changed: Container[Server]) -> tuple[int, int] | None:
    """Return the positions of the last point before `position` and of the first from it on, of servers that are not
    `changed`. None if there are no such points.
    """
    end = next((end for end, server in ring.points_from(position) if server not in changed), None)
    begin = next((begin for begin, server in ring.points_before(position) if server not in changed), None)
    return (begin, end) if begin is not None and end is not None else None


def _pieces(ring: Ring, begin: int, end: int) -> Iterator[tuple[int, Server]]:
    """Yield the pieces of the hashes after `begin`, up to `end`, each with one owner: where it ends, as a distance from
    `begin`, and the owner. There are points at both positions.
    """
    length = (end - begin) % HASHES or HASHES
    points: list[tuple[int, Server]] = []
    for position, server in ring.points_from(begin):
        points.append(((position - begin) % HASHES, server))
        if points[-1][0] == length:
            break
    else:  # once around: `begin` is `end`
        points.append((length, points[0][1]))
    for (one, server), (next_one, next_server) in pairwise(points):
        if one != next_one:
            yield (one + next_one) // 2, server  # of two points equally near, the one before the hash is its owner
            yield next_one, next_server


def _compare(before: Iterator[tuple[int, Server]], after: Iterator[tuple[int, Server]], moved: MovedHashes) -> None:
    """Count the hashes of one window that have other owners. Both end at the same distance."""
    begin = end_before = end_after = 0
    was = now = NO_SERVER
    while True:
        if end_before == begin:
            end_before, was = next(before, (-1, was))
        if end_after == begin:
            end_after, now = next(after, (-1, now))
        end = min(end_before, end_after)
        if end < begin:
            return
        if was is not now:
            moved[was, now] += end - begin
        begin = end
