"""The dates in the value of a cookie, as HAProxy writes them: `id|last|first`. Each date counts units of four seconds,
in five characters.

The date of the last visit is rounded up, so that a date that has just been written is not due for renewal.
"""

from __future__ import annotations

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_DIGIT = {character: value for value, character in enumerate(_ALPHABET)}

#: how many characters both dates add to an id
DATES_LENGTH = 12


def encode(seconds: int) -> str:
    """Return seconds since the epoch, rounded up to a multiple of four, as text: 1700000000 is `ZVPxA`."""
    units = (seconds + 3) >> 2
    return "".join(_ALPHABET[(units >> shift) & 63] for shift in (24, 18, 12, 6, 0))


def decode(text: str) -> int | None:
    """Return the seconds since the epoch that the first five characters stand for, or None if they are no date."""
    units = 0
    if len(text) < 5:
        return None
    for character in text[:5]:
        digit = _DIGIT.get(character)
        if digit is None:
            return None
        units = units << 6 | digit
    return units << 2 or None


def add_dates(text: str, last: int | None, first: int | None) -> str:
    """Return an id with its dates appended. Without `last` there is no `first` either."""
    if last is None:
        return text
    return f"{text}|{encode(last)}" if first is None else f"{text}|{encode(last)}|{encode(first)}"


def split_dates(text: str) -> tuple[str, int | None, int | None]:
    """Return the id, and when the client was last and first seen. A date that can't be decoded is None."""
    server_id, bar, dates = text.partition("|")
    if not bar:
        return text, None, None
    return server_id, decode(dates), decode(dates.partition("|")[2])
