"""The client of python-socketio, with polls only: each is a request with a connection of its own."""

from __future__ import annotations

import logging

import aiohttp
import socketio  # type: ignore[import-untyped]

from tests.apps.clients.exchanges import DEADLINE, Counter, main

logging.getLogger("engineio.client").setLevel(logging.CRITICAL)


async def client(url: str, counter: Counter, *, keeps_cookies: bool = True) -> None:
    jar = aiohttp.CookieJar() if keeps_cookies else aiohttp.DummyCookieJar()
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=jar) as session:
        connection = socketio.AsyncClient(reconnection=False, http_session=session)
        try:
            await connection.connect(url, transports=["polling"], wait_timeout=DEADLINE)
            for number in range(5):
                received = await connection.call("append", f"{number}", timeout=DEADLINE)
                counter.check(received == [f"{each}" for each in range(number + 1)], received)
        finally:
            # a close by polling waits for the poll in flight, which the server ends in half a minute
            if connection.eio.read_loop_task is not None:
                connection.eio.read_loop_task.cancel()
            await connection.eio.disconnect(abort=True)


if __name__ == "__main__":
    main(client)
