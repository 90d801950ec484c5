"""Members of a room, each without any cookie: what one of them says has to reach all."""

from contextlib import AsyncExitStack
from uuid import uuid4

from websockets.asyncio.client import connect

from tests.apps.clients.exchanges import Counter, main

MEMBERS = 4


async def client(url: str, counter: Counter) -> None:
    address = f"{url.replace('http', 'ws', 1)}/rooms/{uuid4().hex}"
    async with AsyncExitStack() as stack:
        members = [
            await stack.enter_async_context(connect(address, open_timeout=None, proxy=None)) for _ in range(MEMBERS)
        ]
        for member in members:
            await member.recv()
        await members[0].send("to all")
        for member in members:
            counter.check(await member.recv() == "to all")


if __name__ == "__main__":
    main(client)
