"""An app that counts the requests of its clients in memory, behind StickyWorkers. STICKY: its options as JSON; `null`
leaves StickyWorkers out.
"""

import json
import os
import signal
import threading
from urllib.parse import parse_qs

from sticky_wsgi.workers.middleware import StickyWorkers

PIECE = b"x" * 65536

counts: dict[str, int] = {}
releases: dict[str, threading.Event] = {}
lock = threading.Lock()
in_flight = 0
most = 0


def counted(client: str) -> int:
    with lock:
        counts[client] = counts.get(client, 0) + 1
        return counts[client]


def released(client: str) -> threading.Event:
    with lock:
        return releases.setdefault(client, threading.Event())


def decision_of(environ):
    """Return the decision that the app finds."""
    decision = environ.get("sticky.decision")
    if decision is None:
        return {}
    return {"server": decision.server, "claim": decision.claim.name, "reason": decision.reason.value}


def forwarded(environ):
    """Return 1 if another worker of gunicorn has forwarded the request, else 0."""
    return int("gunicorn.socket" not in environ)


def rss(field="VmRSS"):
    """Return how much memory this process uses, in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(f"{field}:"))


def inner(environ, start_response):
    """Each page is a function of the client. It returns a dict, which is sent as JSON, or a WSGI body."""
    global in_flight, most
    client = parse_qs(environ["QUERY_STRING"]).get("client", [""])[0]
    with lock:
        in_flight += 1
        most = max(most, in_flight)
    try:
        result = PAGES[environ["PATH_INFO"].split("/")[1]](environ, client, start_response)
    finally:
        with lock:
            in_flight -= 1
    if not isinstance(result, dict):
        return result
    body = json.dumps({**result, "pid": os.getpid(), **decision_of(environ)}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def count(environ, client, start_response):
    return {"n": counted(client)}


def rooms(environ, client, start_response):
    return {"n": counted(environ["PATH_INFO"])}


def stream(environ, client, start_response):
    """Send three events, each with the number of events that the client has received."""
    start_response("200 OK", [("Content-Type", "text/event-stream")])
    return (f"data: {counted(client)}\n\n".encode() for _ in range(3))


def forever(environ, client, start_response):
    """Send events until the client disconnects, which `/left` shows."""
    start_response("200 OK", [("Content-Type", "text/event-stream")])
    counts[f"{client} open"] = 1
    return Forever(client)


class Forever:
    def __init__(self, client):
        self.client = client
        self.pause = threading.Event()

    def __iter__(self):
        while True:
            yield b": here\n\n"
            self.pause.wait(0.05)

    def close(self):
        counts[f"{self.client} left"] = 1


def left(environ, client, start_response):
    return {what: counts.get(f"{client} {what}", 0) for what in ("open", "left", "forwarded")}


def hold(environ, client, start_response):
    """Respond when `/release` is called, or when the client has disconnected."""
    counts[f"{client} forwarded"] = forwarded(environ)
    counts[f"{client} open"] = 1
    gone = environ.get("waitress.client_disconnected", lambda: False)
    while not released(client).wait(0.02):
        if gone():
            counts[f"{client} left"] = 1
            break
    return {"n": counted(client)}


def release(environ, client, start_response):
    released(client).set()
    return {}


def work(environ, client, start_response):
    """Take as long as the query's `seconds` says."""
    counts[f"{client} open"] = 1
    threading.Event().wait(float(parse_qs(environ["QUERY_STRING"])["seconds"][0]))
    return {"n": counted(client)}


def length(environ, client, start_response):
    size = 0
    while piece := environ["wsgi.input"].read(65536):
        size += len(piece)
    return {"size": size, "forwarded": forwarded(environ)}


def lines(environ, client, start_response):
    return {"lines": [line.decode() for line in environ["wsgi.input"]]}


def large(environ, client, start_response):
    pieces = int(parse_qs(environ["QUERY_STRING"])["size"][0]) // len(PIECE)
    start_response(
        "200 OK",
        [
            ("Content-Type", "text/plain"),
            ("Content-Length", str(pieces * len(PIECE))),
            ("X-Forwarded-By-Peer", str(forwarded(environ))),
        ],
    )
    return (PIECE for _ in range(pieces))


def echo(environ, client, start_response):
    plain = {name: value for name, value in environ.items() if isinstance(value, (str, bool))}
    return {"environ": plain, "body": environ["wsgi.input"].read().decode("latin-1")}


def boom(environ, client, start_response):
    raise RuntimeError("the app is broken")


def half(environ, client, start_response):
    """Raise in the middle of the response."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"half"
    raise RuntimeError("the app is broken")


def fork(environ, client, start_response):
    """Fork a child that does nothing and does not end."""
    child = os.fork()
    if child == 0:
        while True:
            signal.pause()
    return {"child": child}


def memory(environ, client, start_response):
    return {"rss": rss(), "peak": rss("VmHWM"), "most": most}


PAGES = {
    page.__name__: page
    for page in (
        *(
            count,
            rooms,
            stream,
            forever,
            left,
            hold,
            release,
            work,
            length,
            lines,
            large,
            echo,
            boom,
            half,
            fork,
            memory,
        ),
    )
}


def create_app():
    options = json.loads(os.environ.get("STICKY", "{}"))
    return inner if options is None else StickyWorkers(inner, **options)


app = create_app()
