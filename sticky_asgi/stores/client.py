"""Ask the stores: all commands for one store in one round trip, shared with whoever else asks in this moment.

Connections are those of an event loop. They open when something is asked for the first time, or is to be heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from typing import Protocol

from sticky_core.errors import ConfigError
from sticky_core.stores.redis import Redis
from sticky_core.stores.store import Command, Store, StoreCommand

_Lines = dict[Store, "StoreClient"]
_of: dict[asyncio.AbstractEventLoop, _Lines] = {}


async def execute(asks: Sequence[StoreCommand]) -> list[object]:
    """What the stores answer, in order: bytes, a number, None; or a `StoreFailure` where there was no answer in the
    store's `timeout`, and at once while its breaker is open.

    ConfigError if the event loop is not asyncio's.
    """
    lines = _lines()
    of: dict[Store, list[int]] = {}
    for number, each in enumerate(asks):
        of.setdefault(each.store, []).append(number)
    # all are on their way before the first is waited for
    coming = [_line(lines, store).execute([asks[number].words for number in numbers]) for store, numbers in of.items()]
    answers: list[object] = [None] * len(asks)
    for said, numbers in zip(coming, of.values(), strict=True):
        for number, answer in zip(numbers, await said, strict=True):
            answers[number] = answer
    return answers


def listen(stores: Iterable[Redis]) -> None:
    """Begin to hear the news, although nothing is asked yet. What stands in the way is told to who asks."""
    try:
        lines = _lines()
        for store in stores:
            from sticky_asgi.stores.redis import RedisClient  # redis-py is an extra

            line = _line(lines, store)
            if isinstance(line, RedisClient):  # else nobody has news
                line.listen()
    except ConfigError:
        pass


async def close(stores: Iterable[Store]) -> None:
    """Close what this event loop has opened. Whoever asks again opens it anew."""
    try:
        lines = _lines()
    except ConfigError:
        return
    for store in stores:
        line = lines.pop(store, None)
        if line is not None:
            await line.close()


class StoreClient(Protocol):
    """What answers in a store's place, as `Line` does."""

    def execute(self, commands: Sequence[Command], /) -> Awaitable[list[object]]: ...
    async def close(self) -> None: ...


def register_client(store: Store, by: StoreClient) -> None:
    """What is asked of `store` on this event loop is answered by this line: workers answer each other in a store's
    place.
    """
    _lines()[store] = by


def _lines() -> _Lines:
    """Those of this event loop."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigError("a store needs asyncio, and this event loop is another's") from None
    lines = _of.get(loop)
    if lines is None:
        for old in [each for each in list(_of) if each.is_closed()]:
            _of.pop(old, None)
        lines = _of[loop] = {}
    return lines


def _line(lines: _Lines, store: Store) -> StoreClient:
    line = lines.get(store)
    if line is None:
        from sticky_asgi.stores.redis import RedisClient  # redis-py is an extra

        assert isinstance(store, Redis)  # nobody else has said who answers
        line = lines[store] = RedisClient(store, asyncio.get_running_loop())
    return line
