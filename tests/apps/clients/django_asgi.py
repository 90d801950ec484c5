"""A browser that fills a cart of Django's by a form: the token of the form and the cart are in its session."""

from tests.apps.clients.exchanges import Counter, browser, main


async def client(url: str, counter: Counter) -> None:
    async with browser(url) as http:
        token = (await http.get("/cart")).json()["token"]
        for number in range(5):
            response = await http.post("/cart", data={"item": f"{number}", "csrfmiddlewaretoken": token})
            right = response.status_code == 200 and len(response.json()["items"]) == number + 1
            if not counter.check(right, f"{response.status_code} {response.text}"):
                return


if __name__ == "__main__":
    main(client)
