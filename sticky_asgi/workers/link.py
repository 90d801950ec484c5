"""A connection between two workers: frames in both directions, with backpressure."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
import struct
from contextlib import suppress
from typing import Final, cast

from sticky_asgi.messages import Message
from sticky_asgi.upstream.flow_control import FlowControlProtocol
from sticky_asgi.workers.protocol import MESSAGE_KEYS, payload_size
from sticky_core.workers.frames import (
    MAX_PAYLOAD,
    PIECE,
    BadFrame,
    Frame,
    Frames,
    Kind,
    Payload,
    cut_payload,
    join_payload,
)

_log = logging.getLogger("sticky_sessions")

#: in bytes: how much of what was received may wait to be consumed before reading pauses, so that the sender has to wait
WINDOW: Final = 262144
#: in bytes: unsent messages above this are written at once, rather than when the app yields to the event loop
MAX_GATHERED: Final = 16384


class FramedConnection(FlowControlProtocol):
    """One end of a connection between two workers."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        super().__init__()
        self.frames = Frames()
        self.pack = self.frames.pack
        self._pack_item = self.frames.pack_item
        self.closed = False
        self.is_foreign = False  #: whether the process at the other end is another user's
        self._paused = False
        self._received = 0  # bytes, since messages were received for the last time
        self._buffered = 0  # bytes of messages that were received and not consumed
        self._parts: list[Payload] = []  # received parts of a WebSocket message that is not complete
        self._unsent: list[bytes] = []  # packed messages
        self._unsent_size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.loop = asyncio.get_running_loop()
        if not is_own_user(transport.get_extra_info("socket")):
            _log.warning("StickyWorkers: closed a connection between workers: its other end is another user's process")
            self.is_foreign = self.closed = True
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.closed:
            return
        self._received += len(data)
        try:
            for frame in self.frames.feed(data):
                if frame[0] == Kind.PART:
                    self._parts.append(frame[1])
                    continue
                if self._parts:
                    frame = join_payload(self._parts, frame)
                    self._parts = []
                self.on_frame(frame)
        except (BadFrame, ValueError, TypeError, LookupError, AttributeError) as error:
            _log.warning("StickyWorkers: closed a connection between workers: bad frame: %s", error)
            self.transport.abort()

    def on_frame(self, frame: Frame) -> None:
        """Handle a frame that was received. ValueError, TypeError, LookupError or AttributeError if it is malformed or
        not expected: that closes the connection.
        """
        raise NotImplementedError

    def messages_received(self) -> None:
        """Count what was received as messages that wait to be consumed; pause reading if that is too much."""
        self._buffered += self._received
        self._received = 0
        if self._buffered > WINDOW and not self._paused and not self.closed:
            self._paused = True
            self.transport.pause_reading()

    def all_consumed(self) -> None:
        """Note that all received messages have been consumed; resume reading if it is paused."""
        self._received = self._buffered = 0
        if self._paused:
            self._paused = False
            if not self.closed:
                self.transport.resume_reading()

    def send_frame(self, *frame: object) -> None:
        """Send a frame, behind all unsent messages."""
        if not self.closed:
            self.flush()
            self.transport.write(self.pack(*frame))

    def send_message(self, message: Message) -> None:
        """Send a message, a large body in pieces. Messages that are sent before the app yields to the event loop share
        a frame. TypeError, ValueError or OverflowError if the message can't be packed.
        """
        body = message.get("body")
        if body is not None:
            if len(body) > PIECE:
                return self._send_pieces(message, memoryview(body))
        elif payload_size(message) > MAX_PAYLOAD:
            return self._send_parts(message)
        packed = self._pack_message(message)
        unsent = self._unsent
        if not unsent:
            self.loop.call_soon(self.flush)
        unsent.append(packed)
        self._unsent_size += len(packed)
        if self._unsent_size > MAX_GATHERED:
            self.flush()

    def _send_pieces(self, message: Message, body: memoryview) -> None:
        for at in range(0, len(body), PIECE):
            piece = {**message, "body": body[at : at + PIECE]}
            if at + PIECE < len(body):
                piece["more_body"] = True
            self._unsent.append(self._pack_message(piece))
            self.flush()

    def _send_parts(self, message: Message) -> None:
        """Send a WebSocket message with a payload that is too long for a frame."""
        name = "bytes" if message.get("bytes") else "text"
        *parts, last = cut_payload(message[name], MAX_PAYLOAD)
        for part in parts:
            self.send_frame(Kind.PART, part)
        self._unsent.append(self._pack_message({**message, name: last}))
        self.flush()  # at once: the frame that follows the parts has this message, and no other before it

    def _pack_message(self, message: Message) -> bytes:
        try:
            return self._pack_item(message)
        except (TypeError, ValueError, OverflowError):
            if message.keys() <= MESSAGE_KEYS:
                raise
            # servers ignore keys that they do not know, whatever they have
            return self._pack_item({name: value for name, value in message.items() if name in MESSAGE_KEYS})

    def flush(self) -> None:
        """Write the unsent messages."""
        unsent = self._unsent
        if unsent:
            self._unsent = []
            self._unsent_size = 0
            if not self.closed:
                self.transport.write(self.frames.pack_with((Kind.MESSAGES,), unsent))

    async def drain(self) -> None:
        """Wait while the write buffer is full. A call costs more than to look at `writable` first."""
        writable = self.writable
        if writable is not None and not self.closed:
            await writable

    def eof_received(self) -> None:
        self.closed = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.resume_writing()


def listens(address: str) -> bool:
    """Return whether a process listens at this path of a UNIX socket, or has an abstract socket with this address."""
    kind = socket.SOCK_DGRAM if address.startswith("\0") else socket.SOCK_STREAM
    with socket.socket(socket.AF_UNIX, kind) as connection:
        connection.setblocking(False)
        try:
            connection.connect(address)
        except BlockingIOError:  # it has not accepted the connections before
            return True
        except OSError:
            return False
        return True


def open_abstract(address: str) -> socket.socket:
    """Return a socket with this abstract address, which shows that this worker runs. It is never read. On a system
    without abstract sockets it has no address.
    """
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with suppress(OSError):
        opened.bind(address)
    return opened


def listening_sockets() -> set[int]:
    """Return the inodes of the sockets at which this process listens."""
    found: set[int] = set()
    try:
        names = os.listdir("/dev/fd")
    except OSError:
        return found
    for name in names:
        with suppress(OSError, ValueError):  # closed meanwhile: that of the listing, at least
            status = os.fstat(int(name))
            if stat.S_ISSOCK(status.st_mode):
                with socket.socket(fileno=os.dup(int(name))) as opened:
                    if opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        found.add(status.st_ino)
    return found


def is_own_user(end: socket.socket) -> bool:
    """Return whether the process at the other end of a UNIX socket is this user's."""
    if not hasattr(socket, "SO_PEERCRED"):  # not Linux: there only the private directory keeps other users out
        return True
    _, user, _ = struct.unpack("3i", end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return bool(user == os.geteuid())
