"""The entries of one table in a shared store: the commands for them, and which local copies of them are fresh.

A store that notifies processes of changes gives each stretch of time in which the channel of invalidations is alive an
*epoch*, a number. A copy is kept with the epoch in which it was made, and is fresh while that epoch lasts. Without such
a channel the epoch is always 0, no copy is fresh, and each request queries the store; copies serve while it is away.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from hashlib import blake2b
from itertools import count
from typing import Protocol

from sticky_core.cache import TwoGenerationCache
from sticky_core.clock import Clock
from sticky_core.errors import ConfigError
from sticky_core.stores.breaker import Breaker
from sticky_core.stores.presence import Presence
from sticky_core.stores.store import Command, Store, StoreCommand

Key = str | bytes | int

# Epochs are unique in the process, so that a copy from one store's epoch is not fresh in another's by chance.
_epochs = count(1)

#: how many of the latest invalidated keys are remembered, at least
_REMEMBERED = 1024


class NamespaceStore(Store, Protocol):
    """The store of a namespace: a `SharedStore`."""

    @property
    def name(self) -> str: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def breaker(self) -> Breaker: ...
    @property
    def digest_key(self) -> bytes:
        """The key from which each table derives the key of its digests."""
        ...

    @property
    def fresh_until(self) -> float:
        """Until when, by `clock`, the channel of invalidations is taken to be alive."""
        ...


class LocalCache(Protocol):
    """The copies that a process keeps of a table's entries. Called from the thread that listens."""

    def on_invalidation(self, digest: str, text: str | None, epoch: int) -> None:
        """Replace the copy of `digest`, if there is one, by `text`, which the store keeps now. None: the store keeps
        nothing, so delete the copy.
        """
        ...


class TableNamespace(ABC):
    """The entries of one table in a store: a digest of the key → a text, which names a server.

    Each operation is one command, so that processes that use a key at the same moment agree on which was first.
    """

    def __init__(self, store: NamespaceStore, name: str, expire: float | None) -> None:
        if expire is None or expire < 0.001:
            raise ConfigError(f"table {name}: in a store it needs an expire, or entries would stay there for ever")
        self.store = store
        self.name = name
        self.expire = expire
        self.local_cache: LocalCache | None = None
        #: the number of the stretch of time in which the channel of invalidations is alive; 0: it is not
        self.epoch = 0
        #: the number of the latest invalidation that was received; it jumps where some may have been missed
        self.sequence = 0
        #: which servers have clients, in all processes
        self.presence = Presence(self, expire, store.clock, store.breaker)
        # Each table has a key of its own, so that the digests of one client differ from table to table. The state of
        # the hash with the key in it is computed once, and copied for each digest.
        key = blake2b(name.encode(), digest_size=32, key=store.digest_key).digest()
        self._seed = blake2b(digest_size=16, key=key).copy
        self._now = store.clock.monotonic
        # the latest invalidations by digest: the number of each, and the text that the store kept then
        self._invalidated: TwoGenerationCache[str, tuple[int, str | None]] = TwoGenerationCache(_REMEMBERED)

    def digest(self, key: Key) -> str:
        """Return 32 hexadecimal digits that stand for `key` in the store and do not reveal it."""
        if isinstance(key, str):
            try:
                data = key.encode()
            except UnicodeEncodeError:
                data = key.encode("utf-8", "surrogatepass")
        else:
            data = key if isinstance(key, bytes) else b"%d" % key
        seed = self._seed()
        seed.update(data)
        return seed.hexdigest()

    # The commands

    @abstractmethod
    def recall(self, digest: str) -> StoreCommand:
        """Read the text of `digest` and renew its expiry. Reply: the text, or None."""

    @abstractmethod
    def reserve(self, digest: str, text: str) -> StoreCommand:
        """Keep `text` if nothing is kept. Reply: None if that was so, else the text that is kept."""

    @abstractmethod
    def move(self, digest: str, previous: str, text: str) -> StoreCommand:
        """Keep `text` if `previous` is kept, or nothing; invalidate copies. Reply: the text that is kept now."""

    @abstractmethod
    def put(self, digest: str, text: str) -> StoreCommand:
        """Keep `text`; invalidate copies if another text was kept. Reply: `text`."""

    @abstractmethod
    def touch(self, digest: str, text: str) -> StoreCommand:
        """Renew the expiry; keep `text` if nothing is kept. Reply: the text that is kept now."""

    @abstractmethod
    def forget(self, digest: str, text: str) -> StoreCommand:
        """Delete the entry if it is `text`, and invalidate copies. Reply: None, or the other text that is kept."""

    @abstractmethod
    def set_mark(self, server: str, expire: float) -> Command:
        """Set the presence mark of `server` for `expire` seconds. Reply: anything."""

    @abstractmethod
    def get_mark(self, server: str) -> Command:
        """Read the presence mark of `server`. Reply: None if there is none."""

    # Which copies are fresh

    def on_subscribed(self) -> None:
        """Begin an epoch: the channel of invalidations is open, so copies of what is read from now on are fresh."""
        self.sequence += _REMEMBERED  # an unknown number of invalidations was missed
        self.epoch = next(_epochs)

    def on_invalidation(self, digest: str, text: str | None) -> None:
        """Apply an invalidation: another process has changed the entry of `digest` to `text`, or deleted it (None)."""
        # remembered before it is counted, so that a thread which sees the number also sees the invalidation
        self._invalidated.put(digest, (self.sequence + 1, text))
        self.sequence += 1
        if self.local_cache is not None:
            self.local_cache.on_invalidation(digest, text, self.epoch)

    def epoch_of(self, digest: str, text: str | None, sequence: int) -> int:
        """Return the epoch in which the reply `text` to a query may be kept as fresh; 0: in none. `sequence`: the
        number of the latest invalidation when the query was sent.

        Replies and invalidations come over two connections, so they may arrive in another order than they were sent: a
        reply that contradicts an invalidation received meanwhile is not fresh.
        """
        if self.sequence - sequence >= _REMEMBERED:
            return 0
        invalidated = self._invalidated.get(digest)
        if invalidated is not None and invalidated[0] > sequence and invalidated[1] != text:
            return 0
        return self.epoch

    def is_fresh(self, epoch: int) -> bool:
        """Return whether a copy that was made in `epoch` may be used without a query."""
        return epoch == self.epoch != 0 and self._now() < self.store.fresh_until

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} in {self.store.name}>"
