"""A chat of Chainlit's: its Socket.IO connection polls, and each upload is a request of its own."""

from __future__ import annotations

from uuid import uuid4

import aiohttp
import socketio  # type: ignore[import-untyped]

from tests.apps.clients.exchanges import DEADLINE, Counter, main


async def client(url: str, counter: Counter) -> None:
    session_id = f"{uuid4()}"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        async with session.get(f"{url}/chat/project/settings") as response:
            await response.read()
        connection = socketio.AsyncClient(reconnection=False, http_session=session)
        auth = {"sessionId": session_id, "clientType": "webapp", "userEnv": "{}", "chatProfile": "", "threadId": ""}
        try:
            await connection.connect(
                url, socketio_path="/chat/ws/socket.io", transports=["websocket"], auth=auth, wait_timeout=DEADLINE
            )
            for number in range(4):
                form = aiohttp.FormData()
                form.add_field("file", f"{number}", filename="a.txt", content_type="text/plain")
                upload = f"{url}/chat/project/file?session_id={session_id}"
                async with session.post(upload, data=form) as response:
                    counter.check(response.status == 200, f"{response.status} {await response.text()}")
        finally:
            await connection.disconnect()


if __name__ == "__main__":
    main(client)
