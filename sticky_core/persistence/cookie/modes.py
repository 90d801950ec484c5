"""The modes of `Cookie`, one row each. To add a mode, add a name to `Mode` and a row to `MODES`: validation, settings
and engine read from the row what the mode does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from sticky_core.deferred.dataclass import dataclass

Mode = Literal["insert", "rewrite", "prefix", "passive"]


@dataclass(frozen=True, slots=True)
class CookieMode:
    """What a mode does.

    - `options`: the options of `Cookie` that have an effect.
    - `inserts`: we add a Set-Cookie to responses, and remove that of the application under the same name.
    - `edit_value`: takes our value and the value that the application sets, and returns the value that the client gets;
      None: the application's Set-Cookie is not changed.
    - `has_prefix`: the cookie contains `id~value`. The server gets `value`, and there are no dates.
    - `is_signable`: the id is signed unless `signed=False`.
    - `is_indirect`: the default of `indirect`.
    - `needs_signature_for_dates`: the value has dates only if it is signed.
    """

    options: frozenset[str]
    inserts: bool = False
    edit_value: Callable[[str, str], str] | None = None
    has_prefix: bool = False
    is_signable: bool = True
    is_indirect: bool = False
    needs_signature_for_dates: bool = False


_ACCEPTS = {"accepts", "accepts_until"}
_ATTRIBUTES = {"httponly", "secure", "samesite", "partitioned", "path", "domain", "attr", "max_age", "expires"}
_ID = {"secret", "signed", "opaque", "dynamic"}
_DATES = {"maxidle", "maxlife"}

MODES: Mapping[Mode, CookieMode] = {
    "insert": CookieMode(
        options=frozenset(
            _ID
            | _DATES
            | _ACCEPTS
            | _ATTRIBUTES
            | {"indirect", "preserve", "nocache", "postonly", "fallback", "refresh"}
        ),
        inserts=True,
        is_indirect=True,
    ),
    "rewrite": CookieMode(
        options=frozenset(_ID | _DATES | _ACCEPTS),
        edit_value=lambda ours, application: ours,
        needs_signature_for_dates=True,
    ),
    "prefix": CookieMode(
        options=frozenset(_ID | _ACCEPTS | {"indirect", "preserve"}),
        edit_value=lambda ours, application: f"{ours}~{application}",
        has_prefix=True,
    ),
    "passive": CookieMode(
        options=frozenset({"signed", "dynamic", "indirect", "preserve"} | _ACCEPTS),
        is_signable=False,
    ),
}


def modes_with(option: str) -> list[Mode]:
    """Return the modes in which an option has an effect."""
    return [name for name, mode in MODES.items() if option in mode.options]
