"""The requests of a page of Gradio's: an event is put into the queue, and its outcome comes as Server-Sent Events."""

from __future__ import annotations

import json
from uuid import uuid4

from tests.apps.clients.exchanges import Counter, browser, main


async def client(url: str, counter: Counter) -> None:
    session = uuid4().hex
    async with browser(url) as http:
        config = (await http.get("/config")).json()
        function = next(each["id"] for each in config["dependencies"] if each["api_name"] == "add")
        for number in range(4):
            event = {"data": [f"{number}", None], "fn_index": function, "session_hash": session}
            (await http.post("/gradio_api/queue/join", json=event)).raise_for_status()
            outcome = None
            async with http.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
                async for line in stream.aiter_lines():
                    message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                    if message.get("msg") in ("process_completed", "unexpected_error"):
                        outcome = message
                        break
            notes = outcome["output"]["data"][0] if outcome and outcome.get("success") else outcome
            if not counter.check(notes == [f"{each}" for each in range(number + 1)], notes):
                return


if __name__ == "__main__":
    main(client)
