"""Time and randomness as arguments: decisions that depend on them can be tested without waiting, and reproduced."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two times: `wall()` for the dates in marks, `monotonic()` for everything else, both in seconds."""

    def wall(self) -> float: ...
    def monotonic(self) -> float: ...


class Rng(Protocol):
    """A source of random numbers. The `random` module itself is one; unlike instances of `random.Random`, it is
    re-seeded in a forked child.
    """

    def random(self) -> float: ...
    def randrange(self, stop: int, /) -> int: ...
    def getrandbits(self, k: int, /) -> int: ...


class SystemClock:
    """The clock of the operating system."""

    wall = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)


class ManualClock:
    """A clock that moves only when `advance` is called: for tests of applications and of this package."""

    def __init__(self, wall: float = 1_700_000_000.0) -> None:
        self._wall = wall
        self._elapsed = 0.0

    def wall(self) -> float:
        return self._wall + self._elapsed

    def monotonic(self) -> float:
        return self._elapsed

    def advance(self, seconds: float) -> None:
        """Move the clock forward by `seconds`."""
        self._elapsed += seconds
