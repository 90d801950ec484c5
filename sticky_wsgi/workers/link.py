"""A connection between two workers: frames in both directions, one end sending at a time, so that no end waits for a
reader that is itself writing.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import stat
import struct
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from sticky_core.workers.frames import PIECE, Frame, Frames, Kind
from sticky_wsgi.upstream.connections import TICK_ERRORS

_log = logging.getLogger("sticky_sessions")

_READ_SIZE: Final = 262144


class FramedConnection:
    """One end of a connection between two workers.

    Where `on_tick` is passed, it is called ten times a second while the connection waits, and may raise to
    end the wait.
    """

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.closed = False
        frames = Frames()
        self._pack = frames.pack
        self._feed = frames.feed
        self._inbox: deque[Frame] = deque()

    def send_frame(self, *frame: object, on_tick: Callable[[], None] | None = None) -> None:
        """Send a frame. OSError if the other end is closed."""
        rest = memoryview(self._pack(*frame))
        while rest:
            try:
                rest = rest[self.socket.send(rest) :]
            except TICK_ERRORS:
                if on_tick is not None:
                    on_tick()

    def send_at_once(self, *frame: object) -> None:
        """Send a small frame without waiting. OSError if the other end is closed, or has not read what was sent to it
        before.
        """
        packed = self._pack(*frame)
        if self.socket.send(packed, socket.MSG_DONTWAIT) < len(packed):
            raise BlockingIOError

    def send_messages(self, *messages: object) -> None:
        """Send messages; bytes longer than PIECE are sent in pieces."""
        for message in messages:
            if isinstance(message, bytes) and len(message) > PIECE:
                break
        else:
            return self.send_frame(Kind.MESSAGES, *messages)
        for message in messages:
            for piece in _pieces(message):
                self.send_frame(Kind.MESSAGES, piece)

    def receive_frame(self, on_tick: Callable[[], None] | None = None) -> Frame:
        """Wait for the next frame, and return it. EOFError if the other end has closed, OSError if the connection
        fails, BadFrame if what was received is no frame.
        """
        inbox = self._inbox
        while not inbox:
            try:
                data = self.socket.recv(_READ_SIZE)
            except TICK_ERRORS:
                if on_tick is not None:
                    on_tick()
                continue
            if not data:
                raise EOFError
            inbox.extend(self._feed(data))
        return inbox.popleft()

    def receive_available(self) -> Frame | None:
        """Return the next frame if all of it has been received, else None. EOFError if the other end has closed,
        OSError if the connection fails, BadFrame if what was received is no frame.
        """
        inbox = self._inbox
        if not inbox:
            data = self.socket.recv(_READ_SIZE, socket.MSG_DONTWAIT)
            if not data:
                raise EOFError
            inbox.extend(self._feed(data))
        return inbox.popleft() if inbox else None

    @property
    def has_frame(self) -> bool:
        """Whether a further frame has been received."""
        return bool(self._inbox)

    def has_input(self) -> bool:
        """Return whether data was received since the last frame, or the other end has closed. Makes a system call."""
        if self._inbox:
            return True
        poll = select.poll()
        poll.register(self.socket.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close the connection."""
        self.closed = True
        self.socket.close()


def _pieces(message: object) -> Iterator[object]:
    if not isinstance(message, bytes):
        yield message
        return
    view = memoryview(message)
    for at in range(0, len(view), PIECE):
        yield view[at : at + PIECE]


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


def warn_bad_frame(error: Exception) -> None:
    """Log why a connection is closed."""
    _log.warning("StickyWorkers: closed a connection between workers: bad frame: %s", error)
