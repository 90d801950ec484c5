"""Moments as people write them: a date, a datetime, or either as text (ISO 8601)."""

from __future__ import annotations

from datetime import UTC, date, datetime

Moment = date | datetime | str


def seconds_since_epoch(moment: Moment) -> float:
    """Return a moment in seconds since the epoch. A date is its first moment. What has no time zone is UTC. ValueError
    for a text that is neither a date nor a datetime, and for any other type.
    """
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    elif not isinstance(moment, datetime):
        if not isinstance(moment, date):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"{moment!r} is no date")
        moment = datetime(moment.year, moment.month, moment.day, tzinfo=UTC)
    return (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment).timestamp()
