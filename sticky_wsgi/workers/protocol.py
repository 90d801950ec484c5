"""How a request is packed into a frame: the parts of its environ that can be served in another process, and how much of
its body goes with it.
"""

from __future__ import annotations

from typing import Any, Final

from sticky_core.workers.lost_names import is_plain
from sticky_wsgi.messages import Environ, content_length

#: In bytes: a body up to this length is read before the request is forwarded, and is sent with it, so that no thread of
#: the peer waits for a slow client.
EAGER_BODY: Final = 65536


def pack_environ(environ: Environ) -> dict[str, Any]:
    """Return the part of an environ that is forwarded."""
    return {name: value for name, value in environ.items() if value.__class__ is str or is_plain(value)}


def lost_names(environ: Environ) -> set[str]:
    """Return the names of what `pack_environ` leaves out."""
    return {name for name, value in environ.items() if value.__class__ is not str and not is_plain(value)}


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
