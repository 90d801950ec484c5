"""A cache of recently used items in bounded memory: two generations, of which the older is dropped as a whole when the
younger is full.

A look-up costs one dictionary look-up (two for an older item), and dropping costs nothing per item. An older item that
is used again moves to the younger generation, so it stays.
"""

from __future__ import annotations

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class TwoGenerationCache(Generic[K, V]):
    """Holds between `size` and twice `size` of the items used last. Threads may race: at worst an item is lost, and
    computed again.
    """

    __slots__ = ("_old", "_size", "young")

    def __init__(self, size: int) -> None:
        self._size = size
        #: the younger generation; hot paths look here first, without a call. It is empty only if nothing is cached.
        self.young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        """Return the value of `key`, or None if it is not cached."""
        value = self.young.get(key)
        if value is None:
            value = self._old.get(key)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: K, value: V) -> None:
        """Store `value` under `key` in the younger generation."""
        if len(self.young) >= self._size:
            self._old, self.young = self.young, {}
        self.young[key] = value

    def __len__(self) -> int:
        return len(self.young) + len(self._old)
