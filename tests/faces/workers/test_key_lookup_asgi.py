"""A claim of a key belongs to all requests that wait for it, not only to the one that has started it."""

import asyncio
from typing import Any

from sticky_asgi.workers.keys import KeyLookup
from sticky_core.workers.keys import WaitFor
from tests.faces.workers.asgi import DEADLINE


class FakeArbitration:
    """Claims that end when `may_end` is set."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.finished = asyncio.Event()

    def claim(self, key: str) -> Any:
        yield WaitFor(self.may_end)
        self.finished.set()


def test_claim_goes_on_when_the_request_that_has_started_it_is_cancelled():
    async def test():
        table: Any = None
        lookup = KeyLookup(table, {})
        arbitration: Any = FakeArbitration()
        lookup._arbitration = arbitration
        request = asyncio.ensure_future(lookup.execute([("k",)]))
        await asyncio.sleep(0)
        request.cancel()
        await asyncio.wait([request])
        assert request.cancelled()
        assert not arbitration.finished.is_set()
        arbitration.may_end.set()
        async with asyncio.timeout(DEADLINE):
            await arbitration.finished.wait()

    asyncio.run(test())
