"""Time and chance, handed in: what is decided from them can be tested without waiting, and told again."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two times: `wall()` for the dates in marks, `monotonic()` for everything else, both in seconds."""

    def wall(self) -> float: ...
    def monotonic(self) -> float: ...


class Rng(Protocol):
    """What we ask of chance. The `random` module itself will do, and is re-seeded in a forked child as instances are
    not.
    """

    def random(self) -> float: ...
    def randrange(self, stop: int, /) -> int: ...
    def getrandbits(self, k: int, /) -> int: ...


class SystemClock:
    """The machine's own clock."""

    wall = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)


class ManualClock:
    """A clock that moves when it is told to: for tests of applications and of this package."""

    def __init__(self, wall: float = 1_700_000_000.0) -> None:
        self._wall = wall
        self._elapsed = 0.0

    def wall(self) -> float:
        return self._wall + self._elapsed

    def monotonic(self) -> float:
        return self._elapsed

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self._elapsed += seconds
