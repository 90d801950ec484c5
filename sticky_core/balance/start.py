"""The first server of algorithms that take turns: drawn at random, so that many processes do not all begin with the
same server, or as configured.
"""

from __future__ import annotations

from sticky_core.clock import Rng
from sticky_core.errors import ConfigError


def check_start(word: str, start: int | None) -> None:
    """Raise ConfigError if `start` is not a number of turns."""
    if start is not None and start < 0:
        raise ConfigError(f"{word}: start {start} is below 0")


def initial_turns(start: int | None, turns: int, rng: Rng) -> int:
    """Return how many of `turns` turns to skip before the first request. Called at the first choice, not earlier, so
    that a forked child draws its own number.
    """
    return rng.randrange(turns) if start is None else start % turns
