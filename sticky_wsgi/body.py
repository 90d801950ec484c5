"""The one reader of what a client sends: every attempt reads from it, and what it has read can be told again, up to a
limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sticky_wsgi.messages import Environ

#: of what goes beyond the limit, so much is kept until more is asked for
_PIECE = 65536


class Body:
    """A `wsgi.input` that remembers up to `limit` bytes, and ends where the body does, whatever the server's does.

    What goes beyond the limit is kept until more is asked for, so that who gives up before may be followed by another.
    """

    __slots__ = ("_at", "_input", "_left", "_limit", "_told", "discarded", "replayable")

    def __init__(self, environ: Environ, limit: int) -> None:
        self._input: Any = environ["wsgi.input"]
        length: str | None = environ.get("CONTENT_LENGTH")
        # A server that marks the end itself may not know the length before (PEP 3333 has no word for it).
        self._left: int | None = int(length) if length and length.isdecimal() else 0
        if environ.get("wsgi.input_terminated") and (not self._left or "HTTP_TRANSFER_ENCODING" in environ):
            self._left = None
        self._limit = limit
        self._told = bytearray()
        self._at = 0  # how much of that this attempt has been told
        self.replayable = True
        self.discarded = False

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            pieces: list[bytes] = []
            while piece := self.read(_PIECE):
                pieces.append(piece)
            return b"".join(pieces)
        again = self._again(size)
        if len(again) == size:
            return again
        return again + self._keep(self._input.read(self._most(size - len(again))))

    def peek(self, limit: int) -> bytes:
        """The first `limit` bytes of the body, or all of it if there are less. Who reads is told them as well."""
        while len(self._told) < limit:
            piece = self._input.read(self._most(limit - len(self._told)))
            if not piece:
                break
            if self._left is not None:
                self._left -= len(piece)
            self._told += piece
        return bytes(self._told[:limit])

    def readline(self, size: int | None = -1) -> bytes:
        if self._at < len(self._told):
            end = self._told.find(b"\n", self._at) + 1
            line = self._again((end or len(self._told)) - self._at if size is None or size < 0 else size)
            cut = line.find(b"\n") + 1
            if cut or (size is not None and 0 <= size <= len(line)):
                self._at -= len(line) - cut if cut else 0
                return line[:cut] if cut else line
            return line + self.readline(-1 if size is None or size < 0 else size - len(line))
        most = self._left if size is None or size < 0 else self._most(size)
        return self._keep(self._input.readline() if most is None else self._input.readline(most))

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        lines: list[bytes] = []
        told = 0
        for line in self:
            lines.append(line)
            told += len(line)
            if hint is not None and 0 < hint <= told:
                break
        return lines

    def __iter__(self) -> Iterator[bytes]:
        while line := self.readline():
            yield line

    def _most(self, size: int) -> int:
        return size if self._left is None else min(size, self._left)

    def _again(self, size: int) -> bytes:
        if self._at == len(self._told):
            return b""
        piece = bytes(self._told[self._at : self._at + size])
        self._at += len(piece)
        return piece

    def _keep(self, piece: bytes) -> bytes:
        if self._left is not None:
            self._left -= len(piece)
        keeps = self.replayable
        if keeps and len(self._told) + len(piece) > self._limit:
            self.replayable = False
            keeps = len(piece) <= _PIECE
        if keeps:
            self._told += piece
            self._at = len(self._told)
        elif piece:
            self._forget()
        return piece

    def _forget(self) -> None:
        self._told.clear()
        self._at = 0
        self.discarded = True

    def rewind(self) -> None:
        """Another attempt begins: it is told everything again."""
        self._at = 0
