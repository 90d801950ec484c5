"""One app serves twice, under /de and under /fr: a client has a replica of each,
and browsers keep its two cookies apart.

    export STICKY_SECRET=$(python -c "import secrets; print(secrets.token_urlsafe(32))")
    uvicorn --app-dir examples two_prefixes:app

    curl -c jar -b jar localhost:8000/de/visit; curl -c jar -b jar localhost:8000/fr/visit; cat jar
"""

from functools import partial

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from sticky_asgi import Backend, Cookie, Server, StickyMiddleware, decision


def create_shop(country: str) -> Starlette:
    visits = 0

    async def visit(request: Request) -> JSONResponse:
        nonlocal visits
        visits += 1
        return JSONResponse({"country": country, "replica": decision(request).server, "visits": visits})

    return Starlette(routes=[Mount(f"/{country}", routes=[Route("/visit", visit)])])


def shop(country: str) -> Backend:
    return Backend(
        country,
        servers=Server.replicas(partial(create_shop, country), 3),
        persist=Cookie("SERVERID", path=f"/{country}"),  # one name, two paths: browsers keep both apart
    )


app = Starlette()
app.add_middleware(StickyMiddleware, routes={"/de": shop("de"), "/fr": shop("fr")})
