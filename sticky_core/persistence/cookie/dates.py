"""The dates in a cookie, as HAProxy writes them: `id|last|first`, each a count of four seconds in five characters.
And the dates behind it, that tell browsers when it ends.

When the client was last seen is rounded up, so that a date just written is not yet in need of renewal.
"""

from __future__ import annotations

from datetime import UTC, datetime

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_DIGIT = {character: value for value, character in enumerate(_ALPHABET)}

#: how many characters both dates add to an id
ADDED = 12


def encode(seconds: int) -> str:
    """Seconds since the epoch, rounded up to four: 1700000000 is `ZVPxA`."""
    units = (seconds + 3) >> 2
    return "".join(_ALPHABET[(units >> shift) & 63] for shift in (24, 18, 12, 6, 0))


def decode(text: str) -> int | None:
    """Seconds since the epoch, from the first five characters; None if they are no date."""
    units = 0
    if len(text) < 5:
        return None
    for character in text[:5]:
        digit = _DIGIT.get(character)
        if digit is None:
            return None
        units = units << 6 | digit
    return units << 2 or None


def stamped(text: str, last: int | None, first: int | None) -> str:
    """An id with its dates. Without `last` there is no place for `first`."""
    if last is None:
        return text
    return f"{text}|{encode(last)}" if first is None else f"{text}|{encode(last)}|{encode(first)}"


def split(text: str) -> tuple[str, int | None, int | None]:
    """The id, and when its client was last and first seen; what can't be read is no date."""
    server_id, bar, dates = text.partition("|")
    if not bar:
        return text, None, None
    return server_id, decode(dates), decode(dates.partition("|")[2])


# not by strftime, which speaks the language of the place
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def http(seconds: float) -> str:
    """Seconds since the epoch as `Expires` has them: `Tue, 14 Nov 2023 22:13:20 GMT` (RFC 9110, 5.6.7)."""
    then = datetime.fromtimestamp(int(seconds), UTC)
    day = f"{_DAYS[then.weekday()]}, {then.day:02} {_MONTHS[then.month - 1]} {then.year:04}"
    return f"{day} {then.hour:02}:{then.minute:02}:{then.second:02} GMT"


def nginx(seconds: float) -> str:
    """The same as nginx writes it in cookies: `Tue, 14-Nov-23 22:13:20 GMT`, with the whole year from 2038 on."""
    then = datetime.fromtimestamp(int(seconds), UTC)
    year = f"{then.year % 100:02}" if then.year < 2038 else str(then.year)
    day = f"{_DAYS[then.weekday()]}, {then.day:02}-{_MONTHS[then.month - 1]}-{year}"
    return f"{day} {then.hour:02}:{then.minute:02}:{then.second:02} GMT"
