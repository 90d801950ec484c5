"""The client of the MCP SDK 2.x with the protocol that has sessions."""

from __future__ import annotations

from typing import Any

import httpx2
import mcp
from mcp.client.streamable_http import streamable_http_client

from tests.apps.clients.exchanges import Counter, main

sdk: Any = mcp  # mypy reads 1.x, which has no Client
transport: Any = streamable_http_client


async def client(url: str, counter: Counter) -> None:
    async with (
        httpx2.AsyncClient(limits=httpx2.Limits(max_keepalive_connections=0), timeout=300) as http,
        sdk.Client(transport(f"{url}/mcp", http_client=http), mode="legacy") as session,
    ):
        for number in range(5):
            http.cookies.clear()  # many MCP clients keep none
            result = await session.call_tool("add_note", {"text": f"{number}"})
            notes = [each.text for each in result.content if each.type == "text"]
            if not counter.check(notes == [f"{each}" for each in range(number + 1)], notes):
                return


if __name__ == "__main__":
    main(client)
