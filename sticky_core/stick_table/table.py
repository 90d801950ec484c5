"""Stick table: which server belongs to a key, such as a client's address (HAProxy `stick-table`).

It may be shared: with a store, other processes and hosts know the same. Then what is in memory here is a near copy,
which is believed as long as news from the store comes in.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from math import inf
from operator import itemgetter
from typing import Literal, NamedTuple, get_args

from sticky_core.clock import Clock, SystemClock
from sticky_core.durations import Duration, problems_of_duration, seconds
from sticky_core.errors import ConfigError, StoreFailure, raise_problems
from sticky_core.http.messages import Request
from sticky_core.samples.request import Address, Key, ipmask, key_bytes, key_text, parse_address, src
from sticky_core.stick_table.memory import Entries
from sticky_core.stores.namespace import TableNamespace
from sticky_core.stores.shared_store import SharedStore
from sticky_core.stores.store import StoreCommand, StoreQuery

KeyType = Literal["ip", "ipv6", "integer", "string", "binary"]
SrvKey = Literal["name", "addr"]

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_LONGEST_KEY = 16384


class Entry(NamedTuple):
    """What a table knows of one key."""

    key: str  #: as people write it; a digest where the table is shared
    server: str  #: its name, or what else `srvkey` says
    expires_in: float  #: in so many seconds, at the earliest, if it is not used; inf is never


class TableHit(NamedTuple):
    """What a table has said of a key."""

    server: str | None
    is_confirmed: bool  #: else it is only what we had known before the store lost it


_NOTHING = TableHit(None, True)
#: how many servers, as often as news were interrupted, are taken apart but once
_MOST_READ = 4096


class StickTable:
    """Which server belongs to a key. Several backends may use one; servers are then known by their names.

    `type`: what keys are: `"string"` (cut to `length` characters), `"ip"` (IPv4, mapped addresses included), `"ipv6"`
    (IPv4 included), `"integer"` (32 bits), `"binary"` (cut or filled up to `length` bytes). `size`: how many entries,
    a number or `"100k"`, `"1m"` (2^10, 2^20); when it is full the oldest unused make room, or with `nopurge` who comes
    new is not remembered. `expire`: for how long an entry is kept after its last use, at least, and an eighth of that
    longer at most; None: until there is no room.
    `srvkey`: whether servers are remembered by `"name"`, or by `"addr"` (address and port), under whatever name.
    `store`: a `Redis` in which others share the table; that needs `expire`. `name`: what it is called there, if not
    after its backend. `clock`: time, for tests.

    Clients can invent keys. What they invent is bounded by `size` here, and by `expire` in a store; a flood of keys may
    push out clients who are away, as it does in HAProxy, where keys are taken from requests. Learned keys are safe from
    that: none is stored that no server has given out.

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
            problems.append(f"type {type!r} is none of {', '.join(get_args(KeyType))}")
        if not isinstance(length, int) or not 0 < length <= _LONGEST_KEY:  # pyright: ignore[reportUnnecessaryIsInstance]
            problems.append(f"length {length!r} is not within 1..{_LONGEST_KEY}")
        if srvkey not in get_args(SrvKey):
            problems.append(f"srvkey {srvkey!r} is none of {', '.join(get_args(SrvKey))}")
        problems += problems_of_duration("expire", expire, is_optional=True)
        if store is not None:
            if expire is None:
                problems.append("a shared table needs expire=: nothing else bounds it in the store")
            if nopurge:
                problems.append("nopurge has no effect on a shared table: the store bounds it by expire")
        where = f"stick table {name}" if name else "stick table"
        raise_problems(f"{where}: {problem}" for problem in problems)
        self.expire = inf if expire is None else seconds(expire)
        #: what is known in this process: all of it, or a near copy of what a store knows
        self.entries: Entries[int | str | bytes] = Entries(
            entries or 1, self.expire, nopurge=nopurge, by_use=store is None
        )
        convert: dict[KeyType, Callable[[Key], int | str | bytes | None]] = {
            "string": self._string,
            "binary": self._binary,
            "integer": _integer,
            "ip": lambda sample: _text(_ip(sample)),
            "ipv6": lambda sample: _text(_ipv6(sample)),
        }
        self._convert = convert[type]
        self.namespace: TableNamespace | None = None
        self._read: dict[str, tuple[TableHit, int]] = {}

    def attach(self, name: str) -> None:
        """A backend uses it, and has a name for it unless it has one."""
        if self.store is not None and self.namespace is None:
            self.name = self.name or name
            self.namespace = self.store.namespace(self.name, self.expire)
            self.namespace.local_cache = self

    # Keys

    def key(self, sample: Key | None) -> int | str | bytes | None:
        """The key that a sample is; None if it is none: it is empty, or no address. Facts of HAProxy's conversions are
        in its configuration manual, 11.1 and 7.3.1; an empty text is a key there.
        """
        if sample is None or (not sample and isinstance(sample, str | bytes)):
            return None
        key = self._convert(sample)
        if key is None or self.namespace is None:
            return key
        return self.namespace.digest(key)

    def _string(self, sample: Key) -> str:
        return (sample if isinstance(sample, str) else key_text(sample))[: self.length]

    def _binary(self, sample: Key) -> bytes:
        return key_bytes(sample)[: self.length].ljust(self.length, b"\0")

    def key_text(self, key: int | str | bytes) -> str:
        """A key as people write it."""
        return _shown(self.type if self.namespace is None else "string", key)

    # What a request asks

    def look_up(self, key: int | str | bytes, request: Request, now: float) -> TableHit | StoreQuery:
        """Whom `key` belongs to, which is used now; or what has to be asked first."""
        space = self.namespace
        entry = self.entries.use(key, now)
        if space is None:
            return TableHit(entry.server, True) if entry is not None else _NOTHING
        assert isinstance(key, str)
        if entry is not None:
            found, era = self._read.get(entry.server) or self._understood(entry.server)
            if space.is_fresh(era):
                if now - entry.began >= self.entries.step:
                    assert found.server is not None
                    request.queue_write(self, key, space.touch(key, found.server))
                return found
        recall = space.recall(key)
        question = request.store_query(recall)
        return self._answered(key, question, now) if question is not None else StoreQuery(recall, space.sequence)

    def _understood(self, kept: str) -> tuple[TableHit, int]:
        """What the near copy keeps of a key, taken apart once for all keys of which it keeps the same."""
        text, era = _kept(kept)
        if len(self._read) >= _MOST_READ:
            self._read = {}
        self._read[kept] = read = TableHit(text, True), era
        return read

    def _answered(self, key: str, question: StoreQuery, now: float) -> TableHit:
        space, answer = self.namespace, question.reply
        assert space is not None
        if not isinstance(answer, StoreFailure):
            text = space.read_reply(answer)
            if text is not None:
                self._keep(key, text, question.sequence, now)
                return TableHit(text, True)
        kept = self.entries.get(key, now)
        return TableHit(_kept(kept)[0] if kept is not None else None, isinstance(answer, StoreFailure))

    def peek(self, key: int | str | bytes, now: float) -> str | None:
        """Whom `key` belongs to as far as is known here, without using it."""
        kept = self.entries.peek(key, now)
        if kept is None or self.namespace is None:
            return kept
        text, era = _kept(kept)
        return text if self.namespace.is_fresh(era) else None

    def reserve(self, key: int | str | bytes, was: str | None, server: str) -> StoreQuery | None:
        """What to ask a store, so that `key` is `server`'s unless it has become somebody's who was not `was`; None:
        nobody has to be asked.
        """
        space = self.namespace
        if space is None:
            return None
        assert isinstance(key, str)
        return StoreQuery(space.reserve(key, server) if was is None else space.move(key, was, server), space.sequence)

    def confirm(
        self, key: int | str | bytes, was: str | None, server: str, question: StoreQuery | None, now: float
    ) -> str:
        """Whose `key` is, after that was asked."""
        space = self.namespace
        if space is None:
            return self.entries.reserve(key, server, now, was)
        assert isinstance(key, str) and question is not None
        answer = question.reply
        if isinstance(answer, StoreFailure):  # then at least all in this process agree
            kept = self.entries.reserve(key, _kept_as(server, 0), now, self.entries.peek(key, now) if was else None)
            return _kept(kept)[0]
        text = space.read_reply(answer) or server
        self._keep(key, text, question.sequence, now)
        return text

    def store_entry(self, key: int | str | bytes, was: str | None, server: str, request: Request, now: float) -> None:
        """`server` has answered a request with `key`, which was `was`'s as far as was known."""
        space = self.namespace
        if space is None:
            self.entries.put(key, server, now)
            return
        assert isinstance(key, str)
        request.queue_write(self, key, space.put(key, server) if was is None else space.move(key, was, server))

    def forget_entry(self, key: int | str | bytes, server: str, request: Request) -> None:
        """`key`, which was `server`'s, is nobody's any more, unless it has become somebody else's meanwhile."""
        if self.namespace is None:
            self.entries.forget(key, server)
        else:
            self.entries.forget(key)
            assert isinstance(key, str)
            request.queue_write(self, key, self.namespace.forget(key, server))

    def query(self, ask: StoreCommand) -> StoreQuery:
        """The same as a question of now."""
        assert self.namespace is not None
        return StoreQuery(ask, self.namespace.sequence)

    def on_written(self, key: str, question: StoreQuery, now: float) -> None:
        """What was owed to the store was told: what it says now."""
        space, answer = self.namespace, question.reply
        if space is None or isinstance(answer, StoreFailure):
            return
        text = space.read_reply(answer)
        if text is not None:
            self._keep(key, text, question.sequence, now)

    def _keep(self, key: str, text: str, since: int, now: float) -> None:
        """Into the near copy, to be believed unless there has been news of it `since`."""
        assert self.namespace is not None
        self.namespace.presence.record(text)
        era = self.namespace.epoch_of(key, text, since)
        self.entries.put(key, _kept_as(text, era), now)
        if self.namespace.epoch_of(key, text, since) != era:  # it came in this moment, in another thread
            self.entries.put(key, _kept_as(text, 0), now)

    def on_invalidation(self, digest: str, text: str | None, era: int) -> None:
        """News from the store: another process has moved a key, or forgotten it. From any thread."""
        now = self.clock.monotonic()
        if text is None:
            self.entries.forget(digest)
        elif self.entries.peek(digest, now) is not None:
            self.entries.put(digest, _kept_as(text, era), now)

    # What an operator asks

    def __len__(self) -> int:
        """How many entries there are in this process."""
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        """All entries in this process (HAProxy `show table`). Others may come and go meanwhile."""
        for key, kept, left in self.entries.items(self.clock.monotonic()):
            yield Entry(self.key_text(key), kept if self.namespace is None else _kept(kept)[0], left)

    def __getitem__(self, sample: Key) -> str:
        """The server of a key; KeyError if there is none. The entry is not used by this."""
        key = self.key(sample)
        found = self.peek(key, self.clock.monotonic()) if key is not None else None
        if found is None:
            raise KeyError(sample)
        return found

    def __setitem__(self, sample: Key, server: str) -> None:
        """Have `server` own a key (HAProxy `set table`). ConfigError if that is no key, or the table is shared."""
        key = self.key(sample)
        if key is None:
            raise ConfigError(f"stick table {self.name}: {sample!r} is no key of type {self.type}")
        if self.namespace is not None:
            raise ConfigError(f"stick table {self.name}: it is shared, so its entries are the store's to change")
        self.entries.put(key, server, self.clock.monotonic())

    def clear(self, sample: Key | None = None) -> None:
        """Forget one key, or all, in this process (HAProxy `clear table`)."""
        if sample is None:
            self.entries.clear()
        elif (key := self.key(sample)) is not None:
            self.entries.forget(key)

    def per_server(self) -> Mapping[str, int]:
        """How many entries each server has. This looks at every entry."""
        return Counter(entry.server for entry in self)

    def dump(self) -> Iterator[str]:
        """The entries as lines of text, to be written to a file and restored after a restart, whatever `clock` says
        then. Those of replicas in this process are left out: their sessions end with it. A shared table needs none of
        this.
        """
        wall, now = self.clock.wall(), self.clock.monotonic()
        for key, server, left in self.entries.items(now):
            if "@" not in server and self.namespace is None:
                until = "-" if left == inf else f"{wall + left:.3f}"
                yield f"{until} {server} {_written(self.type, key)}\n"

    def restore(self, lines: Iterable[str]) -> int:
        """Take in the lines that `dump` made: how many entries still count. What is not understood is passed over: a
        file that was cut short is better than none. Entries expire when they would have. ConfigError, and nothing has
        changed, if keys are of another type than this table's, or the table is shared.
        """
        wall, now = self.clock.wall(), self.clock.monotonic()
        entries: list[tuple[float, int | str | bytes, str]] = []
        for line in lines:
            match = _LINE.fullmatch(line.rstrip("\n"))
            if match is None:
                continue
            left = inf if match[1] == "-" else float(match[1]) - wall
            kind = _TYPES[match[3]]
            try:
                key = _read(kind, match[4])
            except ValueError:
                continue
            if left > 0:
                self._look_at(kind, key, match[2])
                # its last use, as it would have to have been here; keys may have been longer where it comes from
                used = min(now, now - self.expire + left) if self.expire < inf else now
                entries.append((used, self._cut(key), match[2]))
        entries.sort(key=itemgetter(0))  # those that were used last are the last to be purged
        return sum(self.entries.put(key, server, used) for used, key, server in entries)

    def _look_at(self, kind: KeyType, key: int | str | bytes, server: str) -> None:
        """Whether an entry that was saved goes in here. ConfigError if not."""
        if self.namespace is not None:
            raise ConfigError(f"stick table {self.name}: it is shared, so its entries are the store's to keep")
        if kind != self.type:
            raise ConfigError(
                f"stick table {self.name or self.type}: its keys are of type {self.type}, and what was saved has keys "
                f"of type {kind}, such as {_shown(kind, key)!r} of server {server}: restore what this table has "
                f"dumped, or into a StickTable({kind!r})"
            )

    def _cut(self, key: int | str | bytes) -> int | str | bytes:
        if isinstance(key, bytes):
            return self._binary(key)
        return self._string(key) if isinstance(key, str) and self.type == "string" else key

    def __repr__(self) -> str:
        return f"<StickTable {self.name or self.type}: {len(self)}/{self.entries.size}>"


