"""A client of a Flask app that keeps carts in a dictionary and their sizes in a SimpleCache."""

from uuid import uuid4

from tests.apps.clients.exchanges import Counter, browser, main


async def client(url: str, counter: Counter) -> None:
    async with browser(url) as http:
        await http.post("/login", data={"user": uuid4().hex})
        for number in range(5):
            items = [f"{each}" for each in range(number + 1)]
            added = await http.post("/cart", data={"item": f"{number}"})
            counter.check(added.status_code == 200 and added.json() == items, added.text)
            shown = await http.get("/cart")
            counter.check(shown.status_code == 200 and shown.json() == {"cart": items, "size": len(items)}, shown.text)


if __name__ == "__main__":
    main(client)
