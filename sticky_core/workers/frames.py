"""Frames: what workers send each other over a UNIX socket, without I/O.

A frame is its length in four bytes, then a msgpack array that begins with its kind. Nothing in it can be executed,
which is why it is neither pickle nor marshal. What is received is checked before it is used: on `BadFrame`, a worker
closes that connection and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Final, TypeAlias

from sticky_core.errors import ConfigError

#: the longest frame, in bytes
MAX_FRAME: Final = 32 * 1024 * 1024
#: The longest payload of a WebSocket message in a frame, in bytes or characters, each of which has at most four bytes.
#: The other end joins what is cut: how long a message may be is up to the servers, not to the frames.
MAX_PAYLOAD: Final = 4 * 1024 * 1024
#: the largest piece of a body in a frame, in bytes: larger ones are cut, so that backpressure of a slow reader works
#: early
PIECE: Final = 128 * 1024


class Kind:
    """The kinds of frames, and what follows in each."""

    HELLO: Final = 1  #: the worker's instance: the first frame on a connection, sent by the worker that accepts it
    #: claim, reason, key, and the request as the face packs it; one request at a time on a connection
    REQUEST: Final = 2
    MESSAGES: Final = 3  #: messages of the face, to the app or from it
    END: Final = 4  #: the traceback of an exception of the app, or None; then its last messages: the request is done
    SHUTDOWN: Final = 5  #: the worker is about to end: send no new request, and close after the current one
    WANT_BODY: Final = 6  #: the app reads the body: send it, or the next piece of it
    KEY_QUERY: Final = 7  #: a key: which worker owns it?
    #: a key; the worker that is to own it if it has no owner; the worker slots of those that did not reply
    KEY_CLAIM: Final = 8
    KEY_OWNER: Final = 9  #: the reply to either: the owner, or None
    #: a part of the payload of a WebSocket message; the last part is in the message itself, which is the first in the
    #: next frame with messages
    PART: Final = 10


Frame: TypeAlias = tuple[Any, ...]

_MISSING = "StickyWorkers needs msgpack: pip install 'sticky-sessions[workers]'"


class BadFrame(Exception):
    """The received bytes are no frame, or the frame is too long, or it is not expected here."""


def require() -> None:
    """Raise ConfigError unless msgpack is installed."""
    _msgpack()


def _msgpack() -> Any:
    try:
        return import_module("msgpack")
    except ImportError:
        raise ConfigError(_MISSING) from None


Payload: TypeAlias = bytes | str


def cut_payload(payload: Payload, longest: int) -> list[Payload]:
    """Return the payload of a WebSocket message in parts of at most `longest` bytes or characters."""
    return [payload[at : at + longest] for at in range(0, len(payload), longest)]


def join_payload(parts: Sequence[Payload], frame: Frame) -> Frame:
    """Return a frame with messages, the first with its whole payload, of which the frames before have had `parts`.
    ValueError, TypeError or LookupError if the frame has no such message.
    """
    kind, message, *others = frame
    if kind != Kind.MESSAGES:
        raise ValueError(f"a frame of kind {kind} in the place of the end of a message")
    name, empty = ("text", "") if isinstance(parts[0], str) else ("bytes", b"")
    join: Any = empty.join  # TypeError if a peer has sent text between bytes
    return kind, {**message, name: join([*parts, message[name]])}, *others


class Frames:
    """The codec of one connection: `pack` frames to send, `feed` bytes that were received."""

    __slots__ = ("_longest", "_needed", "_pack", "_pack_array_header", "_partial", "_unpack", "pack_item")

    def __init__(self, longest: int = MAX_FRAME) -> None:
        msgpack = _msgpack()
        packer = msgpack.Packer(unicode_errors="surrogatepass")
        self._pack = packer.pack
        self._pack_array_header = packer.pack_array_header
        #: packs one item for `pack_with`; TypeError, ValueError or OverflowError if it can't be packed
        self.pack_item: Callable[[object], bytes] = packer.pack
        self._unpack = msgpack.unpackb
        self._longest = longest
        self._partial = bytearray()  # the beginning of a frame
        self._needed = 0  # how many bytes that frame has

    def pack(self, *items: object) -> bytes:
        """Return a frame of `items`, of which the first is its kind. TypeError if an item can't be packed, ValueError
        if the frame is too long.
        """
        packed: bytes = self._pack(items)
        if len(packed) > self._longest:
            raise ValueError(f"{len(packed)} bytes do not fit into a frame, which has at most {self._longest}")
        return len(packed).to_bytes(4, "big") + packed

    def pack_with(self, items: Sequence[object], packed: Sequence[bytes]) -> bytes:
        """Return a frame of `items`, and behind them those that `pack_item` has packed. As `pack` otherwise."""
        parts = (self._pack_array_header(len(items) + len(packed)), *map(self._pack, items), *packed)
        size = sum(map(len, parts))
        if size > self._longest:
            raise ValueError(f"{size} bytes do not fit into a frame, which has at most {self._longest}")
        return b"".join((size.to_bytes(4, "big"), *parts))

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that `data` completes. BadFrame if one of them is malformed or too long."""
        partial = self._partial
        if not partial and int.from_bytes(data[:4], "big") + 4 == len(data) <= self._longest:  # the usual: one frame
            return [self._unpack_frame(data[4:])]
        if partial:
            partial += data
            if len(partial) < self._needed:
                return []
            data = bytes(partial)
            self._partial = bytearray()
        found: list[Frame] = []
        at, end, needed = 0, len(data), 4
        while end - at >= 4:
            size = int.from_bytes(data[at : at + 4], "big")
            if size > self._longest:
                raise BadFrame(f"a frame of {size} bytes")
            needed = 4 + size
            if end - at < needed:
                break
            found.append(self._unpack_frame(data[at + 4 : at + needed]))
            at += needed
            needed = 4
        if at < end:
            self._partial = bytearray(data[at:])
            self._needed = needed
        return found

    def _unpack_frame(self, packed: bytes) -> Frame:
        try:
            frame: Any = self._unpack(packed, use_list=False, unicode_errors="surrogatepass")
        except Exception as error:  # msgpack's own exceptions, ValueError, UnicodeDecodeError, RecursionError, ...
            raise BadFrame(f"{type(error).__name__}: {error}") from None
        # the class is compared: isinstance would narrow Any to a tuple of unknown items, which type checkers report
        if frame.__class__ is not tuple or not frame or frame[0].__class__ is not int:
            raise BadFrame("no array that begins with its kind")
        found: Frame = frame
        return found
