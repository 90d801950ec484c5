"""A client that starts a job and reads its progress from a stream of events."""

from tests.apps.clients.exchanges import Counter, browser, main


async def client(url: str, counter: Counter) -> None:
    async with browser(url) as http:
        for _ in range(5):
            job = (await http.post("/jobs")).json()["job"]
            progress = await http.get(f"/jobs/{job}")
            counter.check(progress.text == "data: 0\n\ndata: 50\n\ndata: 100\n\n", progress.text)


if __name__ == "__main__":
    main(client)
