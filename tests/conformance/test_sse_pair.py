"""MCP's pair of a stream and the messages that belong to it, under several workers and without cookies: the id of the
session is in the body of the stream, and nowhere else.
"""

import json
from contextlib import ExitStack
from dataclasses import replace

import pytest

WORKERS = "uvicorn --workers 4 --no-access-log sse_pair_asgi:app"
KEY = {"key": "url_param(session_id)", "cookie": None}
LEARN = {**KEY, "learn": "res.sse_endpoint(session_id)"}


@pytest.fixture
def started(serve, until):
    def started(**options):
        served = serve(*WORKERS.split(), variables={"STICKY": json.dumps(options)})
        until(lambda: served.output.count("Application startup complete") == 4, "all workers")
        served.kind = replace(served.kind, exit_code=0, always_prints=("ResourceWarning",))
        return served

    return started


class McpClient:
    """A client with an open stream, and the target of its messages; it has no cookies."""

    def __init__(self, served, stack):
        self._served = served
        self._stream = served.client().open("/sse")
        stack.callback(self._stream.close)
        self._stream.read_until(b"event: endpoint\r\n")
        self._target = self._data()
        self._count = 0

    def _data(self):
        self._stream.read_until(b"data: ")
        return self._stream.read_until(b"\r\n\r\n").decode().strip()

    def exchange(self, text):
        """Send a message. Return whether it was accepted and has come back, with the number that it must have."""
        response = self._served.client().request(self._target, "POST", body=text.encode())
        if response.status != 202:
            return False
        self._count += 1
        number, _, received = self._data().split(" ", 2)
        return (int(number), received) == (self._count, text)


def exchange_all(served, clients=20, messages=5):
    """Return how many exchanges succeed, of so many clients with so many messages each."""
    with ExitStack() as stack:
        opened = [McpClient(served, stack) for _ in range(clients)]
        return sum(client.exchange(f"message {number}") for number in range(messages) for client in opened)


def test_messages_of_all_streams_arrive_and_without_learn_most_are_refused(started):
    assert exchange_all(started(**LEARN)) == 100
    without = started(**KEY)
    assert exchange_all(without, clients=60, messages=1) < 36
    assert "if the app issues keys in the body of a response, pass a sample that finds them there" in without.output