def table_for(sample: object) -> KeyType:
    """The type of keys that suits a sample."""
    return "ipv6" if sample is src or isinstance(sample, ipmask) else "string"


def _kept_as(text: str, era: int) -> str:
    return f"{era} {text}"


def _kept(kept: str) -> tuple[str, int]:
    era, _, text = kept.partition(" ")
    return text, int(era)


def _size(size: int | str) -> int | None:
    if isinstance(size, int):
        return size
    match = re.fullmatch("([0-9]{1,12})([kmg]?)", size) if isinstance(size, str) else None  # pyright: ignore[reportUnnecessaryIsInstance]
    return int(match[1]) * _UNITS[match[2]] if match is not None else None


_DIGITS = re.compile("[ \t]*([+-]?)([0-9]*)")


def _integer(sample: Key) -> int:
    """The digits that it begins with, as 32 bits; 0 if it does not."""
    if isinstance(sample, Address):
        return int(sample) & 0xFFFF_FFFF
    if isinstance(sample, int):
        return sample & 0xFFFF_FFFF
    match = _DIGITS.match(key_text(sample))
    assert match is not None
    number = int(match[2][-32:] or 0)  # 10^32 is a multiple of 2^32
    return (-number if match[1] == "-" else number) & 0xFFFF_FFFF


