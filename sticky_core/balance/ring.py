"""A circle of 2^32 places on which each server has points; a hash falls somewhere, and the points nearby say where it
belongs. When a server goes, its keys alone move; when it comes back, they do.

A server's points are always the same and in a fixed order, of which as many count as its weight says. Points that do
not count stay where they are and are walked past, so a server that goes or comes, or weighs less, costs nothing; one
that weighs more than ever before has its new points sorted in. When most do not count, the circle is made anew.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

from sticky_core.errors import ConfigError
from sticky_core.server.server import Server

# A point is one number: where it is (32 bits), whose it is (16), which of its owner's points (16). As such they sort,
# and as 64 bits they lie side by side.
_WHERE, _OWNER = 32, 16
_LOW = 0xFFFF
MOST_SERVERS = 1 << 16
_TOGETHER = 8  # about how many points a look-up bisects: an index on the upper bits leads there


class Ring:
    """Points of servers. `points(number, count)`: where the first `count` of the `number`th server's are."""

    def __init__(self, servers: Sequence[Server], points: Callable[[int, int], Sequence[int]]) -> None:
        if len(servers) > MOST_SERVERS:
            raise ConfigError(f"a ring has room for {MOST_SERVERS} servers, and these are {len(servers)}")
        self.servers = servers
        self._points_of = points
        self._points = array("Q")
        self._count = [0] * len(servers)  # how many of each server's points count
        self._placed = [0] * len(servers)  # and how many are there
        self.counting = 0  #: how many points count, of all servers
        self._index = array("I", (0, 0))  # at which point each stretch of the circle begins
        self._shift = 32
        self._stale = False
        self._misplaced: set[int] = set()

    def __len__(self) -> int:
        """How many points there are, those that do not count among them."""
        return len(self._points)

    def resize(self, number: int, count: int) -> None:
        """Let the first `count` points of a server count."""
        self.counting += count - self._count[number]
        self._count[number] = count
        if count > self._placed[number] or self.counting * 2 < len(self):
            self._stale = True

    def misplace(self, number: int) -> None:
        """A server's points are elsewhere from now on."""
        self._misplaced.add(number)
        self._placed[number] = 0
        self._stale = True

    def settle(self) -> None:
        """Put those points into place that are not: best before somebody waits for it."""
        self._stale = False
        if self._misplaced:
            stay = (point for point in self._points if point >> _OWNER & _LOW not in self._misplaced)
            self._points = array("Q", stay)
            self._misplaced.clear()
        if self.counting * 2 < len(self):
            self._placed = [0] * len(self.servers)
            self._points = array("Q")
        points = self._points.tolist()
        for number, (placed, count) in enumerate(zip(self._placed, self._count, strict=True)):
            if count > placed:
                where = self._points_of(number, count)
                owner = number << _OWNER
                points += [where[nth] << _WHERE | owner | nth for nth in range(placed, count)]
                self._placed[number] = count
        points.sort()
        self._points = array("Q", points)
        bits = max(len(points) // _TOGETHER, 1).bit_length()
        self._shift = 32 - bits
        begins = (bisect_left(points, stretch << self._shift + _WHERE) for stretch in range(1 << bits))
        self._index = array("I", [*begins, len(points)])

    def at_or_after(self, digest: int) -> int:
        """The first point that counts from `digest` on. There has to be one."""
        if self._stale:
            self.settle()
        stretch = digest >> self._shift
        at = bisect_left(self._points, digest << _WHERE, self._index[stretch], self._index[stretch + 1])
        if at == len(self._points):
            at = 0
        point = self._points[at]
        return at if point & _LOW < self._count[point >> _OWNER & _LOW] else self.next(at)

    def first_owner(self, digest: int) -> Server:
        """Whose point `at_or_after` finds: the same in line, for two calls would be felt in each choice."""
        if self._stale:
            self.settle()
        points, index, stretch = self._points, self._index, digest >> self._shift
        at = bisect_left(points, digest << _WHERE, index[stretch], index[stretch + 1])
        point = points[at] if at < len(points) else points[0]
        owner = point >> _OWNER & _LOW
        return self.servers[owner] if point & _LOW < self._count[owner] else self.owner(self.next(at))

    def nearest(self, digest: int) -> int:
        """The point that counts and is nearest to `digest`; of two as near, the one before it."""
        after = self.at_or_after(digest)
        points, count = self._points, self._count
        before = after - 1  # below 0 the numbers go on around the circle
        point = points[before]
        while point & _LOW >= count[point >> _OWNER & _LOW]:
            before -= 1
            point = points[before]
        if (digest - (point >> _WHERE)) & 0xFFFFFFFF <= ((points[after] >> _WHERE) - digest) & 0xFFFFFFFF:
            return before if before >= 0 else before + len(points)
        return after

    def next(self, at: int) -> int:
        """The next point that counts."""
        if self._stale:
            self.settle()
        points, count = self._points, self._count
        for step in range(at + 1, at + 1 + len(points)):
            at = step % len(points)
            point = points[at]
            if point & _LOW < count[point >> _OWNER & _LOW]:
                break
        return at

    def owner(self, at: int) -> Server:
        """Whose point that is."""
        return self.servers[self._points[at] >> _OWNER & _LOW]

    def owners(self, at: int) -> Iterator[Server]:
        """Whose points come behind it, once around the circle."""
        for _ in range(self.counting):
            at = self.next(at)
            yield self.owner(at)
