"""What the clients of the apps share: they run side by side, each with a cookie jar of its own, and count.

A client is a coroutine function that gets the URL of the server and a `Counter`. It calls `counter.check` for each
response that shows whether the app has found what it knew of the client; an exception counts as one wrong response.

    async def client(url: str, counter: Counter) -> None:
        async with browser(url) as http:
            for expected in range(1, 6):
                response = await http.get("/count")
                counter.check(response.text == f"{expected}", response.text)

    if __name__ == "__main__":
        main(client)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2

#: Seconds, for hangs only.
DEADLINE = 300.0
#: Seconds that a client waits where errors are expected: one that hangs is an error too.
PATIENCE = 10.0


class Counter:
    """The attempts and errors of all clients."""

    def __init__(self) -> None:
        self.attempts = 0
        self.errors = 0
        self.problems: list[str] = []

    def check(self, right: bool, problem: object = "") -> bool:
        """Count an attempt, and an error with the text `problem` if it is not `right`. Return `right`."""
        self.attempts += 1
        if not right:
            self.errors += 1
            if len(self.problems) < 5:
                self.problems.append(f"{problem}"[:500])
        return right


Client = Callable[[str, Counter], Awaitable[None]]


def browser(url: str, **options: Any) -> httpx2.AsyncClient:
    """Return an HTTP client that keeps cookies and opens a connection for each request."""
    limits = httpx2.Limits(max_keepalive_connections=0)
    return httpx2.AsyncClient(base_url=url, limits=limits, timeout=DEADLINE, follow_redirects=True, **options)


async def run(client: Client, url: str, attempts: int, at_once: int, until_error: bool) -> Counter:
    """Run clients until they have made so many `attempts`, or until there is an error."""
    counter = Counter()

    def is_done() -> bool:
        return counter.attempts >= attempts or (until_error and counter.errors > 0)

    async def one_after_another() -> None:
        while not is_done():
            try:
                async with asyncio.timeout(PATIENCE if until_error else DEADLINE):
                    await client(url, counter)
            except Exception as error:
                counter.check(False, f"{type(error).__name__}: {error}")

    running = {asyncio.create_task(one_after_another()) for _ in range(at_once)}
    while running:
        _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        if until_error and is_done():
            for task in running:
                task.cancel()
    return counter


def main(client: Client) -> None:
    """Run clients as the command line says, and print what they have counted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--attempts", type=int, default=100)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--until-error", action="store_true")
    options = parser.parse_args()
    counter = asyncio.run(run(client, options.url, options.attempts, options.at_once, options.until_error))
    sys.stdout.write(f"{json.dumps(vars(counter))}\n")
