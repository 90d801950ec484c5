"""Durations as people write them: seconds as numbers, or text in HAProxy's units (configuration manual, 2.5)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import cast

Duration = float | int | str

_UNITS = {"us": 1e-6, "ms": 1e-3, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TEXT = re.compile(r"([0-9]+)(us|ms|s|m|h|d)?")

#: HAProxy's limit for `maxidle` and `maxlife`, in seconds (about 68 years)
LONGEST = 2147483647


def seconds(duration: Duration) -> float:
    """`duration` in seconds: a number as it is, text by its unit (`us ms s m h d`; none is seconds). ValueError for
    anything else.
    """
    if isinstance(duration, str):
        parsed = _TEXT.fullmatch(duration)
        if parsed is None:
            raise ValueError(
                f"{duration!r} is not a duration: write seconds as a number, or text such as '30s' or '8h'"
            )
        return int(parsed[1]) * _UNITS[parsed[2] or ""]
    if isinstance(duration, bool) or not isinstance(duration, (int, float)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"{duration!r} is not a duration: write seconds as a number, or text such as '30s' or '8h'")
    return duration


def problems_of_duration(
    option: str,
    duration: Duration | None,
    *,
    is_optional: bool = False,
    allows_zero: bool = False,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Iterator[str]:
    """Yield what is wrong with the duration of an option: it is no duration, or not above 0, or outside of the bounds
    (in seconds). None is a problem unless the option `is_optional`.
    """
    if duration is None and is_optional:
        return
    try:
        length = seconds(cast("Duration", duration))
    except ValueError as error:
        yield f"{option}: {error}"
        return
    # written so that NaN is outside of every bound
    if at_least is not None and at_most is not None:
        if not at_least <= length <= at_most:
            yield f"{option} {duration!r} is not within {at_least}..{at_most} seconds"
    elif at_most is not None:
        if not 0 < length <= at_most:
            yield f"{option} {duration!r} is not above 0 and at most {at_most} s"
    elif allows_zero:
        if not length >= 0:
            yield f"{option} {duration!r} is below 0"
    elif not length > 0:
        yield f"{option} {duration!r} is not above 0"
