"""A Socket.IO client that polls: each acknowledgement has all messages that this client has sent."""

import aiohttp
import socketio  # type: ignore[import-untyped]

from tests.apps.clients.exchanges import DEADLINE, Counter, main


async def client(url: str, counter: Counter) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
        client = socketio.AsyncClient(reconnection=False, http_session=http, request_timeout=DEADLINE)
        try:
            await client.connect(url, wait_timeout=DEADLINE)
            for number in range(5):
                received = await client.call("message", f"{number}", timeout=DEADLINE)
                counter.check(received == [f"{each}" for each in range(number + 1)], received)
        finally:
            # a close by polling waits for the poll in flight, which the server ends in half a minute
            if client.eio.read_loop_task is not None:
                client.eio.read_loop_task.cancel()
            await client.eio.disconnect(abort=True)


if __name__ == "__main__":
    main(client)
