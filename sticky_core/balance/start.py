"""Where turns begin: at one that is drawn, lest many processes all begin with the same server; or as asked."""

from __future__ import annotations

from sticky_core.clock import Rng
from sticky_core.errors import ConfigError


def check_start(word: str, start: int | None) -> None:
    """ConfigError if `start` is no number of turns."""
    if start is not None and start < 0:
        raise ConfigError(f"{word}: start {start} is below 0")


def begun(start: int | None, turns: int, rng: Rng) -> int:
    """How many of so many turns have been taken before the first request. Asked at the first choice, not before: a
    forked child draws for itself.
    """
    return rng.randrange(turns) if start is None else start % turns
