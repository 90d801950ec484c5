"""Names that the blocks of the documentation use without defining them: apps and functions that make apps."""

from __future__ import annotations

from typing import Any

SECRET = "a secret for the documentation"


def asgi() -> dict[str, Any]:
    """Return the names for blocks that import `sticky_asgi`."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    sold: list[str] = []  # not in the memory of a replica, so that it survives one

    async def cart(request: Request) -> JSONResponse:
        if request.method == "POST":
            sold.append((await request.json())["item"])
        return JSONResponse(sold)

    def create() -> Starlette:
        return Starlette(routes=[Route("/cart", cart, methods=["GET", "POST"])])

    return _names(create) | {"Request": Request}


def wsgi() -> dict[str, Any]:
    """Return the names for blocks that import `sticky_wsgi`."""
    from flask import Flask, jsonify, request
    from flask.typing import ResponseReturnValue

    sold: list[str] = []

    def create() -> Flask:
        app = Flask("shop")

        @app.route("/cart", methods=["GET", "POST"])
        def cart() -> ResponseReturnValue:
            if request.method == "POST":
                sold.append(request.get_json()["item"])
            return jsonify(sold)

        return app

    return _names(create)


def _names(create: Any) -> dict[str, Any]:
    factories = ("create_app", "create_cart", "create_shop", "create_mcp", "create_api")
    return dict.fromkeys(factories, create) | {"app": create(), "sorry_app": create(), "SECRET": SECRET}
