"""Reading and writing of Cookie and Set-Cookie headers. No other module parses or formats them.

A Cookie header is read as HAProxy reads it: pairs are delimited by `;` or `,` (gunicorn joins two Cookie headers with a
comma) outside double quotes, white space around names and values does not count, names compare exactly, and pairs with
a name that begins with `$` belong to the pair before them (RFC 2109, 4.4). What is not our cookie keeps every byte.

Text is latin-1: one character per byte, so nothing that a client sends is lost or refused. But not everything is read:
`MAX_HEADERS`, `MAX_LENGTH` and `MAX_CANDIDATES` are the limits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from email.utils import mktime_tz, parsedate_tz
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

from sticky_core.http.dates import http_date, nginx_date

_SPACE = " \t"

# What is read of the cookies that a client sends. Reading takes linear time, and these bound it.

#: How many Cookie headers of a request are read; with more of them, none is. A browser sends one, and the fields into
#: which it may split that one in HTTP/2 and later count as one.
MAX_HEADERS: Final = 64
#: How much of the Cookie header of a request is read, in bytes: cookies that begin behind it are not found, and stay
#: in the header. Several headers that are longer together are not read at all. HAProxy refuses a request with a head of
#: that length, nginx and Apache one with a header of half of it.
MAX_LENGTH: Final = 16384
#: How many different values of one cookie are verified, of those that a request has: each takes a signature for each
#: secret.
MAX_CANDIDATES: Final = 12

#: Stands for the Cookie headers of a request: its only one, or all if there are several; None: there are none.
CookieKey: TypeAlias = str | bytes | tuple[str | bytes, ...] | None

#: stands for Cookie headers that are not read
UNREAD: Final[tuple[()]] = ()


def limited_key(key: tuple[str | bytes, ...]) -> tuple[str | bytes, ...]:
    """Return the key of several Cookie headers, or `UNREAD` if there are more than are read, or longer ones."""
    return key if len(key) <= MAX_HEADERS and sum(map(len, key)) <= MAX_LENGTH else UNREAD


def are_cut(texts: Sequence[str]) -> bool:
    """Return whether more was sent than is read. `texts`: what is read of the Cookie headers of a request that has
    some (`Request.cookies`).
    """
    return not texts or len(texts[0]) > MAX_LENGTH


# The value of a pair, up to its delimiter. No part is given back once it has matched, so a match takes linear time; an
# unclosed quote runs to the end of the text.
_VALUE = r'(?:[^;,"]++|"(?:[^"\\]++|\\.)*+(?:"|\\?\Z))*+'
_PAIR = rf"[^=;,]*+(?:={_VALUE})?+"
_ATTRIBUTE = rf"[ \t]*+\${_PAIR}"

_matches_attributes = re.compile(rf"{_ATTRIBUTE}(?:[;,]{_ATTRIBUTE})*+", re.DOTALL).fullmatch
_match_attributes_behind = re.compile(rf"(?:[;,]{_ATTRIBUTE})*+", re.DOTALL).match


@lru_cache(maxsize=256)
def _patterns(name: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return the pattern of pairs that are not called `name`, each with its delimiter, and that of one that is."""
    begin = rf"[ \t]*+{re.escape(name)}[ \t]*+="
    others = re.compile(rf"(?:(?!{begin}){_PAIR}[;,])*+", re.DOTALL)
    return others, re.compile(rf"{begin}[ \t]*+({_VALUE})", re.DOTALL)


class _Found(NamedTuple):
    """A cookie in a Cookie text. `text[start:stop]` is its pair, without the delimiters, and `text[value_start:
    value_stop]` is its value.
    """

    start: int
    stop: int
    value_start: int
    value_stop: int
    value: str


def _find(text: str, name: str) -> list[_Found]:
    """Return the cookies called `name` that begin within the first `MAX_LENGTH` bytes of a Cookie text."""
    others, ours = _patterns(name)
    found: list[_Found] = []
    at = 0
    while at <= min(len(text), MAX_LENGTH):
        skipped = others.match(text, at, MAX_LENGTH)
        match = ours.match(text, skipped.end()) if skipped is not None else None
        if match is None:
            break
        value = match[1].rstrip(_SPACE)
        begin = match.start(1)
        found.append(_Found(match.start(), match.end(), begin, begin + len(value), value))
        at = match.end() + 1
    return found


def take(text: str, name: str) -> tuple[Sequence[str], str]:
    """Return the values of the cookies called `name`, in order, with their quotes; and `text` without these cookies.

    The `$` attributes that follow a cookie are removed with it. If there were no other cookies, the rest is empty.
    Cookies that begin behind the first `MAX_LENGTH` bytes count as others.
    """
    head, found, tail = text.partition(name + "=")
    if found and (not head or head[-2:] == "; ") and len(head) <= MAX_LENGTH:
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
    ours = _find(text, name)
    return [each.value for each in ours], _without(text, ours) if ours else text


def _without(text: str, ours: Sequence[_Found]) -> str:
    """Return a Cookie text without some of its cookies and the `$` attributes that follow each."""
    kept: list[str] = []  # what stays between these cookies, each piece with the delimiter before it, except the first
    is_foreign = False  # whether there is a pair that is not an attribute
    at = 0  # where the next piece begins
    for start, stop in (*((each.start, each.stop) for each in ours), (len(text) + 1, len(text) + 1)):
        if at < start:
            piece = text[at : start - 1]
            is_foreign = is_foreign or "$" not in piece or not _matches_attributes(piece)
            if at:  # one space after the delimiter, none if the piece is the first now
                piece = piece.lstrip(_SPACE)
                if kept:
                    kept[-1] = kept[-1].rstrip(_SPACE)
                    piece = f"{text[at - 1]} {piece}"
            kept.append(piece)
        attributes = _match_attributes_behind(text, stop)
        at = (attributes.end() if attributes is not None else stop) + 1
    return "".join(kept) if is_foreign else ""


def replace(text: str, name: str, new: Callable[[str], str]) -> str:
    """Return `text` with the value of each cookie called `name` that `take` returns replaced by what `new` returns for
    it.
    """
    if name not in text:
        return text
    pieces: list[str] = []
    at = 0
    for each in _find(text, name):
        pieces += text[at : each.value_start], new(each.value)
        at = each.value_stop
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
_ATTRIBUTE_TEXT = re.compile(r"[\x20-\x3a\x3c-\x7e]+")


def is_token(text: str) -> bool:
    """Return whether `text` may be the name of a header (RFC 9110, 5.6.2)."""
    return _TOKEN.fullmatch(text) is not None


def is_name(text: object) -> bool:
    """Return whether `text` is a text that can be the name of a cookie. It can't begin with `$`, which marks an
    attribute in a Cookie header.
    """
    return isinstance(text, str) and _TOKEN.fullmatch(text) is not None and not text.startswith("$")


def is_value(text: str) -> bool:
    """Return whether `text` can be the value of a cookie without quotes: printable ASCII except space, `"`, `,`, `;`
    and the backslash.
    """
    return _OCTETS.fullmatch(text) is not None


def is_attribute(text: str) -> bool:
    """Return whether `text` can be an attribute of Set-Cookie: printable ASCII without `;`."""
    return _ATTRIBUTE_TEXT.fullmatch(text) is not None
