"""The app of `sticky demo`: a small shop in several replicas, and a page that shows which replica gets each request,
and why.

There are two apps. The shop is what a user would write: it keeps carts in a dict and has no code for replicas. The
demo around it is for the operator: a list of the replicas, with buttons for their states. `StickyMiddleware` is between
them.
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

#: how many items a cart holds at most
MAX_ITEMS = 20


def create_cart() -> Starlette:
    """Make one replica of the shop. Its carts are in this dict and nowhere else: other replicas can't see them."""
    carts: dict[str, list[str]] = {}

    async def show(request: Request) -> Response:
        return _cart_response(request, carts.get(request.cookies.get("cart", ""), []))

    async def add(request: Request) -> Response:
        item = request.path_params["item"]
        if item not in GOODS:
            raise HTTPException(404, f"We sell {', '.join(GOODS)}.")
        number = request.cookies.get("cart", "")
        if number not in carts:  # a new client, or one with a cart in another replica's memory
            number = secrets.token_hex(8)
        cart = carts.setdefault(number, [])
        if len(cart) < MAX_ITEMS:
            cart.append(item)
        response = _cart_response(request, cart)
        response.set_cookie("cart", number, httponly=True, samesite="lax")
        return response

    async def check_out(request: Request) -> Response:
        await anyio.sleep(CHECKOUT)
        carts.pop(request.cookies.get("cart", ""), None)
        return _cart_response(request, [])

    return Starlette(
        routes=[
            Route("/cart", show),
            Route("/cart/{item}", add, methods=["POST"]),
            Route("/checkout", check_out, methods=["POST"]),
        ]
    )


def _cart_response(request: Request, cart: list[str]) -> Response:
    """Return the cart, and the decision about the request.

    The mark is made when the response's head is sent, after this function has returned. A streamed body is made after
    the head, so it can contain the mark.
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


#: the host names by which a browser on this machine may reach the demo
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def create_demo(replicas: int = 3, *, hosts: Collection[str] | None = LOOPBACK) -> Starlette:
    """Make the demo: page, states of replicas, and the shop behind the middleware. `hosts`: as with `SameOrigin`."""
    shop = Backend(
        "shop",
        Server.replicas(create_cart, replicas),
        balance=RoundRobin(start=0),  # the first client gets r1; by default the start is random
        persist=Cookie("SERVERID", secret=secrets.token_urlsafe(32)),  # valid for this run, as the carts are
    )

    async def page(request: Request) -> Response:
        headers = {"content-security-policy": _POLICY, "cache-control": "no-store"}
        return Response(_PAGE.read_bytes(), media_type="text/html", headers=headers)

    async def replicas_as_json(request: Request) -> Response:
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

    async def set_state(request: Request) -> Response:
        try:
            shop[request.path_params["name"]].state = request.path_params["state"]
        except (KeyError, ValueError) as error:
            raise HTTPException(404, str(error.args[0])) from None
        return await replicas_as_json(request)

    async def forget(request: Request) -> Response:
        response = Response(status_code=204)
        for cookie in ("SERVERID", "cart"):  # they are HttpOnly, so the page's script can't delete them
            response.delete_cookie(cookie)
        return response

    return Starlette(
        routes=[
            Route("/", page),
            Route("/replicas", replicas_as_json),
            Route("/replicas/{name}/{state}", set_state, methods=["POST"]),
            Route("/forget", forget, methods=["POST"]),
        ],
        middleware=[
            Middleware(SameOrigin, hosts=hosts),
            Middleware(StickyMiddleware, routes={"/cart": shop, "/checkout": shop}, debug=True),
        ],
    )


_PAGE = Path(__file__).with_name("demo.html")

# What the page needs and nothing else. Above all, no other site can show it in a frame, to make users click its
# buttons.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class SameOrigin:
    """Middleware that accepts requests of the demo's own page and of curl, but not of other sites in the same browser.

    Browsers send the site of the page that makes a POST in Origin. A site with a name that is made to point to this
    machine (DNS rebinding) has the same origin as the demo, so only requests to `hosts` are accepted; None accepts any
    host.
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
            return f"This demo can be reached as {', '.join(self._hosts)} only.\n"
        origin = headers.get("origin")
        if method != "GET" and origin is not None and origin.partition("://")[2] != host:
            return "Only the demo's own page may send this request.\n"
        return None
