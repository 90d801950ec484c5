"""A client of a Dash page, as Dash's own script: it loads the layout, then each click is a request with the ids of the
callback.
"""

from tests.apps.clients.exchanges import Counter, browser, main


async def client(url: str, counter: Counter) -> None:
    async with browser(url) as http:
        assert (await http.get("/")).status_code == 200
        layout = (await http.get("/_dash-layout")).json()
        page = layout["props"]["children"][0]["props"]["data"]
        for clicks in range(1, 6):
            callback = {
                "output": "graph.figure",
                "outputs": {"id": "graph", "property": "figure"},
                "inputs": [{"id": "add", "property": "n_clicks", "value": clicks}],
                "changedPropIds": ["add.n_clicks"],
                "state": [{"id": "page", "property": "data", "value": page}],
            }
            response = await http.post("/_dash-update-component", json=callback)
            points = list(range(1, clicks + 1))
            counter.check(
                response.status_code == 200
                and response.json()["response"]["graph"]["figure"]["data"] == [{"y": points}],
                response.text,
            )


if __name__ == "__main__":
    main(client)
