"""A Flask-SocketIO server as its documentation has it, in threads, behind StickyWorkers. STICKY: `null` leaves that
out.
"""

import os

from flask import Flask, request
from flask_socketio import SocketIO  # type: ignore[import-untyped]

from sticky_wsgi.workers.middleware import StickyWorkers

app = Flask(__name__)
# An upgrade takes gunicorn's own socket over, which no other worker has. A client that has said goodbye waits for the
# next ping.
sockets = SocketIO(app, async_mode="threading", transports=["polling"], ping_interval=2, engineio_logger=True)
names: dict[str, str] = {}


@sockets.on("name")
def name(text):
    names[request.sid] = text  # type: ignore[attr-defined]


@sockets.on("who")
def who():
    return {"name": names[request.sid], "pid": os.getpid()}  # type: ignore[attr-defined]


@app.get("/left")
def left():
    return {"pid": os.getpid()}


if os.environ.get("STICKY") != "null":
    app.wsgi_app = StickyWorkers(app.wsgi_app)  # type: ignore[method-assign]
