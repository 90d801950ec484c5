"""Ask the stores: all commands for one store in one round trip.

Connections are those of a process. They open when something is asked for the first time, or is to be heard.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterable, Sequence
from typing import Protocol

from sticky_core.errors import ConfigError
from sticky_core.fork import register
from sticky_core.stores.redis import Redis
from sticky_core.stores.store import Command, Store, StoreCommand


def execute(asks: Sequence[StoreCommand]) -> list[object]:
    """What the stores answer, in order: bytes, a number, None; or a `StoreFailure` where there was no answer in the
    store's `timeout`, and at once while its breaker is open.
    """
    of: dict[Store, list[int]] = {}
    for number, each in enumerate(asks):
        of.setdefault(each.store, []).append(number)
    answers: list[object] = [None] * len(asks)
    for store, numbers in of.items():
        said = _lines.line(store).execute([asks[number].words for number in numbers])
        for number, answer in zip(numbers, said, strict=True):
            answers[number] = answer
    return answers


def listen(stores: Iterable[Redis]) -> None:
    """Begin to hear the news, although nothing is asked yet. What stands in the way is told to who asks."""
    try:
        for store in stores:
            from sticky_wsgi.stores.redis import RedisClient  # redis-py is an extra

            line = _lines.line(store)
            if isinstance(line, RedisClient):  # else nobody has news
                line.listen()
    except ConfigError:
        pass


def close(stores: Iterable[Store]) -> None:
    """Close what this process has opened. Whoever asks again opens it anew."""
    for store in stores:
        line = _lines.of.pop(store, None)
        if line is not None and os.getpid() == _lines.pid:  # else its locks, and what it has open, are the parent's
            line.close()


class StoreClient(Protocol):
    """What answers in a store's place, as `Line` does."""

    def execute(self, commands: Sequence[Command], /) -> list[object]: ...
    def close(self) -> None: ...


def register_client(store: Store, by: StoreClient) -> None:
    """What is asked of `store` in this process is answered by this line: workers answer each other in a store's
    place.
    """
    _lines.of[store] = by


class _Lines:
    """Those of this process."""

    def __init__(self) -> None:
        self.of: dict[Store, StoreClient] = {}
        self._lock = threading.Lock()
        self.pid = os.getpid()
        register(self)

    def line(self, store: Store) -> StoreClient:
        line = self.of.get(store)
        if line is None:
            from sticky_wsgi.stores.redis import RedisClient  # redis-py is an extra

            assert isinstance(store, Redis)  # nobody else has said who answers
            with self._lock:
                line = self.of.get(store)
                if line is None:
                    line = self.of[store] = RedisClient(store)
        return line

    def after_fork(self) -> None:
        """We are a forked child: connections and threads are the parent's. redis-py lets go of a parent's connection
        without a word to the store.
        """
        self._lock = threading.Lock()
        self.pid = os.getpid()
        self.of = {}


_lines = _Lines()


def _end_all() -> None:
    close(list(_lines.of))


atexit.register(_end_all)
