"""A client that subscribes to what it says itself."""

from __future__ import annotations

import json
from uuid import uuid4

from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from tests.apps.clients.exchanges import Counter, browser, main


async def client(url: str, counter: Counter) -> None:
    topic = uuid4().hex
    async with browser(url) as http:
        await http.post("/graphql", json={"query": "{ hello }"})
        cookies = "; ".join(f"{each.name}={each.value}" for each in http.cookies.jar)
        async with connect(
            f"{url.replace('http', 'ws', 1)}/graphql",
            subprotocols=[Subprotocol("graphql-transport-ws")],
            additional_headers={"Cookie": cookies} if cookies else {},
            open_timeout=None,
            proxy=None,
        ) as socket:
            await socket.send(json.dumps({"type": "connection_init"}))
            assert json.loads(await socket.recv())["type"] == "connection_ack"
            query = f'subscription {{ said(topic: "{topic}") }}'
            await socket.send(json.dumps({"id": "1", "type": "subscribe", "payload": {"query": query}}))
            await socket.send(json.dumps({"type": "ping"}))
            assert json.loads(await socket.recv())["type"] == "pong"
            for number in range(5):
                say = f'mutation {{ say(topic: "{topic}", text: "{number}") }}'
                reached = (await http.post("/graphql", json={"query": say})).json()["data"]["say"]
                if not counter.check(reached == 1, f"{reached} subscribers"):
                    return
                event = json.loads(await socket.recv())
                counter.check(event["payload"]["data"] == {"said": f"{number}"}, event)


if __name__ == "__main__":
    main(client)
