"""A client of a cart that FastAPI keeps in memory: each response has what the client has put in so far."""

from tests.apps.clients.exchanges import Counter, browser, main


async def client(url: str, counter: Counter) -> None:
    async with browser(url) as http:
        for number in range(5):
            response = await http.post("/cart", json={"item": f"{number}"})
            counter.check(response.json() == [f"{each}" for each in range(number + 1)], response.text)


if __name__ == "__main__":
    main(client)