def _address(sample: Key) -> Address | None:
    if isinstance(sample, Address):
        return sample
    if isinstance(sample, int):
        return IPv4Address(sample & 0xFFFF_FFFF)
    text = key_text(sample)
    if "." in text and text.count(":") == 1:
        text = text.partition(":")[0]  # with a port
    return parse_address(text)


def _text(number: int | None) -> str | None:
    """An address as a key: in hexadecimal, as garbage collection looks at each number that is a key, and at no text."""
    return None if number is None else f"{number:x}"


def _ip(sample: Key) -> int | None:
    where = _address(sample)
    if where is None or isinstance(where, IPv4Address):
        return None if where is None else int(where)
    mapped = where.ipv4_mapped
    if mapped is not None:
        return int(mapped)
    return int(where) if 1 < int(where) <= 0xFFFF_FFFF else None  # compatible (RFC 4291, 2.5.5.1)


def _ipv6(sample: Key) -> int | None:
    where = _address(sample)
    if where is None:
        return None
    return int(where) | 0xFFFF_0000_0000 if isinstance(where, IPv4Address) else int(where)


def _shown(kind: KeyType, key: int | str | bytes) -> str:
    if kind == "ip":
        return str(IPv4Address(int(str(key), 16)))
    if kind == "ipv6":
        return str(IPv6Address(int(str(key), 16)))
    return key.hex() if isinstance(key, bytes) else str(key)


