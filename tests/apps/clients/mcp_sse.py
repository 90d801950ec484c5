"""The client of the MCP SDK 1.x over Server-Sent Events."""

from __future__ import annotations

import httpx
from mcp import ClientSession
from mcp.client.sse import sse_client

from tests.apps.clients.exchanges import DEADLINE, Counter, main


def without_cookies(
    headers: dict[str, str] | None = None, timeout: httpx.Timeout | None = None, auth: httpx.Auth | None = None
) -> httpx.AsyncClient:
    """Return an HTTP client that opens a connection for each request, and keeps no cookies."""

    async def forget(response: httpx.Response) -> None:
        response.headers.pop("set-cookie", None)

    limits = httpx.Limits(max_keepalive_connections=0)
    hooks = {"response": [forget]}
    return httpx.AsyncClient(headers=headers, auth=auth, limits=limits, timeout=DEADLINE, event_hooks=hooks)


async def client(url: str, counter: Counter) -> None:
    async with (
        sse_client(f"{url}/sse", httpx_client_factory=without_cookies) as (read, write),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        for number in range(5):
            result = await session.call_tool("add_note", {"text": f"{number}"})
            notes = [each.text for each in result.content if each.type == "text"]
            if not counter.check(notes == [f"{each}" for each in range(number + 1)], notes):
                return


if __name__ == "__main__":
    main(client)
