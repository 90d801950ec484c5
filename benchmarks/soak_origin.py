"""An upstream server that misbehaves on command, for `soak.py`: it lists what it has executed, and can lie.

    python benchmarks/soak_origin.py NAME PORT LEDGER

It reads its mode from standard input, a word a line:

- `honest`: it responds as it should;
- `flap`: the health check fails in every other second; requests are served;
- `lie`: responses that are cut short, junk, followed by a response that was not requested, errors, or missing.

Each request that it executes is appended to LEDGER before anything is sent, so the list is complete even if the process
is killed.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import Callable

HOST = "127.0.0.1"
LARGE = b"x" * (2 * 1024 * 1024)
MAX_HEAD = 256 * 1024


class Origin:
    """What all connections share."""

    def __init__(self, name: str, ledger: str) -> None:
        self.name = name
        self.mode = "honest"
        self._ledger = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._lies: list[Callable[[bytes], bytes]] = [
            lambda good: b"",
            lambda good: good[: len(good) // 2],
            lambda good: b"\x00\xff junk, no response\r\n\r\n" + good,
            lambda good: good + b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nx-soak-id: none\r\n\r\nforged",
            lambda good: self.response(500, b"an error"),
            lambda good: good.replace(b"content-length: ", b"content-length: 9"),
            lambda good: b"HTTP/1.1 200 OK\r\nx-long: " + b"x" * 300_000 + b"\r\n\r\n",
        ]

    def record(self, request_id: str) -> None:
        os.write(self._ledger, f"{request_id}\n".encode())

    def response(self, status: int, body: bytes, request_id: str = "") -> bytes:
        head = f"HTTP/1.1 {status} -\r\ncontent-length: {len(body)}\r\nx-soak-server: {self.name}\r\n"
        return f"{head}x-soak-id: {request_id}\r\n\r\n".encode() + body

    def is_lying(self) -> bool:
        return self.mode == "lie" and random.random() < 0.5

    def lie(self, good: bytes) -> bytes:
        """Return something that is no correct response; empty to send nothing."""
        return random.choice(self._lies)(good)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve the requests of one connection."""
        try:
            while await self._serve_request(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the other end has closed, in the middle of a request perhaps
        finally:
            writer.close()

    async def _serve_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request, *lines = head.split("\r\n")
        target = request.split(" ")[1]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        if target.startswith("/health"):
            is_up = self.mode != "flap" or int(time.monotonic()) % 2
            writer.write(self.response(200 if is_up else 503, b"ok"))
            await writer.drain()
            return True
        size = await self._read_body(reader, headers)
        request_id = headers.get("x-soak-id", "")
        self.record(request_id)
        body = LARGE if target.startswith("/large") else f"{request_id} {size}".encode()
        good = self.response(200, body, request_id)
        if self.is_lying():
            writer.write(self.lie(good))
            await writer.drain()
            return False
        writer.write(good)
        await writer.drain()
        return True

    async def _read_body(self, reader: asyncio.StreamReader, headers: dict[str, str]) -> int:
        """Read the body, and return its size."""
        if headers.get("transfer-encoding") == "chunked":
            size = 0
            while piece := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                await reader.readexactly(piece + 2)
                size += piece
            await reader.readuntil(b"\r\n")
            return size
        size = int(headers.get("content-length", "0"))
        await reader.readexactly(size)
        return size


async def serve(name: str, port: int, ledger: str) -> None:
    origin = Origin(name, ledger)
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    async with await asyncio.start_server(origin.serve, HOST, port, limit=MAX_HEAD, reuse_address=True):
        while line := await commands.readline():  # ends with the process that writes them
            origin.mode = line.decode().strip()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
