"""What `sticky demo` serves: a small shop in several replicas, and a page that shows who answers, and why.

Two apps. The shop is what you would write: carts in a dict, and not a thought of replicas. The demo around it
has what an operator has: a list of the replicas, and a lever at each. `StickyMiddleware` stands between them.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Collection
from pathlib import Path

import anyio
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from sticky_asgi import Backend, Cookie, RoundRobin, Server, StickyMiddleware, decision
from sticky_asgi.messages import ASGIApp, Receive, Scope, Send

GOODS = ("tea", "bread", "honey")

#: how long a checkout takes, in seconds: long enough to see it in flight, and to drain its replica meanwhile
CHECKOUT = 3

#: a cart holds no more than this
MOST = 20


def create_cart() -> Starlette:
    """One replica of the shop. Its carts are in this dict and nowhere else: no other has heard of them."""
    carts: dict[str, list[str]] = {}

    async def look(request: Request) -> Response:
        return _answer(request, carts.get(request.cookies.get("cart", ""), []))

    async def add(request: Request) -> Response:
        item = request.path_params["item"]
        if item not in GOODS:
            raise HTTPException(404, f"We sell {', '.join(GOODS)}.")
        number = request.cookies.get("cart", "")
        if number not in carts:  # a new client, or one whose cart is in another replica's memory
            number = secrets.token_hex(8)
        cart = carts.setdefault(number, [])
        if len(cart) < MOST:
            cart.append(item)
        answer = _answer(request, cart)
        answer.set_cookie("cart", number, httponly=True, samesite="lax")
        return answer

    async def check_out(request: Request) -> Response:
        await anyio.sleep(CHECKOUT)
        carts.pop(request.cookies.get("cart", ""), None)
        return _answer(request, [])

    return Starlette(
        routes=[
            Route("/cart", look),
            Route("/cart/{item}", add, methods=["POST"]),
            Route("/checkout", check_out, methods=["POST"]),
        ]
    )


def _answer(request: Request, cart: list[str]) -> Response:
    """The cart, and what was decided about the request.

    The mark is made when the head goes out, after we are through. A body that streams comes behind it, and so
    knows it.
    """
    decided = decision(request)

    async def body() -> AsyncIterator[bytes]:
        yield json.dumps(
            {
                "cart": cart,
                "server": decided.server,
                "claim": decided.claim.name,
                "claimed": decided.claimed,
                "reason": decided.reason.value,
                "why": decided.why,
                "attempts": decided.attempts,
                "mark": decided.mark.name,
            }
        ).encode()

    return StreamingResponse(body(), media_type="application/json", headers={"cache-control": "no-store"})


#: by what names a browser on this machine may call the demo
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def create_demo(replicas: int = 3, *, hosts: Collection[str] | None = LOOPBACK) -> Starlette:
    """The page, the levers, and the shop behind the middleware. `hosts`: as for `OwnPage`; None is any."""
    shop = Backend(
        "shop",
        Server.replicas(create_cart, replicas),
        balance=RoundRobin(start=0),  # the first visitor meets r1; by default chance has the first word
        persist=Cookie("SERVERID", secret=secrets.token_urlsafe(32)),  # for this run: no cart outlives it
    )

    async def page(request: Request) -> Response:
        headers = {"content-security-policy": _POLICY, "cache-control": "no-store"}
        return Response(_PAGE.read_bytes(), media_type="text/html", headers=headers)

    async def show(request: Request) -> Response:
        return JSONResponse(
            [
                {
                    "name": server.name,
                    "state": server.state,
                    "in_flight": len(server.in_flight),
                    "total": server.total,
                }
                for server in shop.servers
            ]
        )

    async def pull(request: Request) -> Response:
        try:
            shop[request.path_params["name"]].state = request.path_params["state"]
        except (KeyError, ValueError) as error:
            raise HTTPException(404, str(error.args[0])) from None
        return await show(request)

    async def forget(request: Request) -> Response:
        answer = Response(status_code=204)
        for cookie in ("SERVERID", "cart"):  # HttpOnly, so the page can't
            answer.delete_cookie(cookie)
        return answer

    return Starlette(
        routes=[
            Route("/", page),
            Route("/replicas", show),
            Route("/replicas/{name}/{state}", pull, methods=["POST"]),
            Route("/forget", forget, methods=["POST"]),
        ],
        middleware=[
            Middleware(OwnPage, hosts=hosts),
            Middleware(StickyMiddleware, routes={"/cart": shop, "/checkout": shop}, debug=True),
        ],
    )


_PAGE = Path(__file__).with_name("demo.html")

# What the page needs and nothing else; above all, nobody frames it to have its levers clicked.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class OwnPage:
    """Lets our own page pull the levers, and curl, but no other site that its visitor has open.

    Browsers say in Origin whose page sends a POST. The name of another site that is made to point here (DNS
    rebinding) would make its pages look like ours, so only `hosts` are answered to.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None) -> None:
        self.app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope["method"], Headers(scope=scope)) if scope["type"] == "http" else None
        if refusal is not None:
            return await PlainTextResponse(refusal, 403)(scope, receive, send)
        await self.app(scope, receive, send)

    def _refusal(self, method: str, headers: Headers) -> str | None:
        host = headers.get("host", "")
        name, colon, port = host.rpartition(":")
        if self._hosts is not None and (name if colon and port.isdecimal() else host) not in self._hosts:
            return f"This demo answers to {', '.join(self._hosts)}.\n"
        origin = headers.get("origin")
        if method != "GET" and origin is not None and origin.partition("://")[2] != host:
            return "Only the demo's own page may do this.\n"
        return None
