"""A FastAPI app that passes /cart to three replicas, each with the carts in its own memory:
every client comes back to the replica that has its cart.

    export STICKY_SECRET=$(python -c "import secrets; print(secrets.token_urlsafe(32))")
    ADMIN_TOKEN=let-me-in uvicorn --app-dir examples fastapi_gateway:app

    curl -c jar -b jar -X POST localhost:8000/cart/tea     # again and again: one replica, one cart
    curl -X POST localhost:8000/cart/tea                   # without the jar: the replicas in turn
    curl -H 'X-Admin-Token: let-me-in' --json '{"state": "maint"}' localhost:8000/admin/servers/r1/state
"""

import os
import secrets
from typing import Annotated

from fastapi import Body, Depends, FastAPI, Header, HTTPException, Request, Response

from sticky_asgi import AdminState, Backend, Cookie, Server, StickyMiddleware, decision


async def my_items(request: Request, response: Response) -> list[str]:
    """Return the items in this client's cart, which is in the memory of this replica."""
    carts: dict[str, list[str]] = request.app.state.carts
    name = request.cookies.get("cart", "")
    if name not in carts:
        name = secrets.token_urlsafe()
        response.set_cookie("cart", name, path="/cart", httponly=True, samesite="lax")
    return carts.setdefault(name, [])


Items = Annotated[list[str], Depends(my_items)]


def create_cart() -> FastAPI:
    cart = FastAPI()
    cart.state.carts = {}

    @cart.get("/cart")
    async def look(request: Request, items: Items) -> dict[str, object]:
        return {"replica": decision(request).server, "items": items}

    @cart.post("/cart/{item}")
    async def put(request: Request, items: Items, item: str) -> dict[str, object]:
        items.append(item)
        return {"replica": decision(request).server, "items": items}

    return cart


backend = Backend("cart", servers=Server.replicas(create_cart, 3), persist=Cookie("SERVERID"))

app = FastAPI()
app.add_middleware(StickyMiddleware, routes={"/cart": backend})


@app.get("/")
async def home() -> dict[str, str]:
    return {server.name: server.state for server in backend.servers}


async def administrator(x_admin_token: Annotated[str, Header()] = "") -> None:
    """Refuse a request that does not carry ADMIN_TOKEN; without one configured, refuse all."""
    token = os.environ.get("ADMIN_TOKEN", "")
    if not token or not secrets.compare_digest(x_admin_token.encode(), token.encode()):
        raise HTTPException(403)


@app.post("/admin/servers/{name}/state", dependencies=[Depends(administrator)])
async def set_state(name: str, state: Annotated[AdminState, Body(embed=True)]) -> dict[str, str]:
    try:
        backend[name].state = state
    except KeyError:
        raise HTTPException(404) from None
    return await home()
