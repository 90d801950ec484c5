"""Stick table: which server belongs to a key, such as a client's address (HAProxy `stick-table`).

It may be shared: with a store, other processes and hosts have the same entries. Then the entries in memory here are
copies, which are used without a query as long as the store sends invalidations.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from math import inf
from operator import itemgetter
from typing import Literal, NamedTuple, get_args

from sticky_core.clock import Clock, SystemClock
from sticky_core.durations import Duration, problems_of_duration, seconds
from sticky_core.errors import ConfigError, StoreFailure, raise_problems
from sticky_core.http.messages import Request
from sticky_core.options.spelling import problem_of_word
from sticky_core.samples.values import Key
from sticky_core.stick_table import keys
from sticky_core.stick_table.keys import KeyType, TableKey
from sticky_core.stick_table.memory import Entries
from sticky_core.stores.namespace import TableNamespace
from sticky_core.stores.shared_store import SharedStore
from sticky_core.stores.store import StoreCommand, StoreQuery

SrvKey = Literal["name", "addr"]

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_MAX_KEY_LENGTH = 16384
#: one entry in a file: when it expires, its server, its key
_LINE = re.compile("(-|[0-9]{1,12}[.][0-9]{3}) ([A-Za-z0-9_.:-]+) ([46isb])([0-9a-f]+)")


class Entry(NamedTuple):
    """One entry of a table, for an operator."""

    key: str  #: as an operator writes it; a digest where the table is shared
    server: str  #: its name, or its address with `srvkey="addr"`
    expires_in: float  #: seconds until it expires, at the earliest, if it is not used; inf: never


class TableHit(NamedTuple):
    """The result of a look-up."""

    server: str | None
    is_confirmed: bool  #: False: the store has lost the entry, and this is the copy from before


_MISS = TableHit(None, True)
#: How many parsed copies are remembered: there are as many different ones as servers times epochs.
_MAX_PARSED = 4096


class StickTable:
    """Which server belongs to a key (HAProxy `stick-table`). Several backends may use one; servers are then known by
    their names.

    - `type`: what keys are; `"string"` (cut to `length` characters), `"ip"` (IPv4, mapped addresses included), `"ipv6"`
      (IPv4 included), `"integer"` (32 bits), `"binary"` (cut or padded to `length` bytes); default `"string"` (HAProxy
      `type`).
    - `size`: the number of entries; a number, or text such as `"100k"`, `"1m"` (k: 2^10, m: 2^20); default `"100k"`.
      When the table is full, the entry that was not used for longest is purged (HAProxy `size`).
    - `expire`: how long an entry is kept after its last use, at least, and an eighth of that longer at most; seconds
      or text such as `"30m"`; default None: until the table is full (HAProxy `expire`; nginx `timeout` of `sticky
      learn`).
    - `length`: characters or bytes of a key; at most 16384, default 32 (HAProxy `len`).
    - `nopurge`: whether a full table rejects new entries instead of purging; default False (HAProxy `nopurge`).
    - `srvkey`: whether entries keep a server's `"name"`, or its `"addr"`, address and port, under whatever name;
      default `"name"` (HAProxy `srvkey`).
    - `store`: a store through which processes share the table, such as `Redis`; needs `expire`; default None (HAProxy
      `peers`, nginx `zone`).
    - `name`: the name of the table in the store and in messages; by default that of its first backend.
    - `clock`: time, for tests; default the system's.

    Clients can invent keys. Their number is bounded by `size` here, and by `expire` in a store; a flood of invented
    keys may push out the keys of other clients, as in HAProxy, if keys are taken from requests. Learned keys are safe
    from that: only keys that a server has issued are stored.

    Raises `ConfigError` with every problem found. Safe to use from any thread, and after a fork.
    """

    def __init__(
        self,
        type: KeyType = "string",
        *,
        size: int | str = "100k",
        expire: Duration | None = None,
        length: int = 32,
        nopurge: bool = False,
        srvkey: SrvKey = "name",
        store: SharedStore | None = None,
        name: str = "",
        clock: Clock | None = None,
    ) -> None:
        self.type: KeyType = type
        self.length = length
        self.srvkey: SrvKey = srvkey
        self.nopurge = nopurge
        self.store = store
        self.name = name
        self.clock: Clock = clock if clock is not None else SystemClock()
        problems: list[str] = []
        entries = _size(size)
        if entries is None or not 0 < entries <= 1 << 40:
            problems.append(f"size {size!r} is no number of entries: write 100000, or '100k', '1m'")
        if type not in get_args(KeyType):
            problems.append(problem_of_word("type", type, get_args(KeyType)))
        if not isinstance(length, int) or not 0 < length <= _MAX_KEY_LENGTH:  # pyright: ignore[reportUnnecessaryIsInstance]
            problems.append(f"length {length!r} is not within 1..{_MAX_KEY_LENGTH}")
        if srvkey not in get_args(SrvKey):
            problems.append(problem_of_word("srvkey", srvkey, get_args(SrvKey)))
        problems += problems_of_duration("expire", expire, is_optional=True)
        if store is not None:
            if expire is None:
                problems.append("a shared table needs expire=: nothing else bounds it in the store")
            if nopurge:
                problems.append("nopurge has no effect on a shared table: the store bounds it by expire")
        label = f"stick table {name}" if name else "stick table"
        raise_problems(f"{label}: {problem}" for problem in problems)
        self.expire = inf if expire is None else seconds(expire)
        #: the entries in this process: all there are, or copies of those in the store
        self.entries: Entries[TableKey] = Entries(entries or 1, self.expire, nopurge=nopurge, by_use=store is None)
        self._convert = keys.converter(type, length)
        self.namespace: TableNamespace | None = None
        self._parsed: dict[str, tuple[TableHit, int, str | None]] = {}

    def attach(self, backend_name: str) -> None:
        """Register a backend that uses the table. A shared table without a name is named after the first backend."""
        if self.store is not None and self.namespace is None:
            self.name = self.name or backend_name
            self.namespace = self.store.namespace(self.name, self.expire)
            self.namespace.local_cache = self

    # Keys

    def key(self, sample: Key | None) -> TableKey | None:
        """Return the key that a sample makes; None if it makes none, because it is empty, or not an address."""
        if sample is None or (not sample and isinstance(sample, str | bytes)):
            return None
        key = self._convert(sample)
        if key is None or self.namespace is None:
            return key
        return self.namespace.digest(key)

    def key_text(self, key: TableKey) -> str:
        """Return a key as an operator writes it; the digest where the table is shared."""
        return keys.readable(self.type if self.namespace is None else "string", key)

    # For requests. Where the table is shared, the entries here are copies, each a text that `_Copy` parses.

    def look_up(self, key: TableKey, request: Request, now: float) -> TableHit | StoreQuery:
        """Use the entry of `key` and return its server, or the query that has to be sent to the store first."""
        namespace = self.namespace
        entry = self.entries.use(key, now)
        if namespace is None:
            return TableHit(entry.server, True) if entry is not None else _MISS
        assert isinstance(key, str)
        if entry is not None:
            hit, epoch, previous = self._parsed.get(entry.server) or self._parse(entry.server)
            if namespace.is_fresh(epoch):
                if now - entry.began >= self.entries.step:
                    assert hit.server is not None
                    request.queue_write(self, key, namespace.touch(key, hit.server))
                return hit
            if previous is not None:  # the store may not have been there when the client was moved
                assert hit.server is not None
                return self._query(key, namespace.move(key, previous, hit.server), request, now)
        return self._query(key, namespace.recall(key), request, now)

    def _query(self, key: str, command: StoreCommand, request: Request, now: float) -> TableHit | StoreQuery:
        """Return what the store has replied to `command`, or the query that has to be sent first."""
        query = request.store_query(command)
        return self._hit_from_reply(key, query, now) if query is not None else self.query(command)

    def _parse(self, copy: str) -> tuple[TableHit, int, str | None]:
        """Parse the text of a copy, once for all keys with the same text."""
        text, epoch, previous = _Copy.parse(copy)
        if len(self._parsed) >= _MAX_PARSED:
            self._parsed = {}
        self._parsed[copy] = parsed = TableHit(text, True), epoch, previous
        return parsed

    def _hit_from_reply(self, key: str, query: StoreQuery, now: float) -> TableHit:
        namespace, reply = self.namespace, query.reply
        assert namespace is not None
        if isinstance(reply, str):
            self._keep_copy(key, reply, query.sequence, now)
            return TableHit(reply, True)
        copy = self.entries.get(key, now)
        text = _Copy.parse(copy).text if copy is not None else None
        return TableHit(text, isinstance(reply, StoreFailure))

    def peek(self, key: TableKey, now: float) -> str | None:
        """Return the server of `key` without using the entry or sending a query; None if there is no fresh copy."""
        copy = self.entries.peek(key, now)
        if copy is None or self.namespace is None:
            return copy
        text, epoch, _ = _Copy.parse(copy)
        return text if self.namespace.is_fresh(epoch) else None

    def reserve(self, key: TableKey, previous: str | None, server: str) -> StoreQuery | None:
        """Return the query that gives `key` to `server` unless another request has given it to a server that is not
        `previous`; None: the table is not shared.
        """
        namespace = self.namespace
        if namespace is None:
            return None
        assert isinstance(key, str)
        command = namespace.reserve(key, server) if previous is None else namespace.move(key, previous, server)
        return StoreQuery(command, namespace.sequence)

    def confirm(self, key: TableKey, previous: str | None, server: str, query: StoreQuery | None, now: float) -> str:
        """Return the server that `key` belongs to, after the query of `reserve` has a reply."""
        namespace = self.namespace
        if namespace is None:
            return self.entries.reserve(key, server, now, previous)
        assert isinstance(key, str) and query is not None
        reply = query.reply
        if isinstance(reply, StoreFailure):  # without the store, at least all requests in this process agree
            replaced = self.entries.peek(key, now) if previous else None
            unwritten = _Copy(server, 0, self._previous_in_store(key, previous, now) if previous else None)
            return _Copy.parse(self.entries.reserve(key, unwritten.pack(), now, replaced)).text
        text = reply or server
        self._keep_copy(key, text, query.sequence, now)
        return text

    def store_entry(self, key: TableKey, previous: str | None, server: str, request: Request, now: float) -> None:
        """Keep `server`, which has responded to a request with `key`; `previous`: the server that was known."""
        namespace = self.namespace
        if namespace is None:
            self.entries.put(key, server, now)
            return
        assert isinstance(key, str)
        if previous is not None:
            previous = self._previous_in_store(key, previous, now)
        self.entries.put(key, _Copy(server, 0, previous).pack(), now)  # it counts if the store does not reply
        command = namespace.put(key, server) if previous is None else namespace.move(key, previous, server)
        request.queue_write(self, key, command)

    def _previous_in_store(self, key: TableKey, previous: str, now: float) -> str:
        """Return the server that the store has for `key`, as far as is known, where `previous` is the one here: they
        differ if the client was moved while the store did not reply.
        """
        copy = self.entries.peek(key, now)
        return (_Copy.parse(copy).previous if copy is not None else None) or previous

    def forget_entry(self, key: TableKey, server: str, request: Request) -> None:
        """Delete the entry of `key`, unless it belongs to another server than `server` by now."""
        if self.namespace is None:
            self.entries.forget(key, server)
        else:
            self.entries.forget(key)
            assert isinstance(key, str)
            request.queue_write(self, key, self.namespace.forget(key, server))

    def query(self, command: StoreCommand) -> StoreQuery:
        """Return `command` as a query that is sent now."""
        assert self.namespace is not None
        return StoreQuery(command, self.namespace.sequence)

    def on_written(self, key: str, query: StoreQuery, now: float) -> None:
        """Keep the entry that the store has after a write, as its reply shows."""
        if isinstance(query.reply, str):
            self._keep_copy(key, query.reply, query.sequence, now)

    def _keep_copy(self, key: str, text: str, sequence: int, now: float) -> None:
        """Keep a copy, which is fresh unless it was invalidated since the query was sent."""
        assert self.namespace is not None
        if text.isprintable():  # else it names no server
            self.namespace.presence.record(text)
        epoch = self.namespace.epoch_of(key, text, sequence)
        self.entries.put(key, _Copy(text, epoch).pack(), now)
        if self.namespace.epoch_of(key, text, sequence) != epoch:  # another thread has invalidated it just now
            self.entries.put(key, _Copy(text, 0).pack(), now)

    def on_invalidation(self, digest: str, text: str | None, epoch: int) -> None:
        """Apply that another process has moved a key, or deleted its entry. Called from any thread."""
        now = self.clock.monotonic()
        if text is None:
            self.entries.forget(digest)
        elif self.entries.peek(digest, now) is not None:
            self.entries.put(digest, _Copy(text, epoch).pack(), now)

    # For operators

    def __len__(self) -> int:
        """Return the number of entries in this process."""
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        """Yield all entries in this process (HAProxy `show table`). Others may be added and removed meanwhile."""
        for key, kept, left in self.entries.items(self.clock.monotonic()):
            yield Entry(self.key_text(key), kept if self.namespace is None else _Copy.parse(kept).text, left)

    def __getitem__(self, sample: Key) -> str:
        """Return the server of a key, without using the entry; KeyError if there is none."""
        key = self.key(sample)
        server = self.peek(key, self.clock.monotonic()) if key is not None else None
        if server is None:
            raise KeyError(sample)
        return server

    def __setitem__(self, sample: Key, server: str) -> None:
        """Give a key to `server` (HAProxy `set table`). ConfigError if it is no key, or the table is shared."""
        key = self.key(sample)
        if key is None:
            raise ConfigError(f"stick table {self.name}: {sample!r} is no key of type {self.type}")
        if self.namespace is not None:
            raise ConfigError(f"stick table {self.name}: it is shared, so its entries are the store's to change")
        self.entries.put(key, server, self.clock.monotonic())

    def clear(self, sample: Key | None = None) -> None:
        """Delete the entry of one key, or all entries, in this process (HAProxy `clear table`)."""
        if sample is None:
            self.entries.clear()
        elif (key := self.key(sample)) is not None:
            self.entries.forget(key)

    def per_server(self) -> Mapping[str, int]:
        """Return the number of entries of each server. This reads every entry."""
        return Counter(entry.server for entry in self)

    def dump(self) -> Iterator[str]:
        """Yield the entries as lines of text, to be written to a file and restored after a restart, whatever `clock`
        shows then. Entries of replicas in this process are left out: their sessions end with it. A shared table needs
        no dump.
        """
        wall, now = self.clock.wall(), self.clock.monotonic()
        for key, server, left in self.entries.items(now):
            if "@" not in server and self.namespace is None:
                until = "-" if left == inf else f"{wall + left:.3f}"
                yield f"{until} {server} {keys.encode(self.type, key)}\n"

    def restore(self, lines: Iterable[str]) -> int:
        """Add the entries of lines that `dump` has made, and return how many have not expired. Lines that cannot be
        parsed are skipped: a file that was cut short is better than none. Entries keep the time at which they expire.
        ConfigError, and nothing has changed, if keys are of another type than this table's, or the table is shared.
        """
        wall, now = self.clock.wall(), self.clock.monotonic()
        entries: list[tuple[float, TableKey, str]] = []
        for line in lines:
            match = _LINE.fullmatch(line.rstrip("\n"))
            if match is None:
                continue
            left = inf if match[1] == "-" else float(match[1]) - wall
            type = keys.TYPES_BY_LETTER[match[3]]
            try:
                key = keys.decode(type, match[4])
            except ValueError:
                continue
            if left > 0:
                self._check_restorable(type, key, match[2])
                # the last use, by this clock; the other table may have had longer keys
                used = min(now, now - self.expire + left) if self.expire < inf else now
                entries.append((used, self._shorten(key), match[2]))
        entries.sort(key=itemgetter(0))  # those that were used last are the last to be purged
        return sum(self.entries.put(key, server, used) for used, key, server in entries)

    def _check_restorable(self, type: KeyType, key: TableKey, server: str) -> None:
        """Raise ConfigError if a saved entry cannot be added to this table."""
        if self.namespace is not None:
            raise ConfigError(f"stick table {self.name}: it is shared, so its entries are the store's to keep")
        if type != self.type:
            raise ConfigError(
                f"stick table {self.name or self.type}: its keys are of type {self.type}, and what was saved has keys "
                f"of type {type}, such as {keys.readable(type, key)!r} of server {server}: restore what this table has "
                f"dumped, or into a StickTable({type!r})"
            )

    def _shorten(self, key: TableKey) -> TableKey:
        """Return a key of this table's `length`."""
        if self.type not in ("string", "binary"):
            return key
        shortened = self._convert(key)
        assert shortened is not None
        return shortened

    def __repr__(self) -> str:
        return f"<StickTable {self.name or self.type}: {len(self)}/{self.entries.size}>"


class _Copy(NamedTuple):
    """What a process keeps of an entry of a shared table.

    - `text`: names the server.
    - `epoch`: in which the copy was made; 0: it was never fresh.
    - `previous`: names the server that the store may still have, as it did not reply when the client was moved from
      there, or has not replied yet. None: the store has `text`, or had nothing.
    """

    text: str
    epoch: int
    previous: str | None = None

    def pack(self) -> str:
        """Return the copy as a text: one takes half the memory of a tuple."""
        return f"{self.epoch} {self.text}" if self.previous is None else f"- {self.previous} {self.text}"

    @classmethod
    def parse(cls, packed: str) -> _Copy:
        epoch, _, text = packed.partition(" ")
        if epoch != "-":
            return cls(text, int(epoch))
        previous, _, text = text.partition(" ")  # it has no space: it was the name or the address of a server
        return cls(text, 0, previous)


def _size(size: int | str) -> int | None:
    if isinstance(size, int):
        return size
    match = re.fullmatch("([0-9]{1,12})([kmg]?)", size) if isinstance(size, str) else None  # pyright: ignore[reportUnnecessaryIsInstance]
    return int(match[1]) * _UNITS[match[2]] if match is not None else None
