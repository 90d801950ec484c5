"""A browser that fills a cart of Django's by a form, the token of which is in its session, and uploads a file in parts
that Django keeps in the cache.
"""

from uuid import uuid4

from tests.apps.clients.exchanges import Counter, browser, main

#: The size of a part, in bytes: more than Django keeps in memory, so it is written to a temporary file.
PART = 3_000_000


async def client(url: str, counter: Counter) -> None:
    async with browser(url) as http:
        token = (await http.get("/cart")).json()["token"]
        name = f"{uuid4().hex}.bin"
        for number in range(1, 6):
            response = await http.post("/cart", data={"item": f"{number}", "csrfmiddlewaretoken": token})
            right = response.status_code == 200 and len(response.json()["items"]) == number
            if not counter.check(right, f"{response.status_code} {response.text}"):
                return
            response = await http.post("/upload", files={"part": (name, bytes(PART))}, headers={"x-csrftoken": token})
            right = response.status_code == 200 and response.json()["sizes"] == [PART] * number
            if not counter.check(right, f"{response.status_code} {response.text}"):
                return


if __name__ == "__main__":
    main(client)
