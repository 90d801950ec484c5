"""A client that logs in and then visits a page that only users see, which counts its visits."""

from uuid import uuid4

from tests.apps.clients.exchanges import Counter, browser, main


async def client(url: str, counter: Counter) -> None:
    async with browser(url) as http:
        user = uuid4().hex
        response = await http.post("/login", data={"user": user})  # redirects to the first visit
        counter.check(response.text == f"{user}: 1", response.text)
        for visits in range(2, 6):
            response = await http.get("/")
            counter.check(response.text == f"{user}: {visits}", response.text)


if __name__ == "__main__":
    main(client)
