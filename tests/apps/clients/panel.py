"""A page of Panel's: its WebSocket fetches the document, and does so again after a reconnection."""

from __future__ import annotations

import json
import re
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from tests.apps.clients.exchanges import Counter, browser, main


async def receive(socket: ClientConnection) -> tuple[dict[str, Any], dict[str, Any]]:
    """Receive a message of Bokeh's protocol, and return its header and its content."""
    header, _, content = [json.loads(await socket.recv()) for _ in range(3)]
    for _ in range(2 * header.get("num_buffers", 0)):
        await socket.recv()
    return header, content


async def client(url: str, counter: Counter) -> None:
    async with browser(url) as http:
        page = (await http.get("/panel")).text
        found = re.search(r'"token":"([^"]+)","roots":\{"([^"]+)"', page)
        assert found, page
        cookies = "; ".join(f"{each.name}={each.value}" for each in http.cookies.jar)
    documents = []
    for _ in range(3):
        async with connect(
            f"{url.replace('http', 'ws', 1)}/panel/ws",
            subprotocols=["bokeh", found[1]],  # type: ignore[list-item]
            additional_headers={"Cookie": cookies} if cookies else {},
            open_timeout=None,
            max_size=None,
            proxy=None,
        ) as socket:
            header, _ = await receive(socket)
            assert header["msgtype"] == "ACK", header
            for part in ({"msgid": "1", "msgtype": "PULL-DOC-REQ"}, {}, {}):
                await socket.send(json.dumps(part))
            while header["msgtype"] != "PULL-DOC-REPLY":
                header, content = await receive(socket)
            documents.append(content["doc"])
    for document in documents[1:]:
        counter.check(document == documents[0], "another document")
    roots = [each["id"] for each in documents[0]["roots"]]
    counter.check(found[2] in roots, f"the page shows {found[2]} and the document has {roots}")


if __name__ == "__main__":
    main(client)
