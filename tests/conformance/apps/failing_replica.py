"""Three replicas, of which the second cannot start: the server must not start either, and must print the reason."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

from starlette.applications import Starlette

from sticky_asgi import Backend, Cookie, Server, StickyMiddleware

numbers = count(1)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    if next(numbers) == 2:
        raise OSError("no database for the second one")
    yield
    print("the first one is rolled back")  # noqa: T201


def create_cart() -> Starlette:
    return Starlette(lifespan=lifespan)


app = Starlette()
app.add_middleware(
    StickyMiddleware,
    routes={"/cart": Backend("cart", Server.replicas(create_cart, 3), persist=Cookie("SERVERID"))},
)
