"""Entries: what a stick table keeps in memory, in the order in which it was used, for millions of keys.

The dictionary maps a key to a *cell*. Entries share cells: all entries with the same server that were used last in the
same stretch of time, a *generation*, have one cell. A further use of an entry in that generation changes nothing; a use
in a later generation makes the key refer to another cell, and moves nothing. Each generation queues the keys that were
added in it. When the oldest generation is swept, those of its keys that were used since are queued anew, in the
generation of their last use. So no operation walks through the whole table, an entry costs its key and three pointers,
and garbage collection follows one pointer.

The price: time is known to an eighth of `expire`. An entry lives for at least `expire` after its last use, and for an
eighth of it longer at most; of two entries that were used within the same eighth, either may be purged first.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable, Iterator
from math import inf
from typing import Any, Generic, TypeVar

from sticky_core.fork import register

K = TypeVar("K", bound=Hashable)

#: `expire` and `size` are divided into this many parts: one part of the time, or so many uses, begin a new generation
PARTS = 8
#: Uses begin no more generations than this: where nothing is ever purged, their number would grow without end.
MAX_GENERATIONS = 32
#: A table of up to so many entries is one dictionary. A larger one is split: when a large dictionary grows, the request
#: that adds an entry waits.
_SMALL = 4096
_SHARDS = 256
#: How many keys one call visits at most: to drop expired ones beside its own work, and to find one to purge.
_SWEEP_LIMIT = 64
_PURGE_LIMIT = 1024
#: How many keys of a queue are in one tuple. Garbage collection of the youngest objects visits some hundred new tuples:
#: with more keys in each it takes too long, with fewer the tuples take too much memory.
_BUNDLE = 16
#: the "server" of an entry that was deleted
_TOMBSTONE = ""


class EntryCell:
    """What the entries with the same `server` and of the same generation share. `began`: when the generation began, so
    that their last use was after that.
    """

    __slots__ = ("began", "generation", "replacement", "server")

    def __init__(self, server: str, generation: _Generation[Any]) -> None:
        self.server = server
        self.began = generation.began
        self.generation = generation
        self.replacement: EntryCell = self  # the cell that entries got last when they were used again


class _KeyQueue(Generic[K]):
    """A queue of keys. Most are in tuples: garbage collection visits a tuple of texts or numbers only once, but a deque
    each time, which would double the time that it spends on a table.
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
        """The next keys, to be removed from the left; empty if the queue is."""
        if not self._first:
            if self._bundles:
                self._first.extend(self._bundles.popleft())
            else:
                self._first, self._last = self._last, self._first
        return self._first


class _Generation(Generic[K]):
    """A stretch of time, and the entries that were used last in it."""

    __slots__ = ("began", "cells", "count", "keys", "until")

    def __init__(self, began: float, until: float) -> None:
        self.began = began
        self.until = until  # when its entries expire
        self.count = 0  # the number of its entries
        self.keys: _KeyQueue[K] = _KeyQueue()
        self.cells: dict[str, EntryCell] = {}  # by server

    def cell(self, server: str) -> EntryCell:
        cell = self.cells.get(server)
        if cell is None:
            cell = self.cells[server] = EntryCell(server, self)
        return cell


