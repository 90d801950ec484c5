"""Entries: what a stick table keeps in memory, in the order in which it was used, for millions of keys.

A key's place in the dictionary holds no object of its own: it points to a cell that all entries share which name the
same server and were used last in the same stretch of time, an `_Age`. To use an entry again within the stretch changes
nothing; later, it is pointed to another cell, which moves nothing either. Each age queues the keys that came in it;
when the oldest is looked at, those of its keys that were used since are queued anew, where they belong by now. So
nothing walks the table, an entry costs its key and three pointers, and garbage collection finds one pointer to follow.

The price: time is known to an eighth of `expire`. An entry lives for at least `expire` after it was used, and for an
eighth of it longer at most; of two that were used within the same eighth either may be purged first.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable, Iterator
from math import inf
from typing import Any, Generic, TypeVar

from sticky_core.fork import register

K = TypeVar("K", bound=Hashable)

#: in how many parts `expire` is divided, and how many uses, as a part of the size, begin a new age
PARTS = 8
#: ages that uses have begun: no more than so many, so that there is an end to them where nothing is ever purged
MAX_GENERATIONS = 32
#: Below, one dictionary. Above, the growth of a single one would hold up whoever is served meanwhile.
_SMALL = 4096
_SHARDS = 256
#: Keys that one call looks at: to let those go that have expired, by the way; and to find one to purge.
_SWEPT = 64
_SEARCHED = 1024
#: So many keys of a queue stand together. The first collection looks into all bundles that came since the last, some
#: hundred: with more in each it takes too long, with fewer they take too much room.
_BUNDLE = 16
#: the server of an entry that was forgotten
_NOBODY = ""


class EntryCell:
    """What entries say that name the same `server` and are of the same age: used last after `began`, if not since."""

    __slots__ = ("age", "began", "replacement", "server")

    def __init__(self, server: str, age: _Generation[Any]) -> None:
        self.server = server
        self.began = age.began
        self.age = age
        self.replacement: EntryCell = self  # the latest to which entries were moved that were used again


class _KeyQueue(Generic[K]):
    """Keys in a queue. Most stand in tuples: garbage collection looks once into a tuple of texts or numbers, and into a
    deque of them each time, which doubles what a table costs it.
    """

    __slots__ = ("_bundles", "_first", "_last")

    def __init__(self) -> None:
        self._first: deque[K] = deque()
        self._bundles: deque[tuple[K, ...]] = deque()
        self._last: deque[K] = deque()

    def append(self, key: K) -> None:
        last = self._last
        last.append(key)
        if len(last) == _BUNDLE:
            self._bundles.append(tuple(last))
            last.clear()

    def __len__(self) -> int:
        return len(self._first) + len(self._bundles) * _BUNDLE + len(self._last)

    @property
    def front(self) -> deque[K]:
        """The keys whose turn is next, to be taken out from the left; empty if there are none at all."""
        if not self._first:
            if self._bundles:
                self._first.extend(self._bundles.popleft())
            else:
                self._first, self._last = self._last, self._first
        return self._first


class _Generation(Generic[K]):
    """A stretch of time."""

    __slots__ = ("began", "cells", "count", "keys", "until")

    def __init__(self, began: float, until: float) -> None:
        self.began = began
        self.until = until  # when its entries expire
        self.count = 0  # entries that were used last in it
        self.keys: _KeyQueue[K] = _KeyQueue()
        self.cells: dict[str, EntryCell] = {}  # by server

    def cell(self, server: str) -> EntryCell:
        cell = self.cells.get(server)
        if cell is None:
            cell = self.cells[server] = EntryCell(server, self)
        return cell


class Entries(Generic[K]):
    """At most `size` entries, key → server; used ones live for `expire` seconds (inf: for ever). When it is full the
    oldest unused go first; with `nopurge` new ones are refused instead.

    `by_use`: whether the order in which entries were used is known more closely than to an eighth of `expire`: to an
    eighth of `size`. Times are those of one monotonic clock. Safe to use from any thread, and after a fork.
    """

    def __init__(self, size: int, expire: float = inf, *, nopurge: bool = False, by_use: bool = True) -> None:
        self.size = size
        self.expire = expire
        self.step = expire / PARTS
        self._nopurge = nopurge
        self._most_uses = max(1, size // PARTS) if by_use else inf
        self._most_held = 2 * size + _SWEPT  # so that those who come and are forgotten push nobody out
        self._slack = size // _SEARCHED  # by so much `size` may be exceeded, while it takes more than one call to purge
        self._mask = (1 if size <= _SMALL else _SHARDS) - 1
        self._lock = threading.Lock()
        self.clear()
        register(self)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._shards: list[dict[K, EntryCell]] = [{} for _ in range(self._mask + 1)]
            self._generations: deque[_Generation[K]] = deque()
            self._young: _Generation[K] = _Generation(-inf, -inf)
            self._next = -inf  # the first use begins an age of its own
            self._enough = self._most_uses  # entries of the youngest age, after which another begins
            self._hurries = False
            self._queued = 0  # keys in the queues, those included that were forgotten and are not swept yet
            self._live = 0

    def get(self, key: K, now: float) -> str | None:
        """The server of `key`, which is used now; None if there is no such entry."""
        cell = self.use(key, now)
        return cell.server if cell is not None else None

    def use(self, key: K, now: float) -> EntryCell | None:
        """The entry of `key` as it was, which is used now; None if there is no such entry."""
        with self._lock:
            if now >= self._next:
                self._turn(now)
            shard = self._shards[hash(key) & self._mask]
            cell = shard.get(key)
            if cell is None or not cell.server:
                return None
            age, young = cell.age, self._young
            if age is young:
                return cell
            if now >= age.until:
                self._void(key, cell)
                return None
            if young.count >= self._enough:
                self._begin(now)
                young = self._young
            if self._hurries:
                self._sweep(now, _SWEPT)
            heir = cell.replacement
            if heir.age is not young:
                heir = cell.replacement = young.cell(cell.server)
            shard[key] = heir
            age.count -= 1
            young.count += 1
            return cell

    def peek(self, key: K, now: float) -> str | None:
        """The same without using it."""
        cell = self._shards[hash(key) & self._mask].get(key)
        return (cell.server or None) if cell is not None and now < cell.age.until else None

    def put(self, key: K, server: str, now: float) -> bool:
        """Remember `server` for `key`. False: there is no room, and none is made."""
        with self._lock:
            self._turn(now)
            return self._put(key, server, now)

    def reserve(self, key: K, server: str, now: float, was: str | None = None) -> str:
        """Remember `server` for `key` unless that has one already that is not `was`: whose it is."""
        with self._lock:
            self._turn(now)
            cell = self._shards[hash(key) & self._mask].get(key)
            if cell is not None and cell.server and cell.server != was and now < cell.age.until:
                return cell.server
            self._put(key, server, now)
            return server

    def forget(self, key: K, server: str | None = None) -> bool:
        """Drop the entry of `key`, if it names `server` or that is None: whether there was one."""
        with self._lock:
            cell = self._shards[hash(key) & self._mask].get(key)
            if cell is None or not cell.server or (server is not None and cell.server != server):
                return False
            self._void(key, cell)
            return True

    def __len__(self) -> int:
        """How many entries there are, those that have just expired included."""
        with self._lock:
            return self._live

    def items(self, now: float) -> Iterator[tuple[K, str, float]]:
        """All entries: key, server, and in how many seconds it expires at the earliest. Others may come and go
        meanwhile.
        """
        for shard in self._shards:
            with self._lock:
                found = list(shard.items())
            for key, cell in found:
                if cell.server and now < cell.age.until:
                    yield key, cell.server, max(cell.age.began + self.expire - now, 0.0)

    def after_fork(self) -> None:
        self._lock = threading.Lock()

    def _put(self, key: K, server: str, now: float) -> bool:
        shard = self._shards[hash(key) & self._mask]
        cell = shard.get(key)
        if cell is None or not cell.server:
            if (self._live >= self.size or self._queued >= self._most_held) and not self._has_made_room(now):
                return False
            self._live += 1
            if key not in shard:
                self._queued += 1
                self._young.keys.append(key)
        else:
            cell.age.count -= 1
        self._point(shard, key, server)
        return True

    def _point(self, shard: dict[K, EntryCell], key: K, server: str) -> None:
        young = self._young
        shard[key] = young.cell(server)
        young.count += 1

    def _void(self, key: K, cell: EntryCell) -> None:
        """What is queued stays known until its turn comes, lest it be queued twice."""
        cell.age.count -= 1
        self._live -= 1
        self._shards[hash(key) & self._mask][key] = cell.age.cell(_NOBODY)

    def _turn(self, now: float) -> None:
        """Begin a new age if it is time, and let go of some that has expired."""
        self._begin(now)
        self._sweep(now, _SWEPT)

    def _begin(self, now: float) -> None:
        if now >= self._next or (self._young.count >= self._enough and self._has_few_ages()):
            self._young = _Generation(now, now + self.step + self.expire)
            self._next = now + self.step
            self._enough = self._most_uses
            self._generations.append(self._young)
            # else who is used again is queued anew but once, when the turn comes to who puts
            self._hurries = len(self._generations) > MAX_GENERATIONS // 2

    def _has_few_ages(self) -> bool:
        """Whether there may be one more, now that enough uses have been seen."""
        if len(self._generations) >= MAX_GENERATIONS:
            self._generations = deque(age for age in self._generations if age.keys or age.count or age is self._young)
        self._enough += self._most_uses
        return len(self._generations) < MAX_GENERATIONS

    def _sweep(self, now: float, most: float) -> bool:
        """Look at `most` of the oldest keys: queue those where they belong that were used since, and drop those that
        are of no use. Whether what is then in front is the oldest of all.
        """
        ages = self._generations
        while ages:
            age = ages[0]
            while keys := age.keys.front:
                if not most:
                    return False
                most -= 1
                key = keys[0]
                shard = self._shards[hash(key) & self._mask]
                cell = shard[key]
                if cell.server and cell.age is not age:
                    cell.age.keys.append(key)
                elif not cell.server or now >= age.until:
                    self._drop(shard, key, cell)
                else:
                    return True
                keys.popleft()
            if age is self._young:
                break
            ages.popleft()  # its entries would be queued in it, or before
        return False

    def _drop(self, shard: dict[K, EntryCell], key: K, cell: EntryCell) -> None:
        del shard[key]
        self._queued -= 1
        if cell.server:
            cell.age.count -= 1
            self._live -= 1

    def _has_made_room(self, now: float) -> bool:
        found = self._sweep(now, _SEARCHED)
        if self._live < self.size and self._queued < self._most_held:
            return True
        if self._nopurge:
            return False
        if not found:
            if self._live < self.size + self._slack and self._queued < self._most_held:
                return True
            if not self._sweep(now, inf):
                return True
        key = self._generations[0].keys.front.popleft()
        shard = self._shards[hash(key) & self._mask]
        self._drop(shard, key, shard[key])
        return True
