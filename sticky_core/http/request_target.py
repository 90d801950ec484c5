"""The target of a request, and its path: what follows the part that the app is mounted under (`root_path`,
SCRIPT_NAME), without the scheme and authority of an absolute form (RFC 9112, 3.2.2).

There is one notion of path. Samples, balance and conditions have it as it was sent, percent-encoded (`request_path`),
as with HAProxy. Routes and path templates compare it decoded (`decoded_path`, `decode_path`), as apps see it.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote, unquote_to_bytes

_ABSOLUTE = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")  # the absolute form, less its path
_DECODED_ABSOLUTE = re.compile(_ABSOLUTE.pattern.decode())
# The characters besides letters and digits that need no quoting in a path (RFC 3986, 3.3).
_PATH_SAFE = "/:@!$&'()*+,;=~-._"


def request_target(raw: bytes | None, root: str, path: str, query: bytes, charset: str = "utf-8") -> bytes:
    """Return the request target as the client sent it, without the path that the app is mounted under.

    `raw`: path and optionally query as received, if the web server provides it; otherwise `path` is quoted again.
    `root`, `path`: unquoted, and decoded by `charset` with surrogate escapes (PEP 383). `query`: without its question
    mark.
    """
    if raw is None:
        raw = quote(path, safe=_PATH_SAFE, encoding=charset, errors="surrogateescape").encode()
    if root or raw[:1] != b"/":
        encoded_root = root.encode(charset, "surrogateescape")
        # uvicorn puts its root path before an absolute form, too
        absolute = _ABSOLUTE.match(raw, len(encoded_root)) if raw.startswith(encoded_root) else None
        if absolute is not None:
            raw = raw[absolute.end() :]
        else:
            absolute = _ABSOLUTE.match(raw)
            raw = strip_root(raw[absolute.end() :] if absolute is not None else raw, encoded_root)
        if raw[:1] in b"?":
            raw = b"/" + raw
    return b"%b?%b" % (raw, query) if query else raw


def strip_root(raw: bytes, root: bytes) -> bytes:
    """Return the part of the quoted path `raw` after the unquoted `root`; all of `raw` if `root` is not its prefix,
    since some web servers leave it out.
    """
    end = len(root)
    if raw[:end] != root or b"%" in root:
        end = 0
        for byte in root:
            here = raw[end : end + 1]
            if here == b"%" and byte != 0x25:
                here = unquote_to_bytes(raw[end : end + 3])
                width = 3
            else:
                width = 3 if here == b"%" and raw[end : end + 3] == b"%25" else 1
            if here != bytes((byte,)):
                return raw
            end += width
    return raw[end:] if raw[end : end + 1] in (b"/", b"", b"?") else raw


def request_path(raw: bytes | None, root: str, path: str, charset: str = "utf-8") -> str:
    """Return the path of a request as it was sent: percent-encoded, without the query (latin-1, a character per byte).

    The arguments are those of `request_target`.
    """
    return request_target(raw, root, path, b"", charset).partition(b"?")[0].decode("latin-1")


def decoded_path(path: str, root: str = "") -> str:
    """Return the path of a request from the decoded `path` that a web server provides, with or without `root`."""
    if root and path.startswith(root):
        below = path[len(root) :]
        if not below or below[0] == "/":
            return below
        absolute = _DECODED_ABSOLUTE.match(below)  # uvicorn puts its root path before an absolute form, too
        return path if absolute is None else below[absolute.end() :]
    if path[:1] != "/" and (absolute := _DECODED_ABSOLUTE.match(path)) is not None:
        path = path[absolute.end() :]
        return path[len(root) :] if path == root or path.startswith(f"{root}/") else path
    return path


def decode_path(path: str) -> str:
    """Return a path of `request_path` decoded (latin-1, a character per byte)."""
    return unquote(path, "latin-1") if "%" in path else path


def problem_of_decoded_path(path: str) -> str | None:
    """Return why `path`, which is compared with decoded paths, never equals one; None if it may."""
    if "?" in path:
        return "a path ends before the query: leave out the question mark and what follows"
    if "%" in path and (decoded := unquote(path)) != path:
        return f"paths are compared decoded: write {decoded!r}"
    return None
