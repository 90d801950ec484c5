"""A WSGI server in a test, and apps that record what they are called with."""

import io
import threading
from types import SimpleNamespace
from typing import ClassVar

from sticky_core.workers.heartbeat import HeartbeatTimeout

SECRET = "a-secret-of-the-worker-tests"
DEADLINE = 300.0  # in seconds, for hangs only


class FakeServer:
    """A WSGI server that serves one request at a time, and keeps the cookie of the last response that sets one."""

    def __init__(self, app, **variables):
        self.app = app
        self.variables = variables
        self.cookie = None

    def environ(self, path="/", query="", method="GET", body=b"", **more):
        environ = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "192.0.2.7",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            **self.variables,
            **more,
        }
        if body and "HTTP_TRANSFER_ENCODING" not in environ:
            environ["CONTENT_LENGTH"] = str(len(body))
        return environ

    def open(self, environ):
        """Call the app, and return the head of the response and its iterable."""
        response = SimpleNamespace(status="", headers=[], written=[], body=None)

        def start_response(status, headers, exc_info=None):
            response.status, response.headers = status, headers
            return response.written.append

        response.body = self.app(environ, start_response)
        return response

    def request(self, path="/", query="", method="GET", body=b"", **more):
        """Call the app, read the response to its end, and return it."""
        response = self.open(self.environ(path, query, method, body, **more))
        try:
            items = list(response.body)
        finally:
            close(response.body)
        response.data = b"".join((*response.written, *items))
        for name, value in response.headers:
            if name.lower() == "set-cookie":
                self.cookie = value.partition(";")[0]
        return response


def close(body):
    getattr(body, "close", lambda: None)()


class RecordingApp:
    """An app that keeps the environs that it was called with, and responds with the function `respond`."""

    def __init__(self, respond=lambda environ, start_response: respond(start_response)):
        self.respond = respond
        self.seen = []

    def __call__(self, environ, start_response):
        self.seen.append(environ)
        return self.respond(environ, start_response)


class HoldingApp:
    """An app that counts the requests inside, and holds those to paths other than `/` until `gate` is set."""

    def __init__(self):
        self.gate = threading.Event()
        self.inside = self.most = 0
        self._lock = threading.Lock()

    def __call__(self, environ, start_response):
        if environ["PATH_INFO"] == "/":
            return respond(start_response)
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        try:
            assert self.gate.wait(DEADLINE)
        finally:
            with self._lock:
                self.inside -= 1
        return respond(start_response)


class Beats:
    """Takes the heartbeats of a worker, and calls `then` at the third."""

    def __init__(self, then=lambda: None):
        self.then = then
        self.threads = []

    def __call__(self):
        self.threads.append(threading.get_ident())
        if len(self.threads) == 3:
            self.then()


class SeenRule(HeartbeatTimeout):
    """A timeout that keeps since when the app has worked on requests of peers, each time that a worker asks."""

    seen: ClassVar[list[list[float]]] = []

    def is_over(self, in_app_since, now):
        self.seen.append(list(in_app_since))
        return super().is_over(in_app_since, now)


def respond(start_response, *items, status="200 OK"):
    start_response(status, [("Content-Type", "text/plain")])
    return list(items)


def listed(environ, start_response):
    return respond(start_response, b"one ", b"", b"two")


def wait_until(condition, what):
    waiting = threading.Event()
    for _ in range(int(DEADLINE / 0.01)):
        if condition():
            return
        waiting.wait(0.01)
    raise AssertionError(f"did not happen: {what}")


def run_together(*calls):
    """Call all at the same time, in threads, and wait for them."""
    threads = [threading.Thread(target=call) for call in calls]
    for each in threads:
        each.start()
    for each in threads:
        each.join(DEADLINE)
    assert not any(each.is_alive() for each in threads)