#: what stands before the keys of each type in a file
_LETTERS: Mapping[KeyType, str] = {"ip": "4", "ipv6": "6", "integer": "i", "string": "s", "binary": "b"}
_TYPES: Mapping[str, KeyType] = {letter: kind for kind, letter in _LETTERS.items()}
_LINE = re.compile("(-|[0-9]{1,12}[.][0-9]{3}) ([A-Za-z0-9_.:-]+) ([46isb])([0-9a-f]+)")
_BITS: Mapping[KeyType, int] = {"ip": 32, "ipv6": 128, "integer": 32}


def _written(kind: KeyType, key: int | str | bytes) -> str:
    if isinstance(key, int):
        written = f"{key:x}"
    elif isinstance(key, bytes):
        written = key.hex()
    else:
        written = key.encode("utf-8", "surrogatepass").hex() if kind == "string" else key
    return _LETTERS[kind] + written


def _read(kind: KeyType, text: str) -> int | str | bytes:
    """The key that was written so. ValueError if that was none of its type."""
    if kind == "binary":
        return bytes.fromhex(text)
    if kind == "string":
        return bytes.fromhex(text).decode("utf-8", "surrogatepass")
    number = int(text, 16)
    if number >= 1 << _BITS[kind]:
        raise ValueError(f"{number} is no key of type {kind}")
    return number if kind == "integer" else f"{number:x}"
