"""A ring of 2^32 positions on which each server has points; the points next to a hash decide its server. When a server
is removed, only its keys move; when it returns, only these move back.

The points of a server are always the same and in a fixed order; its weight decides how many of them, from the first on,
are active. Inactive points stay on the ring and are skipped, so it costs nothing if a server is disabled or enabled, or
if its weight falls. When a weight exceeds its former maximum, or a server is added, the new points are inserted one by
one, or, if they are many, sorted in with all others. When most points are inactive, the ring is rebuilt without them.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Callable, Container, Iterator, Sequence
from copy import copy

from sticky_core.balance.algorithm import NO_SERVER
from sticky_core.errors import ConfigError
from sticky_core.server.server import Server

# A point is one number: its position (32 bits), the number of its server (16), its number among the points of that
# server (16). So points sort as numbers, and an array holds them in 64 bits each.
_POSITION, _SERVER = 32, 16
_LOW = 0xFFFF
MAX_SERVERS = 1 << 16
_STRETCH = 8  # about how many points a look-up bisects; an index on the upper bits finds them
# Points are inserted one by one if they are at most this share of all; otherwise sorting is quicker. The index is
# renewed after as many: until then a look-up bisects so many more, which is a few steps.
_FEW = 1 / 64


class Ring:
    """Points of servers. `points(number, count)` returns the positions of the first `count` points of a server."""

    def __init__(self, servers: Sequence[Server], points: Callable[[int, int], Sequence[int]]) -> None:
        if len(servers) > MAX_SERVERS:
            raise ConfigError(f"a consistent hash takes at most {MAX_SERVERS} servers, and these are {len(servers)}")
        self.servers = list(servers)  #: by number; the number of a server that was removed may be given to another
        self._free_numbers: list[int] = []
        self._points_of = points
        self._points = array("Q")
        self._active = [0] * len(servers)  # how many points of each server are active
        self._stored = [0] * len(servers)  # and how many are on the ring
        self.active_count = 0  #: how many points are active, of all servers
        self._index = array("I", (0, 0))  # the first point of each stretch of the ring
        self._shift = 32
        self._shifted = 0  # how many points were inserted and removed since the index was made
        self._stale = False
        self._invalid: set[int] = set()

    def copy(self, points: Callable[[int, int], Sequence[int]]) -> Ring:
        """Return a copy that may be given other servers. `points`: as in the constructor."""
        ring = copy(self)
        ring._points_of = points
        ring.servers, ring._free_numbers = [*self.servers], [*self._free_numbers]
        ring._active, ring._stored, ring._invalid = [*self._active], [*self._stored], {*self._invalid}
        ring._points = self._points[:]
        return ring

    def __len__(self) -> int:
        """The number of points, inactive ones included."""
        return len(self._points)

    def resize(self, number: int, count: int) -> None:
        """Make the first `count` points of a server active."""
        self.active_count += count - self._active[number]
        self._active[number] = count
        if self.active_count * 2 < len(self):
            self._stale = True
        elif count > self._stored[number] and not self._stale:
            missing = self._numbered_points(number, self._stored[number], count)
            if self._has_space_for(missing):
                for point in missing:
                    insort(self._points, point)
                self._stored[number] = count

    def add(self, server: Server) -> int:
        """Add a server without points, and return its number."""
        number = self._free_numbers.pop() if self._free_numbers else len(self.servers)
        if number >= MAX_SERVERS:
            raise ConfigError(f"a consistent hash takes at most {MAX_SERVERS} servers: remove some before you add more")
        self.servers[number : number + 1] = [server]
        self._active[number : number + 1] = self._stored[number : number + 1] = [0]
        return number

    def remove(self, number: int) -> None:
        """Remove a server with its points."""
        points = self._numbered_points(number, 0, self._stored[number])
        self.active_count -= self._active[number]
        self._active[number] = 0
        if self._stale or not self._has_space_for(points):
            self.invalidate_points(number)
        else:
            for point in points:
                del self._points[bisect_left(self._points, point)]
            self._stored[number] = 0
        self.servers[number] = NO_SERVER
        self._free_numbers.append(number)

    def _numbered_points(self, number: int, begin: int, end: int) -> list[int]:
        """Return the points of a server from `begin` to `end`, as they are stored."""
        positions = self._points_of(number, end) if begin < end else ()
        server = number << _SERVER
        return [positions[nth] << _POSITION | server | nth for nth in range(begin, end)]

    def _has_space_for(self, points: Sequence[int]) -> bool:
        """Return whether these points can be inserted or removed one by one; if not, the ring is stale."""
        self._shifted += len(points)
        self._stale = self._shifted > len(self) * _FEW
        return not self._stale

    def invalidate_points(self, number: int) -> None:
        """The points of a server have new positions: compute them again."""
        self._invalid.add(number)
        self._stored[number] = 0
        self._stale = True

    def rebuild(self) -> None:
        """Sort in the points that are missing. Called when the servers are known, so that no request has to wait."""
        self._stale = False
        if self._invalid:
            kept = (point for point in self._points if point >> _SERVER & _LOW not in self._invalid)
            self._points = array("Q", kept)
            self._invalid.clear()
        if self.active_count * 2 < len(self):
            self._stored = [0] * len(self.servers)
            self._points = array("Q")
        points = self._points.tolist()
        for number, (stored, count) in enumerate(zip(self._stored, self._active, strict=True)):
            if count > stored:
                points += self._numbered_points(number, stored, count)
                self._stored[number] = count
        points.sort()
        self._points = array("Q", points)
        bits = max(len(points) // _STRETCH, 1).bit_length()
        self._shift = 32 - bits
        begins = (bisect_left(points, stretch << self._shift + _POSITION) for stretch in range(1 << bits))
        self._index = array("I", [*begins, len(points)])
        self._shifted = 0

    def at_or_after(self, digest: int) -> int:
        """Return the first active point from `digest` on. There has to be one."""
        if self._stale:
            self.rebuild()
        stretch = digest >> self._shift
        begin, end = self._index[stretch], self._index[stretch + 1]
        if self._shifted:
            begin, end = max(begin - self._shifted, 0), min(end + self._shifted, len(self._points))
        at = bisect_left(self._points, digest << _POSITION, begin, end)
        if at == len(self._points):
            at = 0
        point = self._points[at]
        return at if point & _LOW < self._active[point >> _SERVER & _LOW] else self.next_point(at)

    def server_at_or_after(self, digest: int) -> Server:
        """Return the server of the point that `at_or_after` finds. Written out, since two calls would slow down each
        choice.
        """
        if self._stale or self._shifted:
            return self.server_of(self.at_or_after(digest))
        points, index, stretch = self._points, self._index, digest >> self._shift
        at = bisect_left(points, digest << _POSITION, index[stretch], index[stretch + 1])
        point = points[at] if at < len(points) else points[0]
        number = point >> _SERVER & _LOW
        return self.servers[number] if point & _LOW < self._active[number] else self.server_of(self.next_point(at))

    def nearest(self, digest: int) -> int:
        """Return the active point nearest to `digest`; of two equally near ones, the one before it."""
        after = self.at_or_after(digest)
        points, count = self._points, self._active
        before = after - 1  # negative indices continue around the ring
        point = points[before]
        while point & _LOW >= count[point >> _SERVER & _LOW]:
            before -= 1
            point = points[before]
        if (digest - (point >> _POSITION)) & 0xFFFFFFFF <= ((points[after] >> _POSITION) - digest) & 0xFFFFFFFF:
            return before if before >= 0 else before + len(points)
        return after

    def next_point(self, at: int) -> int:
        """Return the next active point after `at`."""
        if self._stale:
            self.rebuild()
        points, count = self._points, self._active
        for step in range(at + 1, at + 1 + len(points)):
            at = step % len(points)
            point = points[at]
            if point & _LOW < count[point >> _SERVER & _LOW]:
                break
        return at

    def active_count_of(self, servers: Container[Server]) -> int:
        """Return how many points of some servers are active."""
        return sum(count for server, count in zip(self.servers, self._active, strict=True) if server in servers)

    def positions_of(self, servers: Container[Server]) -> Iterator[int]:
        """Yield the positions of the active points of some servers."""
        for number, server in enumerate(self.servers):
            if self._active[number] and server in servers:
                yield from self._points_of(number, self._active[number])

    def points_from(self, position: int) -> Iterator[tuple[int, Server]]:
        """Yield the positions and servers of the active points, once around the ring, from `position` on."""
        if self.active_count:
            at = self.at_or_after(position)
            for _ in range(self.active_count):
                yield self._points[at] >> _POSITION, self.server_of(at)
                at = self.next_point(at)

    def points_before(self, position: int) -> Iterator[tuple[int, Server]]:
        """Yield the same in the opposite direction, beginning before `position`."""
        if self.active_count:
            at = self.at_or_after(position)
            for _ in range(len(self._points)):
                at -= 1  # negative indices continue around the ring
                point = self._points[at]
                if point & _LOW < self._active[point >> _SERVER & _LOW]:
                    yield point >> _POSITION, self.server_of(at)

    def server_of(self, at: int) -> Server:
        """Return the server of the point `at`."""
        return self.servers[self._points[at] >> _SERVER & _LOW]

    def servers_after(self, at: int) -> Iterator[Server]:
        """Yield the servers of the active points after `at`, once around the ring."""
        for _ in range(self.active_count):
            at = self.next_point(at)
            yield self.server_of(at)
