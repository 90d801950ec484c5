"""What workers say to each other over a UNIX socket, without I/O: frames in, frames out.

A frame is its length in four bytes, and a msgpack array whose first item says what it is. Nothing in it can be
executed, which is why it is neither pickle nor marshal. What comes is believed to be one of ours only after it has been
looked at: whoever receives `BadFrame` closes that connection and nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final, TypeAlias

from sticky_core.errors import ConfigError

#: of one frame, in bytes: a WebSocket message can't be cut in pieces, and servers let 16 MB of one pass
LONGEST: Final = 32 * 1024 * 1024
#: of a body, in bytes: pieces above this are cut, so that a slow reader is felt soon
PIECE: Final = 128 * 1024


class Kind:
    """What frames are, and what follows in them."""

    HELLO: Final = 1  #: the worker's life: the first thing that it says on a connection
    REQUEST: Final = 2  #: claim, reason, and what the face says of a request that is handed over; one at a time
    MESSAGES: Final = 3  #: messages of the face, on their way to the app or back
    END: Final = 4  #: what the app has raised, or None, and its last messages: it is through with the request
    BYE: Final = 5  #: the worker is about to end: who hears it begins nothing more here, and hangs up when through
    WANT: Final = 6  #: the app asks for the body, which the client sends only then
    ASK: Final = 7  #: a key: whose is it?
    CLAIM: Final = 8  #: a key, and whose it is to be if it is nobody's
    KNOWN: Final = 9  #: whose it is, or None


Frame: TypeAlias = tuple[Any, ...]

_MISSING = "StickyWorkers needs msgpack: pip install 'sticky-sessions[workers]'"


class BadFrame(Exception):
    """What came is no frame of ours, or too long a one."""


def require() -> None:
    """ConfigError unless the codec is installed."""
    _msgpack()


def _msgpack() -> Any:
    try:
        return import_module("msgpack")
    except ImportError:
        raise ConfigError(_MISSING) from None


class Frames:
    """The frames of one connection: `pack` what goes, `feed` what comes."""

    __slots__ = ("_kept", "_longest", "_needed", "_pack", "_unpack")

    def __init__(self, longest: int = LONGEST) -> None:
        msgpack = _msgpack()
        self._pack = msgpack.Packer(unicode_errors="surrogatepass").pack
        self._unpack = msgpack.unpackb
        self._longest = longest
        self._kept = bytearray()
        self._needed = 0

    def pack(self, *items: object) -> bytes:
        """A frame of `items`, the first of which says what it is. TypeError for what can't travel, ValueError for what
        is too long.
        """
        packed: bytes = self._pack(items)
        if len(packed) > self._longest:
            raise ValueError(f"{len(packed)} bytes are more than fit into a frame, which is {self._longest}")
        return len(packed).to_bytes(4, "big") + packed

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete with `data`. BadFrame if one can't be."""
        kept = self._kept
        if kept:
            kept += data
            if len(kept) < self._needed:
                return []
            data = bytes(kept)
            self._kept = bytearray()
        found: list[Frame] = []
        at, end, needed = 0, len(data), 4
        while end - at >= 4:
            size = int.from_bytes(data[at : at + 4], "big")
            if size > self._longest:
                raise BadFrame(f"a frame of {size} bytes")
            needed = 4 + size
            if end - at < needed:
                break
            found.append(self._read(data[at + 4 : at + needed]))
            at += needed
            needed = 4
        if at < end:
            self._kept = bytearray(data[at:])
            self._needed = needed
        return found

    def _read(self, packed: bytes) -> Frame:
        try:
            frame: Any = self._unpack(packed, use_list=False, unicode_errors="surrogatepass")
        except Exception as error:  # its own exceptions, ValueError, UnicodeDecodeError, RecursionError, ...
            raise BadFrame(f"{type(error).__name__}: {error}") from None
        # compared by class rather than with isinstance, which would tell a type checker more than it wants to know
        if frame.__class__ is not tuple or not frame or frame[0].__class__ is not int:
            raise BadFrame("no array that says what it is")
        found: Frame = frame
        return found
