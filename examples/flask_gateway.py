"""A Flask app that passes /cart to three replicas, each with the carts in its own memory:
every client comes back to the replica that has its cart.

    export STICKY_SECRET=$(python -c "import secrets; print(secrets.token_urlsafe(32))")
    ADMIN_TOKEN=let-me-in gunicorn --chdir examples --threads 8 flask_gateway:app

    curl -c jar -b jar -X POST localhost:8000/cart/tea     # again and again: one replica, one cart
    curl -X POST localhost:8000/cart/tea                   # without the jar: the replicas in turn
    curl -H 'X-Admin-Token: let-me-in' --json '{"state": "maint"}' localhost:8000/admin/servers/r1/state
"""

import os
import secrets

from flask import Flask, Response, abort, jsonify, request

from sticky_wsgi import Backend, ConfigError, Cookie, Server, StickyMiddleware, decision


def create_cart() -> Flask:
    cart = Flask("cart")
    carts: dict[str, list[str]] = {}  # in the memory of this replica

    @cart.get("/cart")
    @cart.post("/cart/<item>")
    def look(item: str = "") -> Response:
        name = request.cookies.get("cart", "")
        known = name in carts
        if not known:
            name = secrets.token_urlsafe()
        items = carts.setdefault(name, [])
        if item:
            items.append(item)
        response = jsonify(replica=decision(request).server, items=items)
        if not known:
            response.set_cookie("cart", name, path="/cart", httponly=True, samesite="Lax")
        return response

    return cart


backend = Backend("cart", servers=Server.replicas(create_cart, 3), persist=Cookie("SERVERID"))

app = Flask(__name__)
app.wsgi_app = StickyMiddleware(app.wsgi_app, routes={"/cart": backend})  # type: ignore[method-assign]


@app.get("/")
def home() -> Response:
    return jsonify({server.name: server.state for server in backend.servers})


@app.post("/admin/servers/<name>/state")
def set_state(name: str) -> Response:
    token = os.environ.get("ADMIN_TOKEN", "")  # without one configured, all requests are refused
    given = request.headers.get("X-Admin-Token", "")
    if not token or not secrets.compare_digest(given.encode(), token.encode()):
        abort(403)
    try:
        backend[name].state = request.get_json().get("state")
    except KeyError:
        abort(404)
    except ConfigError as error:
        abort(400, str(error))
    return home()
