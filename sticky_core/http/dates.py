"""Dates in headers. They are not made by `strftime`, which writes names in the language of the locale."""

from __future__ import annotations

from datetime import UTC, datetime

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def http_date(seconds: float) -> str:
    """Return seconds since the epoch as HTTP writes dates: `Tue, 14 Nov 2023 22:13:20 GMT` (RFC 9110, 5.6.7)."""
    then = datetime.fromtimestamp(int(seconds), UTC)
    day = f"{_DAYS[then.weekday()]}, {then.day:02} {_MONTHS[then.month - 1]} {then.year:04}"
    return f"{day} {then.hour:02}:{then.minute:02}:{then.second:02} GMT"


def nginx_date(seconds: float) -> str:
    """Return seconds since the epoch as nginx writes dates in cookies: `Tue, 14-Nov-23 22:13:20 GMT`, with all digits
    of the year from 2038 on.
    """
    then = datetime.fromtimestamp(int(seconds), UTC)
    year = f"{then.year % 100:02}" if then.year < 2038 else str(then.year)
    day = f"{_DAYS[then.weekday()]}, {then.day:02}-{_MONTHS[then.month - 1]}-{year}"
    return f"{day} {then.hour:02}:{then.minute:02}:{then.second:02} GMT"
