"""An HTTP origin with keep-alive that records each request that it executes, before it responds, in a file that
survives it: `journal_origin.py <port> <journal> <name>`. A path that ends in /hold is executed and gets no response.
"""

import asyncio
import os
import sys


class Origin:
    def __init__(self, journal: int, name: str) -> None:
        self._journal = journal
        self._name = name

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                method, target, _ = head.decode("latin-1").split(" ", 2)
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        await reader.readexactly(int(line.partition(b":")[2]))
                os.write(
                    self._journal, f"{method} {target}\n".encode()
                )  # O_APPEND: written whole, even if the process is killed now
                if target.endswith("/hold"):
                    await reader.read()
                    return
                await asyncio.sleep(0.002)  # the execution takes a while, so that a kill interrupts it
                body = f"{self._name} {target}".encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
                await asyncio.sleep(0)
                writer.write(body)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def main(port: int, path: str, name: str) -> None:
    journal = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    server = await asyncio.start_server(Origin(journal, name).serve, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


asyncio.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
