"""The other way: a Flask app that keeps its sessions in Redis or Valkey (Flask-Session), so that any of its replicas
serves any client, and nothing has to stick. Each request pays for that with a read from the store, and with writing the
session back; with sticky sessions it stays in memory, and is lost with its replica.

    pip install Flask-Session redis gunicorn
    REDIS_URL=redis://localhost:6379 gunicorn --chdir examples --threads 8 database_sessions_flask:app

    curl -c jar -b jar -X POST localhost:8000/cart/tea     # again and again: another replica each time, one cart

To go from one way to the other, client by client: run this app on the servers that the clients stick to now. A client
with a session in the store does not need its server any more; when the last session in memory has expired, leave
`persist` out.
"""

import os

from flask import Flask, Response, jsonify, request, session
from flask_session import Session  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]
from redis import Redis

from sticky_wsgi import Backend, Dispatcher, Server, decision


def create_app() -> Flask:
    app = Flask("cart")
    url = os.environ.get("REDIS_URL", "redis://localhost:6379")
    app.config["SESSION_TYPE"] = "redis"
    app.config["SESSION_REDIS"] = Redis.from_url(url)  # pyright: ignore[reportUnknownMemberType]
    app.config["SESSION_COOKIE_SAMESITE"] = "Lax"
    app.config["SESSION_COOKIE_SECURE"] = "HTTPS" in os.environ
    app.config["PERMANENT_SESSION_LIFETIME"] = 3600
    Session(app)

    @app.get("/cart")
    @app.post("/cart/<item>")
    def cart(item: str = "") -> Response:
        items: list[str] = session.setdefault("items", [])
        if item:
            # a new list, so that the session counts as changed
            session["items"] = items = [*items, item]
        return jsonify(replica=decision(request).server, items=items)

    return app


backend = Backend("cart", servers=Server.replicas(create_app, 3))  # without `persist`

app = Dispatcher(backend)
