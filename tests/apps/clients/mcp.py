"""The client of the MCP SDK 1.x: its notes are kept in the session that the server has made for it."""

from __future__ import annotations

import httpx
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

from tests.apps.clients.exchanges import Counter, main


async def client(url: str, counter: Counter) -> None:
    limits = httpx.Limits(max_keepalive_connections=0)
    async with (
        httpx.AsyncClient(limits=limits, timeout=300) as http,
        streamable_http_client(f"{url}/mcp", http_client=http) as (read, write, _),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        for number in range(5):
            http.cookies.clear()  # many MCP clients keep none
            result = await session.call_tool("add_note", {"text": f"{number}"})
            notes = [each.text for each in result.content if each.type == "text"]
            if not counter.check(notes == [f"{each}" for each in range(number + 1)], notes):
                return


if __name__ == "__main__":
    main(client)
