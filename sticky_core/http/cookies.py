"""Reading and writing of Cookie and Set-Cookie headers. No other module parses or formats them.

A Cookie header is read as HAProxy reads it: pairs are delimited by `;` or `,` (gunicorn joins two Cookie headers with a
comma) outside double quotes, white space around names and values does not count, names compare exactly, and pairs with
a name that begins with `$` belong to the pair before them (RFC 2109, 4.4). What is not our cookie keeps every byte.

Text is latin-1: one character per byte, so nothing that a client sends is lost or refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from email.utils import mktime_tz, parsedate_tz
from typing import NamedTuple

from sticky_core.http.dates import http_date, nginx_date

_SPACE = " \t"

# One pair, up to its delimiter. Alternatives exclude each other, so the match takes linear time; an unclosed quote
# runs to the end of the text.
_PAIR = re.compile(
    r"""[ \t]* (?P<name> [^=;,]* )
        (?: = [ \t]* (?P<value> (?: [^;,"] | "(?:[^"\\]|\\.)*(?:"|\\?\Z) )* ) )?
        (?= [;,] | \Z )""",
    re.VERBOSE | re.DOTALL,
)


class Pair(NamedTuple):
    """One pair of a Cookie text. `text[start:stop]` is the pair without its delimiters, `text[value_start:value_stop]`
    its value. `value_start` is -1 for a pair without `=`.
    """

    name: str
    value: str
    start: int
    stop: int
    value_start: int
    value_stop: int


def pairs(text: str) -> list[Pair]:
    """Return all pairs of a Cookie text, those without a name and empty ones included."""
    found: list[Pair] = []
    at = 0
    while True:
        match = _PAIR.match(text, at)
        assert match is not None  # every part of the pattern may be empty, up to the next delimiter
        name, value = match["name"].rstrip(_SPACE), match["value"]
        if value is None:
            found.append(Pair(name, "", at, match.end(), -1, -1))
        else:
            start = match.start("value")
            value = value.rstrip(_SPACE)
            found.append(Pair(name, value, at, match.end(), start, start + len(value)))
        at = match.end() + 1
        if at > len(text):
            return found


def take(text: str, name: str) -> tuple[Sequence[str], str]:
    """Return the values of every cookie called `name`, in order, with their quotes; and `text` without these cookies.

    The `$` attributes that follow a cookie are removed with it. If there were no other cookies, the rest is empty.
    """
    head, found, tail = text.partition(name + "=")
    if found and (not head or head[-2:] == "; "):
        # The usual case: one cookie of this name, in a text as browsers write it. The rest is not parsed.
        value, more, rest = tail.partition("; ")
        if not (
            ";" in value
            or " " in value
            or name in head
            or name in rest
            or '"' in text
            or "," in text
            or "$" in text
            or "  " in text
            or " ;" in text
            or "\t" in text
        ):
            return (value,), head + rest if more else head[:-2]
    elif name not in text:
        return (), text
    # Any other text: quoted, delimited by commas, with `$` attributes, unusual spaces, several cookies of this name.
    every = pairs(text)
    ours = [pair.value for pair in every if pair.name == name and pair.value_start >= 0]
    return ours, _without(text, every, name) if ours else text


def _without(text: str, found: Sequence[Pair], name: str) -> str:
    kept: list[str] = []  # the pieces that stay, each with its delimiter before it, except the first
    removing = foreign = False
    tidy = False  # a pair was removed before this one: one space after the delimiter, none if it is the first now
    for pair in found:
        ours = pair.name == name and pair.value_start >= 0
        if ours or (removing and pair.name.startswith("$")):
            removing = tidy = True
            continue
        removing = False
        foreign = foreign or not pair.name.startswith("$")
        delimiter = text[pair.start - 1 : pair.start]
        piece = text[pair.start : pair.stop]
        if tidy:
            piece = piece.lstrip(_SPACE)
            if kept:
                kept[-1] = kept[-1].rstrip(_SPACE)
                piece = f"{delimiter} {piece}"
            tidy = False
        elif kept:
            piece = delimiter + piece
        kept.append(piece)
    return "".join(kept) if foreign else ""


def replace(text: str, name: str, new: Callable[[str], str]) -> str:
    """Return `text` with the value of every cookie called `name` replaced by what `new` returns for it."""
    if name not in text:
        return text
    pieces: list[str] = []
    at = 0
    for pair in pairs(text):
        if pair.name == name and pair.value_start >= 0:
            pieces += text[at : pair.value_start], new(pair.value)
            at = pair.value_stop
    return "".join(pieces) + text[at:]


def unquote(value: str) -> str:
    """Return `value` without the double quotes around it, if it has them (RFC 6265, 4.1.1)."""
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value


# A Set-Cookie header holds one cookie; attributes begin at the first `;` outside quotes.
_SET = re.compile(
    r"""(?P<name> [^=;]* ) = [ \t]* (?P<value> (?: [^;"] | "(?:[^"\\]|\\.)*(?:"|\\?\Z) )* )""",
    re.VERBOSE | re.DOTALL,
)


def set_cookie_name(text: str) -> str | None:
    """Return the name of the cookie that a Set-Cookie text sets, or None if there is no `=`."""
    match = _SET.match(text)
    return match["name"].strip(_SPACE) if match is not None else None


def set_cookie_value(text: str) -> str:
    """Return the value that a Set-Cookie text sets, without quotes; empty if there is no `=`."""
    match = _SET.match(text)
    return unquote(match["value"].rstrip(_SPACE)) if match is not None else ""


def attributes(text: str) -> list[tuple[str, str]]:
    """Return the attributes of a Set-Cookie text, in order: name in lower case, and value (RFC 6265, 5.2)."""
    match = _SET.match(text)
    found: list[tuple[str, str]] = []
    for part in text[match.end() if match is not None else len(text) :].split(";"):
        name, _, value = part.partition("=")
        if name.strip(_SPACE):
            found.append((name.strip(_SPACE).lower(), value.strip(_SPACE)))
    return found


def deletes(text: str, now: float) -> bool:
    """Return whether a Set-Cookie text deletes its cookie: by Max-Age, by a date before `now` (in seconds since the
    epoch; RFC 6265, 5.3), or by an empty value.
    """
    if not set_cookie_value(text):
        return True
    ends = dict(attributes(text))
    if re.fullmatch("-?[0-9]+", ends.get("max-age", "")):
        return ends["max-age"].startswith("-") or not ends["max-age"].strip("0")
    try:
        parsed = parsedate_tz(ends.get("expires", ""))
        return parsed is not None and mktime_tz(parsed) <= now
    except (ValueError, OverflowError):  # there is no such day
        return False


def edit_set_cookie_value(text: str, new: Callable[[str], str]) -> str:
    """Return a Set-Cookie text with its value replaced by what `new` returns for it, without white space around `=`.
    Attributes keep every byte.
    """
    match = _SET.match(text)
    if match is None:
        return text
    value = match["value"].rstrip(_SPACE)
    lead = text[: match.start("name")]
    return f"{lead}{match['name'].rstrip(_SPACE)}={new(value)}{text[match.start('value') + len(value) :]}"


# Set-Cookie headers of our own. Each one that we send is written by these functions.


def set_cookie(name: str, value: str, expiry: str = "", attributes: str = "") -> str:
    """Return the Set-Cookie text for a cookie.

    - `expiry`: made by `expires` or `nginx_expires`; empty: the cookie ends when the browser is closed.
    - `attributes`: made by `attribute_text` or `nginx_attribute_text`.
    """
    return f"{name}={value}{expiry}{attributes}"


def delete_cookie(name: str, attributes: str = "") -> str:
    """Return the Set-Cookie text that deletes a cookie. Its path and domain must be those of the cookie."""
    return set_cookie(name, "", "; Expires=Thu, 01-Jan-1970 00:00:01 GMT", attributes)


def expires(at: float) -> str:
    """Return the expiry for a moment in seconds since the epoch."""
    return f"; Expires={http_date(at)}"


def attribute_text(
    *,
    path: str | None = None,
    domains: Iterable[str] = (),
    max_age: float = 0,
    httponly: bool = False,
    secure: bool = False,
    samesite: str | None = None,
    partitioned: bool = False,
    attr: Iterable[str] = (),
) -> str:
    """Return attributes in HAProxy's order, each behind `; `. HAProxy has those of its `attr` last.

    - `path`, `samesite`: None: the attribute is left out.
    - `domains`: one attribute for each.
    - `max_age`: in seconds; 0: the attribute is left out.
    - `httponly`, `secure`, `partitioned`: whether the attribute is written.
    - `attr`: further attributes, written as they are.
    """
    parts = [f"path={path}"] if path is not None else []
    parts += (f"domain={domain}" for domain in domains)
    if max_age:
        parts.append(f"Max-Age={int(max_age)}")
    if httponly:
        parts.append("HttpOnly")
    if secure:
        parts.append("Secure")
    if samesite is not None:
        parts.append(f"SameSite={samesite}")
    if partitioned:
        parts.append("Partitioned")
    return join_attributes((*parts, *attr))


def join_attributes(attributes: Iterable[str]) -> str:
    """Return attributes as they follow the value of a cookie, each behind `; `."""
    return "".join(f"; {attribute}" for attribute in attributes)


#: nginx's `expires=max`: ten years, but the date is the last that 32 bits hold
NGINX_EXPIRES_MAX = "; expires=Thu, 31-Dec-37 23:55:55 GMT; max-age=315360000"


def nginx_expires(at: float, max_age: float) -> str:
    """Return the expiry as nginx writes it: the moment in seconds since the epoch, and in how many seconds that is."""
    return f"; expires={nginx_date(at)}; max-age={int(max_age)}"


def nginx_attribute_text(
    *, domain: str | None, httponly: bool, secure: bool, samesite: str | None, path: str | None
) -> str:
    """Return attributes in nginx's order and case. None, or an empty domain: the attribute is left out."""
    parts = (
        f"domain={domain}" if domain else "",
        "httponly" if httponly else "",
        "secure" if secure else "",
        f"samesite={samesite}" if samesite else "",
        f"path={path}" if path is not None else "",
    )
    return join_attributes(part for part in parts if part)


# RFC 9110, 5.6.2 (token), and RFC 6265, 4.1.1 (cookie-octet)
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_OCTETS = re.compile(r"[!\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]+")
_ATTRIBUTE = re.compile(r"[\x20-\x3a\x3c-\x7e]+")


def is_name(text: str) -> bool:
    """Return whether `text` can be the name of a cookie. It can't begin with `$`, which marks an attribute in a Cookie
    header.
    """
    return _TOKEN.fullmatch(text) is not None and not text.startswith("$")


def is_value(text: str) -> bool:
    """Return whether `text` can be the value of a cookie without quotes: printable ASCII except space, `"`, `,`, `;`
    and the backslash.
    """
    return _OCTETS.fullmatch(text) is not None


def is_attribute(text: str) -> bool:
    """Return whether `text` can be an attribute of Set-Cookie: printable ASCII without `;`."""
    return _ATTRIBUTE.fullmatch(text) is not None
