"""A page of Shiny's: its WebSocket makes the session, and each download is a request of its own."""

from __future__ import annotations

import json

from websockets.asyncio.client import connect

from tests.apps.clients.exchanges import Counter, browser, main


async def client(url: str, counter: Counter) -> None:
    async with browser(url) as http:
        await http.get("/")
        cookies = "; ".join(f"{each.name}={each.value}" for each in http.cookies.jar)
        async with connect(
            f"{url.replace('http', 'ws', 1)}/websocket/",
            additional_headers={"Cookie": cookies} if cookies else {},
            open_timeout=None,
            proxy=None,
        ) as socket:
            session = json.loads(await socket.recv())["config"]["sessionId"]
            data = {"text": session, ".clientdata_url_hostname": "localhost", ".clientdata_output_report_hidden": False}
            await socket.send(json.dumps({"method": "init", "data": data}))
            while "report" not in json.loads(await socket.recv()).get("values", {}):
                pass
            for _ in range(4):
                report = await http.get(f"/session/{session}/download/report")
                counter.check(report.text == session, f"{report.status_code} {report.text}")


if __name__ == "__main__":
    main(client)