class Entries(Generic[K]):
    """At most `size` entries, key → server; each lives for `expire` seconds after its last use (inf: for ever). When it
    is full the oldest unused entry is purged; with `nopurge` new ones are refused instead.

    `by_use`: whether a new generation also begins after an eighth of `size` uses, so that the order of uses is known
    more closely than to an eighth of `expire`.
    Times are those of one monotonic clock. Safe to use from any thread, and after a fork.
    """

    def __init__(self, size: int, expire: float = inf, *, nopurge: bool = False, by_use: bool = True) -> None:
        self.size = size
        self.expire = expire
        self.step = expire / PARTS
        self._nopurge = nopurge
        self._max_uses = max(1, size // PARTS) if by_use else inf
        self._max_queued = 2 * size + _SWEEP_LIMIT  # keys that are added and deleted at once must not push out others
        self._slack = size // _PURGE_LIMIT  # how far `size` may be exceeded while a purge takes more than one call
        self._mask = (1 if size <= _SMALL else _SHARDS) - 1
        self._lock = threading.Lock()
        self.clear()
        register(self)

    def clear(self) -> None:
        """Delete all entries."""
        with self._lock:
            self._shards: list[dict[K, EntryCell]] = [{} for _ in range(self._mask + 1)]
            self._generations: deque[_Generation[K]] = deque()
            self._youngest: _Generation[K] = _Generation(-inf, -inf)
            self._next_begins = -inf  # the first use begins a generation
            self._uses_limit = self._max_uses  # with so many entries in the youngest generation another one begins
            self._sweeps_on_use = False
            self._queued = 0  # keys in the queues, tombstones included
            self._live = 0

    def get(self, key: K, now: float) -> str | None:
        """Return the server of `key`, and use the entry; None if there is none."""
        cell = self.use(key, now)
        return cell.server if cell is not None else None

    def use(self, key: K, now: float) -> EntryCell | None:
        """Return the cell of `key` as it was before, and use the entry; None if there is none."""
        cell = self._shards[hash(key) & self._mask].get(key)
        if cell is not None and cell.generation is self._youngest and now < self._next_begins and cell.server:
            return cell  # it was used in this generation already, so nothing changes, and no lock is needed
        with self._lock:
            if now >= self._next_begins:
                self._advance(now)
            shard = self._shards[hash(key) & self._mask]
            cell = shard.get(key)
            if cell is None or not cell.server:
                return None
            generation, youngest = cell.generation, self._youngest
            if generation is youngest:
                return cell
            if now >= generation.until:
                self._set_tombstone(key, cell)
                return None
            if youngest.count >= self._uses_limit:
                self._begin_generation(now)
                youngest = self._youngest
            if self._sweeps_on_use:
                self._sweep(now, _SWEEP_LIMIT)
            replacement = cell.replacement
            if replacement.generation is not youngest:
                replacement = cell.replacement = youngest.cell(cell.server)
            shard[key] = replacement
            generation.count -= 1
            youngest.count += 1
            return cell

    def peek(self, key: K, now: float) -> str | None:
        """Return the server of `key` without using the entry; None if there is none."""
        cell = self._shards[hash(key) & self._mask].get(key)
        return (cell.server or None) if cell is not None and now < cell.generation.until else None

    def put(self, key: K, server: str, now: float) -> bool:
        """Keep `server` for `key`. Return False if the table is full and nothing may be purged."""
        with self._lock:
            self._advance(now)
            return self._put(key, server, now)

    def reserve(self, key: K, server: str, now: float, previous: str | None = None) -> str:
        """Keep `server` for `key`, unless another server than `previous` is kept. Return the server that is kept."""
        with self._lock:
            self._advance(now)
            cell = self._shards[hash(key) & self._mask].get(key)
            if cell is not None and cell.server and cell.server != previous and now < cell.generation.until:
                return cell.server
            self._put(key, server, now)
            return server

    def forget(self, key: K, server: str | None = None) -> bool:
        """Delete the entry of `key`; with `server`, only if it is the entry's. Return whether an entry was deleted."""
        with self._lock:
            cell = self._shards[hash(key) & self._mask].get(key)
            if cell is None or not cell.server or (server is not None and cell.server != server):
                return False
            self._set_tombstone(key, cell)
            return True

    def __len__(self) -> int:
        """Return the number of entries, including expired ones that are not dropped yet."""
        with self._lock:
            return self._live

    def items(self, now: float) -> Iterator[tuple[K, str, float]]:
        """Yield all entries: key, server, and in how many seconds the entry expires at the earliest. Entries may be
        added and removed meanwhile.
        """
        for shard in self._shards:
            with self._lock:
                found = list(shard.items())
            for key, cell in found:
                if cell.server and now < cell.generation.until:
                    yield key, cell.server, max(cell.generation.began + self.expire - now, 0.0)

    def after_fork(self) -> None:
        self._lock = threading.Lock()

    def _put(self, key: K, server: str, now: float) -> bool:
        shard = self._shards[hash(key) & self._mask]
        cell = shard.get(key)
        if cell is None or not cell.server:
            if (self._live >= self.size or self._queued >= self._max_queued) and not self._make_space(now):
                return False
            self._live += 1
            if key not in shard:
                self._queued += 1
                self._youngest.keys.append(key)
        else:
            cell.generation.count -= 1
        self._set_cell(shard, key, server)
        return True

    def _set_cell(self, shard: dict[K, EntryCell], key: K, server: str) -> None:
        youngest = self._youngest
        shard[key] = youngest.cell(server)
        youngest.count += 1

    def _set_tombstone(self, key: K, cell: EntryCell) -> None:
        """Replace an entry by a tombstone: its key is in a queue until it is swept, and must not be queued twice."""
        cell.generation.count -= 1
        self._live -= 1
        self._shards[hash(key) & self._mask][key] = cell.generation.cell(_TOMBSTONE)

    def _advance(self, now: float) -> None:
        """Begin a new generation if it is time, and drop some expired entries."""
        self._begin_generation(now)
        self._sweep(now, _SWEEP_LIMIT)

    def _begin_generation(self, now: float) -> None:
        """Begin a new generation if it is time, or if the youngest has enough entries."""
        if now >= self._next_begins or (self._youngest.count >= self._uses_limit and self._may_begin_by_use()):
            self._youngest = _Generation(now, now + self.step + self.expire)
            self._next_begins = now + self.step
            self._uses_limit = self._max_uses
            self._generations.append(self._youngest)
            # otherwise only a `put` would queue keys anew that were used again, many at once
            self._sweeps_on_use = len(self._generations) > MAX_GENERATIONS // 2

    def _may_begin_by_use(self) -> bool:
        """Return whether uses may begin one more generation (`MAX_GENERATIONS`). The limit of uses is raised, so that
        this is called again only after as many further uses.
        """
        if len(self._generations) >= MAX_GENERATIONS:
            self._generations = deque(
                each for each in self._generations if each.keys or each.count or each is self._youngest
            )
        self._uses_limit += self._max_uses
        return len(self._generations) < MAX_GENERATIONS

    def _sweep(self, now: float, limit: float) -> bool:
        """Visit up to `limit` keys, oldest first: queue those that were used since anew, in the generation of their
        last use, and drop expired ones and tombstones. Return whether the key that is then in front is the oldest of
        all.
        """
        generations = self._generations
        while generations:
            oldest = generations[0]
            while keys := oldest.keys.front:
                if not limit:
                    return False
                limit -= 1
                key = keys[0]
                shard = self._shards[hash(key) & self._mask]
                cell = shard[key]
                if cell.server and cell.generation is not oldest:
                    cell.generation.keys.append(key)
                elif not cell.server or now >= oldest.until:
                    self._drop(shard, key, cell)
                else:
                    return True
                keys.popleft()
            if oldest is self._youngest:
                break
            generations.popleft()  # it has no entries without queued keys: each is queued in it, or in an older one
        return False

    def _drop(self, shard: dict[K, EntryCell], key: K, cell: EntryCell) -> None:
        del shard[key]
        self._queued -= 1
        if cell.server:
            cell.generation.count -= 1
            self._live -= 1

    def _make_space(self, now: float) -> bool:
        """Drop expired entries, or else the oldest. Return whether there is space for one more."""
        oldest_in_front = self._sweep(now, _PURGE_LIMIT)
        if self._live < self.size and self._queued < self._max_queued:
            return True
        if self._nopurge:
            return False
        if not oldest_in_front:
            if self._live < self.size + self._slack and self._queued < self._max_queued:
                return True
            if not self._sweep(now, inf):
                return True
        key = self._generations[0].keys.front.popleft()
        shard = self._shards[hash(key) & self._mask]
        self._drop(shard, key, shard[key])
        return True
