"""A page of NiceGUI's: its Socket.IO connection is made for the page, and again after an interruption."""

from __future__ import annotations

import re
from typing import Any
from uuid import uuid4

import aiohttp
import socketio  # type: ignore[import-untyped]

from tests.apps.clients.exchanges import DEADLINE, Counter, main


async def client(url: str, counter: Counter) -> None:
    tab = f"{uuid4()}"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        async with session.get(url) as response:
            page = await response.text()
        found = re.search(r"""["']?client_id["']?: ["']([0-9a-f-]{36})["']""", page)
        assert found, page
        for _ in range(3):
            connection = socketio.AsyncClient(reconnection=False, http_session=session)
            try:
                await connection.connect(
                    url, socketio_path="/_nicegui_ws/socket.io", transports=["websocket"], wait_timeout=DEADLINE
                )
                handshake: dict[str, Any] = {
                    "client_id": found[1],
                    "tab_id": tab,
                    "document_id": f"{uuid4()}",
                    "old_tab_id": None,
                    "next_message_id": 0,
                }
                counter.check(await connection.call("handshake", handshake, timeout=DEADLINE) is True, "no handshake")
            finally:
                await connection.disconnect()


if __name__ == "__main__":
    main(client)
