"""A Flask-SocketIO server as in its documentation, in threads, behind StickyWorkers. STICKY: `null` leaves it out."""

import os

from flask import Flask, request
from flask_socketio import SocketIO  # type: ignore[import-untyped]

from sticky_wsgi.workers.middleware import StickyWorkers

app = Flask(__name__)
# Polling only: an upgrade to WebSocket takes over gunicorn's socket, which no other worker has. The short interval is
# for clients that disconnect, which wait for the next ping.
sockets = SocketIO(app, async_mode="threading", transports=["polling"], ping_interval=2, engineio_logger=True)
names: dict[str, str] = {}


@sockets.on("name")
def name(text):
    names[request.sid] = text  # type: ignore[attr-defined]


@sockets.on("get name")
def get_name():
    return {"name": names[request.sid], "pid": os.getpid()}  # type: ignore[attr-defined]


@app.get("/left")
def left():
    return {"pid": os.getpid()}


if os.environ.get("STICKY") != "null":
    app.wsgi_app = StickyWorkers(app.wsgi_app)  # type: ignore[method-assign]
