"""The only reader of a request's body. It stores what it has read, up to a limit, so that another attempt can read it
again.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

from sticky_core.decision import Decision
from sticky_wsgi.messages import Environ, content_length

#: how many bytes beyond the limit are stored until the next read
_PIECE = 65536


class Body:
    """A `wsgi.input` that stores up to `limit` bytes, and ends where the body ends, even if the server's does not.

    Bytes beyond the limit are stored until the next read, so that another attempt may follow one that fails before
    that.
    """

    __slots__ = (
        "_at",
        "_decision",
        "_input",
        "_left",
        "_limit",
        "_stored",
        "client_left_first",
        "discarded",
        "replayable",
    )

    def __init__(self, environ: Environ, limit: int, decision: Decision | None = None) -> None:
        """`decision`: that about the request, which holds the status of the response."""
        given: Any = environ.get("wsgi.input")  # some test clients leave it out
        self._input: Any = given if given is not None else io.BytesIO()
        self._decision = decision
        length = content_length(environ)
        # A server that ends the input itself may not know the length before (PEP 3333 does not mention this case).
        self._left: int | None = int(length) if length.isdecimal() else 0
        if environ.get("wsgi.input_terminated") and (not self._left or "HTTP_TRANSFER_ENCODING" in environ):
            self._left = None
        self._limit = limit
        self._stored = bytearray()
        self._at = 0  # how many of these bytes this attempt has read
        self.replayable = True
        self.discarded = False
        self.client_left_first = False

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            pieces: list[bytes] = []
            while piece := self.read(_PIECE):
                pieces.append(piece)
            return b"".join(pieces)
        again = self._read_stored(size)
        if len(again) == size:
            return again
        return again + self._store(self._read_input(self._input.read, self._readable(size - len(again))))

    def peek(self, limit: int) -> bytes:
        """Return the first `limit` bytes of the body, or all of it if it is shorter. Readers receive them as well."""
        while len(self._stored) < limit:
            piece = self._read_input(self._input.read, self._readable(limit - len(self._stored)))
            if not piece:
                break
            if self._left is not None:
                self._left -= len(piece)
            self._stored += piece
        return bytes(self._stored[:limit])

    def readline(self, size: int | None = -1) -> bytes:
        if self._at < len(self._stored):
            end = self._stored.find(b"\n", self._at) + 1
            stored = (end or len(self._stored)) - self._at
            line = self._read_stored(stored if size is None or size < 0 else min(size, stored))
            if line.endswith(b"\n") or (size is not None and 0 <= size <= len(line)):
                return line
            return line + self.readline(-1 if size is None or size < 0 else size - len(line))
        most = self._left if size is None or size < 0 else self._readable(size)
        return self._store(self._read_input(self._input.readline, -1 if most is None else most, True))

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        lines: list[bytes] = []
        read = 0
        for line in self:
            lines.append(line)
            read += len(line)
            if hint is not None and 0 < hint <= read:
                break
        return lines

    def __iter__(self) -> Iterator[bytes]:
        while line := self.readline():
            yield line

    def _read_input(self, read: Callable[..., bytes], size: int, is_line: bool = False) -> bytes:
        """Read from the server's input. An exception, and an end before that of the body, mean that the client has
        disconnected. A piece that is shorter than it could be is the last one, as with files (PEP 3333): an app may
        raise without reading on. If the input returns more nevertheless, the client was only slow.
        """
        try:
            piece = read() if size < 0 else read(size)
        except Exception:
            self._on_disconnect()
            raise
        if self._left and size:
            if len(piece) == (size if size > 0 else self._left) or (is_line and piece.endswith(b"\n")):
                self.client_left_first = False
            else:
                self._on_disconnect()
        return piece

    def _on_disconnect(self) -> None:
        self.client_left_first = self._decision is None or self._decision.status < 500

    def _readable(self, size: int) -> int:
        return size if self._left is None else min(size, self._left)

    def _read_stored(self, size: int) -> bytes:
        if self._at == len(self._stored):
            return b""
        piece = bytes(self._stored[self._at : self._at + size])
        self._at += len(piece)
        return piece

    def _store(self, piece: bytes) -> bytes:
        if self._left is not None:
            self._left -= len(piece)
        keeps = self.replayable
        if keeps and len(self._stored) + len(piece) > self._limit:
            self.replayable = False
            keeps = len(piece) <= _PIECE
        if keeps:
            self._stored += piece
            self._at = len(self._stored)
        elif piece:
            self._discard()
        return piece

    def _discard(self) -> None:
        self._stored.clear()
        self._at = 0
        self.discarded = True

    def rewind(self) -> None:
        """Let the next attempt read from the beginning."""
        self._at = 0
