"""A Flask app with sessions in memory, behind StickyWorkers. STICKY: `null` leaves it out."""

import os
import secrets

from flask import Flask, session

from sticky_wsgi.workers.middleware import StickyWorkers

carts: dict[str, list[str]] = {}

app = Flask(__name__)
app.secret_key = os.environ["STICKY_SECRET"]


@app.post("/cart/<item>")
def put(item):
    if "id" not in session:
        session["id"] = secrets.token_hex(8)
        carts[session["id"]] = []
    carts[session["id"]].append(item)  # KeyError if another worker has the cart
    return {"items": len(carts[session["id"]]), "pid": os.getpid()}


@app.get("/left")
def left():
    return {"pid": os.getpid()}


if os.environ.get("STICKY") != "null":
    app.wsgi_app = StickyWorkers(app.wsgi_app)  # type: ignore[method-assign]
