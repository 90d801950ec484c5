"""How a request is packed into a frame: the parts of its environ that can be served in another process, and how much of
its body goes with it.
"""

from __future__ import annotations

from typing import Any, Final

from sticky_wsgi.messages import Environ, content_length

#: In bytes: a body up to this length is read before the request is forwarded, and is sent with it, so that no thread of
#: the peer waits for a slow client.
EAGER_BODY: Final = 65536

#: The types of the values of an environ that are forwarded. The rest (streams, sockets, functions) works only in the
#: process of its server.
FORWARDED_TYPES: Final = frozenset((str, int, float, bool, bytes, type(None)))


def pack_environ(environ: Environ) -> dict[str, Any]:
    """Return the part of an environ that is forwarded."""
    return {name: value for name, value in environ.items() if value.__class__ in FORWARDED_TYPES}


def lost_names(environ: Environ) -> set[str]:
    """Return the names of what `pack_environ` leaves out."""
    return {name for name, value in environ.items() if value.__class__ not in FORWARDED_TYPES}


def sends_body(environ: Environ) -> bool:
    """Return whether a request has a body, or may have one."""
    if "HTTP_TRANSFER_ENCODING" in environ:
        return True
    length = content_length(environ)
    return length != "0" and (length != "" or not environ.get("SERVER_PROTOCOL", "HTTP/1.1").startswith("HTTP/1"))


def has_small_body(environ: Environ) -> bool:
    """Return whether a body is known to be small enough to be sent with its request."""
    length = content_length(environ)
    return "HTTP_TRANSFER_ENCODING" not in environ and length.isdecimal() and int(length) <= EAGER_BODY
