"""A Flask app with sessions in memory, behind StickyWorkers. STICKY: its options as JSON; `null` leaves it
out.
"""

import json
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


options = json.loads(os.environ.get("STICKY", "{}"))
if options is not None:
    app.wsgi_app = StickyWorkers(app.wsgi_app, **options)  # type: ignore[method-assign]
