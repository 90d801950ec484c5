"""The client of the MCP SDK 2.x with the protocol that has no sessions: a tool asks, and the client calls it again."""

from __future__ import annotations

from typing import Any

import httpx2
import mcp
from mcp.client.streamable_http import streamable_http_client

from tests.apps.clients.exchanges import DEADLINE, Counter, main

sdk: Any = mcp  # mypy reads 1.x, which has no Client
transport: Any = streamable_http_client


async def confirm(context: object, question: object) -> Any:
    return sdk.types.ElicitResult(action="accept", content={"sure": True})


async def client(url: str, counter: Counter) -> None:
    async with (
        httpx2.AsyncClient(limits=httpx2.Limits(max_keepalive_connections=0), timeout=DEADLINE) as http,
        sdk.Client(transport(f"{url}/mcp", http_client=http), elicitation_callback=confirm) as session,
    ):
        for number in range(5):
            result = await session.call_tool("delete", {"path": f"{number}"})
            counter.check(result.content[0].text == f"deleted {number}", result)


if __name__ == "__main__":
    main(client)
