"""Read one field of a JSON document from its beginning, and no further, so that a document that is cut off behind the
field is as good as a whole one.

Values before the field are skipped one by one, with the scanner of the standard library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

_decode_value = json.JSONDecoder().raw_decode
_WHITE_SPACE = re.compile("[ \t\n\r]*")


def read_field(document: bytes, names: Sequence[str]) -> str | int | float | None:
    """Return the text or number in `document` at `names`, the field of the outermost object first; None if there is no
    such field, or something else in it. Of several fields with one name the first counts.

    Raises ValueError or RecursionError if the document is no JSON, or ends, before the end of the field.
    """
    text = _decode(document)
    at = _skip(text, 0)
    for name in names:
        found_at = _find_field(text, at, name)
        if found_at is None:
            return None
        at = found_at
    if text[at : at + 1] in ("{", "[", "t", "f", "n"):
        return None
    value, at = _decode_value(text, at)
    if text[_skip(text, at)] not in ",}":  # else a number may go on
        raise ValueError("no end of the value")
    assert isinstance(value, str | int | float)
    return value


def as_key(found: object) -> str | None:
    """Return a text or number of a JSON document as a key; None for other values, and texts that can't be printed."""
    if isinstance(found, str):
        return found.encode().decode("latin-1") if found.isprintable() else None
    return str(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def _find_field(text: str, at: int, name: str) -> int | None:
    """Return where the value of the first field `name` of the object at `at` begins; None if that is no object, or has
    no such field.
    """
    if text[at] != "{":
        return None
    at = _skip(text, at + 1)
    while text[at] != "}":
        key, at = _decode_value(text, at)
        at = _skip(text, at)
        if not isinstance(key, str) or text[at] != ":":
            raise ValueError("no field")
        at = _skip(text, at + 1)
        if key == name:
            return at
        _, at = _decode_value(text, at)
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)
        elif text[at] != "}":
            raise ValueError("no end of the value")
    return None


def _skip(text: str, at: int) -> int:
    """Return where the white space at `at` ends. ValueError if the text ends there."""
    match = _WHITE_SPACE.match(text, at)
    assert match is not None
    if match.end() == len(text):
        raise ValueError("the text ends")
    return match.end()


def _decode(document: bytes) -> str:
    """Return the text, up to the first byte that is none."""
    encoding = json.detect_encoding(document)
    try:
        return document.decode(encoding, "surrogatepass")
    except UnicodeDecodeError as error:
        return document[: error.start].decode(encoding, "surrogatepass")
