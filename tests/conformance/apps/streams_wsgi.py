"""A WSGI app behind one sticky server with streams that wait for permission: each chunk is sent after a
`POST /go-on`. `/look` responds with what is in flight.
"""

import threading
from collections.abc import Iterator
from itertools import count

from flask import Flask, Response, jsonify

from sticky_wsgi import Backend, Cookie, Server, StickyMiddleware

permissions = threading.Semaphore(0)
closed: list[str] = []

#: Seconds without permission after which the test has ended.
PATIENCE = 300.0


def chunks() -> Iterator[str]:
    try:
        for number in count(1):
            yield f"data: {number}\n\n"
            if not permissions.acquire(timeout=PATIENCE):
                return
    finally:
        closed.append("stream")


def create_app() -> Flask:
    streams = Flask("streams")

    @streams.get("/sticky/hello")
    def hello() -> str:
        return "hello"

    @streams.get("/sticky/stream")
    def stream() -> Response:
        return Response(chunks(), mimetype="text/event-stream")

    return streams


backend = Backend("streams", servers=[Server("s1", factory=create_app)], persist=Cookie("SERVERID"))
app = Flask(__name__)
app.wsgi_app = StickyMiddleware(app.wsgi_app, routes={"/sticky": backend})  # type: ignore[method-assign]


@app.post("/go-on")
def go_on() -> Response:
    permissions.release()
    return look()


@app.get("/look")
def look() -> Response:
    return jsonify(in_flight=len(backend["s1"].in_flight), closed=closed)
